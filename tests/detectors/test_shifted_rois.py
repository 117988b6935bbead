"""Faster R-CNN's crops by this project's operator, as deterministic training on a GPU has them: torchvision's."""

from __future__ import annotations

from typing import Any

import pytest
import torch
from torchvision.ops import MultiScaleRoIAlign

from gid_cuda.detectors import aligned_rois
from gid_cuda.detectors.aligned_rois import ShiftedRoIAlign

NAMES, STRIDES = ["0", "1", "2", "3"], [4, 8, 16, 32]


def maps() -> dict[str, torch.Tensor]:
    generator = torch.Generator().manual_seed(0)
    return {
        name: torch.randn(2, 3, 512 // stride, 640 // stride, generator=generator).requires_grad_()
        for name, stride in zip(NAMES, STRIDES, strict=True)
    }


def boxes(count: int, seed: int) -> torch.Tensor:
    """Of all sizes, some under a pixel and some beyond the border."""
    generator = torch.Generator().manual_seed(seed)
    corner = torch.rand(count, 2, generator=generator) * torch.tensor([600.0, 480.0])
    size = 2 ** (torch.rand(count, 2, generator=generator) * 10 - 1)
    return torch.cat([corner, corner + size], 1)


@pytest.mark.parametrize("counts", [(60, 25), (0, 9), (0, 0)])
def test_the_same_crops_and_gradients(counts: tuple[int, int]) -> None:
    rois = [boxes(count, seed) for seed, count in enumerate(counts)]
    pool = ShiftedRoIAlign(NAMES, STRIDES)
    own, theirs = maps(), maps()
    crops = aligned_rois._pool(pool, own, rois, STRIDES, aligned=False)
    expected = MultiScaleRoIAlign(NAMES, 7, 2)(theirs, rois, [(512, 640)] * 2)
    torch.testing.assert_close(crops, expected, rtol=1e-4, atol=1e-5)
    weights = torch.randn(crops.shape, generator=torch.Generator().manual_seed(1))
    for value in (crops, expected):
        if value.requires_grad:
            (value * weights).sum().backward()
    for name in NAMES:
        gradients = [x[name].grad if x[name].grad is not None else torch.zeros_like(x[name]) for x in (own, theirs)]
        torch.testing.assert_close(*gradients, rtol=1e-4, atol=1e-4)


def test_only_on_a_gpu_that_must_be_deterministic(monkeypatch: Any) -> None:
    """torchvision's kernels are faster, and on the CPU they are reproducible as they are."""
    monkeypatch.setattr(aligned_rois, "_pool", lambda *_, **__: "own")
    pool, x = ShiftedRoIAlign(NAMES, STRIDES), maps()

    class OnGpu(torch.Tensor):
        is_cuda = True

    rois = [boxes(3, 0), boxes(3, 1)]
    sizes = [(512, 640)] * 2
    before = torch.are_deterministic_algorithms_enabled()
    try:
        torch.use_deterministic_algorithms(True)
        assert isinstance(pool(x, rois, sizes), torch.Tensor)
        assert pool(x, [roi.as_subclass(OnGpu) for roi in rois], sizes) == "own"
    finally:
        torch.use_deterministic_algorithms(before)


@pytest.mark.cuda
@pytest.mark.skipif(not torch.cuda.is_available(), reason="needs a GPU")
def test_gradients_on_a_gpu_are_the_same_bits_twice() -> None:
    torch.use_deterministic_algorithms(True)
    try:
        gradients = []
        for _ in range(2):
            x = {name: value.detach().cuda().requires_grad_() for name, value in maps().items()}
            rois = [boxes(500, seed).cuda() for seed in range(2)]
            ShiftedRoIAlign(NAMES, STRIDES)(x, rois, [(512, 640)] * 2).square().sum().backward()
            gradients.append([x[name].grad for name in NAMES])
        assert all(torch.equal(one, other) for one, other in zip(*gradients, strict=True))
    finally:
        torch.use_deterministic_algorithms(False)
