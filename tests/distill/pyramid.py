"""Outputs of a detector with anchors on a small pyramid, and the rivals with naive twins of them in float64."""

from __future__ import annotations

from collections.abc import Callable
from typing import Any

import torch
from torch import Tensor
from torch.nn.functional import conv2d

from gid_cuda.detectors.outputs import BoxCoder, DetectorOutputs
from gid_cuda.distill import FineGrained, FitNet, Mimicking
from gid_cuda.distill.rival import Rival
from gid_cuda.reference import multilevel_roi_align

from .fakes import FakeDetector

HEIGHT, WIDTH, STRIDES, EACH = 48, 64, (8, 16), 2

Targets = list[dict[str, Tensor] | None]


class TwoStage(FakeDetector):
    family = "two-stage"


def grid_anchors(height: int = HEIGHT, width: int = WIDTH) -> Tensor:
    """Two squares a cell, twice and four times as wide as the stride; by level, row, column, anchor."""
    found = []
    for stride in STRIDES:
        for y in range(height // stride):
            for x in range(width // stride):
                for side in (2 * stride, 4 * stride):
                    cx, cy = (x + 0.5) * stride, (y + 0.5) * stride
                    found.append([cx - side / 2, cy - side / 2, cx + side / 2, cy + side / 2])
    return torch.tensor(found)


def pyramid_outputs(
    batch: int = 3, channels: int = 4, *, seed: int, grad: bool = False, device: str = "cpu"
) -> DetectorOutputs:
    make = torch.Generator().manual_seed(seed)
    anchors = grid_anchors().to(device)

    def draw(*shape: int, std: float = 1.0) -> Tensor:
        return (std * torch.randn(shape, generator=make)).to(device).requires_grad_(grad)

    return DetectorOutputs(
        features=[draw(batch, channels, HEIGHT // s, WIDTH // s) for s in STRIDES],
        strides=list(STRIDES),
        logits=draw(batch, len(anchors), 1),
        deltas=draw(batch, len(anchors), 4, std=0.2),
        coder=BoxCoder("deltas"),
        anchors=anchors,
        image_sizes=torch.tensor([[48, 64], [40, 50], [48, 64], [30, 64]])[:batch].to(device),
    )


def some_targets(device: str = "cpu") -> Targets:
    """Three boxes, an unlabelled image, and an image without ground truth."""
    boxes = torch.tensor([[3.0, 5, 21, 24], [20, 10, 55, 44], [40, 2, 58, 17]])
    return [{"boxes": boxes.to(device)}, None, {"boxes": torch.zeros(0, 4, device=device)}]


def naive_adapt(rival: Rival, x: Tensor) -> Tensor:
    weight = getattr(rival.adapt, "weight", None)
    if weight is None:
        return x
    return conv2d(x, weight.double(), rival.adapt.bias.double(), padding=weight.shape[-1] // 2)


def naive_fitnet(rival: FitNet, teacher: DetectorOutputs, student: DetectorOutputs, targets: Targets) -> Tensor:
    levels = [
        ((naive_adapt(rival, s.double()) - t.double()) ** 2).mean() / 2
        for t, s in zip(teacher.features, student.features, strict=True)
    ]
    return rival.weight * sum(levels) / len(levels)


def naive_iou(a: list[float], b: list[float]) -> float:
    sides = [max(0.0, min(a[i + 2], b[i + 2]) - max(a[i], b[i])) for i in (0, 1)]
    inter = sides[0] * sides[1]
    union = (a[2] - a[0]) * (a[3] - a[1]) + (b[2] - b[0]) * (b[3] - b[1]) - inter
    return inter / union if union > 0 else 0.0


def naive_cells(outputs: DetectorOutputs, target: dict[str, Tensor] | None, psi: float) -> list[tuple[int, int, int]]:
    """(level, row, column) of each cell near an object."""
    if target is None:
        return []
    places = [
        (level, y, x)
        for level, feature in enumerate(outputs.features)
        for y in range(feature.shape[2])
        for x in range(feature.shape[3])
        for _ in range(EACH)
    ]
    near = set()
    for box in target["boxes"].tolist():
        overlaps = [naive_iou(anchor, box) for anchor in outputs.anchors.tolist()]
        near |= {place for place, value in zip(places, overlaps, strict=True) if value > psi * max(overlaps)}
    return sorted(near)


def naive_fine_grained(
    rival: FineGrained, teacher: DetectorOutputs, student: DetectorOutputs, targets: Targets
) -> Tensor:
    adapted = [naive_adapt(rival, s.double()) for s in student.features]
    total, count = torch.zeros((), dtype=torch.float64), 0
    for image, target in enumerate(targets):
        for level, y, x in naive_cells(student, target, rival.psi):
            difference = adapted[level][image, :, y, x] - teacher.features[level][image, :, y, x].double()
            total, count = total + (difference**2).sum(), count + 1
    return rival.weight * total / (2 * max(count, 1))


def naive_mimicking(rival: Mimicking, teacher: DetectorOutputs, student: DetectorOutputs, targets: Targets) -> Tensor:
    """Of the regions that the method itself draws next; these have tests of their own."""
    with torch.random.fork_rng():
        regions = rival.sample_regions(student, targets)
    crops = [
        multilevel_roi_align(
            [x.double() for x in outputs.features],
            regions.boxes.double(),
            strides=outputs.strides,
            output_size=rival.output_size,
            sampling_ratio=rival.sampling_ratio,
        )
        for outputs in (teacher, student)
    ]
    total, count = torch.zeros((), dtype=torch.float64), int(regions.counts.sum())
    for image, slots in enumerate(regions.counts.tolist()):
        for u, v in zip(crops[0][image, :slots], crops[1][image, :slots], strict=True):
            total = total + ((u - naive_adapt(rival, v[None])[0]) ** 2).sum() / u.numel()
    return rival.weight * total / (2 * max(count, 1))


Make = Callable[..., Rival]
Naive = Callable[[Any, DetectorOutputs, DetectorOutputs, Targets], Tensor]


def small_mimicking(student_channels: int, teacher_channels: int, **options: Any) -> Mimicking:
    """All of the few proposals are drawn, unless told otherwise, so that nothing hangs on chance."""
    few = {"samples": 40, "proposals": 40, "positive_fraction": 1.0, "output_size": 3}
    return Mimicking(student_channels, teacher_channels, **{**few, **options})


RIVALS: dict[str, tuple[Make, Naive]] = {
    "fitnet": (FitNet, naive_fitnet),
    "fine_grained": (FineGrained, naive_fine_grained),
    "mimicking": (small_mimicking, naive_mimicking),
}
