"""Which anchor is for which box."""

from __future__ import annotations

import torch
from torch import Tensor

from gid_cuda.ops._checks import (
    check_anchors,
    check_bool,
    check_counts,
    check_number,
    check_shape,
    check_tensor,
    check_type,
)


def match_anchors(
    boxes: Tensor,
    counts: Tensor | None,
    anchors: Tensor,
    *,
    high: float = 0.5,
    low: float = 0.4,
    low_quality: bool = True,
) -> Tensor:
    """Label assignment by overlap: torchvision's `Matcher` for a whole batch, and the paper's F (eq. 7) for anchors.

    An anchor is for the box with which its IoU is largest (the first of equals) where that IoU is at least `high`. With
    low_quality also where its IoU with some box is the best that this box has with any anchor, and above 0: no box goes
    without an anchor. No (N, R) matrix is made, nothing waits for the device. There is no gradient.

    Args:
        boxes: (B, N, 4) float32, xyxy in pixels: ground truth, or general instances.
        counts: (B,) int64; slots >= counts[b] hold no box. Below 0: an image without labels. None: all N count.
        anchors: (R, 4) float32, xyxy in pixels.
        high, low: IoUs, 0 <= low <= high <= 1.
        low_quality: see above.

    Returns:
        (B, R) int64: the index n of the anchor's box; -1: background, its best IoU is below `low`, or the image has no
        box; -2: in between, or the image is without labels.

    Raises:
        TypeError, ValueError: an argument of the wrong type, shape, device or range.
    """
    check_tensor(boxes, "boxes", "(B, N, 4)")
    check_shape(boxes, "boxes", "(B, N, 4)", (*boxes.shape[:2], 4))
    check_type(boxes, "boxes", torch.float32)
    check_counts(counts, boxes, "boxes")
    check_anchors(anchors, None, boxes, "boxes")
    check_number(high, "high", most=1.0)
    check_number(low, "low", most=high)
    check_bool(low_quality, "low_quality")
    return torch.ops.gid.match_anchors(boxes.detach(), counts, anchors.detach(), high, low, low_quality)


@torch.library.register_fake("gid::match_anchors")
def _(
    boxes: Tensor, counts: Tensor | None, anchors: Tensor, high: float = 0.5, low: float = 0.4, low_quality: bool = True
) -> Tensor:
    return boxes.new_empty((boxes.shape[0], anchors.shape[0]), dtype=torch.int64)
