"""multilevel_roi_align's CUDA kernels, forward and backward, emulated, against the reference."""

from __future__ import annotations

import ctypes

import pytest
import torch
from emulator import TYPES, spoil
from torch import Tensor

from gid_cuda import reference

STRIDES = [8, 16, 32]
TOLERANCE = {torch.float32: 1e-5, torch.float16: 2e-3, torch.bfloat16: 2e-2}
FORMATS = ["contiguous", "channels_last", "every_other_column"]


def call(kernels, seed: int, what: str, maps: list[Tensor], boxes, counts, pooled: Tensor, options: dict) -> None:
    layout = [x for m, s in zip(maps, STRIDES, strict=False) for x in (*m.shape[2:], s, *m.stride())]
    kernels("multilevel_roi_align").call(
        "multilevel_roi_align", seed, TYPES[pooled.dtype], what, maps,
        (ctypes.c_int64 * len(layout))(*layout), len(maps), boxes, counts, pooled, *boxes.shape[:2], maps[0].shape[1],
        options.get("output_size", 10), options.get("sampling_ratio", 2),
        ctypes.c_double(options.get("canonical_size", 224.0)), options.get("canonical_level", 4),
        options.get("aligned", True),
    )  # fmt: skip


def in_format(tensor: Tensor, memory_format: str) -> Tensor:
    if memory_format == "channels_last":
        return tensor.contiguous(memory_format=torch.channels_last)
    if memory_format == "every_other_column":
        return tensor.repeat_interleave(2, dim=3)[..., ::2]
    return tensor


def check(kernels, seed: int, features: list[Tensor], boxes: Tensor, counts: Tensor | None, **options) -> None:
    dtype, size = features[0].dtype, options.get("output_size", 10)
    pooled = torch.empty(*boxes.shape[:2], features[0].shape[1], size, size, dtype=dtype)
    spoil(pooled)
    call(kernels, seed, "forward", features, boxes, counts, pooled, options)
    strides = STRIDES[: len(features)]
    expected = reference.multilevel_roi_align(features, boxes, counts, strides=strides, **options)
    torch.testing.assert_close(pooled, expected, rtol=TOLERANCE[dtype], atol=TOLERANCE[dtype])

    grad = torch.randn(pooled.shape, generator=torch.Generator().manual_seed(seed)).to(dtype)
    order = ("output_size", "sampling_ratio", "canonical_size", "canonical_level", "aligned")
    defaults = {"output_size": 10, "sampling_ratio": 2, "canonical_size": 224.0, "canonical_level": 4, "aligned": True}
    wide = [feature.double() for feature in features]
    exact = reference.multilevel_roi_align_backward(
        grad.double(), wide, boxes, counts, strides, *[{**defaults, **options}[name] for name in order]
    )
    for backward in (gather, scatter):
        gradients = [torch.empty_like(feature) for feature in features]
        spoil(*gradients)
        backward(kernels, seed, gradients, boxes, counts, grad, options)
        for gradient, wanted in zip(gradients, exact, strict=True):
            torch.testing.assert_close(gradient.double(), wanted, rtol=TOLERANCE[dtype], atol=3 * TOLERANCE[dtype])


def gather(kernels, seed: int, gradients: list[Tensor], boxes, counts, grad: Tensor, options: dict) -> None:
    call(kernels, seed, "gather", gradients, boxes, counts, grad, options)


def scatter(kernels, seed: int, gradients: list[Tensor], boxes, counts, grad: Tensor, options: dict) -> None:
    """As csrc/cuda/multilevel_roi_align_backward.cu goes about it."""
    sums = [torch.zeros_like(gradient, dtype=torch.float32) for gradient in gradients]
    call(kernels, seed, "scatter", sums, boxes, counts, grad, options)
    if grad.dtype == torch.float32:
        for gradient, total in zip(gradients, sums, strict=True):
            gradient.copy_(total)
    else:
        sizes = (ctypes.c_int64 * len(sums))(*[total.numel() for total in sums])
        kernels("multilevel_roi_align").call("roi_round", seed, TYPES[grad.dtype], sums, gradients, sizes, len(sums))


def make(images: int, slots: int, channels: int, dtype: torch.dtype, memory_format: str, seed: int, sides=(17, 23)):
    generator = torch.Generator().manual_seed(seed)
    sizes = [(-(-sides[0] // factor), -(-sides[1] // factor)) for factor in (1, 2, 4)]
    features = [torch.randn(images, channels, *size, generator=generator).to(dtype) for size in sizes]
    features = [in_format(feature, memory_format) for feature in features]
    centre = torch.rand(images, slots, 2, generator=generator) * torch.tensor([190.0, 140.0])
    half = 10 ** (torch.rand(images, slots, 2, generator=generator) * 2) / 2 + 0.5
    return features, torch.cat([centre - half, centre + half], dim=2)


SMALL = {"canonical_size": 40.0, "canonical_level": 4}  # so that boxes of a small image belong to all levels


@pytest.mark.parametrize("dtype", TYPES, ids=str)
@pytest.mark.parametrize("memory_format", FORMATS)
@pytest.mark.parametrize("channels", [5, 16])
def test_equals_reference(kernels, channels, memory_format, dtype):
    """Five channels: no packs; sixteen in channels_last: packs. Two blocks and more for a map, one for a box."""
    features, boxes = make(2, 6, channels, dtype, memory_format, seed=channels)
    check(kernels, channels, features, boxes, torch.tensor([6, 3]), output_size=3, **SMALL)


@pytest.mark.parametrize("seed", range(3))
def test_several_blocks_a_box_and_any_order(kernels, seed):
    features, boxes = make(1, 4, 24, torch.float32, FORMATS[seed], seed=9)
    check(kernels, seed, features, boxes, None, **SMALL)


@pytest.mark.parametrize("memory_format", FORMATS[:2])
def test_more_channels_than_a_warp_takes(kernels, memory_format):
    features, boxes = make(1, 2, 261, torch.bfloat16, memory_format, seed=14, sides=(5, 6))
    check(kernels, 0, features, boxes, None, output_size=2, **SMALL)


@pytest.mark.parametrize(("sampling_ratio", "aligned"), [(0, True), (3, True), (0, False), (1, False)])
def test_options(kernels, sampling_ratio, aligned):
    features, boxes = make(1, 9, 3, torch.float32, "contiguous", seed=7)
    check(kernels, 0, features, boxes, None, output_size=4, sampling_ratio=sampling_ratio, aligned=aligned, **SMALL)


@pytest.mark.parametrize("sampling_ratio", [0, 2])
def test_strange_boxes(kernels, sampling_ratio):
    """Far outside, huge, empty, turned inside out, of one pixel, and not finite."""
    nan, inf = float("nan"), float("inf")
    boxes = torch.tensor([[
        [-900.0, -900, -800, -800], [5000, 10, 5050, 60], [-4000, -3000, 4000, 3000], [50, 50, 50, 50],
        [90, 80, 20, 10], [60, 20, 30, 90], [-30, -20, 40, 30], [150, 100, 260, 210], [7.5, 7.5, 8.5, 8.5],
        [nan, 0, 50, 50], [0, nan, 50, 50], [0, 0, inf, 50], [-inf, 0, 50, inf], [0, 0, 1e-6, 1e-6],
        [1e30, 1e30, 2e30, 2e30], [-1e30, -1e30, 1e30, 1e30], [-8.5, -8.5, 0.5, 0.5], [176, 128, 192, 144],
    ]])  # fmt: skip
    if sampling_ratio == 0:  # a sample for every cell: not from the huge ones
        boxes = boxes[:, ~(boxes[0].abs() > 1000).any(dim=1) | ~boxes[0].isfinite().all(dim=1)]
    features, _ = make(1, 0, 3, torch.float32, "contiguous", seed=8)
    check(kernels, 0, features, boxes, None, output_size=4, sampling_ratio=sampling_ratio, **SMALL)


def test_more_boxes_than_threads(kernels):
    features, boxes = make(1, 300, 24, torch.float32, "channels_last", seed=10)  # and more cells than a block takes
    check(kernels, 0, features, boxes, torch.tensor([290]), output_size=2, **SMALL)


def test_what_is_outside_is_not_read(kernels):
    """Infinities in the cells that no sample touches."""
    features, _ = make(1, 0, 2, torch.float32, "contiguous", seed=11)
    features[0][:, :, 5:] = float("inf")
    boxes = torch.tensor([[[4.0, 4.0, 36.0, 36.0]]])  # samples on cell centres of rows and columns 0 to 4
    check(kernels, 0, features[:1], boxes, None, output_size=2, sampling_ratio=2)
    pooled = torch.empty(1, 1, 2, 2, 2)
    call(kernels, 0, "forward", features[:1], boxes, None, pooled, {"output_size": 2})
    assert pooled.isfinite().all()


def test_gathering_gives_the_same_in_any_order(kernels):
    features, boxes = make(1, 20, 8, torch.float32, "channels_last", seed=12)
    grad = torch.randn(1, 20, 8, 3, 3, generator=torch.Generator().manual_seed(0))
    results = []
    for seed in range(2):
        results.append([torch.empty_like(feature) for feature in features])
        gather(kernels, seed, results[-1], boxes, None, grad, {"output_size": 3, **SMALL})
    assert all(torch.equal(a, b) for a, b in zip(*results, strict=True))


@pytest.mark.parametrize(("images", "slots", "channels"), [(0, 3, 4), (2, 0, 4), (2, 3, 0)])
def test_empty(kernels, images, slots, channels):
    features, boxes = make(images, slots, channels, torch.float32, "contiguous", seed=13)
    check(kernels, 0, features, boxes, None, output_size=2)
