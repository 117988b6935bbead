"""The classification losses of a dense head, the task's and the distillation's, over the same logits."""

from __future__ import annotations

from typing import Any, Literal

import torch
from torch import Tensor

from gid_cuda.ops._checks import (
    check_device,
    check_float,
    check_image_sums,
    check_matched,
    check_shape,
    check_teacher,
    check_tensor,
    check_together,
    check_type,
    no_second_gradient,
)


def class_losses(
    logits: Tensor,
    *,
    matched: Tensor | None = None,
    labels: Tensor | None = None,
    teacher_logits: Tensor | None = None,
    mask: Tensor | None = None,
    focal: Tensor | None = None,
    kind: Literal["bce", "focal"] = "bce",
) -> tuple[Tensor, Tensor]:
    """Focal loss against the ground truth, and L_cls of the response loss (paper, eq. 8); sums over each image.

    Focal loss: torchvision's `sigmoid_focal_loss` (alpha 0.25, gamma 2) of every row with matched >= -1 against the
    class of its ground truth, one pass over the logits. L_cls, over the rows of the mask, with p and y the student's
    and the teacher's sigmoid: "bce": BCE(p, y) less the entropy of y, so exactly 0, with zero gradient, where both
    agree; "focal": the focal loss at soft targets, (0.25 y + 0.75 (1 - y)) (y - p)^2 BCE(p, y). Differentiable once
    with respect to `logits`: both losses' gradients are added in one pass and written once, as one dense tensor.

    Args:
        logits: (B, R, C) float32, float16 or bfloat16, before sigmoid.
        matched: (B, R) int64, what `match_anchors` gives: the row's ground truth n, -1: background, less: left out.
        labels: (B, N) int64, classes in 0..C-1. Goes with `matched`; without both the focal loss is 0. Values are not
            looked at on the host: a row with another label, or with matched >= N, counts as background.
        teacher_logits: (B, R, C) of any of the three types.
        mask: (B, R) bool; other rows of the teacher are not read. Goes with `teacher_logits`; without both L_cls is 0.
        focal: (B,) float32, with `matched`: the focal loss of these logits, computed before. It is returned as it is,
            and its gradient comes with that of L_cls: a task loss and a response loss that are computed one after the
            other then still have one gradient tensor between them.
        kind: of L_cls.

    Returns:
        focal (B,) and response (B,), float32, not normalised.

    Raises:
        TypeError, ValueError: an argument of the wrong type, shape or device.
    """
    dims = "(B, R, C)"
    check_tensor(logits, "logits", dims)
    check_float(logits, "logits", "class_losses")
    if check_together(matched=matched, labels=labels):
        check_matched(matched, logits, "logits")
        check_tensor(labels, "labels", "(B, N)")
        check_shape(labels, "labels", "(B, N)", (logits.shape[0], labels.shape[1]))
        check_type(labels, "labels", torch.int64)
        check_device(labels, "labels", logits, "logits")
    if check_together(teacher_logits=teacher_logits, mask=mask):
        check_teacher(teacher_logits, mask, logits, ("teacher_logits", "logits", dims), "class_losses")
        teacher_logits = teacher_logits.detach()
    if focal is not None:
        if matched is None:
            raise ValueError("focal is given but matched is not: its gradient needs matched and labels")
        check_image_sums(focal, "focal", logits, "logits")
        focal = focal.detach()
    if kind not in ("bce", "focal"):
        raise ValueError(f"kind is {kind!r}, expected 'bce' or 'focal'")
    return torch.ops.gid.class_losses(logits, matched, labels, teacher_logits, mask, focal, kind == "focal")


@torch.library.register_fake("gid::class_losses")
def _(logits: Tensor, *arguments: Any) -> tuple[Tensor, Tensor]:
    images = logits.shape[0]
    return logits.new_empty((images,), dtype=torch.float32), logits.new_empty((images,), dtype=torch.float32)


@torch.library.register_fake("gid::class_losses_backward")
def _(grad_focal: Tensor | None, grad_response: Tensor | None, logits: Tensor, *arguments: Any) -> Tensor:
    return logits.new_empty(logits.shape)


def _save(ctx: Any, inputs: tuple[Any, ...], output: tuple[Tensor, Tensor]) -> None:
    logits, matched, labels, teacher_logits, mask, _, soft_focal = (*inputs, *[None] * (7 - len(inputs)))
    ctx.save_for_backward(logits, matched, labels, teacher_logits, mask)
    ctx.soft_focal = bool(soft_focal)
    ctx.set_materialize_grads(False)  # of a loss that nobody uses there is no gradient to compute


def _backward(ctx: Any, grad_focal: Tensor | None, grad_response: Tensor | None) -> tuple[Tensor | None, ...]:
    # The one tensor of the logits' size that autograd cannot do without: it adds gradients densely, and the convolution
    # that made the logits reads it.
    gradient = torch.ops.gid.class_losses_backward(grad_focal, grad_response, *ctx.saved_tensors, ctx.soft_focal)
    return gradient, *[None] * (len(ctx.needs_input_grad) - 1)


torch.library.register_autograd("gid::class_losses", _backward, setup_context=_save)
torch.library.register_autograd("gid::class_losses_backward", no_second_gradient("class_losses"))
