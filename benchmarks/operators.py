"""Cases of the operators that choose instances and look at their features."""

from __future__ import annotations

from collections.abc import Callable, Sequence
from typing import Any

import torch
from torch import Tensor
from torchvision.ops import MultiScaleRoIAlign

from benchmarks import plain
from benchmarks.cases import (
    Case,
    Contender,
    byte_count,
    close,
    compiled,
    cotangent,
    dtype_name,
    slots_agree,
    with_gradient,
    without_gradient,
)
from benchmarks.inputs import STRIDES, gi_boxes, level_shapes, make_scene, pyramid, random_boxes
from gid_cuda import ops, reference

CHANNELS = 256  # of the pyramid
BINS = 10
NMS_IOU = 0.3
_ALL = "inputs read once, outputs written once"
_CDIST_NOTE = "from |a|^2 + |b|^2 - 2ab above 25 vectors: close ones lose their digits"
_SUM_NOTE = "computes no score, but reads what any version must read"
_EAGER_COPIES = 5  # float32 tensors of the logits' shape that the plain score holds at once


def gi_score(images: int, anchors: Tensor, classes: int, dtype: torch.dtype, size: tuple[int, int]) -> Case:
    """Eqs. 1-2 of boxes that are decoded already."""

    def make(seed: int) -> tuple[Tensor, ...]:
        scene = make_scene(images, classes, anchors, size, dtype, seed)
        boxes = [plain.decode(deltas, anchors) for deltas in (scene.teacher_deltas, scene.student_deltas)]
        return scene.teacher_logits, scene.student_logits, *boxes, scene.image_sizes

    rows = images * len(anchors)
    return Case(
        operator="gi_score",
        work="forward",
        sizes={"B": images, "R": len(anchors), "C": classes},
        dtype=dtype_name(dtype),
        make=make,
        input_bytes=rows * (2 * classes * dtype.itemsize + 32),
        moved=lambda *inputs: byte_count(inputs) + rows * 20,
        counted=_ALL,
        contenders=_score_contenders(ops.gi_score, reference.gi_score, rows * classes),
    )


def decoded_gi_score(images: int, anchors: Tensor, classes: int, dtype: torch.dtype, size: tuple[int, int]) -> Case:
    """Eqs. 1-2 with the decoding of both models' boxes."""

    def make(seed: int) -> tuple[Tensor, ...]:
        scene = make_scene(images, classes, anchors, size, dtype, seed)
        return (
            scene.teacher_logits,
            scene.student_logits,
            scene.teacher_deltas,
            scene.student_deltas,
            anchors,
            scene.image_sizes,
        )

    rows = images * len(anchors)
    return Case(
        operator="decoded_gi_score",
        work="forward",
        sizes={"B": images, "R": len(anchors), "C": classes},
        dtype=dtype_name(dtype),
        make=make,
        input_bytes=rows * (2 * classes + 8) * dtype.itemsize,
        moved=lambda *inputs: byte_count(inputs) + rows * 20,
        counted=_ALL,
        contenders=_score_contenders(ops.decoded_gi_score, plain.decoded_gi_score, rows * classes),
    )


def _score_contenders(ours: Callable[..., Any], plainly: Callable[..., Any], elements: int) -> list[Contender]:
    return [
        Contender("ours", "gid_cuda", ours),
        Contender("pytorch", "PyTorch", plainly, close(1e-5), temporary=4 * _EAGER_COPIES * elements),
        Contender("compile", "torch.compile", compiled(plainly), close(1e-5)),
        Contender("instead", "sum of all logits", _sums, note=_SUM_NOTE),
    ]


def _sums(teacher_logits: Tensor, student_logits: Tensor, *rest: Tensor) -> tuple[Tensor, Tensor]:
    return teacher_logits.sum(), student_logits.sum()


def topk_nms(images: int, anchors: Tensor, k: int, size: tuple[int, int]) -> Case:
    """Eq. 3 over boxes and scores like those of a real choice of instances."""

    def plainly(boxes: Tensor, scores: Tensor) -> tuple[Tensor, Tensor]:
        return reference.topk_nms(boxes, scores, k, NMS_IOU)

    contenders = [Contender("ours", "gid_cuda", lambda boxes, scores: ops.topk_nms(boxes, scores, k, NMS_IOU))]
    if k <= 10:  # a pass over all boxes for each of the k, which torch.compile unrolls
        contenders += [
            Contender("pytorch", "PyTorch", plainly, close(0.0)),
            Contender("compile", "torch.compile", compiled(plainly), slots_agree),
        ]
    contenders.append(
        Contender(
            "instead",
            f"top-{plain.PRE_NMS} + torchvision batched_nms",
            lambda boxes, scores: plain.top_then_nms(boxes, scores, k, NMS_IOU),
            slots_agree,
            note=f"sees the {plain.PRE_NMS} best boxes of an image, not all",
        )
    )
    rows = images * len(anchors)
    return Case(
        operator="topk_nms",
        work="forward",
        sizes={"B": images, "R": len(anchors), "k": k},
        dtype="float32",
        make=lambda seed: gi_boxes(images, anchors, size, seed),
        input_bytes=rows * 20,
        moved=lambda boxes, scores: byte_count(boxes, scores) + images * (k + 1) * 8,
        counted=_ALL,
        contenders=contenders,
    )


def multilevel_roi_align(
    images: int, slots: int, dtype: torch.dtype, size: tuple[int, int], device: torch.device, *, gradient: bool
) -> Case:
    """RoIAlign of `slots` boxes an image from five levels."""

    def make(seed: int) -> tuple[Any, ...]:
        generator = torch.Generator(device).manual_seed(seed)
        features = pyramid(images, CHANNELS, size, dtype, generator)
        boxes = random_boxes(images, slots, size, generator)
        counts = torch.full((images,), slots, device=device)
        return [feature.requires_grad_(gradient) for feature in features], boxes, counts

    def ours(features: list[Tensor], boxes: Tensor, counts: Tensor) -> Tensor:
        return ops.multilevel_roi_align(features, boxes, counts, strides=STRIDES, output_size=BINS, sampling_ratio=2)

    def atomic(features: list[Tensor], boxes: Tensor, counts: Tensor) -> Sequence[Tensor]:
        with torch.no_grad():
            crops = ours(features, boxes, counts)
        start = cotangent(crops.shape, crops.dtype, crops.device)
        how = (STRIDES, BINS, 2, 224.0, 4, True, False)  # the last: not deterministic
        return crops, *torch.ops.gid.multilevel_roi_align_backward(start, features, boxes, counts, *how)

    def plainly(features: list[Tensor], boxes: Tensor, counts: Tensor) -> Tensor:
        return reference.multilevel_roi_align(features, boxes, counts, strides=STRIDES, output_size=BINS)

    def by_level(features: list[Tensor], boxes: Tensor, counts: Tensor) -> Tensor:
        return plain.crops_by_level(features, boxes, counts, STRIDES, BINS)

    pooler = MultiScaleRoIAlign([str(stride) for stride in STRIDES], BINS, 2)

    def multiscale(features: list[Tensor], boxes: Tensor, counts: Tensor) -> Tensor:
        maps = {str(stride): feature.float() for stride, feature in zip(STRIDES, features, strict=True)}
        return pooler(maps, list(boxes), [size] * images).to(dtype)

    wrap = with_gradient if gradient else without_gradient
    two_backwards = gradient and device.type == "cuda"  # the CPU has one
    same = close(1e-4 if dtype == torch.float32 else 2e-2)
    cells = images * sum(rows * columns for rows, columns in level_shapes(size))
    return Case(
        operator="multilevel_roi_align",
        work="forward + backward" if gradient else "forward",
        sizes={"B": images, "K": slots, "Ch": CHANNELS, "L": len(STRIDES), "P": BINS},
        dtype=dtype_name(dtype),
        make=make,
        input_bytes=cells * CHANNELS * dtype.itemsize * (2 if gradient else 1),
        moved=lambda features, boxes, counts: _roi_bytes(features, boxes, gradient),
        counted="feature cells under the boxes read once, crops written once"
        + ("; their gradient read, all feature gradients written once" if gradient else ""),
        contenders=[
            Contender("ours", "gid_cuda", wrap(ours)),
            *([Contender("variant", "gid_cuda, atomic backward", atomic, same)] if two_backwards else []),
            Contender("pytorch", "PyTorch", wrap(plainly), same),
            Contender("instead", "torchvision roi_align by level", wrap(by_level), same),
            Contender(
                "instead",
                "torchvision MultiScaleRoIAlign",
                wrap(multiscale),
                note="a baseline of time: other level rule, not aligned",
            ),
        ],
        absent="torch.compile: the plain version's shapes hang on values, which breaks its graph and compiles anew",
    )


def _roi_bytes(features: Sequence[Tensor], boxes: Tensor, gradient: bool) -> int:
    """Bytes under the boxes, no more than a level has and no more than four cells a sample; see `counted`."""
    images, channels = features[0].shape[:2]
    element = features[0].element_size()
    levels = reference.roi_levels(boxes, STRIDES, 224.0, 4)
    cells = 0
    for level, (feature, stride) in enumerate(zip(features, STRIDES, strict=True)):
        sides = ((boxes[..., 2:] - boxes[..., :2]) / stride).ceil() + 1
        touched = sides.prod(dim=2).clamp(max=4 * (2 * BINS) ** 2)
        here = torch.where(levels == level, touched, 0.0).sum(dim=1)
        cells += int(here.clamp(max=feature.shape[-2] * feature.shape[-1]).sum())
    crops = images * boxes.shape[1] * channels * BINS * BINS * element
    forward = cells * channels * element + byte_count(boxes) + crops
    return forward + (crops + byte_count(features) if gradient else 0)


def pairwise_distance(images: int, slots: int, device: torch.device, *, gradient: bool) -> Case:
    """Distances between the flattened crops of each image."""
    length = CHANNELS * BINS * BINS

    def make(seed: int) -> tuple[Tensor, ...]:
        generator = torch.Generator(device).manual_seed(seed)
        x = torch.randn((images, slots, length), generator=generator, device=device)
        return (x.requires_grad_(gradient),)

    wrap = with_gradient if gradient else without_gradient
    outputs = 4 * images * slots * slots
    return Case(
        operator="pairwise_distance",
        work="forward + backward" if gradient else "forward",
        sizes={"B": images, "K": slots, "D": length},
        dtype="float32",
        make=make,
        input_bytes=4 * images * slots * length * (2 if gradient else 1),
        moved=lambda x: byte_count(x) * (3 if gradient else 1) + outputs * (2 if gradient else 1),
        counted=_ALL + (" in each of the two passes" if gradient else ""),
        contenders=[
            Contender("ours", "gid_cuda", wrap(ops.pairwise_distance)),
            Contender("pytorch", "PyTorch", wrap(reference.pairwise_distance), close(1e-4)),
            Contender("compile", "torch.compile", wrap(compiled(reference.pairwise_distance)), close(1e-4)),
            Contender(
                "instead",
                "torch.cdist",
                wrap(lambda x: torch.cdist(x, x)),
                close(1e-4),
                binding=False,
                note=_CDIST_NOTE if slots > 25 else "",
            ),
        ],
    )
