"""The few best boxes that do not overlap each other."""

from __future__ import annotations

import torch
from torch import Tensor

from gid_cuda.ops._checks import (
    check_device,
    check_float,
    check_int,
    check_number,
    check_shape,
    check_tensor,
    check_type,
)


def topk_nms(
    boxes: Tensor,
    scores: Tensor,
    k: int,
    iou_threshold: float = 0.3,
    *,
    groups: Tensor | None = None,
    min_size: float = 0.0,
) -> tuple[Tensor, Tensor]:
    """The first k survivors of greedy non-maximum suppression over all R boxes of each image (paper, eq. 3).

    Exact: no box is left out beforehand. A box falls to a kept box of the same group with which its IoU, computed in
    float32, is above iou_threshold (rounded to float32). Never chosen: a non-finite score or coordinate, a side that is
    negative or below min_size. There is no gradient.

    Args:
        boxes: (B, R, 4) float32, float16 or bfloat16, xyxy in pixels.
        scores: (B, R) float32, float16 or bfloat16.
        k: how many to keep an image, 0 or more.
        iou_threshold: from 0 to 1.
        groups: (B, R) int64; boxes of different groups (classes, say) do not suppress each other. None: all one group.
        min_size: least width and height, in pixels.

    Returns:
        indices (B, k) int64, by descending score, equal scores by lower index, -1 after the last survivor; and
        counts (B,) int64, how many survivors there are.

    Raises:
        TypeError, ValueError: an argument of the wrong type, shape, device or range.
    """
    check_tensor(scores, "scores", "(B, R)")
    check_float(scores, "scores", "topk_nms")
    check_tensor(boxes, "boxes", "(B, R, 4)")
    check_shape(boxes, "boxes", "(B, R, 4)", (*scores.shape, 4))
    check_float(boxes, "boxes", "topk_nms")
    check_device(boxes, "boxes", scores, "scores")
    check_int(k, "k", least=0)
    check_number(iou_threshold, "iou_threshold", most=1.0)
    check_number(min_size, "min_size")
    if groups is not None:
        check_tensor(groups, "groups", "(B, R)")
        check_shape(groups, "groups", "(B, R)", tuple(scores.shape))
        check_type(groups, "groups", torch.int64)
        check_device(groups, "groups", scores, "scores")
    # The kernels read float32; what 16-bit numbers there are, float32 holds exactly.
    return torch.ops.gid.topk_nms(boxes.detach().float(), scores.detach().float(), k, iou_threshold, groups, min_size)


@torch.library.register_fake("gid::topk_nms")
def _(
    boxes: Tensor,
    scores: Tensor,
    k: int,
    iou_threshold: float = 0.3,
    groups: Tensor | None = None,
    min_size: float = 0.0,
) -> tuple[Tensor, Tensor]:
    images = scores.shape[0]
    return scores.new_empty((images, k), dtype=torch.int64), scores.new_empty((images,), dtype=torch.int64)
