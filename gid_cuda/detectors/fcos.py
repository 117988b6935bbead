"""FCOS as distillation sees it: torchvision's model with one forward pass for features, heads and losses."""

from __future__ import annotations

from collections.abc import Sequence
from typing import Any, Literal

import torch
from torch import Tensor, nn
from torchvision.models.detection import FCOS as TorchvisionFCOS
from torchvision.models.detection.anchor_utils import AnchorGenerator
from torchvision.models.detection.fcos import FCOSHead

from gid_cuda.detectors import dense_losses, fcos_losses
from gid_cuda.detectors.backbones import PYRAMID_STRIDES
from gid_cuda.detectors.fcos_losses import FCOSOutputs
from gid_cuda.detectors.outputs import BoxCoder, ClassRows, DetectorOutputs, GeneralInstances, ImageList, Target
from gid_cuda.detectors.postprocess import detect
from gid_cuda.detectors.torchvision_base import (
    TorchvisionDetector,
    check_targets_fit,
    empty_sum,
    grid_anchors,
    sizes_tensor,
)
from gid_cuda.normalisers import process_count, shares_of_means

DEFAULT_HEAD_DEPTH = 4
GROUPS = 32  # of the group norm in torchvision's heads


class FCOS(TorchvisionDetector, TorchvisionFCOS):
    """torchvision's FCOS behind the `Detector` interface; state-dict keys are torchvision's own.

    Task losses are torchvision's, by its names: "classification" (focal), "bbox_regression" (GIoU) and "bbox_ctrness",
    sums divided by the foreground locations of all labelled images, of all processes; computed without a wait for the
    device, or by torchvision itself where fused_losses is False. Under autocast the network runs in low precision;
    anchors, decoding and losses stay float32. `anchors` are one square a location, as wide as its level's stride: no
    more than the location and the unit of the deltas.

    backbone: gives the levels P3..P7 and has `out_channels`, a multiple of 32 (group norm in the heads).
    num_classes: C, without background. head_depth: 3x3 convolutions of each head. response_cls: see `response_losses`.
    fused_losses: see above; the values differ by float32 rounding.
    options: torchvision's own, e.g. min_size, max_size, image_mean, image_std, score_thresh, nms_thresh,
        detections_per_img.
    """

    networks = ("backbone", "head")
    family = "anchor-free"

    def __init__(
        self,
        backbone: nn.Module,
        num_classes: int,
        *,
        head_depth: int = DEFAULT_HEAD_DEPTH,
        response_cls: Literal["bce", "focal"] = "bce",
        fused_losses: bool = True,
        **options: Any,
    ) -> None:
        strides = PYRAMID_STRIDES["P3-P7"]
        generator = AnchorGenerator(tuple((stride,) for stride in strides), ((1.0,),) * len(strides))
        head = FCOSHead(backbone.out_channels, 1, num_classes, head_depth)
        for branch in (head.classification_head, head.regression_head):
            for index, layer in enumerate(branch.conv):
                if isinstance(layer, nn.GroupNorm):
                    branch.conv[index] = _GroupNorm(layer.num_groups, layer.num_channels)
        super().__init__(backbone, num_classes, anchor_generator=generator, head=head, **options)
        self.num_classes = num_classes
        self.out_channels = backbone.out_channels
        self.response_cls = response_cls
        self.fused_losses = fused_losses
        self.class_rows = [ClassRows("head.classification_head.cls_logits")]

    def forward(self, images: ImageList, targets: Sequence[Target | None] | None = None) -> FCOSOutputs:
        """One pass: features, heads and, where targets are given, task losses; see `Detector.forward`."""
        features = list(self.backbone(images.tensors).values())
        head_outputs = self.head(features)
        outputs = FCOSOutputs(
            features=features,
            strides=list(PYRAMID_STRIDES["P3-P7"]),
            logits=head_outputs["cls_logits"],
            deltas=head_outputs["bbox_regression"],
            centerness=head_outputs["bbox_ctrness"],
            coder=BoxCoder("distances"),
            anchors=grid_anchors(self.anchor_generator, images, features),
            image_sizes=sizes_tensor(images),
        )
        if targets is not None:
            outputs.losses = self._task_losses(outputs, targets)
        return outputs

    def _task_losses(self, outputs: FCOSOutputs, targets: Sequence[Target | None]) -> dict[str, Tensor]:
        """torchvision's losses over the labelled images; without any, zeros that still reach every parameter."""
        check_targets_fit(targets, outputs)
        predictions = {
            "cls_logits": outputs.logits,
            "bbox_regression": outputs.deltas,
            "bbox_ctrness": outputs.centerness,
        }
        if self.fused_losses:
            losses, outputs.task = fcos_losses.task_losses(
                outputs, targets, _level_sizes(outputs), radius=self.center_sampling_radius
            )
            return losses
        share = self._share(outputs, targets)
        labelled = [(index, target) for index, target in enumerate(targets) if target is not None]
        if not labelled:
            names = ("classification", "bbox_regression", "bbox_ctrness")
            return {name: empty_sum(x) for name, x in zip(names, predictions.values(), strict=True)}
        with torch.autocast(outputs.logits.device.type, enabled=False):
            head_outputs = {name: torch.stack([x[i].float() for i, _ in labelled]) for name, x in predictions.items()}
            known = [target for _, target in labelled]
            losses = self.compute_loss(known, head_outputs, [outputs.anchors] * len(known), _level_sizes(outputs))
        return {name: loss * share for name, loss in losses.items()} if share is not None else losses

    def _share(self, outputs: FCOSOutputs, targets: Sequence[Target | None]) -> Tensor | None:
        """torchvision divides by the foreground locations of this process; see `shares_of_means`. None on one."""
        if process_count() == 1:
            return None
        truth = dense_losses.join_targets(targets, outputs.logits.device)
        radius = self.center_sampling_radius
        matched = fcos_losses.match_locations(truth, outputs.anchors, _level_sizes(outputs), radius=radius)
        return shares_of_means((matched >= 0).sum())[0]

    @torch.no_grad()
    def assign(self, instances: GeneralInstances, outputs: DetectorOutputs) -> Tensor:
        """The locations of all levels that lie strictly within a GI; (B, R) bool.

        Unlike in training, no part of the box and no level is preferred: GIs are few, and each teaches wherever the
        teacher has something to say about it.
        """
        x, y = (0.5 * (outputs.anchors[:, :2] + outputs.anchors[:, 2:])).unbind(1)  # (R,)
        x0, y0, x1, y1 = instances.boxes.float()[..., None].unbind(2)  # (B, K, 1)
        within = (x > x0) & (x < x1) & (y > y0) & (y < y1)
        return (within & instances.valid[..., None]).any(dim=1)

    def response_losses(
        self, student: DetectorOutputs, teacher: DetectorOutputs, mask: Tensor
    ) -> tuple[Tensor, Tensor]:
        """(cls, reg): sums over the masked locations; see `fcos_losses.response_losses`, also for student.losses."""
        return fcos_losses.response_losses(student, teacher, mask, kind=self.response_cls)

    def detect(self, images: ImageList) -> list[dict[str, Tensor]]:
        outputs = self(images)
        return detect(
            outputs,
            _level_sizes(outputs),
            score_thresh=self.score_thresh,
            nms_thresh=self.nms_thresh,
            topk_candidates=self.topk_candidates,
            detections_per_img=self.detections_per_img,
            centerness=outputs.centerness,
        )


class _GroupNorm(nn.GroupNorm):
    """torch's, also of groups of one number, which become the bias; torch's module refuses a batch of one of these.

    One small image meets that at P7, a single cell, where 32 channels are 32 groups, even when it is only evaluated.
    """

    def forward(self, x: Tensor) -> Tensor:
        return torch.group_norm(x, self.num_groups, self.weight, self.bias, self.eps)


def _level_sizes(outputs: DetectorOutputs) -> list[int]:
    """How many locations each level has, finest first."""
    return [feature.shape[-2] * feature.shape[-1] for feature in outputs.features]
