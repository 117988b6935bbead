"""RetinaNet as distillation sees it: torchvision's model with one forward pass for features, heads and losses."""

from __future__ import annotations

from collections.abc import Sequence
from typing import Any, Literal

import torch
from torch import Tensor, nn
from torchvision.models.detection import RetinaNet as TorchvisionRetinaNet
from torchvision.models.detection.anchor_utils import AnchorGenerator
from torchvision.models.detection.retinanet import RetinaNetHead
from torchvision.ops.misc import Conv2dNormActivation

from gid_cuda.detectors import dense_losses
from gid_cuda.detectors.backbones import PYRAMID_STRIDES
from gid_cuda.detectors.dense_losses import DenseOutputs
from gid_cuda.detectors.outputs import BoxCoder, ClassRows, DetectorOutputs, GeneralInstances, ImageList, Target
from gid_cuda.detectors.postprocess import detect
from gid_cuda.detectors.torchvision_base import (
    ExactAnchors,
    TorchvisionDetector,
    check_targets_fit,
    empty_sum,
    grid_anchors,
    sizes_tensor,
)
from gid_cuda.normalisers import global_images
from gid_cuda.ops import match_anchors

DEFAULT_ANCHOR_SIZES = (32, 64, 128, 256, 512)
RESPONSE_SMOOTH_L1_BETA = 0.1
DEFAULT_HEAD_DEPTH = 4
ASSIGN_IOU = 0.5  # torchvision's fg_iou_thresh


class RetinaNet(TorchvisionDetector, TorchvisionRetinaNet):
    """torchvision's RetinaNet behind the `Detector` interface; state-dict keys are torchvision's own.

    Task losses are torchvision's, by its names: "classification" (focal) and "bbox_regression" (L1), means over the
    labelled images of all processes; computed by fused operators, or by torchvision itself where fused_losses is False.
    Under autocast the network runs in low precision; anchors, decoding and losses stay float32.

    backbone: gives the levels P3..P7 and has `out_channels`.
    num_classes: C, without background. anchor_sizes: pixels, one a level, each at 3 scales and 3 ratios.
    exact_anchors: see `ExactAnchors`. head_depth: 3x3 convolutions of each head.
    response_cls, response_smooth_l1_beta: see `response_losses`.
    fused_losses: see above; the values differ by float32 rounding.
    options: torchvision's own, e.g. min_size, max_size, image_mean, image_std, score_thresh, nms_thresh,
        detections_per_img.
    """

    networks = ("backbone", "head")
    family = "anchor-based"

    def __init__(
        self,
        backbone: nn.Module,
        num_classes: int,
        *,
        anchor_sizes: Sequence[int] = DEFAULT_ANCHOR_SIZES,
        exact_anchors: bool = False,
        head_depth: int = DEFAULT_HEAD_DEPTH,
        response_cls: Literal["bce", "focal"] = "bce",
        response_smooth_l1_beta: float = RESPONSE_SMOOTH_L1_BETA,
        fused_losses: bool = True,
        **options: Any,
    ) -> None:
        generator = _anchor_generator(anchor_sizes, exact=exact_anchors)
        anchors_per_cell = generator.num_anchors_per_location()[0]
        head = RetinaNetHead(backbone.out_channels, anchors_per_cell, num_classes)
        if head_depth != DEFAULT_HEAD_DEPTH:
            for branch in (head.classification_head, head.regression_head):
                branch.conv = _conv_stack(backbone.out_channels, head_depth)
        super().__init__(backbone, num_classes, anchor_generator=generator, head=head, **options)
        self.num_classes = num_classes
        self.out_channels = backbone.out_channels
        self.anchors_per_cell = anchors_per_cell
        self.response_cls = response_cls
        self.response_smooth_l1_beta = response_smooth_l1_beta
        self.fused_losses = fused_losses
        self.class_rows = [ClassRows("head.classification_head.cls_logits", anchors=anchors_per_cell)]

    def forward(self, images: ImageList, targets: Sequence[Target | None] | None = None) -> DetectorOutputs:
        """One pass: features, heads and, where targets are given, task losses; see `Detector.forward`."""
        features = list(self.backbone(images.tensors).values())
        head_outputs = self.head(features)
        outputs = DenseOutputs(
            features=features,
            strides=list(PYRAMID_STRIDES["P3-P7"]),
            logits=head_outputs["cls_logits"],
            deltas=head_outputs["bbox_regression"],
            coder=BoxCoder("deltas", self.box_coder.weights),
            anchors=grid_anchors(self.anchor_generator, images, features),
            image_sizes=sizes_tensor(images),
        )
        if targets is not None:
            outputs.losses = self._task_losses(outputs, targets)
        return outputs

    def _task_losses(self, outputs: DenseOutputs, targets: Sequence[Target | None]) -> dict[str, Tensor]:
        """torchvision's losses over the labelled images; without any, zeros that still reach every parameter."""
        check_targets_fit(targets, outputs)
        if self.fused_losses:
            matcher = self.proposal_matcher
            losses, outputs.task = dense_losses.task_losses(
                outputs,
                targets,
                high=matcher.high_threshold,
                low=matcher.low_threshold,
                low_quality=matcher.allow_low_quality_matches,
            )
            return losses
        labelled = [(index, target) for index, target in enumerate(targets) if target is not None]
        share = len(labelled) / global_images(len(labelled), outputs.logits.device)  # every process asks
        if not labelled:
            return {"classification": empty_sum(outputs.logits), "bbox_regression": empty_sum(outputs.deltas)}
        with torch.autocast(outputs.logits.device.type, enabled=False):
            head_outputs = {  # lists of images, which torchvision iterates over as over a batch
                "cls_logits": [outputs.logits[index].float() for index, _ in labelled],
                "bbox_regression": [outputs.deltas[index].float() for index, _ in labelled],
            }
            known = [target for _, target in labelled]
            losses = self.compute_loss(known, head_outputs, [outputs.anchors] * len(known))
        return {name: loss * share for name, loss in losses.items()}

    @torch.no_grad()
    def assign(self, instances: GeneralInstances, outputs: DetectorOutputs) -> Tensor:
        """Anchors with IoU >= 0.5 to a GI, and every anchor that ties a GI's best IoU, if that is > 0; (B, R) bool.

        torchvision's matcher with the GIs as ground truth, except that its low-quality matches may have IoU 0.
        """
        boxes = instances.boxes.float()
        return match_anchors(boxes, instances.counts, outputs.anchors, high=ASSIGN_IOU, low=ASSIGN_IOU) >= 0

    def response_losses(
        self, student: DetectorOutputs, teacher: DetectorOutputs, mask: Tensor
    ) -> tuple[Tensor, Tensor]:
        """(cls, reg): sums over the masked boxes; see `dense_losses.response_losses`, also for student.losses."""
        return dense_losses.response_losses(
            student, teacher, mask, kind=self.response_cls, beta=self.response_smooth_l1_beta
        )

    def detect(self, images: ImageList) -> list[dict[str, Tensor]]:
        outputs = self(images)
        return detect(
            outputs,
            [feature.shape[-2] * feature.shape[-1] * self.anchors_per_cell for feature in outputs.features],
            score_thresh=self.score_thresh,
            nms_thresh=self.nms_thresh,
            topk_candidates=self.topk_candidates,
            detections_per_img=self.detections_per_img,
        )


def _anchor_generator(sizes: Sequence[int], *, exact: bool) -> AnchorGenerator:
    """torchvision's default scheme, three scales an octave and three ratios, for any sizes."""
    scales = tuple((size, size * 2 ** (1 / 3), size * 2 ** (2 / 3)) for size in sizes)
    if exact:
        return ExactAnchors(scales, PYRAMID_STRIDES["P3-P7"])
    scales = tuple(tuple(int(scale) for scale in level) for level in scales)
    return AnchorGenerator(scales, ((0.5, 1.0, 2.0),) * len(scales))


def _conv_stack(channels: int, depth: int) -> nn.Sequential:
    """The 3x3 convolutions of a head, named and initialised as torchvision's four are."""
    stack = nn.Sequential(*[Conv2dNormActivation(channels, channels, norm_layer=None) for _ in range(depth)])
    for layer in stack.modules():
        if isinstance(layer, nn.Conv2d):
            nn.init.normal_(layer.weight, std=0.01)
            nn.init.zeros_(layer.bias)
    return stack
