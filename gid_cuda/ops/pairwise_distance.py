"""Distances between the feature vectors of each image's instances."""

from __future__ import annotations

from typing import Any

import torch
from torch import Tensor

from gid_cuda.ops._checks import check_counts, check_float, check_tensor, no_second_gradient


def pairwise_distance(x: Tensor, counts: Tensor | None = None) -> Tensor:
    """Euclidean distances between the K vectors of each image (the inner part of the paper's eq. 6).

    Computed from differences, so that close vectors keep their digits. Differentiable once with respect to x; the
    gradient of a zero distance is zero.

    Args:
        x: (B, K, D) float32, float16 or bfloat16.
        counts: (B,) int64; slots >= counts[b] are empty. None: all K count.

    Returns:
        (B, K, K) float32, symmetric; zero on the diagonal and in the rows and columns of empty slots.

    Raises:
        TypeError, ValueError: an argument of the wrong type, shape or device.
    """
    check_tensor(x, "x", "(B, K, D)")
    check_float(x, "x", "pairwise_distance")
    check_counts(counts, x, "x")
    return torch.ops.gid.pairwise_distance(x, counts)


@torch.library.register_fake("gid::pairwise_distance")
def _(x: Tensor, counts: Tensor | None = None) -> Tensor:
    images, slots, _ = x.shape
    return x.new_empty((images, slots, slots), dtype=torch.float32)


@torch.library.register_fake("gid::pairwise_distance_backward")
def _(grad: Tensor, x: Tensor, distances: Tensor, counts: Tensor | None) -> Tensor:
    return x.new_empty(x.shape)


def _save(ctx: Any, inputs: tuple[Any, ...], output: Tensor) -> None:
    x, counts = inputs
    ctx.save_for_backward(x, output, counts)


def _backward(ctx: Any, grad: Tensor) -> tuple[Tensor, None]:
    x, distances, counts = ctx.saved_tensors
    return torch.ops.gid.pairwise_distance_backward(grad, x, distances, counts), None


torch.library.register_autograd("gid::pairwise_distance", _backward, setup_context=_save)
torch.library.register_autograd("gid::pairwise_distance_backward", no_second_gradient("pairwise_distance"))
