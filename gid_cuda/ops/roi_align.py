"""Features of boxes, each from the pyramid level that suits its size."""

from __future__ import annotations

from collections.abc import Sequence
from typing import Any

import torch
from torch import Tensor

from gid_cuda.ops._checks import (
    MOST,
    check_bool,
    check_counts,
    check_device,
    check_float,
    check_int,
    check_number,
    check_shape,
    check_tensor,
    check_type,
    no_second_gradient,
)

MAX_LEVELS = 8  # csrc/common/roi.h: kMaxLevels


def multilevel_roi_align(
    features: Sequence[Tensor],
    boxes: Tensor,
    counts: Tensor | None = None,
    *,
    strides: Sequence[int],
    output_size: int = 10,
    sampling_ratio: int = 2,
    canonical_size: float = 224.0,
    canonical_level: int = 4,
    aligned: bool = True,
) -> Tensor:
    """RoIAlign of each box from one level of a feature pyramid, all images and levels at once (paper, section 3.2).

    A box belongs to the highest level l = log2(stride) with ``w * h >= canonical_size^2 * 4^(l - canonical_level)``,
    or to the first level given. There it is pooled as by ``torchvision.ops.roi_align(aligned=True)``. Differentiable
    once with respect to the features; the kernels' gradients are bit-reproducible, whether torch is told to be
    deterministic or not. (A CUDA kernel that adds atomically instead, in any order, is there to be measured against:
    ``torch.ops.gid.multilevel_roi_align_backward(..., deterministic=False)``. It has to move more bytes.)

    Args:
        features: L tensors (B, Ch, H_l, W_l), float32, float16 or bfloat16, finest first. channels_last is read as it
            lies.
        boxes: (B, K, 4) float32, xyxy in pixels of the (padded) images. A box that is not finite gives zeros.
        counts: (B,) int64; slots >= counts[b] give zeros and take no gradient. None: all K slots count.
        strides: L ints, ascending powers of two: pixels per feature cell.
        output_size: P, bins along each side.
        sampling_ratio: samples in a bin along each side; 0 or less: one a feature cell, at most 1024.
        canonical_size, canonical_level: a box of canonical_size squared pixels belongs to level canonical_level.
        aligned: half-pixel centres; False for the first RoIAlign's, which shifts by half a cell.

    Returns:
        (B, K, Ch, P, P) in the features' dtype.

    Raises:
        TypeError, ValueError: an argument of the wrong type, shape, device or range.
    """
    _check_features(features)
    _check_strides(strides, len(features))
    first = features[0]
    check_tensor(boxes, "boxes", "(B, K, 4)")
    check_shape(boxes, "boxes", "(B, K, 4)", (first.shape[0], boxes.shape[1], 4))
    check_type(boxes, "boxes", torch.float32)
    check_device(boxes, "boxes", first, "features[0]")
    check_counts(counts, boxes, "boxes")
    check_int(output_size, "output_size", least=1)
    check_int(sampling_ratio, "sampling_ratio")
    check_number(canonical_size, "canonical_size")
    check_int(canonical_level, "canonical_level")
    check_bool(aligned, "aligned")
    return torch.ops.gid.multilevel_roi_align(
        list(features),
        boxes.detach(),
        counts,
        list(strides),
        output_size,
        sampling_ratio,
        canonical_size,
        canonical_level,
        aligned,
    )


def _check_features(features: Sequence[Tensor]) -> None:
    if not isinstance(features, (list, tuple)):
        raise TypeError(f"features is a {type(features).__name__}, expected a list of tensors (B, Ch, H, W)")
    if not 1 <= len(features) <= MAX_LEVELS:
        raise ValueError(f"features has {len(features)} levels, expected 1 to {MAX_LEVELS}")
    for level, feature in enumerate(features):
        name = f"features[{level}]"
        check_tensor(feature, name, "(B, Ch, H, W)")
        if feature.shape[:2] != features[0].shape[:2] or feature.shape[2] == 0 or feature.shape[3] == 0:
            images, channels = features[0].shape[:2]
            raise ValueError(
                f"{name} has shape {tuple(feature.shape)}, expected ({images}, {channels}, H, W) with H, W at least 1"
            )
        check_float(feature, name, "multilevel_roi_align")
        check_type(feature, name, features[0].dtype)
        check_device(feature, name, features[0], "features[0]")


def _check_strides(strides: Sequence[int], levels: int) -> None:
    if not isinstance(strides, (list, tuple)) or not all(isinstance(stride, int) for stride in strides):
        raise TypeError(f"strides is {strides!r}, expected a list of ints")
    if len(strides) != levels:
        raise ValueError(
            f"strides has {len(strides)} entries, expected one for each of the {levels} levels of features"
        )
    powers = all(0 < stride <= MOST and stride & (stride - 1) == 0 for stride in strides)
    if not powers or any(fine >= coarse for fine, coarse in zip(strides, strides[1:], strict=False)):
        raise ValueError(f"strides is {list(strides)}, expected ascending powers of two")


@torch.library.register_fake("gid::multilevel_roi_align")
def _(
    features: list[Tensor],
    boxes: Tensor,
    counts: Tensor | None,
    strides: list[int],
    output_size: int = 10,
    sampling_ratio: int = 2,
    canonical_size: float = 224.0,
    canonical_level: int = 4,
    aligned: bool = True,
) -> Tensor:
    images, slots, _ = boxes.shape
    return features[0].new_empty((images, slots, features[0].shape[1], output_size, output_size))


@torch.library.register_fake("gid::multilevel_roi_align_backward")
def _(grad: Tensor, features: list[Tensor], *arguments: Any) -> list[Tensor]:
    return [torch.empty_like(feature) for feature in features]


def _save(ctx: Any, inputs: tuple[Any, ...], output: Tensor) -> None:
    features, boxes, counts, *ctx.options = inputs
    # The features are not read again; the backward wants to know their shape, dtype and memory format.
    ctx.save_for_backward(boxes, counts, *features)


def _backward(ctx: Any, grad: Tensor) -> tuple[Any, ...]:
    # Dense maps, mostly zeros, beside those that the head's convolutions give for the same features: autograd adds
    # whole tensors and hands nobody the first to add to, so the second is unavoidable, unlike that of the logits.
    boxes, counts, *features = ctx.saved_tensors
    gradients = torch.ops.gid.multilevel_roi_align_backward(grad, features, boxes, counts, *ctx.options)
    # One for each input that came in: before torch 2.15, trailing arguments that equal their defaults do not.
    return gradients, *[None] * (len(ctx.needs_input_grad) - 1)


torch.library.register_autograd("gid::multilevel_roi_align", _backward, setup_context=_save)
torch.library.register_autograd("gid::multilevel_roi_align_backward", no_second_gradient("multilevel_roi_align"))
