"""How cost grows with the number of boxes (R), of instances (K) and of images (B): the same cases at rising sizes."""

from __future__ import annotations

from collections.abc import Iterator, Sequence
from dataclasses import replace
from typing import Any

import torch

from benchmarks import operators
from benchmarks.cases import Case, Results, run_case
from benchmarks.criterion import criterion
from benchmarks.inputs import retinanet_anchors, scattered_anchors
from benchmarks.plain import PRE_NMS

SIZE, QUICK_SIZE = (800, 1344), (64, 96)  # height and width of the padded images
CLASSES = 80
AXES = ("R", "K", "B")
OPPONENTS = {  # who runs beside ours; nobody beside the criterion, of which the tables tell
    "gi_score": "PyTorch",
    "topk_nms": f"top-{PRE_NMS} + torchvision batched_nms",
    "multilevel_roi_align": "torchvision MultiScaleRoIAlign",
    "pairwise_distance": "torch.cdist",
}


def sweep(
    device: torch.device, only: Sequence[str], results: Results, *, quick: bool, **how: Any
) -> Iterator[list[dict[str, Any]]]:
    """Point by point, rows as those of the cases with "axis" (one of AXES) and "value" besides.

    What is skipped or differs goes to `results`. how: the options of `run_case`.
    """
    for axis, value, case in _points(device, quick):
        if case.operator not in only:
            continue
        names = ("gid_cuda", OPPONENTS.get(case.operator))
        case = replace(case, contenders=[c for c in case.contenders if c.name in names], absent="")
        found = Results(skipped=results.skipped, differing=results.differing)
        run_case(case, device, results=found, **how)
        yield [{**row, "axis": axis, "value": value} for row in found.rows]


def by_curve(rows: Sequence[dict[str, Any]]) -> list[dict[str, Any]]:
    """The rows of each axis and contender together, by rising value."""
    return sorted(rows, key=lambda row: (AXES.index(row["axis"]), row["operator"], row["role"] != "ours", row["value"]))


def _points(device: torch.device, quick: bool) -> Iterator[tuple[str, int, Case]]:
    """(axis, value, the case). quick: two small values an axis."""
    size = QUICK_SIZE if quick else SIZE
    images, dtype = (16, torch.bfloat16) if device.type == "cuda" else (1, torch.float32)
    anchors = retinanet_anchors(size, device)
    for boxes in (500, 1000) if quick else (10**3, 10**4, 10**5, 10**6):
        scattered = scattered_anchors(boxes, size, device)
        yield "R", boxes, operators.gi_score(images, scattered, CLASSES, dtype, size)
        yield "R", boxes, operators.topk_nms(images, scattered, 10, size)
    for slots in (2, 4) if quick else (5, 10, 30, 100, 300):
        yield "K", slots, operators.topk_nms(images, anchors, slots, size)
        yield "K", slots, operators.multilevel_roi_align(images, slots, dtype, size, device, gradient=False)
        yield "K", slots, operators.pairwise_distance(images, slots, device, gradient=False)
    for batch in (1, 2) if quick else {"cpu": (1, 2, 4), "cuda": (1, 2, 4, 8, 16, 32)}[device.type]:
        yield "B", batch, operators.gi_score(batch, anchors, CLASSES, dtype, size)
        yield "B", batch, operators.topk_nms(batch, anchors, 10, size)
        yield "B", batch, operators.multilevel_roi_align(batch, 10, dtype, size, device, gradient=False)
        yield "B", batch, criterion(batch, CLASSES, dtype, size, device)
