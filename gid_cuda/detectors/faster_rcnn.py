"""Faster R-CNN as distillation sees it: its RPN, from torchvision's model with one pass for features, heads and losses.

Distillation looks at the proposals before the second stage (C = 1, objectness), which are one to one in teacher and
student; the RoI heads are trained and used for detections as ever.
"""

from __future__ import annotations

from collections.abc import Iterator, Sequence
from contextlib import contextmanager
from typing import Any, Literal

import torch
from torch import Tensor, nn
from torchvision.models.detection import FasterRCNN as TorchvisionFasterRCNN
from torchvision.models.detection.anchor_utils import AnchorGenerator
from torchvision.models.detection.roi_heads import fastrcnn_loss
from torchvision.models.detection.rpn import concat_box_prediction_layers
from torchvision.ops import MultiScaleRoIAlign

from gid_cuda.detectors import dense_losses
from gid_cuda.detectors.aligned_rois import AlignedRoIAlign, ShiftedRoIAlign
from gid_cuda.detectors.backbones import PYRAMID_STRIDES
from gid_cuda.detectors.outputs import BoxCoder, ClassRows, DetectorOutputs, GeneralInstances, ImageList, Target
from gid_cuda.detectors.torchvision_base import (
    ExactAnchors,
    TorchvisionDetector,
    check_targets_fit,
    empty_sum,
    grid_anchors,
    sizes_tensor,
)
from gid_cuda.normalisers import process_count, shares_of_means
from gid_cuda.ops import match_anchors

DEFAULT_ANCHOR_SIZES = (32, 64, 128, 256, 512)
RESPONSE_SMOOTH_L1_BETA = 1 / 9  # of torchvision's own RPN loss
ASSIGN_IOU = 0.7  # torchvision's rpn_fg_iou_thresh

Features = dict[str, Tensor]
"""P2..P6 by torchvision's names "0", "1", "2", "3", "pool"; the RoI heads read the first four."""


class FasterRCNN(TorchvisionDetector, TorchvisionFasterRCNN):
    """torchvision's Faster R-CNN behind the `Detector` interface; state-dict keys are torchvision's own.

    `DetectorOutputs` are the RPN's: levels P2..P6, logits (B, R, 1) objectness, deltas of the proposals. Task losses
    are torchvision's, by its names: "loss_objectness", "loss_rpn_box_reg", "loss_classifier" and "loss_box_reg". They
    draw their samples from torch's generator as torchvision does, so losses of one batch differ from call to call.
    Without targets the RoI heads are not run. Under autocast the networks run in low precision; anchors, decoding,
    sampling and losses stay float32.

    backbone: gives the levels P2..P6 (P6 pooled, named "pool") and has `out_channels`.
    num_classes: C, without background, which is row 0 of the box predictor's C + 1.
    anchor_sizes: pixels, one a level, each at 3 ratios. exact_anchors, aligned_rois: see `ExactAnchors` and
    `AlignedRoIAlign`. response_cls, response_smooth_l1_beta: see `response_losses`.
    options: torchvision's own, e.g. min_size, max_size, image_mean, image_std, rpn_post_nms_top_n_test,
        box_score_thresh, box_nms_thresh, box_detections_per_img.
    """

    networks = ("backbone", "rpn.head", "roi_heads.box_head")
    family = "two-stage"

    def __init__(
        self,
        backbone: nn.Module,
        num_classes: int,
        *,
        anchor_sizes: Sequence[int] = DEFAULT_ANCHOR_SIZES,
        exact_anchors: bool = False,
        aligned_rois: bool = False,
        response_cls: Literal["bce", "focal"] = "bce",
        response_smooth_l1_beta: float = RESPONSE_SMOOTH_L1_BETA,
        **options: Any,
    ) -> None:
        options.setdefault("box_roi_pool", _roi_pool(aligned=aligned_rois))
        anchors = _anchor_generator(anchor_sizes, exact=exact_anchors)
        super().__init__(backbone, num_classes + 1, rpn_anchor_generator=anchors, **options)
        self.num_classes = num_classes
        self.out_channels = backbone.out_channels
        self.response_cls = response_cls
        self.response_smooth_l1_beta = response_smooth_l1_beta
        self.class_rows = [
            ClassRows("roi_heads.box_predictor.cls_score", background=True),
            ClassRows("roi_heads.box_predictor.bbox_pred", each=4, background=True),
        ]

    def forward(self, images: ImageList, targets: Sequence[Target | None] | None = None) -> DetectorOutputs:
        """One pass: features, RPN and, where targets are given, RoI heads and task losses; see `Detector.forward`.

        Ground truth without area, which torchvision refuses, is left out.
        """
        features, outputs = self._run_rpn(images)
        if targets is not None:
            outputs.losses = self._task_losses(features, outputs, images.image_sizes, targets)
        return outputs

    def _run_rpn(self, images: ImageList) -> tuple[Features, DetectorOutputs]:
        features = self.backbone(images.tensors)
        levels = list(features.values())
        logits, deltas = concat_box_prediction_layers(*self.rpn.head(levels))  # (B * R, 1) and (B * R, 4)
        outputs = DetectorOutputs(
            features=levels,
            strides=list(PYRAMID_STRIDES["P2-P6"]),
            logits=logits.unflatten(0, (len(images.tensors), -1)),
            deltas=deltas.unflatten(0, (len(images.tensors), -1)),
            coder=BoxCoder("deltas", self.rpn.box_coder.weights),
            anchors=grid_anchors(self.rpn.anchor_generator, images, levels),
            image_sizes=sizes_tensor(images),
        )
        return features, outputs

    @torch.no_grad()
    def _proposals(
        self, outputs: DetectorOutputs, image_sizes: list[tuple[int, int]], *, training: bool
    ) -> list[Tensor]:
        """The RPN's boxes for the RoI heads, per image (N, 4) float32; training: as many as torchvision trains with."""
        # Not outputs.boxes: selection decodes by itself as long as these are not there.
        boxes = outputs.coder.decode(outputs.deltas, outputs.anchors)
        anchors_per_cell = self.rpn.anchor_generator.num_anchors_per_location()
        level_sizes = [
            feature.shape[-2] * feature.shape[-1] * anchors
            for feature, anchors in zip(outputs.features, anchors_per_cell, strict=True)
        ]
        with _training_mode(self.rpn, training):
            return self.rpn.filter_proposals(boxes, outputs.logits.float(), image_sizes, level_sizes)[0]

    def _run_roi_heads(
        self, features: Features, rois: list[Tensor], image_sizes: list[tuple[int, int]]
    ) -> tuple[Tensor, Tensor]:
        """rois: per image (N, 4) -> class logits (sum of N, C + 1) and deltas (sum of N, 4 * (C + 1)), float32."""
        heads = self.roi_heads
        class_logits, deltas = heads.box_predictor(heads.box_head(heads.box_roi_pool(features, rois, image_sizes)))
        return class_logits.float(), deltas.float()

    def _task_losses(
        self,
        features: Features,
        outputs: DetectorOutputs,
        image_sizes: list[tuple[int, int]],
        targets: Sequence[Target | None],
    ) -> dict[str, Tensor]:
        """torchvision's four losses over the labelled images; what has no sample is a zero that reaches its head.

        An unlabelled image gives no sample to either stage; the means of both are over samples, those of all processes.
        """
        check_targets_fit(targets, outputs)
        labelled = [target is not None for target in targets]
        known = [_inner_target(target, self.num_classes, outputs.anchors.device) for target in targets]
        with torch.autocast(outputs.logits.device.type, enabled=False):
            objectness, rpn_box_reg, anchors_drawn = self._rpn_losses(outputs, known, labelled)
            proposals = self._proposals(outputs, image_sizes, training=True)
            proposals = [boxes if use else boxes[:0] for boxes, use in zip(proposals, labelled, strict=True)]
            rois, _, labels, box_targets = self.roi_heads.select_training_samples(proposals, known)
        class_logits, deltas = self._run_roi_heads(features, rois, image_sizes)
        with torch.autocast(outputs.logits.device.type, enabled=False):
            if len(class_logits):
                classifier, box_reg = fastrcnn_loss(class_logits, deltas, labels, box_targets)
            else:
                classifier, box_reg = empty_sum(class_logits), empty_sum(deltas)
        if process_count() > 1:
            rois_drawn = torch.full_like(anchors_drawn, len(class_logits))
            of_anchors, of_rois = shares_of_means(anchors_drawn, rois_drawn)
            objectness, rpn_box_reg = objectness * of_anchors, rpn_box_reg * of_anchors
            classifier, box_reg = classifier * of_rois, box_reg * of_rois
        return {
            "loss_objectness": objectness,
            "loss_rpn_box_reg": rpn_box_reg,
            "loss_classifier": classifier,
            "loss_box_reg": box_reg,
        }

    def _rpn_losses(
        self, outputs: DetectorOutputs, targets: list[Target], labelled: list[bool]
    ) -> tuple[Tensor, Tensor, Tensor]:
        """Objectness, boxes, and how many anchors they are the means of, 0-dim int64."""
        if not any(labelled):
            none = torch.zeros((), dtype=torch.int64, device=outputs.logits.device)
            return empty_sum(outputs.logits), empty_sum(outputs.deltas), none
        anchors = [outputs.anchors] * len(targets)
        labels, boxes = self.rpn.assign_targets_to_anchors(anchors, targets)
        labels = [  # -1: never sampled
            found if use else torch.full_like(found, -1.0) for found, use in zip(labels, labelled, strict=True)
        ]
        box_targets = self.rpn.box_coder.encode(boxes, anchors)
        logits, deltas = outputs.logits.flatten(0, 1).float(), outputs.deltas.flatten(0, 1).float()
        return *self.rpn.compute_loss(logits, deltas, labels, box_targets), self._anchors_drawn(labels)

    def _anchors_drawn(self, labels: list[Tensor]) -> Tensor:
        """How many the RPN's sampler takes of these: 1 positive, 0 negative, -1 neither."""
        sampler, found = self.rpn.fg_bg_sampler, torch.stack(labels)
        most = sampler.batch_size_per_image
        positive = (found >= 1).sum(dim=1).clamp(max=int(most * sampler.positive_fraction))
        return (positive + torch.minimum((found == 0).sum(dim=1), most - positive)).sum()

    @torch.no_grad()
    def assign(self, instances: GeneralInstances, outputs: DetectorOutputs) -> Tensor:
        """Anchors with IoU >= 0.7 to a GI, and every anchor that ties a GI's best IoU, if that is > 0; (B, R) bool.

        The RPN's matcher with the GIs as ground truth, except that its low-quality matches may have IoU 0.
        """
        boxes = instances.boxes.float()
        return match_anchors(boxes, instances.counts, outputs.anchors, high=ASSIGN_IOU, low=ASSIGN_IOU) >= 0

    def response_losses(
        self, student: DetectorOutputs, teacher: DetectorOutputs, mask: Tensor
    ) -> tuple[Tensor, Tensor]:
        """(cls, reg) of objectness and the proposals' deltas, sums over the masked boxes; see `dense_losses`."""
        return dense_losses.response_losses(
            student, teacher, mask, kind=self.response_cls, beta=self.response_smooth_l1_beta
        )

    def detect(self, images: ImageList) -> list[dict[str, Tensor]]:
        features, outputs = self._run_rpn(images)
        proposals = self._proposals(outputs, images.image_sizes, training=False)
        class_logits, deltas = self._run_roi_heads(features, proposals, images.image_sizes)
        found = self.roi_heads.postprocess_detections(class_logits, deltas, proposals, images.image_sizes)
        return [
            {"boxes": boxes, "scores": scores, "labels": labels - 1}  # without background
            for boxes, scores, labels in zip(*found, strict=True)
        ]


def _inner_target(target: Target | None, classes: int, device: torch.device) -> Target:
    """A target as torchvision's R-CNN takes it: background is class 0. None: nothing."""
    if target is None:
        return dense_losses.no_boxes(device)
    boxes, labels = target["boxes"].float(), target["labels"]
    dense_losses.check_labels(labels, classes)
    with_area = (boxes[:, 2:] > boxes[:, :2]).all(dim=1)  # others have an encoding of -inf
    return {"boxes": boxes[with_area], "labels": labels[with_area] + 1}


def _anchor_generator(sizes: Sequence[int], *, exact: bool) -> AnchorGenerator:
    """torchvision's default scheme, one scale and three ratios a level, for any sizes."""
    if exact:
        return ExactAnchors([[size] for size in sizes], PYRAMID_STRIDES["P2-P6"])
    return AnchorGenerator(tuple((size,) for size in sizes), ((0.5, 1.0, 2.0),) * len(sizes))


def _roi_pool(*, aligned: bool) -> MultiScaleRoIAlign:
    kind = AlignedRoIAlign if aligned else ShiftedRoIAlign
    return kind(["0", "1", "2", "3"], PYRAMID_STRIDES["P2-P6"][:4])


@contextmanager
def _training_mode(module: nn.Module, training: bool) -> Iterator[None]:
    """Sets `module.training` alone, not that of its parts, and puts back what it was."""
    before = module.training
    module.training = training
    try:
        yield
    finally:
        module.training = before
