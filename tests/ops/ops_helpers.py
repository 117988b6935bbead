"""What the operator tests share: devices, dtypes, tolerances."""

from __future__ import annotations

import pytest
import torch

DEVICES = [
    "cpu",
    pytest.param(
        "cuda", marks=[pytest.mark.cuda, pytest.mark.skipif(not torch.cuda.is_available(), reason="needs a GPU")]
    ),
]
DTYPES = [torch.float32, torch.float16, torch.bfloat16]
NAN, INF = float("nan"), float("inf")

each_device = pytest.mark.parametrize("device", DEVICES)
each_dtype = pytest.mark.parametrize("dtype", DTYPES, ids=["float32", "float16", "bfloat16"])


def torchvision_ops():
    """torchvision.ops; skips where there is none for this torch. The operators themselves do not need it."""
    try:
        from torchvision import ops
    except Exception as problem:
        pytest.skip(f"torchvision does not import: {problem}")
    return ops


def assert_near(actual: torch.Tensor, expected: torch.Tensor, dtype: torch.dtype, scale: float = 1.0) -> None:
    """Both computed in float32 (or better) and rounded to dtype: a few units in its last place."""
    tolerance = 4 * torch.finfo(dtype).eps if dtype != torch.float32 else 1e-5
    torch.testing.assert_close(
        actual.cpu().double(), expected.cpu().double(), rtol=tolerance, atol=scale * tolerance, equal_nan=True
    )


def random_boxes(images: int, count: int, extent: float, smallest: float, largest: float) -> torch.Tensor:
    """(B, K, 4) xyxy: corners in an image of `extent` pixels, some boxes reaching out of it."""
    corner = torch.rand(images, count, 2) * extent * 1.2 - extent * 0.1
    return torch.cat([corner, corner + smallest + torch.rand(images, count, 2) * (largest - smallest)], dim=2)


def moved(tensor: torch.Tensor, device: str) -> torch.Tensor:
    """The tensor on the device, lying there as it lies here; `.to` would make it dense, and aligned to vectors."""
    if tensor.device.type == torch.device(device).type:
        return tensor
    whole = torch.empty(0, dtype=tensor.dtype).set_(tensor.untyped_storage())
    return whole.to(device).as_strided(tensor.shape, tensor.stride(), tensor.storage_offset())


def on(device: str, arguments: dict) -> dict:
    return {n: moved(value, device) if isinstance(value, torch.Tensor) else value for n, value in arguments.items()}


def with_gradient(function, name: str, arguments: dict, weights: torch.Tensor) -> list[torch.Tensor]:
    """Both losses (B,) of a head, and the gradient of their sum weighted by weights (2, B) to the argument `name`."""
    prediction = arguments[name].detach().requires_grad_()
    losses = function(**arguments | {name: prediction})
    (gradient,) = torch.autograd.grad((torch.stack(losses) * weights.to(losses[0])).sum(), prediction)
    return [loss.detach() for loss in losses] + [gradient]
