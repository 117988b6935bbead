"""Checks of operator arguments. They look at types, shapes and devices, never at values: no synchronisation, and
``torch.compile(fullgraph=True)`` traces through them."""

from __future__ import annotations

from collections.abc import Callable, Sequence
from typing import Any, NoReturn

import torch
from torch import Tensor

MOST = 2**31 - 1  # of a number of things; C++ takes 64 bits, but nothing has so many
FLOAT_TYPES = (torch.float32, torch.float16, torch.bfloat16)


def check_tensor(value: Any, name: str, dims: str) -> None:
    """A tensor with as many axes as `dims` names, as in "(B, R, 4)", on a device that has kernels."""
    if not isinstance(value, Tensor):
        raise TypeError(f"{name} is a {type(value).__name__}, expected a tensor {dims}")
    if value.dim() != dims.count(",") + (not dims.endswith(",)")):
        raise ValueError(f"{name} has shape {tuple(value.shape)}, expected {dims}")
    if value.layout != torch.strided:
        raise TypeError(f"{name} is a tensor of layout {value.layout}, expected a dense one {dims}")
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
    if isinstance(value, int) and abs(value) > MOST:
        raise ValueError(f"{name} is {value}, expected at most {MOST}")


def check_bool(value: Any, name: str) -> None:
    if not isinstance(value, bool):
        raise TypeError(f"{name} is a {type(value).__name__}, expected a bool")


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


def check_anchors(anchors: Tensor, count: int | None, like: Tensor, like_name: str) -> None:
    """anchors (R, 4) float32, one for each of `count` rows where that is given."""
    check_tensor(anchors, "anchors", "(R, 4)")
    check_shape(anchors, "anchors", "(R, 4)", (anchors.shape[0] if count is None else count, 4))
    check_type(anchors, "anchors", torch.float32)
    check_device(anchors, "anchors", like, like_name)


def check_weights(weights: Sequence[float]) -> list[float]:
    """A box coder's weights as the list that the operators take."""
    if not isinstance(weights, (list, tuple)) or not all(isinstance(weight, (int, float)) for weight in weights):
        raise TypeError(f"weights is {weights!r}, expected four numbers")
    if len(weights) != 4 or not all(weight > 0 for weight in weights):
        raise ValueError(f"weights is {list(weights)}, expected four numbers above 0")
    return [float(weight) for weight in weights]


def check_together(**values: Any) -> bool:
    """Are these arguments given? All or none of them must be."""
    missing = [name for name, value in values.items() if value is None]
    if 0 < len(missing) < len(values):
        given = next(name for name, value in values.items() if value is not None)
        raise ValueError(f"{given} is given but {missing[0]} is not: {', '.join(values)} go together")
    return not missing


def check_teacher(teacher: Tensor, mask: Tensor, like: Tensor, names: tuple[str, str, str], operator: str) -> None:
    """A teacher's prediction beside the student's, `like` (B, R, ...), and mask (B, R).

    names: of the teacher's and the student's argument, and their dims."""
    name, like_name, dims = names
    check_tensor(teacher, name, dims)
    check_shape(teacher, name, dims, tuple(like.shape))
    check_float(teacher, name, operator)
    check_device(teacher, name, like, like_name)
    check_tensor(mask, "mask", "(B, R)")
    check_shape(mask, "mask", "(B, R)", tuple(like.shape[:2]))
    check_type(mask, "mask", torch.bool)
    check_device(mask, "mask", like, like_name)


def check_matched(matched: Tensor, like: Tensor, like_name: str) -> None:
    """matched (B, R) int64 beside a prediction (B, R, ...)."""
    check_tensor(matched, "matched", "(B, R)")
    check_shape(matched, "matched", "(B, R)", tuple(like.shape[:2]))
    check_type(matched, "matched", torch.int64)
    check_device(matched, "matched", like, like_name)


def check_image_sums(value: Tensor, name: str, like: Tensor, like_name: str) -> None:
    """A float32 number of each image."""
    check_tensor(value, name, "(B,)")
    check_shape(value, name, "(B,)", (like.shape[0],))
    check_type(value, name, torch.float32)
    check_device(value, name, like, like_name)


def no_second_gradient(operator: str) -> Callable[..., NoReturn]:
    """The gradient of an operator's gradient. Without one torch would warn and go on with zeros."""

    def backward(ctx: Any, *grads: Any) -> NoReturn:
        raise RuntimeError(f"{operator} has no second derivative; gid_cuda.reference.{operator} has one")

    return backward
