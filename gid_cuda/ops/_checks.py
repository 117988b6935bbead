"""Checks of operator arguments. They look at types, shapes and devices, never at values: no synchronisation, and
``torch.compile(fullgraph=True)`` traces through them."""

from __future__ import annotations

from collections.abc import Callable
from typing import Any, NoReturn

import torch
from torch import Tensor

FLOAT_TYPES = (torch.float32, torch.float16, torch.bfloat16)


def check_tensor(value: Any, name: str, dims: str) -> None:
    """A tensor with as many axes as `dims` names, as in "(B, R, 4)", on a device that has kernels."""
    if not isinstance(value, Tensor):
        raise TypeError(f"{name} is a {type(value).__name__}, expected a tensor {dims}")
    if value.dim() != dims.count(",") + (not dims.endswith(",)")):
        raise ValueError(f"{name} has shape {tuple(value.shape)}, expected {dims}")
    if value.device.type not in ("cpu", "cuda", "meta"):
        raise ValueError(f"{name} is on {value.device}, expected cpu or cuda")


def check_shape(value: Tensor, name: str, dims: str, shape: tuple[int, ...]) -> None:
    if tuple(value.shape) != shape:
        raise ValueError(f"{name} has shape {tuple(value.shape)}, expected {dims} = {shape}")


def check_float(value: Tensor, name: str, operator: str) -> None:
    """One of the three floating types that the kernels compute with."""
    if value.dtype == torch.float64:
        raise TypeError(
            f"{name} is torch.float64, expected float32, float16 or bfloat16; "
            f"gid_cuda.reference.{operator} computes in float64"
        )
    if value.dtype not in FLOAT_TYPES:
        raise TypeError(f"{name} is {value.dtype}, expected float32, float16 or bfloat16")


def check_type(value: Tensor, name: str, dtype: torch.dtype) -> None:
    if value.dtype != dtype:
        raise TypeError(f"{name} is {value.dtype}, expected {dtype}")


def check_device(value: Tensor, name: str, like: Tensor, like_name: str) -> None:
    if value.device != like.device:
        raise ValueError(f"{name} is on {value.device}, expected {like.device}, where {like_name} is")


def check_int(value: Any, name: str, least: int | None = None) -> None:
    if isinstance(value, bool) or not isinstance(value, (int, torch.SymInt)):
        raise TypeError(f"{name} is a {type(value).__name__}, expected an int")
    if least is not None and value < least:
        raise ValueError(f"{name} is {value}, expected at least {least}")


def check_number(value: Any, name: str, least: float = 0.0, most: float = float("inf")) -> None:
    if isinstance(value, bool) or not isinstance(value, (int, float, torch.SymInt, torch.SymFloat)):
        raise TypeError(f"{name} is a {type(value).__name__}, expected a number")
    if not least <= value <= most:
        bounds = f"at least {least:g}" if most == float("inf") else f"from {least:g} to {most:g}"
        raise ValueError(f"{name} is {value}, expected {bounds}")


def check_counts(counts: Tensor | None, like: Tensor, like_name: str) -> None:
    """counts (B,) int64 beside a tensor (B, K, ...)."""
    if counts is None:
        return
    check_tensor(counts, "counts", "(B,)")
    check_shape(counts, "counts", "(B,)", (like.shape[0],))
    check_type(counts, "counts", torch.int64)
    check_device(counts, "counts", like, like_name)


def no_second_gradient(operator: str) -> Callable[..., NoReturn]:
    """The gradient of an operator's gradient. Without one torch would warn and go on with zeros."""

    def backward(ctx: Any, *grads: Any) -> NoReturn:
        raise RuntimeError(f"{operator} has no second derivative; gid_cuda.reference.{operator} has one")

    return backward
