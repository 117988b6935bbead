"""Boxes on each other and within their images."""

from __future__ import annotations

import torch
from torch import Tensor


def iou(a: Tensor, b: Tensor) -> Tensor:
    """Intersection over union of boxes a and b (..., 4), xyxy, shapes broadcast: (...); 0 where the union is 0."""
    sides = (torch.minimum(a[..., 2:], b[..., 2:]) - torch.maximum(a[..., :2], b[..., :2])).clamp(min=0)
    inter = sides[..., 0] * sides[..., 1]
    union = _area(a) + _area(b) - inter
    return torch.where(union > 0, inter / union, 0.0)


def clip(boxes: Tensor, image_sizes: Tensor) -> Tensor:
    """boxes (B, R, 4) xyxy pixels within images of image_sizes (B, 2), height and width."""
    corner = image_sizes.flip(1).to(boxes.dtype)  # as x, y
    return torch.minimum(boxes.clamp(min=0), torch.cat([corner, corner], dim=1)[:, None])


def _area(boxes: Tensor) -> Tensor:
    return (boxes[..., 2] - boxes[..., 0]) * (boxes[..., 3] - boxes[..., 1])
