"""The losses of a dense head over all its predicted boxes, by fused operators: the task's own and distillation's.

Both look at the same logits and deltas. Where the task's have been computed here, its record goes with the outputs, and
the response losses are computed together with them: autograd then has one gradient tensor of the logits' size to hold,
not two and their sum.
"""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass
from typing import Literal

import torch
from torch import Tensor
from torch.nn.utils.rnn import pad_sequence

from gid_cuda.detectors.outputs import DetectorOutputs, Target
from gid_cuda.normalisers import global_images
from gid_cuda.ops import box_losses, class_losses, match_anchors


@dataclass
class GroundTruth:
    """The targets of a batch side by side: boxes (B, N, 4) float32, labels (B, N) int64, N of the fullest image.

    counts (B,) int64: how many of the N there are; -1: the image is unlabelled. labelled: how many images are not.
    """

    boxes: Tensor
    labels: Tensor
    counts: Tensor
    labelled: int


@dataclass
class TaskRecord:
    """What was worked out for the task losses that share a gradient with distillation's: which ground truth each box is
    for (B, R), as `match_anchors` gives it, the focal loss summed over each image (B,), and what the sums of each image
    are multiplied by, (B,) or one for all. Besides, what they were computed from, by their names in the outputs, and
    the losses themselves, to know them again."""

    truth: GroundTruth
    matched: Tensor
    focal: Tensor
    share: Tensor
    predictions: dict[str, Tensor]
    losses: dict[str, Tensor]

    def is_of(self, outputs: DetectorOutputs) -> bool:
        """Are these still the predictions and the losses of then? A user may have weighted a loss, or put other logits
        into a copy of the outputs: then their losses are not for us to replace."""
        same = all(getattr(outputs, name) is theirs for name, theirs in self.predictions.items())
        return same and all(outputs.losses.get(name) is loss for name, loss in self.losses.items())


@dataclass
class DenseOutputs(DetectorOutputs):
    """`DetectorOutputs` of a detector whose task losses have a record, `task`."""

    task: TaskRecord | None = None


def join_targets(targets: Sequence[Target | None], device: torch.device) -> GroundTruth:
    """Targets as the operators take them. Sizes are known on the host, so nothing waits for the device."""
    known = [target if target is not None else no_boxes(device) for target in targets]
    counts = [-1 if target is None else len(target["boxes"]) for target in targets]
    return GroundTruth(
        boxes=pad_sequence([target["boxes"].float() for target in known], batch_first=True),
        labels=pad_sequence([target["labels"] for target in known], batch_first=True),
        counts=to_device(torch.tensor(counts, dtype=torch.int64), device),
        labelled=sum(count >= 0 for count in counts),
    )


def task_losses(
    outputs: DetectorOutputs, targets: Sequence[Target | None], *, high: float, low: float, low_quality: bool
) -> tuple[dict[str, Tensor], TaskRecord]:
    """torchvision's RetinaNet losses, "classification" (focal) and "bbox_regression" (L1), and their record.

    Each is summed over an image, divided by the image's foreground anchors, and averaged over the labelled images,
    those of all processes (see `global_normalisers`). But a ground truth that overlaps no anchor, as one without area,
    has none, where torchvision gives it all of them.
    targets: B dicts, None: unlabelled. high, low, low_quality: see `match_anchors`. Raises ValueError where a label is
    none of the C classes; on a GPU, which is not waited for, a device-side assertion fails, as in torchvision's loss.
    """
    truth = join_targets(targets, outputs.logits.device)
    check_labels(truth.labels, outputs.logits.shape[2])
    matched = match_anchors(truth.boxes, truth.counts, outputs.anchors, high=high, low=low, low_quality=low_quality)
    images = global_images(truth.labelled, outputs.logits.device)
    share = 1.0 / ((matched >= 0).sum(dim=1).clamp(min=1) * images)
    focal, _ = class_losses(outputs.logits, matched=matched, labels=truth.labels)
    l1, _ = box_losses(
        outputs.deltas,
        matched=matched,
        boxes=truth.boxes,
        anchors=outputs.anchors,
        weights=outputs.coder.weights,
    )
    losses = _averages(focal, l1, share)
    predictions = {name: getattr(outputs, name) for name in ("logits", "deltas", "anchors")}
    return losses, TaskRecord(truth, matched, focal.detach(), share, predictions, dict(losses))


def response_losses(
    student: DetectorOutputs,
    teacher: DetectorOutputs,
    mask: Tensor,
    *,
    kind: Literal["bce", "focal"] = "bce",
    beta: float = 0.1,
) -> tuple[Tensor, Tensor]:
    """Eq. 8 of dense heads: (cls, reg), float32 sums over the boxes of mask (B, R) bool.

    cls: L_cls of `class_losses`, by `kind`; reg: smooth L1 of the deltas with `beta`, of `box_losses`. Gradient goes to
    the student's logits and deltas alone. Where `student` has a record of its task losses, and both are as they were
    then, student.losses is replaced by the same values with a joint gradient: whoever adds the task losses to the total
    afterwards has it in one pass (adding those of before is as right, and slower). Not under torch.no_grad.
    """
    check_same(student, teacher, mask)
    task = record_of(student)
    focal, cls = class_response(student, teacher, mask, task, kind)
    learns = {"teacher_deltas": teacher.deltas, "mask": mask, "beta": beta, "weights": student.coder.weights}
    if task is None:
        _, reg = box_losses(student.deltas, **learns)
        return cls, reg.sum()
    boxes, anchors = task.truth.boxes, student.anchors
    l1, reg = box_losses(student.deltas, matched=task.matched, boxes=boxes, anchors=anchors, **learns)
    student.losses.update(_averages(focal, l1, task.share))
    return cls, reg.sum()


def record_of(student: DetectorOutputs) -> TaskRecord | None:
    """The record of student.losses where a joint gradient can take their place, else None."""
    task = student.task if isinstance(student, DenseOutputs) and torch.is_grad_enabled() else None
    return task if task is not None and task.is_of(student) else None


def class_response(
    student: DetectorOutputs,
    teacher: DetectorOutputs,
    mask: Tensor,
    task: TaskRecord | None,
    kind: Literal["bce", "focal"],
) -> tuple[Tensor, Tensor]:
    """(the task's focal loss again (B,), L_cls summed over the mask), of one gradient; focal is 0 without a record."""
    known = {} if task is None else {"matched": task.matched, "labels": task.truth.labels, "focal": task.focal}
    focal, cls = class_losses(student.logits, teacher_logits=teacher.logits, mask=mask, kind=kind, **known)
    return focal, cls.sum()


def to_device(values: Tensor, device: torch.device) -> Tensor:
    """A small tensor of the host on the device, through pinned memory: a plain copy would make the host wait."""
    if device.type == "cuda":
        values = values.pin_memory()
    return values.to(device, non_blocking=True)


def check_labels(labels: Tensor, classes: int) -> None:
    """ValueError for a label that is no class: the operator takes it for background, and nobody means that."""
    wrong = (labels < 0) | (labels >= classes)
    message = f"must be 0 to {classes - 1}, without background: count them from 0"
    if labels.is_cuda:
        torch._assert_async(~wrong.any(), f"the targets' labels {message}")
    elif wrong.any():
        raise ValueError(f"the targets hold the label {labels[wrong][0].item()}, but labels {message}")


def _averages(focal: Tensor, l1: Tensor, share: Tensor) -> dict[str, Tensor]:
    return {"classification": (focal * share).sum(), "bbox_regression": (l1 * share).sum()}


def no_boxes(device: torch.device) -> Target:
    """The target of an image without ground truth."""
    return {
        "boxes": torch.zeros((0, 4), device=device),
        "labels": torch.zeros((0,), dtype=torch.int64, device=device),
    }


def check_same(student: DetectorOutputs, teacher: DetectorOutputs, mask: Tensor) -> None:
    """ValueError unless logits and deltas of both, and the mask, have the shapes that belong together."""
    for what in ("logits", "deltas"):
        ours, theirs = getattr(student, what), getattr(teacher, what)
        if ours.shape != theirs.shape or mask.shape != ours.shape[:2]:
            raise ValueError(
                f"student and teacher {what} must have one shape (B, R, ...) and mask (B, R), got {tuple(ours.shape)}, "
                f"{tuple(theirs.shape)} and {tuple(mask.shape)}: both detectors need the same classes and anchors"
            )
