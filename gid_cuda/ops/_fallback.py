"""Plain PyTorch in place of the CUDA kernels, where these could not be loaded."""

from __future__ import annotations

import warnings
from collections.abc import Callable
from typing import Any

import torch
from torch import Tensor

from gid_cuda import _library, reference

_warned = False


def register() -> None:
    """Gives the operators an implementation for CUDA tensors unless the CUDA library has brought one."""
    reason = _library.cuda_missing_reason()
    if reason is None:
        return
    for name, function in IMPLEMENTATIONS.items():
        torch.library.impl(f"gid::{name}", "cuda", _warning_once(function, reason))


def _warning_once(function: Callable[..., Any], reason: str) -> Callable[..., Any]:
    def call(*arguments: Any) -> Any:
        global _warned
        if not _warned:
            _warned = True
            warnings.warn(
                f"gid_cuda's operators run as plain PyTorch on the GPU, not as CUDA kernels: {reason}",
                stacklevel=2,
            )
        return function(*arguments)

    return call


# The dispatcher passes all arguments by position, in the order of the schema, and leaves trailing defaults out.


def _gi_score(*arguments: Any) -> tuple[Tensor, Tensor]:
    scores, boxes = reference.gi_score(*arguments)
    return scores.contiguous(), boxes.contiguous()  # the strides that the fake implementation promises


def _decoded_gi_score(*arguments: Any) -> tuple[Tensor, Tensor]:
    scores, boxes = reference.decoded_gi_score(*arguments)
    return scores.contiguous(), boxes.contiguous()


def _topk_nms(
    boxes: Tensor,
    scores: Tensor,
    k: int,
    iou_threshold: float = 0.3,
    groups: Tensor | None = None,
    min_size: float = 0.0,
) -> tuple[Tensor, Tensor]:
    return reference.topk_nms(boxes, scores, k, iou_threshold, groups=groups, min_size=min_size)


def _multilevel_roi_align(
    features: list[Tensor], boxes: Tensor, counts: Tensor | None, strides: list[int], *options: Any
) -> Tensor:
    names = ("output_size", "sampling_ratio", "canonical_size", "canonical_level", "aligned")
    named = dict(zip(names, options, strict=False))
    return reference.multilevel_roi_align(features, boxes, counts, strides=strides, **named)


def _contiguous(function: Callable[..., Tensor]) -> Callable[..., Tensor]:
    def call(*arguments: Any) -> Tensor:
        return function(*arguments).contiguous()

    return call


IMPLEMENTATIONS: dict[str, Callable[..., Any]] = {
    "gi_score": _gi_score,
    "decoded_gi_score": _decoded_gi_score,
    "topk_nms": _topk_nms,
    "multilevel_roi_align": _multilevel_roi_align,
    "multilevel_roi_align_backward": reference.multilevel_roi_align_backward,
    "pairwise_distance": reference.pairwise_distance,
    "pairwise_distance_backward": _contiguous(reference.pairwise_distance_backward),
    "match_anchors": reference.match_anchors,
    "class_losses": reference.class_losses,
    "class_losses_backward": _contiguous(reference.class_losses_backward),
    "box_losses": reference.box_losses,
    "box_losses_backward": _contiguous(reference.box_losses_backward),
}
