"""A detector of one's own, adapter and network in one file: one level of points, each with classes and a box.

    scripts/train.py --cfg examples/point_student.yaml --adapter examples/point_detector.py

Every 8 pixels there is a point. It predicts the logits of C classes and the distances to the left, top, right and
bottom of its object's box. docs/own_detector.md walks through this file.
"""

from __future__ import annotations

from collections.abc import Sequence
from typing import Any

import torch
from torch import Tensor, nn
from torchvision.models.detection.transform import GeneralizedRCNNTransform

from gid_cuda.config import InputConfig, ModelConfig
from gid_cuda.detectors import dense_losses
from gid_cuda.detectors.giou import giou_loss
from gid_cuda.detectors.outputs import (
    BoxCoder,
    ClassRows,
    Detector,
    DetectorOutputs,
    GeneralInstances,
    ImageList,
    Target,
)
from gid_cuda.detectors.postprocess import detect
from gid_cuda.normalisers import global_normalisers
from gid_cuda.ops import class_losses

STRIDE = 8  # pixels from point to point
SIDE = 32.0  # pixels: of the anchor around each point, the unit of the predicted distances


def build_detector(model: ModelConfig, input: InputConfig, classes: list[str]) -> Detector:
    """What the package calls; it loads `model.weights` afterwards. `model.options` are this file's own keys."""
    return PointDetector(model, input, len(classes), **model.options)


class PointDetector(Detector):
    """width: channels. depth: residual blocks at stride 8."""

    def __init__(self, model: ModelConfig, input: InputConfig, classes: int, width: int = 32, depth: int = 4) -> None:
        super().__init__()
        self.num_classes, self.out_channels = classes, width
        self.class_rows = [ClassRows("logits")]  # so that weights fit whatever the order of the classes
        self.score_thresh = 0.05 if model.score_thresh is None else model.score_thresh
        self.nms_thresh = 0.5 if model.nms_thresh is None else model.nms_thresh
        self.detections_per_img = model.detections_per_img or 100
        self.transform = GeneralizedRCNNTransform(
            tuple(input.min_size), input.max_size, list(input.mean), list(input.std)
        )
        down = [_conv(3, width // 2, stride=2), _conv(width // 2, width, stride=2), _conv(width, width, stride=2)]
        self.body = nn.Sequential(*down, *[_Block(width, dilation=1 + i % 4) for i in range(depth)])
        self.logits = nn.Conv2d(width, classes, 3, padding=1)
        self.distances = nn.Conv2d(width, 4, 3, padding=1)
        nn.init.constant_(self.logits.bias, -4.0)  # most points are background

    def forward(self, images: ImageList, targets: Sequence[Target | None] | None = None) -> DetectorOutputs:
        features = self.body(images.tensors)
        outputs = DetectorOutputs(
            features=[features],
            strides=[STRIDE],
            logits=self.logits(features).flatten(2).transpose(1, 2),
            deltas=nn.functional.softplus(self.distances(features).float()).flatten(2).transpose(1, 2),
            coder=BoxCoder("distances"),
            anchors=_anchors(*features.shape[-2:], images.tensors.device),
            image_sizes=torch.tensor(images.image_sizes, dtype=torch.int64).to(images.tensors.device),
        )
        if targets is not None:
            outputs.losses = self._task_losses(outputs, targets)
        return outputs

    def _task_losses(self, outputs: DetectorOutputs, targets: Sequence[Target | None]) -> dict[str, Tensor]:
        """Focal loss of all points and GIoU loss of those in an object, over the number of the latter."""
        truth = dense_losses.join_targets(targets, outputs.logits.device)
        slots = torch.arange(truth.boxes.shape[1], device=truth.boxes.device)
        matched = _owners(truth.boxes, slots < truth.counts[:, None], outputs.anchors)
        matched = matched.masked_fill(truth.counts[:, None] < 0, -2)  # unlabelled: left out, not background
        found = matched >= 0
        share = 1.0 / global_normalisers(found.sum())[0]  # of all processes
        focal, _ = class_losses(outputs.logits, matched=matched, labels=truth.labels)
        boxes = outputs.coder.decode(outputs.deltas, outputs.anchors)
        objects = torch.cat([truth.boxes.new_zeros(len(truth.boxes), 1, 4), truth.boxes], dim=1)
        wanted = objects.gather(1, (matched + 1).clamp(min=0)[..., None].expand(-1, -1, 4))
        giou = giou_loss(boxes, torch.where(found[..., None], wanted, boxes.detach()))
        return {"classification": focal.sum() * share, "bbox_regression": giou.where(found, 0.0).sum() * share}

    @torch.no_grad()
    def assign(self, instances: GeneralInstances, outputs: DetectorOutputs) -> Tensor:
        return _owners(instances.boxes, instances.valid, outputs.anchors) >= 0

    def response_losses(
        self, student: DetectorOutputs, teacher: DetectorOutputs, mask: Tensor
    ) -> tuple[Tensor, Tensor]:
        return dense_losses.response_losses(student, teacher, mask)

    @torch.no_grad()
    def predict(self, images: Sequence[Tensor]) -> list[dict[str, Any]]:
        batch, _ = self.transform(list(images))
        outputs = self(batch)
        found = detect(
            outputs, [outputs.logits.shape[1]], score_thresh=self.score_thresh, nms_thresh=self.nms_thresh,
            topk_candidates=1000, detections_per_img=self.detections_per_img,
        )  # fmt: skip
        return self.transform.postprocess(found, batch.image_sizes, [tuple(image.shape[-2:]) for image in images])


class _Block(nn.Module):
    """Sees further the larger the dilation."""

    def __init__(self, width: int, dilation: int) -> None:
        super().__init__()
        self.first, self.second = _conv(width, width, dilation=dilation), _conv(width, width, dilation=dilation)

    def forward(self, x: Tensor) -> Tensor:
        return x + self.second(self.first(x))


def _conv(ins: int, outs: int, stride: int = 1, dilation: int = 1) -> nn.Sequential:
    conv = nn.Conv2d(ins, outs, 3, stride, padding=dilation, dilation=dilation, bias=False)
    return nn.Sequential(conv, nn.BatchNorm2d(outs), nn.ReLU())


def _anchors(rows: int, columns: int, device: torch.device) -> Tensor:
    """(R, 4) float32: a square around each point."""
    y, x = torch.meshgrid(torch.arange(rows, device=device), torch.arange(columns, device=device), indexing="ij")
    points = (torch.stack([x, y], dim=-1).flatten(0, 1) + 0.5) * STRIDE
    return torch.cat([points - SIDE / 2, points + SIDE / 2], dim=1)


def _owners(boxes: Tensor, valid: Tensor, anchors: Tensor) -> Tensor:
    """boxes (B, N, 4), valid (B, N) bool -> (B, R): the smallest box with the point in its middle half; -1: none."""
    points = (anchors[:, :2] + anchors[:, 2:]) / 2
    center, size = (boxes[..., :2] + boxes[..., 2:]) / 2, boxes[..., 2:] - boxes[..., :2]
    inside = ((points - center[..., None, :]).abs() < size[..., None, :] / 4).all(dim=-1) & valid[..., None]
    area = size.prod(dim=-1)[..., None].masked_fill(~inside, torch.inf)  # (B, N, R)
    none = area.new_full((len(area), 1, area.shape[-1]), 1e12)
    return torch.cat([none, area], dim=1).argmin(dim=1) - 1
