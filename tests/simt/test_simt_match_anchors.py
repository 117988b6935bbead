"""match_anchors' CUDA kernels, emulated, against the reference."""

from __future__ import annotations

import pytest
import torch
from emulator import spoil
from torch import Tensor

from gid_cuda import reference


def run(
    kernels, seed: int, boxes: Tensor, counts: Tensor | None, anchors: Tensor, high=0.5, low=0.4, low_quality=True
) -> Tensor:
    images, slots, count = *boxes.shape[:2], len(anchors)
    matched = torch.empty(images, count, dtype=torch.int64)
    spoil(matched)
    best = torch.zeros(images, slots, dtype=torch.int32) if low_quality else None
    arguments = (boxes, counts, anchors, best, matched, images, count, slots, high, low)
    kernels("match_anchors").call("match_anchors", seed, *arguments)
    return matched


def random_boxes(generator: torch.Generator, *shape: int, largest: float = 60.0, grid: int = 0) -> Tensor:
    """With a grid all corners lie on whole multiples of it: many equal overlaps."""
    corner = torch.rand(*shape, 2, generator=generator) * 150
    boxes = torch.cat([corner, corner + torch.rand(*shape, 2, generator=generator) * largest], dim=-1)
    return (boxes / grid).round() * grid if grid else boxes


# An odd number of anchors in one block, in several; more boxes than shared memory holds at a time.
@pytest.mark.parametrize("low_quality", [False, True])
@pytest.mark.parametrize("grid", [0, 15])
@pytest.mark.parametrize(("images", "slots", "count"), [(3, 5, 301), (2, 9, 2500), (1, 300, 130)])
def test_equals_reference(kernels, images, slots, count, grid, low_quality):
    generator = torch.Generator().manual_seed(slots)
    boxes, anchors = random_boxes(generator, images, slots, grid=grid), random_boxes(generator, count, grid=grid)
    counts = torch.tensor([slots - 1, slots + 3, 2])[:images]
    matched = run(kernels, 1, boxes, counts, anchors, low_quality=low_quality)
    expected = reference.match_anchors(boxes, counts, anchors, low_quality=low_quality)
    assert (expected >= 0).any() and (expected == -2).any() and (expected == -1).any()
    assert torch.equal(matched, expected)
    assert torch.equal(run(kernels, 2, boxes, None, anchors), reference.match_anchors(boxes, None, anchors))


@pytest.mark.parametrize("seed", range(4))
def test_any_order_of_threads(kernels, seed):
    generator = torch.Generator().manual_seed(5)
    boxes, anchors = random_boxes(generator, 2, 20, grid=10), random_boxes(generator, 1500, grid=10)
    assert torch.equal(run(kernels, seed, boxes, None, anchors), reference.match_anchors(boxes, None, anchors))


def test_images_without_boxes_and_without_labels(kernels):
    generator = torch.Generator().manual_seed(6)
    boxes, anchors = random_boxes(generator, 4, 3), random_boxes(generator, 40)
    counts = torch.tensor([0, -1, 3, -5])
    matched = run(kernels, 0, boxes, counts, anchors, high=0.0, low=0.0)
    assert torch.equal(matched, reference.match_anchors(boxes, counts, anchors, high=0.0, low=0.0))
    assert (matched[0] == -1).all() and (matched[[1, 3]] == -2).all() and (matched[2] >= 0).all()


def test_odd_boxes(kernels):
    """Not a number, infinite, inside out, without area: as boxes and as anchors. No slot, no box may disturb others."""
    nan, inf = float("nan"), float("inf")
    odd = torch.tensor([[nan, 0, 9, 9], [0, 0, nan, 9], [-inf, 0, inf, 9], [9, 9, 0, 0], [3, 3, 3, 8], [0, 9, 9, 0]])
    plain = torch.tensor([[0.0, 0, 9, 9], [2, 0, 9, 9], [-5, -5, 4, 4], [0, 0, 3e38, 3e38]])
    anchors, boxes = torch.cat([odd, plain]), torch.cat([plain, odd, plain])[None]
    assert torch.equal(run(kernels, 0, boxes, None, anchors), reference.match_anchors(boxes, None, anchors))


@pytest.mark.parametrize(("images", "slots", "count"), [(0, 3, 5), (2, 0, 5), (2, 3, 0)])
def test_empty(kernels, images, slots, count):
    boxes, anchors = torch.zeros(images, slots, 4), torch.zeros(count, 4)
    matched = run(kernels, 0, boxes, None, anchors)
    assert torch.equal(matched, torch.full((images, count), -1))
