"""topk_nms's CUDA kernels, emulated, against the reference: equal to the last index."""

from __future__ import annotations

import pytest
import torch
from emulator import spoil
from torch import Tensor

from gid_cuda import reference

BINS = 4096  # of the histogram; csrc/cuda/topk_nms_order.cuh
LIST = 16384  # ranks that the second kernel lists at most; csrc/cuda/topk_nms.cuh


def run(
    kernels,
    seed: int,
    boxes: Tensor,
    scores: Tensor,
    k: int,
    threshold: float,
    groups=None,
    min_size=0.0,
    list_size=LIST,
):
    images, count = scores.shape
    list_size, kept = max(1, min(count, list_size)), min(k, count)
    indices, counts = torch.empty(images, k, dtype=torch.int64), torch.empty(images, dtype=torch.int64)
    histogram, listed = torch.zeros(images, BINS, dtype=torch.int32), torch.zeros(images, dtype=torch.int32)
    ranks = torch.empty(images, list_size, dtype=torch.int64)
    kept_boxes = torch.empty(images, kept, 4)
    kept_groups = None if groups is None else torch.empty(images, kept, dtype=torch.int64)
    spoil(indices, counts, ranks, kept_boxes)
    arguments = (boxes, scores, groups, indices, counts, histogram, listed, ranks, kept_boxes, kept_groups)
    kernels("topk_nms").call(
        "topk_nms", seed, *arguments, images, count, list_size, k, kept, float(threshold), float(min_size)
    )
    return indices, counts


def check(
    kernels,
    seed: int,
    boxes: Tensor,
    scores: Tensor,
    k: int,
    threshold: float = 0.3,
    groups=None,
    min_size=0.0,
    **sizes,
):
    indices, counts = run(kernels, seed, boxes, scores, k, threshold, groups, min_size, **sizes)
    expected, expected_counts = reference.topk_nms(boxes, scores, k, threshold, groups=groups, min_size=min_size)
    assert torch.equal(indices, expected)
    assert torch.equal(counts, expected_counts)
    return indices, counts


def random_boxes(images: int, count: int, generator: torch.Generator, extent: float = 200.0, side: float = 40.0):
    corner = torch.rand(images, count, 2, generator=generator) * extent
    return torch.cat([corner, corner + torch.rand(images, count, 2, generator=generator) * side], dim=2)


@pytest.mark.parametrize("seed", range(4))
def test_equals_reference(kernels, seed):
    generator = torch.Generator().manual_seed(seed)
    count = [37, 1025, 4097, 4500][seed]
    boxes = random_boxes(2, count, generator)
    check(kernels, seed, boxes, torch.randn(2, count, generator=generator), k=[5, 40, 10, 3][seed])


@pytest.mark.parametrize("seed", range(3))
def test_few_survivors_take_several_stretches(kernels, seed):
    """Nearly all boxes lie on seven spots, so k survivors are never found: every box is gone through."""
    generator = torch.Generator().manual_seed(0)
    spots = random_boxes(1, 7, generator, extent=5000.0)
    boxes = spots[:, torch.randint(0, 7, (9000,), generator=generator)]
    boxes = boxes + torch.rand(boxes.shape, generator=generator) * 0.1
    indices, counts = check(kernels, seed, boxes, torch.rand(1, 9000, generator=generator), k=9, threshold=0.5)
    assert counts.item() < 9


def test_survivors_in_late_stretches(kernels):
    """A spot's boxes all score above the next spot's: each stretch yields at most two survivors."""
    spots = random_boxes(1, 5, torch.Generator().manual_seed(1), extent=5000.0) + torch.tensor([0, 0, 50.0, 50.0])
    boxes = spots.repeat_interleave(1900, dim=1)
    scores = torch.linspace(1, 0, 9500)[None]
    indices, _ = check(kernels, 0, boxes, scores, k=6, threshold=0.5)
    assert indices[0, :5].tolist() == [0, 1900, 3800, 5700, 7600]


@pytest.mark.parametrize("levels", [1, 3])
def test_equal_scores_go_by_index(kernels, levels):
    generator = torch.Generator().manual_seed(levels)
    boxes = random_boxes(1, 6001, generator, extent=3000.0)
    scores = torch.randint(0, levels, (1, 6001), generator=generator).float()
    check(kernels, levels, boxes, scores, k=200)


def test_both_zeros_are_one(kernels):
    boxes = random_boxes(1, 50, torch.Generator().manual_seed(2))
    check(kernels, 0, boxes, torch.tensor([0.0, -0.0]).repeat(25)[None], k=20)


@pytest.mark.parametrize("seed", range(2))
def test_groups(kernels, seed):
    generator = torch.Generator().manual_seed(seed)
    boxes = random_boxes(2, 3001, generator, extent=30.0, side=5.0) + torch.tensor([0.0, 0, 15, 15])
    scores = torch.rand(2, 3001, generator=generator)
    groups = torch.randint(-3, 3, (2, 3001), generator=generator) << 33  # alike in their lower halves
    _, grouped = check(kernels, seed, boxes, scores, 60, groups=groups)
    _, alone = check(kernels, seed, boxes, scores, 60)
    assert (grouped > alone).all()


def test_unusable_boxes_are_never_chosen(kernels):
    generator = torch.Generator().manual_seed(3)
    boxes, scores = random_boxes(2, 300, generator, side=30.0), torch.randn(2, 300, generator=generator) * 1e30
    for i, bad in enumerate([float("nan"), float("inf"), -float("inf")]):
        scores[:, i::31] = bad
        boxes[:, 5 + i :: 37, i] = bad
    boxes[0, ::7] = boxes[0, ::7, [2, 3, 0, 1]]  # negative sides
    check(kernels, 0, boxes, scores, 300, min_size=10.0)
    check(kernels, 0, boxes, scores, 300, min_size=0.0)


def test_large_k(kernels):
    """More survivors than one stretch holds."""
    generator = torch.Generator().manual_seed(4)
    boxes = random_boxes(1, 2500, generator, extent=20000.0)
    _, counts = check(kernels, 0, boxes, torch.rand(1, 2500, generator=generator), 2100)
    assert counts.item() == 2100


@pytest.mark.parametrize(("images", "count", "k"), [(2, 0, 3), (0, 5, 3), (2, 5, 0), (1, 1, 4)])
def test_small_and_empty(kernels, images, count, k):
    generator = torch.Generator().manual_seed(5)
    check(kernels, 0, random_boxes(images, count, generator), torch.rand(images, count, generator=generator), k)


def test_thresholds_are_strict(kernels):
    """IoU exactly 0.5, and 0 with threshold 0."""
    boxes = torch.tensor([[[0.0, 0, 2, 1], [0, 0, 1, 1], [1, 0, 2, 1], [5, 5, 5, 5], [5, 5, 5, 5]]])
    scores = torch.tensor([[0.9, 0.8, 0.7, 0.6, 0.5]])
    for threshold in (0.0, 0.5, 0.49999):
        check(kernels, 0, boxes, scores, 5, threshold)


@pytest.mark.parametrize(("count", "k"), [(20011, 10), (33001, 300)])
def test_more_boxes_than_the_list_holds(kernels, count, k):
    """Nothing made small: several blocks an image count and list, and what the first list lacks is looked up."""
    generator = torch.Generator().manual_seed(count)
    boxes, scores = random_boxes(2, count, generator, extent=3000.0), torch.rand(2, count, generator=generator) ** 8
    assert count > LIST
    check(kernels, 1, boxes, scores, k)
    crowded = random_boxes(1, 7, generator, extent=5000.0)[:, torch.randint(0, 7, (count,), generator=generator)]
    _, counts = check(kernels, 2, crowded, torch.randint(0, 9, (1, count), generator=generator).float(), 9, 0.5)
    assert counts.item() < 9


@pytest.mark.parametrize("list_size", [90, 374, 375, 376])
def test_the_list_is_full_to_the_last_place(kernels, list_size):
    """Eight scores of 125 boxes each, in neighbouring bins: three of them fill a list of 375. The last box has the
    lowest rank there is in the third: its score and its reversed index are all zeros below the bin."""
    boxes = random_boxes(1, 1000, torch.Generator().manual_seed(6), extent=500.0)
    order = torch.randperm(1000, generator=torch.Generator().manual_seed(7))
    order = torch.cat([order[order != 374], torch.tensor([374])])
    scores = 1 + (7 - order // 125)[None] / 8
    check(kernels, list_size, boxes, scores, k=30, list_size=list_size)
    check(kernels, list_size, boxes, scores, k=700, threshold=0.9, list_size=list_size)


def test_a_list_of_one(kernels):
    boxes = random_boxes(1, 40, torch.Generator().manual_seed(10), extent=60.0)
    check(kernels, 0, boxes, torch.linspace(0, 1, 40).floor()[None] + 0.5, k=6, list_size=1)


@pytest.mark.parametrize("list_size", [100, 1499])
def test_equal_scores_do_not_fit_into_the_list(kernels, list_size):
    generator = torch.Generator().manual_seed(8)
    boxes = random_boxes(2, 1500, generator, extent=600.0)
    scores = torch.stack([torch.zeros(1500), torch.rand(1500, generator=generator)])
    check(kernels, 0, boxes, scores, k=200, list_size=list_size)


@pytest.mark.parametrize("seed", range(2))
def test_the_list_is_filled_again(kernels, seed):
    """With groups, k = 300, boxes that may not be chosen, and most of the others suppressed."""
    generator = torch.Generator().manual_seed(seed)
    boxes = random_boxes(2, 2500, generator, extent=100.0, side=30.0)
    scores = torch.randn(2, 2500, generator=generator)
    scores[:, ::13], boxes[:, 5::17, 2] = float("nan"), float("inf")
    groups = torch.randint(0, 2, (2, 2500), generator=generator)
    _, counts = check(kernels, seed, boxes, scores, 300, 0.4, groups=groups, min_size=8.0, list_size=[128, 1100][seed])
    assert (counts > 128).all()


def test_nothing_in_the_list_may_be_chosen(kernels):
    """All boxes above the last forty scores are too small."""
    boxes = random_boxes(1, 900, torch.Generator().manual_seed(9), extent=300.0)
    boxes[:, :860, 2] = boxes[:, :860, 0] + 1
    boxes[:, 860:, 2:] += 2
    _, counts = check(kernels, 0, boxes, torch.linspace(1, 0, 900)[None], 5, min_size=2.0, list_size=64)
    assert counts.item() == 5
