"""The response losses that detectors share (paper, eq. 8).

Both are masked sums of fixed shape: selecting the masked boxes by index would make the host wait for the device.
Values outside the mask are overwritten before any arithmetic, since 0 * inf is NaN, in the gradient too.
"""

from __future__ import annotations

from typing import Literal

import torch.nn.functional as F
from torch import Tensor

_FOCAL_ALPHA = 0.25  # torchvision's sigmoid_focal_loss


def classification_sum(student: Tensor, teacher: Tensor, mask: Tensor, kind: Literal["bce", "focal"] = "bce") -> Tensor:
    """Sum over the masked boxes and all classes of L_cls between two heads; float32 scalar.

    With p and y the student's and the teacher's sigmoid:
    bce:   cross-entropy BCE(p, y) less the teacher's entropy, so 0 with zero gradient where both agree
    focal: RetinaNet's task loss at soft targets, alpha_t |y - p|^2 BCE(p, y), alpha_t = 0.25 y + 0.75 (1 - y)

    student, teacher: logits (B, R, C) before sigmoid; mask: (B, R) bool. Gradient goes to the student alone.
    """
    student, teacher = _masked_pair(student, teacher, mask, "logits")
    soft = teacher.sigmoid()
    cross_entropy = F.binary_cross_entropy_with_logits(student, soft, reduction="none")
    entropy = F.binary_cross_entropy_with_logits(teacher, soft, reduction="none")
    if kind == "bce":
        return (cross_entropy - entropy).sum()
    alpha = _FOCAL_ALPHA * soft + (1 - _FOCAL_ALPHA) * (1 - soft)
    focal = alpha * (soft - student.sigmoid()).square() * cross_entropy
    return focal.sum()  # the filled boxes agree, so they give 0


def smooth_l1_sum(student: Tensor, teacher: Tensor, mask: Tensor, beta: float) -> Tensor:
    """Sum over the masked boxes and the four deltas of smooth L1 between two heads; float32 scalar.

    student, teacher: (B, R, 4); mask: (B, R) bool; beta: where the parabola ends, > 0.
    Gradient goes to the student alone.
    """
    student, teacher = _masked_pair(student, teacher, mask, "deltas")
    return F.smooth_l1_loss(student, teacher, reduction="sum", beta=beta)


def _masked_pair(student: Tensor, teacher: Tensor, mask: Tensor, what: str) -> tuple[Tensor, Tensor]:
    """Both in float32 with zeros outside the mask; the teacher without gradient."""
    if student.shape != teacher.shape or mask.shape != student.shape[:2]:
        raise ValueError(
            f"student and teacher {what} must have one shape (B, R, ...) and mask (B, R), got {tuple(student.shape)}, "
            f"{tuple(teacher.shape)} and {tuple(mask.shape)}: both detectors need the same classes and anchors"
        )
    outside = ~mask[..., None]
    return student.float().masked_fill(outside, 0.0), teacher.detach().float().masked_fill(outside, 0.0)
