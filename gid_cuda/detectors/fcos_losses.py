"""FCOS's losses over all locations, without lists of indices: the task's own and distillation's.

A batch has some 22,000 locations an image at 800 x 1344, a ninth of RetinaNet's boxes: but for the class logits, which
go through the fused operator, dense arithmetic is cheap, and unlike an index list it never makes the host wait.
"""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass, field
from typing import Literal

import torch
from torch import Tensor
from torch.nn.functional import binary_cross_entropy_with_logits, pad

from gid_cuda.detectors.dense_losses import (
    DenseOutputs,
    GroundTruth,
    TaskRecord,
    check_labels,
    check_same,
    class_response,
    join_targets,
    record_of,
)
from gid_cuda.detectors.giou import giou_loss
from gid_cuda.detectors.outputs import DetectorOutputs, Target
from gid_cuda.normalisers import global_normalisers
from gid_cuda.ops import class_losses


@dataclass
class FCOSOutputs(DenseOutputs):
    """`DetectorOutputs` of FCOS. centerness: (B, R, 1) before sigmoid; distillation does not look at it."""

    centerness: Tensor = field(kw_only=True)


def task_losses(
    outputs: FCOSOutputs, targets: Sequence[Target | None], level_sizes: Sequence[int], *, radius: float
) -> tuple[dict[str, Tensor], TaskRecord]:
    """torchvision's FCOS losses: "classification" (focal), "bbox_regression" (GIoU), "bbox_ctrness" (cross-entropy).

    Each is a sum divided by the foreground locations of all labelled images (of all processes, see
    `global_normalisers`), or by 1 where there are none. targets: B dicts, None: unlabelled. level_sizes, radius: see
    `match_locations`. The record is of the classification loss, the one that shares a gradient with distillation.
    Raises ValueError where a label is none of the C classes; on a GPU, which is not waited for, a device-side assertion
    fails.
    """
    truth = join_targets(targets, outputs.logits.device)
    check_labels(truth.labels, outputs.logits.shape[2])
    matched = match_locations(truth, outputs.anchors, level_sizes, radius=radius)
    foreground = matched >= 0
    share = 1.0 / global_normalisers(foreground.sum())[0]
    focal, _ = class_losses(outputs.logits, matched=matched, labels=truth.labels)
    boxes = _boxes_of(truth, matched)
    giou = giou_loss(_decode(outputs, outputs.deltas, foreground), boxes)
    # Other locations get harmless numbers before any arithmetic: 0 times the gradient of a NaN would be NaN.
    centerness = torch.where(foreground, outputs.centerness[..., 0].float(), 0.0)
    entropy = binary_cross_entropy_with_logits(
        centerness, _centerness(boxes, outputs.anchors, foreground), reduction="none"
    )
    losses = {
        "classification": (focal * share).sum(),
        "bbox_regression": torch.where(foreground, giou, 0.0).sum() * share,
        "bbox_ctrness": torch.where(foreground, entropy, 0.0).sum() * share,
    }
    joint = {"classification": losses["classification"]}
    return losses, TaskRecord(truth, matched, focal.detach(), share, {"logits": outputs.logits}, joint)


def response_losses(
    student: DetectorOutputs, teacher: DetectorOutputs, mask: Tensor, *, kind: Literal["bce", "focal"] = "bce"
) -> tuple[Tensor, Tensor]:
    """Eq. 8 of FCOS: (cls, reg), float32 sums over the locations of mask (B, R) bool.

    cls: L_cls of `class_losses`, by `kind`, jointly with the task's where student.losses still has it, which is then
    replaced; see `dense_losses.response_losses`. reg: the GIoU loss between the decoded boxes. Teacher's boxes without
    area say nothing and are skipped. A box equal to the teacher's has loss 0 and gradient 0, both exactly (GIoU's own
    are 1e-7 over the area, and rounding). Gradient goes to the student's logits and deltas alone.
    """
    check_same(student, teacher, mask)
    task = record_of(student)
    focal, cls = class_response(student, teacher, mask, task, kind)
    if task is not None:
        student.losses["classification"] = (focal * task.share).sum()
    ours, theirs = _decode(student, student.deltas, mask), _decode(student, teacher.deltas.detach(), mask)
    counted = mask & (theirs[..., 2:] > theirs[..., :2]).all(dim=-1) & (ours != theirs).any(dim=-1)
    return cls, torch.where(counted, giou_loss(ours, theirs), 0.0).sum()


@torch.no_grad()
def match_locations(truth: GroundTruth, anchors: Tensor, level_sizes: Sequence[int], *, radius: float) -> Tensor:
    """Label assignment of FCOS by torchvision's rule: (B, R) int64, which ground truth a location is for.

    -1: background; -2: the image is unlabelled. A location is for a box that it lies strictly within, whose centre is
    less than `radius` of its level's strides away in x and in y, and whose farthest side is 4 to 8 strides away; of
    several, for the smallest, then for the first.

    anchors: (R, 4), one square of its level's stride around each location. level_sizes: how many belong to each level,
    finest first; the finest has no lower bound on that distance, the coarsest no upper.
    """
    counts = truth.counts[:, None]
    if truth.boxes.shape[1] == 0:
        return torch.where(counts < 0, -2, -1).expand(-1, len(anchors)).contiguous()
    x, y = ((anchors[:, :2] + anchors[:, 2:]) / 2).unbind(1)  # (R,)
    x0, y0, x1, y1 = truth.boxes[..., None].unbind(2)  # (B, N, 1); the zeros of empty slots hold no location
    stride = anchors[:, 2] - anchors[:, 0]
    least, most = 4 * stride, 8 * stride
    least[: level_sizes[0]] = 0
    most[len(most) - level_sizes[-1] :] = torch.inf
    fits = torch.maximum((x - (x0 + x1) / 2).abs(), (y - (y0 + y1) / 2).abs()) < radius * stride  # (B, N, R)
    across, down = (x - x0, x1 - x), (y - y0, y1 - y)
    fits &= torch.minimum(torch.minimum(*across), torch.minimum(*down)) > 0
    farthest = torch.maximum(torch.maximum(*across), torch.maximum(*down))
    fits &= (farthest > least) & (farthest < most)
    # torchvision's arithmetic to the letter: beside 1e8 float32 knows areas to 8 pixels, and nearer ones are equal.
    preference, matched = (fits.float() * (1e8 - (x1 - x0) * (y1 - y0))).max(dim=1)
    return matched.masked_fill(preference < 1e-5, -1).masked_fill(counts < 0, -2)


def _decode(outputs: DetectorOutputs, deltas: Tensor, rows: Tensor) -> Tensor:
    """(B, R, 4) float32 boxes; outside of `rows` (B, R) bool those of harmless deltas, without gradient."""
    return outputs.coder.decode(torch.where(rows[..., None], deltas.float(), 1.0), outputs.anchors)


def _boxes_of(truth: GroundTruth, matched: Tensor) -> Tensor:
    """(B, R, 4), the ground truth of each location; any box for those that have none."""
    some = pad(truth.boxes, (0, 0, 0, 1))  # one to take where there is no ground truth at all
    return some.gather(1, matched.clamp(min=0)[..., None].expand(-1, -1, 4))


def _centerness(boxes: Tensor, anchors: Tensor, foreground: Tensor) -> Tensor:
    """(B, R) in 0..1, what the centerness branch learns: 1 in the middle of the box; without meaning elsewhere."""
    center, size = 0.5 * (anchors[:, :2] + anchors[:, 2:]), anchors[:, 2:] - anchors[:, :2]
    before, after = (center - boxes[..., :2]) / size, (boxes[..., 2:] - center) / size  # left, top; right, bottom
    before, after = (torch.where(foreground[..., None], distances, 1.0) for distances in (before, after))
    across, down = (torch.minimum(before, after) / torch.maximum(before, after)).unbind(-1)
    return (across * down).sqrt()
