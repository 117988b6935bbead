"""Cases of label assignment and of the losses of RetinaNet's two heads."""

from __future__ import annotations

from collections.abc import Callable, Sequence
from typing import Any, Literal

import torch
import torch.nn.functional as F
from torch import Tensor
from torchvision.models.detection._utils import BoxCoder, Matcher
from torchvision.ops import box_iou, sigmoid_focal_loss

from benchmarks import plain
from benchmarks.cases import Case, Comparison, Contender, byte_count, close, compiled, dtype_name, with_gradient
from benchmarks.inputs import OBJECTS, make_scene
from gid_cuda import ops, reference

Part = Literal["task", "response", "both"]
"""Which losses of a head: against the ground truth, against the teacher, or both with their joint gradient."""

BETA = 0.1
_PLAIN_COPIES = 12  # float32 tensors of the logits' shape that the plain losses hold at once
_WORK = "forward + backward"
_TWO_PASSES = "forward: what it looks at read once; backward: the same, and the gradient written once"


def match_anchors(images: int, anchors: Tensor, size: tuple[int, int]) -> Case:
    """Label assignment for a batch of images with ground truth."""

    def make(seed: int) -> tuple[Tensor, ...]:
        scene = make_scene(images, 1, anchors, size, torch.float32, seed)
        return scene.objects, scene.counts, anchors

    matcher = Matcher(0.5, 0.4, allow_low_quality_matches=True)

    def torchvision(boxes: Tensor, counts: Tensor, anchors: Tensor) -> Tensor:
        return torch.stack([matcher(box_iou(of_image, anchors)) for of_image in boxes])

    return Case(
        operator="match_anchors",
        work="forward",
        sizes={"B": images, "R": len(anchors), "N": OBJECTS},
        dtype="float32",
        make=make,
        input_bytes=16 * len(anchors),
        moved=lambda *inputs: byte_count(inputs) + 8 * images * len(anchors),
        counted="inputs read once, outputs written once",
        contenders=[
            Contender("ours", "gid_cuda", ops.match_anchors),
            Contender("pytorch", "PyTorch", reference.match_anchors, close(0.0)),
            Contender("compile", "torch.compile", compiled(reference.match_anchors), close(0.0), binding=False),
            Contender("instead", "torchvision box_iou + Matcher", torchvision, close(0.0)),
        ],
    )


def class_losses(
    images: int, anchors: Tensor, classes: int, dtype: torch.dtype, size: tuple[int, int], part: Part
) -> Case:
    """Focal loss of the task, L_cls of the response loss, or both."""

    def make(seed: int) -> tuple[Any, ...]:
        scene = make_scene(images, classes, anchors, size, dtype, seed)
        matched, mask = _assignment(scene.objects, scene.counts, anchors)
        task = (matched, scene.labels) if part != "response" else (None, None)
        response = (scene.teacher_logits, mask) if part != "task" else (None, None)
        return scene.student_logits.requires_grad_(), *task, *response

    def ours(logits: Tensor, matched: Any, labels: Any, teacher: Any, mask: Any) -> Sequence[Tensor]:
        return ops.class_losses(logits, matched=matched, labels=labels, teacher_logits=teacher, mask=mask)

    def usual(logits: Tensor, matched: Any, labels: Any, teacher: Any, mask: Any) -> Sequence[Tensor]:
        task = [] if matched is None else [_torchvision_focal(logits, matched, labels)]
        return task if mask is None else [*task, plain.response_of_rows(logits, teacher, mask)]

    elements = images * len(anchors) * classes
    return Case(
        operator="class_losses",
        work=f"{_PARTS[part][0]}, {_WORK}",
        sizes={"B": images, "R": len(anchors), "C": classes},
        dtype=dtype_name(dtype),
        make=make,
        input_bytes=3 * elements * dtype.itemsize,
        moved=_moved(least=-1),
        counted=_TWO_PASSES,
        contenders=_contenders(
            (ours, reference.class_losses, usual, _PARTS[part][1]),
            part,
            _tolerance(dtype),
            temporary=4 * _PLAIN_COPIES * elements,
        ),
    )


def box_losses(images: int, anchors: Tensor, dtype: torch.dtype, size: tuple[int, int], part: Part) -> Case:
    """L1 loss of the task, L_reg of the response loss, or both."""

    def make(seed: int) -> tuple[Any, ...]:
        scene = make_scene(images, 1, anchors, size, dtype, seed)
        matched, mask = _assignment(scene.objects, scene.counts, anchors)
        task = (matched, scene.objects, anchors) if part != "response" else (None, None, None)
        response = (scene.teacher_deltas, mask) if part != "task" else (None, None)
        return scene.student_deltas.requires_grad_(), *task, *response

    def ours(deltas: Tensor, matched: Any, boxes: Any, anchors: Any, teacher: Any, mask: Any) -> Sequence[Tensor]:
        names = {"matched": matched, "boxes": boxes, "anchors": anchors, "teacher_deltas": teacher, "mask": mask}
        return ops.box_losses(deltas, **names, beta=BETA)

    def usual(deltas: Tensor, matched: Any, boxes: Any, anchors: Any, teacher: Any, mask: Any) -> Sequence[Tensor]:
        task = [] if matched is None else [_torchvision_l1(deltas, matched, boxes, anchors)]
        return task if mask is None else [*task, plain.smooth_l1_of_rows(deltas, teacher, mask, BETA)]

    return Case(
        operator="box_losses",
        work=f"{_PARTS[part][2]}, {_WORK}",
        sizes={"B": images, "R": len(anchors)},
        dtype=dtype_name(dtype),
        make=make,
        input_bytes=12 * images * len(anchors) * dtype.itemsize,
        moved=_moved(least=0),
        counted=_TWO_PASSES,
        contenders=_contenders((ours, reference.box_losses, usual, _PARTS[part][3]), part, _tolerance(dtype), 0),
    )


_PARTS = {  # what class_losses and box_losses do of it, each with what one would take instead
    "task": ("focal", "torchvision sigmoid_focal_loss", "L1", "torchvision encode + l1_loss"),
    "response": ("response", "PyTorch, masked rows by index", "response", "PyTorch, masked rows by index"),
    "both": (
        "joint",
        "torchvision sigmoid_focal_loss + masked rows by index",
        "joint",
        "torchvision encode + l1_loss + masked rows by index",
    ),
}


def _contenders(
    ways: tuple[Callable[..., Any], Callable[..., Any], Callable[..., Any], str],
    part: Part,
    same: Comparison,
    temporary: int,
) -> list[Contender]:
    """ways: ours, the plain version, the usual one and its name."""
    ours, plainly, usual, name = ways
    kept = {"task": slice(0, 1), "response": slice(1, 2), "both": slice(0, 2)}[part]

    def part_of(function: Callable[..., Any]) -> Callable[..., Any]:
        return with_gradient(lambda *inputs: function(*inputs)[kept])

    return [
        Contender("ours", "gid_cuda", part_of(ours)),
        Contender("pytorch", "PyTorch", part_of(plainly), same, temporary=temporary),
        Contender("compile", "torch.compile", part_of(compiled(plainly)), same),
        Contender("instead", name, with_gradient(usual), same, temporary=temporary),
    ]


def _tolerance(dtype: torch.dtype) -> Comparison:
    return close(1e-4 if dtype == torch.float32 else 2e-2)


def _assignment(objects: Tensor, counts: Tensor, anchors: Tensor) -> tuple[Tensor, Tensor]:
    """matched (B, R) to all objects, and a mask (B, R) as ten instances an image would give it; image by image, as the
    matrix of overlaps of a whole batch is large."""
    matched, masks = [], []
    for boxes, count in zip(objects.split(1), counts.split(1), strict=True):
        matched.append(reference.match_anchors(boxes, count, anchors))
        masks.append(reference.match_anchors(boxes, count.clamp(max=10), anchors) >= 0)
    return torch.cat(matched), torch.cat(masks)


def _moved(least: int) -> Callable[..., int]:
    """Counts bytes: twice what is looked at, and the gradient. For the task those are the rows with matched >= least
    (the background has no box loss), for the response the masked rows of both heads."""

    def moved(student: Tensor, matched: Tensor | None, *rest: Tensor | None) -> int:
        *_, teacher, mask = rest
        row = student.element_size() * student.shape[2]
        looked_at = 0
        if matched is not None:
            looked_at += byte_count(matched) + int((matched >= least).sum()) * row
        if mask is not None and teacher is not None:
            masked = int(mask.sum())
            unread = masked if matched is None else 0  # the student's rows, where the task has not read them already
            looked_at += byte_count(mask) + masked * teacher.element_size() * teacher.shape[2] + unread * row
        return 2 * looked_at + byte_count(student)

    return moved


def _torchvision_focal(logits: Tensor, matched: Tensor, labels: Tensor) -> Tensor:
    """(B,) the sums that torchvision's RetinaNet computes image by image."""
    sums = []
    for of_image, match, label in zip(logits, matched, labels, strict=True):
        foreground, valid = match >= 0, match != Matcher.BETWEEN_THRESHOLDS
        target = torch.zeros_like(of_image)
        target[foreground, label[match[foreground]]] = 1.0
        sums.append(sigmoid_focal_loss(of_image[valid].float(), target[valid].float(), reduction="sum"))
    return torch.stack(sums)


def _torchvision_l1(deltas: Tensor, matched: Tensor, boxes: Tensor, anchors: Tensor) -> Tensor:
    coder = BoxCoder((1.0, 1.0, 1.0, 1.0))
    sums = []
    for of_image, match, box in zip(deltas, matched, boxes, strict=True):
        foreground = torch.where(match >= 0)[0]
        target = coder.encode_single(box[match[foreground]], anchors[foreground])
        sums.append(F.l1_loss(of_image[foreground].float(), target, reduction="sum"))
    return torch.stack(sums)
