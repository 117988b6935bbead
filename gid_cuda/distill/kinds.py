"""Kinds of general instances by ground truth (paper, section 4.4.2, eqs. 10-11), for ablations and for logging."""

from __future__ import annotations

from collections.abc import Sequence

import torch
from torch import Tensor
from torch.nn.functional import pad
from torch.nn.utils.rnn import pad_sequence

from gid_cuda.detectors.outputs import GeneralInstances, Target
from gid_cuda.distill.checks import check_targets

EMPTY, UNCOUNTED, POSITIVE, SEMI_POSITIVE, NEGATIVE = -1, 0, 1, 2, 3
"""The values that `instance_kinds` gives."""

KIND_VALUES = {"positive": POSITIVE, "semi-positive": SEMI_POSITIVE, "negative": NEGATIVE}
"""The three kinds of the paper by name, as the `kinds` argument of `GID` takes them."""

KIND_NAMES = {POSITIVE: "positive", SEMI_POSITIVE: "semi-positive", NEGATIVE: "negative", UNCOUNTED: "uncounted"}
"""What to call each kind of an instance."""

MAX_GROUND_TRUTH = 100
"""Ground-truth boxes an image that can stand in place of its general instances."""


@torch.no_grad()
def instance_kinds(instances: GeneralInstances, targets: Sequence[Target | None]) -> Tensor:
    """Eqs. 10-11: the kind of each instance, (B, K) int64; one of the values below.

    IoU is intersection over union with a ground-truth box; IoP = area(GI and GT) / area(GI) (eq. 10). Of both, each
    for itself, the maximum over the image's ground truth counts:

        POSITIVE       IoU > 0.5
        SEMI_POSITIVE  IoU <= 0.5 and IoP > 0.7       (the paper prints >=, which contradicts its text)
        NEGATIVE       IoU < 0.5 and IoP < 0.3
        UNCOUNTED      all others, and those of an unlabelled image (its target is None)
        EMPTY          no instance in this slot

    The instances of a labelled image without any ground truth are NEGATIVE.
    targets: B dicts with boxes (N, 4) in the instances' pixels, or None. Raises ValueError unless there are B.
    """
    iou, iop = overlaps(instances, targets)
    kinds = torch.full_like(instances.indices, UNCOUNTED)
    kinds = torch.where(iou > 0.5, POSITIVE, kinds)
    kinds = torch.where((iou <= 0.5) & (iop > 0.7), SEMI_POSITIVE, kinds)
    kinds = torch.where((iou < 0.5) & (iop < 0.3), NEGATIVE, kinds)
    unlabelled = [torch.full_like(kinds[0], UNCOUNTED) if t is None else k for t, k in zip(targets, kinds, strict=True)]
    kinds = torch.stack(unlabelled) if unlabelled else kinds
    return torch.where(instances.valid, kinds, EMPTY)


@torch.no_grad()
def overlaps(instances: GeneralInstances, targets: Sequence[Target | None]) -> tuple[Tensor, Tensor]:
    """The largest IoU and the largest IoP (eq. 10) of each instance with the ground truth of its image.

    Both (B, K) float32 in 0..1, each maximum for itself; 0 in empty slots and where an image has no ground truth.
    targets: B dicts with boxes (N, 4) in the instances' pixels, or None. Raises ValueError unless there are B.
    """
    check_targets(targets, len(instances.boxes))
    ground_truth, _ = stack_boxes(targets, instances.boxes.device)
    truth = pad(ground_truth, (0, 0, 0, 1))[:, None]  # (B, 1, N + 1, 4); padding has no area and overlaps nothing
    boxes = instances.boxes[:, :, None]  # (B, K, 1, 4)
    sides = (torch.minimum(boxes[..., 2:], truth[..., 2:]) - torch.maximum(boxes[..., :2], truth[..., :2])).clamp(min=0)
    inter = sides[..., 0] * sides[..., 1]
    area = _area(boxes)
    union = area + _area(truth) - inter
    iou = torch.where(union > 0, inter / union, 0.0).amax(dim=2)
    iop = torch.where(area > 0, inter / area, 0.0).amax(dim=2)
    return iou, iop


@torch.no_grad()
def kind_counts(instances: GeneralInstances, targets: Sequence[Target | None]) -> dict[str, Tensor]:
    """How many instances of each kind an image has: means over the labelled images, as scalars on the device.

    Keys gi_positive, gi_semi_positive, gi_negative, gi_uncounted (paper, Figure 5); together the instances an image.
    All are 0 where no image is labelled. The host does not wait. Raises ValueError as `instance_kinds` does.
    """
    kinds = instance_kinds(instances, targets)
    labelled = [row for row, target in zip(kinds, targets, strict=True) if target is not None]
    rows = torch.stack(labelled) if labelled else kinds[:0]
    divisor = max(1, len(labelled))
    return {f"gi_{name.replace('-', '_')}": (rows == kind).sum() / divisor for kind, name in KIND_NAMES.items()}


@torch.no_grad()
def ground_truth_instances(targets: Sequence[Target | None], device: torch.device) -> GeneralInstances:
    """The ground truth in place of general instances: the first `MAX_GROUND_TRUTH` boxes of each image.

    K is the largest number of boxes an image in the batch, at least 1. Scores are 1. indices are -1 throughout, as
    these are none of the R predicted boxes: `counts`, and `valid` made from it, say which slots are filled. An
    unlabelled image (its target is None) has no instance.
    """
    boxes, counts = stack_boxes(targets, device)
    boxes = pad(boxes[:, :MAX_GROUND_TRUTH], (0, 0, 0, max(0, 1 - boxes.shape[1])))
    counts = counts.clamp(max=MAX_GROUND_TRUTH)
    filled = torch.arange(boxes.shape[1], device=boxes.device) < counts[:, None]
    return GeneralInstances(boxes, filled.to(boxes.dtype), torch.full_like(filled, -1, dtype=torch.int64), counts)


def stack_boxes(targets: Sequence[Target | None], device: torch.device) -> tuple[Tensor, Tensor]:
    """(B, N, 4) float32 ground-truth boxes padded with zeros to the largest N; (B,) int64 how many there are."""
    if not targets:
        return torch.zeros((0, 0, 4), device=device), torch.zeros(0, dtype=torch.int64, device=device)
    none = torch.zeros((0, 4), device=device)
    rows = [none if target is None else target["boxes"].to(device, torch.float32) for target in targets]
    # Filled on the device itself: a tensor made of a Python list would be a copy that the host waits for.
    counts = [torch.full((), len(row), dtype=torch.int64, device=device) for row in rows]
    return pad_sequence(rows, batch_first=True), torch.stack(counts)


def _area(boxes: Tensor) -> Tensor:
    return (boxes[..., 2] - boxes[..., 0]) * (boxes[..., 3] - boxes[..., 1])
