"""The GIoU loss of boxes side by side, with fixed shapes: nothing is selected, so nothing waits for the device."""

from __future__ import annotations

import torch
from torch import Tensor

EPS = 1e-7  # torchvision's


def giou_loss(boxes: Tensor, targets: Tensor) -> Tensor:
    """1 - GIoU, from 0 (equal) to 2 (far apart); (..., 4) xyxy and the same -> (...,), in their type.

    `torchvision.ops.generalized_box_iou_loss` in value and gradient, which indexes by a mask on its way and thereby
    makes the host wait. Differentiable in both; where sides coincide each box has half of the gradient. Finite, with a
    finite gradient, for all finite boxes whose sides are not negative, those without area, too.
    """
    x0, y0, x1, y1 = boxes.unbind(-1)
    tx0, ty0, tx1, ty1 = targets.unbind(-1)
    width, height = torch.minimum(x1, tx1) - torch.maximum(x0, tx0), torch.minimum(y1, ty1) - torch.maximum(y0, ty0)
    intersection = torch.where((width > 0) & (height > 0), width * height, 0.0)
    union = (x1 - x0) * (y1 - y0) + (tx1 - tx0) * (ty1 - ty0) - intersection
    hull = (torch.maximum(x1, tx1) - torch.minimum(x0, tx0)) * (torch.maximum(y1, ty1) - torch.minimum(y0, ty0))
    return 1 - (intersection / (union + EPS) - (hull - union) / (hull + EPS))
