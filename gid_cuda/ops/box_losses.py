"""The regression losses of a dense head, the task's and the distillation's, over the same deltas."""

from __future__ import annotations

from collections.abc import Sequence
from typing import Any

import torch
from torch import Tensor

from gid_cuda.ops._checks import (
    check_anchors,
    check_device,
    check_float,
    check_matched,
    check_number,
    check_shape,
    check_teacher,
    check_tensor,
    check_together,
    check_type,
    check_weights,
    no_second_gradient,
)


def box_losses(
    deltas: Tensor,
    *,
    matched: Tensor | None = None,
    boxes: Tensor | None = None,
    anchors: Tensor | None = None,
    teacher_deltas: Tensor | None = None,
    mask: Tensor | None = None,
    beta: float = 0.1,
    weights: Sequence[float] = (1.0, 1.0, 1.0, 1.0),
) -> tuple[Tensor, Tensor]:
    """L1 loss against the ground truth, and L_reg of the response loss (paper, eq. 8); sums over each image.

    L1: between the deltas of every row with matched >= 0 and those of its ground truth against its anchor. L_reg:
    smooth L1 between student and teacher over the rows of the mask. Differentiable once with respect to `deltas`, as
    one dense tensor.

    Args:
        deltas: (B, R, 4) float32, float16 or bfloat16: dx, dy, dw, dh as R-CNN encodes boxes.
        matched: (B, R) int64, what `match_anchors` gives.
        boxes: (B, N, 4) float32 ground truth, xyxy in pixels. anchors: (R, 4) float32. Both go with `matched`; without
            them L1 is 0.
        teacher_deltas: (B, R, 4) of any of the three types.
        mask: (B, R) bool. Goes with `teacher_deltas`; without both L_reg is 0.
        beta: where the parabola of smooth L1 ends, above 0.
        weights: what the encoded ground truth is multiplied by.

    Returns:
        l1 (B,) and response (B,), float32, not normalised.

    Raises:
        TypeError, ValueError: an argument of the wrong type, shape, device or range.
    """
    dims = "(B, R, 4)"
    check_tensor(deltas, "deltas", dims)
    check_shape(deltas, "deltas", dims, (*deltas.shape[:2], 4))
    check_float(deltas, "deltas", "box_losses")
    if check_together(matched=matched, boxes=boxes, anchors=anchors):
        check_matched(matched, deltas, "deltas")
        check_tensor(boxes, "boxes", "(B, N, 4)")
        check_shape(boxes, "boxes", "(B, N, 4)", (deltas.shape[0], boxes.shape[1], 4))
        check_type(boxes, "boxes", torch.float32)
        check_device(boxes, "boxes", deltas, "deltas")
        check_anchors(anchors, deltas.shape[1], deltas, "deltas")
        boxes, anchors = boxes.detach(), anchors.detach()
    if check_together(teacher_deltas=teacher_deltas, mask=mask):
        check_teacher(teacher_deltas, mask, deltas, ("teacher_deltas", "deltas", dims), "box_losses")
        teacher_deltas = teacher_deltas.detach()
    check_number(beta, "beta")
    if beta == 0:
        raise ValueError("beta is 0, expected more")
    return torch.ops.gid.box_losses(deltas, matched, boxes, anchors, teacher_deltas, mask, beta, check_weights(weights))


@torch.library.register_fake("gid::box_losses")
def _(deltas: Tensor, *arguments: Any) -> tuple[Tensor, Tensor]:
    images = deltas.shape[0]
    return deltas.new_empty((images,), dtype=torch.float32), deltas.new_empty((images,), dtype=torch.float32)


@torch.library.register_fake("gid::box_losses_backward")
def _(grad_l1: Tensor | None, grad_response: Tensor | None, deltas: Tensor, *arguments: Any) -> Tensor:
    return deltas.new_empty(deltas.shape)


_DEFAULTS = (None, None, None, None, None, 0.1, [1.0, 1.0, 1.0, 1.0])  # of the schema, all but the deltas


def _save(ctx: Any, inputs: tuple[Any, ...], output: tuple[Tensor, Tensor]) -> None:
    *tensors, ctx.beta, ctx.weights = (*inputs, *_DEFAULTS[len(inputs) - 1 :])
    ctx.save_for_backward(*tensors)
    ctx.set_materialize_grads(False)  # of a loss that nobody uses there is no gradient to compute


def _backward(ctx: Any, grad_l1: Tensor | None, grad_response: Tensor | None) -> tuple[Tensor | None, ...]:
    gradient = torch.ops.gid.box_losses_backward(grad_l1, grad_response, *ctx.saved_tensors, ctx.beta, ctx.weights)
    return gradient, *[None] * (len(ctx.needs_input_grad) - 1)


torch.library.register_autograd("gid::box_losses", _backward, setup_context=_save)
torch.library.register_autograd("gid::box_losses_backward", no_second_gradient("box_losses"))
