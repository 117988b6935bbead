"""pairwise_distance's CUDA kernels, forward and backward, emulated, against the reference."""

from __future__ import annotations

import pytest
import torch
from emulator import TYPES, spoil
from torch import Tensor

from gid_cuda import reference

CHUNK = 1024  # elements that a warp sums; csrc/cuda/pairwise_distance.cuh
TOLERANCE = {torch.float32: 1e-5, torch.float16: 2e-3, torch.bfloat16: 1e-2}


def distances_of(kernels, seed: int, x: Tensor, counts: Tensor | None) -> Tensor:
    images, slots, length = x.shape
    partial = torch.empty(images, slots * (slots - 1) // 2, -(-length // CHUNK))
    distances = torch.empty(images, slots, slots)
    spoil(partial, distances)
    kernels("pairwise_distance").call(
        "pairwise_distance", seed, TYPES[x.dtype], x, counts, partial, distances, images, slots, length
    )
    return distances


def gradient_of(kernels, seed: int, grad: Tensor, x: Tensor, distances: Tensor) -> Tensor:
    gradient = torch.empty_like(x)
    spoil(gradient)
    arguments = (grad, x, distances, gradient, *x.shape)
    kernels("pairwise_distance").call("pairwise_distance_backward", seed, TYPES[x.dtype], *arguments)
    return gradient


def check(kernels, seed: int, x: Tensor, counts: Tensor | None) -> None:
    distances = distances_of(kernels, seed, x, counts)
    expected = reference.pairwise_distance(x.double(), counts)
    torch.testing.assert_close(distances.double(), expected, rtol=1e-5, atol=1e-6)

    grad = torch.randn(distances.shape, generator=torch.Generator().manual_seed(seed))
    gradient = gradient_of(kernels, seed, grad, x, distances)
    wanted = reference.pairwise_distance_backward(grad.double(), x.double(), expected, counts)
    torch.testing.assert_close(gradient.double(), wanted, rtol=TOLERANCE[x.dtype], atol=3 * TOLERANCE[x.dtype])


@pytest.mark.parametrize("dtype", TYPES, ids=str)
@pytest.mark.parametrize("shape", [(2, 5, 37), (1, 12, 2312), (2, 3, 4100)], ids=str)
@pytest.mark.parametrize("seed", range(2))
def test_equals_reference(kernels, shape, dtype, seed):
    """Odd lengths (no packs), more than one chunk, more pairs than a block takes."""
    x = torch.randn(shape, generator=torch.Generator().manual_seed(seed)).to(dtype)
    check(kernels, seed, x, torch.tensor([shape[1] - 1, shape[1]])[: shape[0]] if seed else None)


def test_more_vectors_than_threads(kernels):
    check(kernels, 0, torch.randn(1, 259, 3, generator=torch.Generator().manual_seed(1)), torch.tensor([258]))


def test_close_vectors_keep_their_digits(kernels):
    x = torch.full((1, 2, 64), 1000.0)
    x[0, 1, 3] += 0.001
    assert distances_of(kernels, 0, x, None)[0, 0, 1] == x[0, 1, 3] - 1000.0


def test_equal_vectors_have_no_gradient(kernels):
    x = torch.ones(1, 3, 20)
    x[0, 2] = 2.0
    distances = distances_of(kernels, 0, x, None)
    gradient = gradient_of(kernels, 0, torch.ones(1, 3, 3), x, distances)
    assert gradient.isfinite().all()
    torch.testing.assert_close(gradient[0, 0], gradient[0, 1], rtol=0, atol=0)


@pytest.mark.parametrize("none", [0, -1, 3 - 2**32])  # of 33 bits, whose lower 32 are 3
def test_empty_slots_are_not_read(kernels, none):
    x = torch.randn(2, 4, 16, generator=torch.Generator().manual_seed(2))
    x[0, 2:] = float("nan")
    x[1] = float("inf")
    counts = torch.tensor([2, none])
    distances = distances_of(kernels, 0, x, counts)
    assert distances[1].eq(0).all() and distances.isfinite().all()
    gradient = gradient_of(kernels, 0, torch.ones(2, 4, 4), x, distances)
    assert gradient[0, 2:].eq(0).all() and gradient[1].eq(0).all() and gradient.isfinite().all()


@pytest.mark.parametrize("shape", [(0, 3, 4), (2, 0, 4), (2, 3, 0), (2, 1, 5)], ids=str)
def test_small_and_empty(kernels, shape):
    check(kernels, 0, torch.randn(shape, generator=torch.Generator().manual_seed(3)), None)
