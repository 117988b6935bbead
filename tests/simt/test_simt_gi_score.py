"""gi_score's CUDA kernel, emulated, against the reference."""

from __future__ import annotations

import pytest
import torch
from emulator import TYPES, spoil
from torch import Tensor

from gid_cuda import reference

# One class; rows of one lane, of several, of a whole warp; rows that start at any alignment. Several blocks an image.
SHAPES = [(2, 300, 1), (3, 41, 7), (2, 150, 80), (1, 70, 91), (1, 17, 1001)]


def run(kernels, seed: int, logits: tuple[Tensor, Tensor], boxes: tuple[Tensor, Tensor], sizes: Tensor | None):
    images, count, classes = logits[0].shape
    scores, chosen = torch.empty(images, count), torch.empty(images, count, 4)
    spoil(scores, chosen)
    arguments = (*logits, *boxes, sizes, scores, chosen, images, count, classes)
    kernels("gi_score").call("gi_score", seed, TYPES[logits[0].dtype], *arguments)
    return scores, chosen


def inputs(shape: tuple[int, int, int], dtype: torch.dtype, seed: int):
    generator = torch.Generator().manual_seed(seed)
    logits = [torch.randn(shape, generator=generator).mul(4).sub(2).to(dtype) for _ in range(2)]
    boxes = [torch.rand((*shape[:2], 4), generator=generator) * 300 - 50 for _ in range(2)]
    return tuple(logits), tuple(boxes)


@pytest.mark.parametrize("dtype", TYPES, ids=str)
@pytest.mark.parametrize("shape", SHAPES, ids=str)
def test_equals_reference(kernels, shape, dtype):
    seed = sum(shape)
    logits, boxes = inputs(shape, dtype, seed)
    sizes = torch.tensor([[180, 200], [90, 210], [100, 30]])[: shape[0]]
    scores, chosen = run(kernels, seed, logits, boxes, sizes)
    expected, _ = reference.gi_score(*[tensor.double() for tensor in logits], *boxes)
    _, expected_boxes = reference.gi_score(*logits, *boxes, sizes)
    torch.testing.assert_close(scores.double(), expected, rtol=0, atol=2e-6)
    torch.testing.assert_close(chosen, expected_boxes, rtol=0, atol=0)


@pytest.mark.parametrize("seed", range(3))
def test_any_order_of_threads(kernels, seed):
    logits, boxes = inputs((2, 150, 20), torch.bfloat16, 1)
    first, second = run(kernels, seed, logits, boxes, None), run(kernels, seed + 10, logits, boxes, None)
    assert torch.equal(first[0], second[0]) and torch.equal(first[1], second[1])
    torch.testing.assert_close(first[1], reference.gi_score(*logits, *boxes)[1], rtol=0, atol=0)


def test_extreme_logits(kernels):
    """Every pair of these in a class of its own, among classes without any difference."""
    nan, inf = float("nan"), float("inf")
    values = torch.tensor([nan, -inf, inf, 3e38, -3e38, 1e3, -1e3, 90.0, -90.0, 30.0, -30.0, 1e-30, 0.0, 5.0, -5.0])
    pairs = torch.cartesian_prod(values, values)
    logits = torch.full((2, 1, len(pairs), 9), -3.0)
    logits[:, 0, torch.arange(len(pairs)), torch.arange(len(pairs)) % 9] = pairs.T
    boxes = torch.zeros(1, len(pairs), 4), torch.ones(1, len(pairs), 4)
    scores, chosen = run(kernels, 0, (logits[0].clone(), logits[1].clone()), boxes, None)
    expected, _ = reference.gi_score(*logits.double(), *boxes)
    _, expected_boxes = reference.gi_score(*logits, *boxes)
    torch.testing.assert_close(scores.double(), expected, rtol=0, atol=2e-6, equal_nan=True)
    torch.testing.assert_close(chosen, expected_boxes, rtol=0, atol=0)


def test_boxes_with_nan_stay_nan(kernels):
    logits, boxes = inputs((1, 5, 3), torch.float32, 2)
    for box in boxes:
        box[0, 2, 1] = float("nan")
    sizes = torch.tensor([[100, 120]])
    _, chosen = run(kernels, 0, logits, boxes, sizes)
    torch.testing.assert_close(chosen, reference.gi_score(*logits, *boxes, sizes)[1], rtol=0, atol=0, equal_nan=True)


@pytest.mark.parametrize("shape", [(0, 5, 3), (2, 0, 3)], ids=str)
def test_empty(kernels, shape):
    logits, boxes = inputs(shape, torch.float32, 0)
    scores, _ = run(kernels, 0, logits, boxes, None)
    assert scores.shape == shape[:2]


def run_decoded(kernels, seed: int, logits, deltas, anchors, sizes, weights, distances):
    images, count, classes = logits[0].shape
    scores, chosen = torch.empty(images, count), torch.empty(images, count, 4)
    spoil(scores, chosen)
    typed = [item for tensor in deltas for item in (TYPES[tensor.dtype], tensor)]
    arguments = (*logits, *typed, anchors, sizes, torch.tensor(weights), distances, scores, chosen)
    kernels("gi_score").call("decoded_gi_score", seed, TYPES[logits[0].dtype], *arguments, images, count, classes)
    return scores, chosen


@pytest.mark.parametrize("distances", [False, True])
@pytest.mark.parametrize("dtypes", [(0, 0, 0), (2, 2, 1), (1, 0, 2)], ids=str)
@pytest.mark.parametrize("shape", [(2, 300, 3), (3, 41, 7), (2, 70, 80)], ids=str)
def test_decoded(kernels, shape, dtypes, distances):
    """Deltas of three types, beyond the clamp of the logarithms, with and without weights; anchors of no size."""
    of_logits, of_teacher, of_student = [list(TYPES)[number] for number in dtypes]
    logits, boxes = inputs(shape, of_logits, sum(shape))
    deltas = [tensor.sub(100).div(50).to(dtype) for tensor, dtype in zip(boxes, (of_teacher, of_student), strict=True)]
    deltas[0][:, 3:6, 2:], deltas[1][:, 3:6, 2:] = 9.0, 9.0
    anchors = boxes[0][0].sort(dim=1).values
    anchors[5, 2:] = anchors[5, :2]
    sizes = None if distances else torch.tensor([[180, 200], [90, 210], [100, 30]])[: shape[0]]
    weights = [1.0, 1.0, 1.0, 1.0] if distances else [10.0, 9.0, 5.0, 4.0]
    scores, chosen = run_decoded(kernels, 1, logits, deltas, anchors, sizes, weights, distances)
    again = run_decoded(kernels, 2, logits, deltas, anchors, sizes, weights, distances)
    assert torch.equal(scores, again[0]) and torch.equal(chosen, again[1])
    expected = reference.decoded_gi_score(*logits, *deltas, anchors, sizes, weights, distances)
    torch.testing.assert_close(scores, expected[0], rtol=0, atol=3e-6)
    torch.testing.assert_close(chosen, expected[1], rtol=1e-6, atol=1e-4)


def test_decoded_nan(kernels):
    """A NaN logit gives the student's box; a NaN delta stays in the number that it decodes to."""
    logits, _ = inputs((1, 4, 3), torch.float32, 3)
    logits[0][0, 1, 2] = float("nan")
    deltas = [torch.full((1, 4, 4), value) for value in (0.0, 0.5)]
    deltas[1][0, 1, 2] = float("nan")
    anchors, sizes = torch.tensor([[2.0, 2.0, 6.0, 8.0]]).repeat(4, 1), torch.tensor([[20, 20]])
    scores, chosen = run_decoded(kernels, 0, logits, deltas, anchors, sizes, [1.0] * 4, False)
    expected = reference.decoded_gi_score(*logits, *deltas, anchors, sizes)
    torch.testing.assert_close(scores, expected[0], rtol=0, atol=3e-6, equal_nan=True)
    torch.testing.assert_close(chosen, expected[1], rtol=1e-6, atol=1e-5, equal_nan=True)
    assert chosen[0, 1].isnan().tolist() == [True, False, True, False]


@pytest.mark.parametrize("shape", [(0, 5, 3), (2, 0, 3)], ids=str)
def test_decoded_empty(kernels, shape):
    logits, deltas = inputs(shape, torch.float32, 0)
    scores, _ = run_decoded(kernels, 0, logits, deltas, torch.zeros(shape[1], 4), None, [1.0] * 4, False)
    assert scores.shape == shape[:2]
