"""How much teacher and student disagree about each predicted box."""

from __future__ import annotations

from collections.abc import Sequence
from typing import Any

import torch
from torch import Tensor

from gid_cuda.ops._checks import (
    check_anchors,
    check_bool,
    check_device,
    check_float,
    check_shape,
    check_tensor,
    check_type,
    check_weights,
)


def gi_score(
    teacher_logits: Tensor,
    student_logits: Tensor,
    teacher_boxes: Tensor,
    student_boxes: Tensor,
    image_sizes: Tensor | None = None,
) -> tuple[Tensor, Tensor]:
    """GI score and GI box of each predicted box (paper, eqs. 1 and 2).

    ``scores[b, r] = max_c |sigmoid(teacher_logits[b, r, c]) - sigmoid(student_logits[b, r, c])|``; the box is that of
    the model whose largest logit is larger, the student's where they are equal. Neither has a gradient.

    Args:
        teacher_logits, student_logits: (B, R, C) float32, float16 or bfloat16, before sigmoid.
        teacher_boxes, student_boxes: (B, R, 4) float32, decoded, xyxy in pixels.
        image_sizes: (B, 2) int64, height and width in pixels; the boxes are clipped to them. None: not clipped.

    Returns:
        scores (B, R) float32, within 2e-6 of float64 arithmetic, and boxes (B, R, 4) float32. A NaN among the logits
        of r gives a NaN score and the student's box.

    Raises:
        TypeError, ValueError: an argument of the wrong type, shape or device.
    """
    _check_logits(teacher_logits, student_logits, image_sizes)
    images, count, _ = teacher_logits.shape
    for boxes, name in ((teacher_boxes, "teacher_boxes"), (student_boxes, "student_boxes")):
        check_tensor(boxes, name, "(B, R, 4)")
        check_shape(boxes, name, "(B, R, 4)", (images, count, 4))
        check_type(boxes, name, torch.float32)
        check_device(boxes, name, teacher_logits, "teacher_logits")
    return torch.ops.gid.gi_score(
        teacher_logits.detach(), student_logits.detach(), teacher_boxes.detach(), student_boxes.detach(), image_sizes
    )


def decoded_gi_score(
    teacher_logits: Tensor,
    student_logits: Tensor,
    teacher_deltas: Tensor,
    student_deltas: Tensor,
    anchors: Tensor,
    image_sizes: Tensor | None = None,
    *,
    weights: Sequence[float] = (1.0, 1.0, 1.0, 1.0),
    distances: bool = False,
) -> tuple[Tensor, Tensor]:
    """`gi_score` of boxes that are still encoded: decoding, choice and clipping in one pass (paper, eqs. 1 and 2).

    Only the chosen model's box of each row is decoded, and the boxes of neither model are ever written out.

    Args:
        teacher_logits, student_logits, image_sizes: see `gi_score`.
        teacher_deltas, student_deltas: (B, R, 4) float32, float16 or bfloat16, what the regression heads give.
        anchors: (R, 4) float32, xyxy in pixels.
        weights: four numbers that the deltas are divided by.
        distances: False: R-CNN's dx, dy, dw, dh, the latter two at most log(1000 / 16). True: FCOS's left, top, right,
            bottom, in units of the anchor's size.

    Returns:
        scores (B, R) and boxes (B, R, 4), float32, as `gi_score` gives them for the decoded boxes.

    Raises:
        TypeError, ValueError: an argument of the wrong type, shape or device.
    """
    _check_logits(teacher_logits, student_logits, image_sizes)
    images, count, _ = teacher_logits.shape
    for deltas, name in ((teacher_deltas, "teacher_deltas"), (student_deltas, "student_deltas")):
        check_tensor(deltas, name, "(B, R, 4)")
        check_shape(deltas, name, "(B, R, 4)", (images, count, 4))
        check_float(deltas, name, "decoded_gi_score")
        check_device(deltas, name, teacher_logits, "teacher_logits")
    check_anchors(anchors, count, teacher_logits, "teacher_logits")
    check_bool(distances, "distances")
    return torch.ops.gid.decoded_gi_score(
        teacher_logits.detach(),
        student_logits.detach(),
        teacher_deltas.detach(),
        student_deltas.detach(),
        anchors.detach(),
        image_sizes,
        check_weights(weights),
        distances,
    )


def _check_logits(teacher_logits: Tensor, student_logits: Tensor, image_sizes: Tensor | None) -> None:
    dims = "(B, R, C)"
    check_tensor(teacher_logits, "teacher_logits", dims)
    check_tensor(student_logits, "student_logits", dims)
    check_shape(student_logits, "student_logits", dims, tuple(teacher_logits.shape))
    if teacher_logits.shape[2] == 0:
        raise ValueError(
            f"teacher_logits has shape {tuple(teacher_logits.shape)}, expected (B, R, C) with C at least 1"
        )
    check_float(teacher_logits, "teacher_logits", "gi_score")
    check_type(student_logits, "student_logits", teacher_logits.dtype)
    check_device(student_logits, "student_logits", teacher_logits, "teacher_logits")
    images = teacher_logits.shape[0]
    if image_sizes is not None:
        check_tensor(image_sizes, "image_sizes", "(B, 2)")
        check_shape(image_sizes, "image_sizes", "(B, 2)", (images, 2))
        check_type(image_sizes, "image_sizes", torch.int64)
        check_device(image_sizes, "image_sizes", teacher_logits, "teacher_logits")


@torch.library.register_fake("gid::decoded_gi_score")
def _(teacher_logits: Tensor, *arguments: Any) -> tuple[Tensor, Tensor]:
    images, count, _ = teacher_logits.shape
    scores = teacher_logits.new_empty((images, count), dtype=torch.float32)
    return scores, teacher_logits.new_empty((images, count, 4), dtype=torch.float32)


@torch.library.register_fake("gid::gi_score")
def _(
    teacher_logits: Tensor,
    student_logits: Tensor,
    teacher_boxes: Tensor,
    student_boxes: Tensor,
    image_sizes: Tensor | None = None,
) -> tuple[Tensor, Tensor]:
    images, count, _ = teacher_logits.shape
    return teacher_boxes.new_empty((images, count)), teacher_boxes.new_empty((images, count, 4))
