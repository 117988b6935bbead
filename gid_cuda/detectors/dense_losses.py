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
    """What was worked out for the task losses: `match_anchors`' result (B, R), the focal loss summed over each image
    (B,), and what the sums of each image are multiplied by (B,), in both losses. Besides, what they were computed from
    and the losses themselves, to know them again."""

    truth: GroundTruth
    matched: Tensor
    focal: Tensor
    share: Tensor
    predictions: tuple[Tensor, Tensor, Tensor]  # logits, deltas, anchors
    losses: dict[str, Tensor]

    def is_of(self, outputs: DetectorOutputs) -> bool:
        """Are these still the predictions and the losses of then? A user may have weighted a loss, or put other logits
        into a copy of the outputs: then their losses are not for us to replace."""
        now = (outputs.logits, outputs.deltas, outputs.anchors)
        same = all(ours is theirs for ours, theirs in zip(now, self.predictions, strict=True))
        return same and all(outputs.losses.get(name) is loss for name, loss in self.losses.items())


@dataclass
class DenseOutputs(DetectorOutputs):
    """`DetectorOutputs` of a detector whose task losses are those of `task_losses`; task is their record."""

    task: TaskRecord | None = None


def join_targets(targets: Sequence[Target | None], device: torch.device) -> GroundTruth:
    """Targets as the operators take them. Sizes are known on the host, so nothing waits for the device."""
    known = [target if target is not None else _nothing(device) for target in targets]
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

    Each is summed over an image, divided by the image's foreground anchors, and averaged over the labelled images. But
    a ground truth that overlaps no anchor, as one without area, has none, where torchvision gives it all of them.
    targets: B dicts, None: unlabelled. high, low, low_quality: see `match_anchors`. Raises ValueError where a label is
    none of the C classes; on a GPU, which is not waited for, a device-side assertion fails, as in torchvision's loss.
    """
    truth = join_targets(targets, outputs.logits.device)
    check_labels(truth.labels, outputs.logits.shape[2])
    matched = match_anchors(truth.boxes, truth.counts, outputs.anchors, high=high, low=low, low_quality=low_quality)
    share = 1.0 / ((matched >= 0).sum(dim=1).clamp(min=1) * max(1, truth.labelled))
    focal, _ = class_losses(outputs.logits, matched=matched, labels=truth.labels)
    l1, _ = box_losses(
        outputs.deltas,
        matched=matched,
        boxes=truth.boxes,
        anchors=outputs.anchors,
        weights=outputs.coder.weights,
    )
    losses = _averages(focal, l1, share)
    predictions = (outputs.logits, outputs.deltas, outputs.anchors)
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
    _check_same(student, teacher, mask)
    task = student.task if isinstance(student, DenseOutputs) and torch.is_grad_enabled() else None
    learns = {"teacher_logits": teacher.logits, "mask": mask, "kind": kind}
    learns_boxes = {"teacher_deltas": teacher.deltas, "mask": mask, "beta": beta, "weights": student.coder.weights}
    if task is None or not task.is_of(student):
        _, cls = class_losses(student.logits, **learns)
        _, reg = box_losses(student.deltas, **learns_boxes)
        return cls.sum(), reg.sum()
    truth = task.truth
    focal, cls = class_losses(student.logits, matched=task.matched, labels=truth.labels, focal=task.focal, **learns)
    l1, reg = box_losses(
        student.deltas, matched=task.matched, boxes=truth.boxes, anchors=student.anchors, **learns_boxes
    )
    student.losses.update(_averages(focal, l1, task.share))
    return cls.sum(), reg.sum()


def to_device(values: Tensor, device: torch.device) -> Tensor:
    """A small tensor of the host on the device, through pinned memory: a plain copy would make the host wait."""
    if device.type == "cuda":
        values = values.pin_memory()
    return values.to(device, non_blocking=True)


def check_labels(labels: Tensor, classes: int) -> None:
    """The operator takes a label beyond the classes for background; nobody means that."""
    wrong = (labels < 0) | (labels >= classes)
    message = f"must be 0 to {classes - 1}, without background: count them from 0"
    if labels.is_cuda:
        torch._assert_async(~wrong.any(), f"the targets' labels {message}")
    elif wrong.any():
        raise ValueError(f"the targets hold the label {labels[wrong][0].item()}, but labels {message}")


def _averages(focal: Tensor, l1: Tensor, share: Tensor) -> dict[str, Tensor]:
    return {"classification": (focal * share).sum(), "bbox_regression": (l1 * share).sum()}


def _nothing(device: torch.device) -> Target:
    return {
        "boxes": torch.zeros((0, 4), device=device),
        "labels": torch.zeros((0,), dtype=torch.int64, device=device),
    }


def _check_same(student: DetectorOutputs, teacher: DetectorOutputs, mask: Tensor) -> None:
    for what in ("logits", "deltas"):
        ours, theirs = getattr(student, what), getattr(teacher, what)
        if ours.shape != theirs.shape or mask.shape != ours.shape[:2]:
            raise ValueError(
                f"student and teacher {what} must have one shape (B, R, ...) and mask (B, R), got {tuple(ours.shape)}, "
                f"{tuple(theirs.shape)} and {tuple(mask.shape)}: both detectors need the same classes and anchors"
            )
