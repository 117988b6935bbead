"""Which cases are run on which device."""

from __future__ import annotations

from collections.abc import Iterator
from typing import Literal

import torch

from benchmarks import losses, operators, predict
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
    "post_processing",
    "criterion",
)
"""What --only takes: the operators, what `predict` does after the network, and the whole criterion."""

Extent = Literal["quick", "usual", "full"]
Batch = tuple[int, int, torch.dtype]
"""Images, classes, and the type of logits, deltas and features."""

PADDED, UNPADDED = (800, 1344), (800, 1333)  # height and width as RetinaNet sees COCO: 201,600 anchors
QUICK = (64, 96)
K = 10  # instances an image
F32, BF16 = torch.float32, torch.bfloat16
_COCO = {"cpu": (2, 80, F32), "cuda": (16, 80, BF16)}  # the batch of which all is measured
_BESIDE = {  # other batches, and what of them is measured unless all is asked for
    "cpu": (((2, 80, BF16), ("gi_score",)), ((2, 3, F32), ("gi_score",))),
    "cuda": (
        ((16, 80, F32), ("gi_score", "multilevel_roi_align")),
        ((16, 3, BF16), ("gi_score", "criterion")),
        ((2, 80, F32), ("criterion",)),
    ),
}


def cases(device: torch.device, extent: Extent) -> Iterator[Case]:
    """The cases, some of them more than once. Their inputs are not made yet.

    "full": all of COCO's classes and three, 2 and 16 images, float32 and bfloat16; "usual": what of it tells most;
    "quick": sizes at which nothing can be learnt but that it runs.
    """
    if extent == "quick":
        yield from _of_batch((2, 3, F32), QUICK, QUICK, device)
        return
    only_of_full = ()
    if device.type == "cpu":
        anchors = scattered_anchors(120_000, PADDED, device)
        yield operators.gi_score(2, anchors, 80, F32, PADDED)
        yield operators.topk_nms(2, anchors, K, PADDED)
        only_of_full = ("gi_score", "topk_nms")  # nothing new at 201,600 boxes, but minutes
    if extent == "full":
        for batch in ((images, classes, dtype) for images in (2, 16) for classes in (80, 3) for dtype in (F32, BF16)):
            yield from _of_batch(batch, PADDED, UNPADDED, device)
        return
    for case in _of_batch(_COCO[device.type], PADDED, UNPADDED, device, parts=("both",)):
        if case.operator not in only_of_full:
            yield case
    for batch, names in _BESIDE[device.type]:
        yield from (case for case in _of_batch(batch, PADDED, UNPADDED, device) if case.operator in names)


def _of_batch(
    batch: Batch,
    padded: tuple[int, int],
    unpadded: tuple[int, int],
    device: torch.device,
    parts: tuple[losses.Part, ...] = ("task", "response", "both"),
) -> Iterator[Case]:
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
    for part in parts:
        yield losses.class_losses(images, anchors, classes, dtype, padded, part)
    for part in parts:
        yield losses.box_losses(images, anchors, dtype, padded, part)
    with torch.device(device):  # left before the case runs, as it slows every call
        after_network = predict.post_processing(images, classes, F32, padded)
    yield after_network
    yield criterion(images, classes, dtype, padded, device)
