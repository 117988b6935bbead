"""Which cases are run on which device."""

from __future__ import annotations

from collections.abc import Iterator
from typing import Literal

import torch

from benchmarks import losses, operators
from benchmarks.cases import Case
from benchmarks.criterion import criterion
from benchmarks.inputs import retinanet_anchors, scattered_anchors

NAMES = (
    "gi_score",
    "decoded_gi_score",
    "topk_nms",
    "multilevel_roi_align",
    "pairwise_distance",
    "match_anchors",
    "class_losses",
    "box_losses",
    "criterion",
)
"""What --only takes: the operators and the whole criterion."""

Extent = Literal["quick", "usual", "full"]
Batch = tuple[int, int, torch.dtype]
"""Images, classes, and the type of logits, deltas and features."""

PADDED, UNPADDED = (800, 1344), (800, 1333)  # height and width as RetinaNet sees COCO: 201,600 anchors
QUICK = (64, 96)
K = 10  # instances an image
F32, BF16 = torch.float32, torch.bfloat16
_USUAL = {"cpu": (2, 80, F32), "cuda": (16, 80, BF16)}
_OTHERS = {"cpu": ((2, 80, BF16), (2, 3, F32)), "cuda": ((16, 80, F32), (16, 3, BF16), (2, 80, F32))}
_OF_OTHERS = {"cpu": ("gi_score",), "cuda": ("gi_score", "topk_nms", "multilevel_roi_align", "criterion")}


def cases(device: torch.device, extent: Extent) -> Iterator[Case]:
    """The cases, some of them more than once. Their inputs are not made yet.

    "full": all of COCO's classes and three, 2 and 16 images, float32 and bfloat16; "usual": what of it tells most;
    "quick": sizes at which nothing can be learnt but that it runs.
    """
    if extent == "quick":
        yield from _of_batch((2, 3, F32), QUICK, QUICK, device)
        return
    if device.type == "cpu":
        anchors = scattered_anchors(120_000, PADDED, device)
        yield operators.gi_score(2, anchors, 80, F32, PADDED)
        yield operators.topk_nms(2, anchors, K, PADDED)
    yield from _of_batch(_USUAL[device.type], PADDED, UNPADDED, device)
    for batch in _OTHERS[device.type]:
        yield from (c for c in _of_batch(batch, PADDED, UNPADDED, device) if c.operator in _OF_OTHERS[device.type])
    if extent == "full":
        for batch in ((images, classes, dtype) for images in (2, 16) for classes in (80, 3) for dtype in (F32, BF16)):
            yield from _of_batch(batch, PADDED, UNPADDED, device)


def _of_batch(batch: Batch, padded: tuple[int, int], unpadded: tuple[int, int], device: torch.device) -> Iterator[Case]:
    images, classes, dtype = batch
    anchors = retinanet_anchors(padded, device)
    yield operators.gi_score(images, anchors, classes, dtype, padded)
    yield operators.decoded_gi_score(images, anchors, classes, dtype, padded)
    yield operators.topk_nms(images, anchors, K, padded)
    for gradient in (False, True):
        yield operators.multilevel_roi_align(images, K, dtype, unpadded, device, gradient=gradient)
    for gradient in (False, True):
        yield operators.pairwise_distance(images, K, device, gradient=gradient)
    yield losses.match_anchors(images, anchors, padded)
    for part in ("task", "response", "both"):
        yield losses.class_losses(images, anchors, classes, dtype, padded, part)
    for part in ("task", "response", "both"):
        yield losses.box_losses(images, anchors, dtype, padded, part)
    yield criterion(images, classes, dtype, padded, device)
