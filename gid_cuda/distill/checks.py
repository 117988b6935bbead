"""Do teacher and student fit together? Asked in words, before an index goes wrong somewhere deeper."""

from __future__ import annotations

from collections.abc import Sequence

import torch

from gid_cuda.detectors.outputs import DetectorOutputs, Target

_SAME = "teacher and student must predict boxes that correspond one to one"


def check_outputs(
    teacher: DetectorOutputs, student: DetectorOutputs, teacher_channels: int, student_channels: int
) -> None:
    """Raises ValueError where the outputs of one batch differ in what must agree. Looks at shapes alone."""
    for axis, name, remedy in (
        (0, "images", "give both the same batch"),
        (1, "predicted boxes an image", f"{_SAME}, so use the same anchors and levels for both"),
        (2, "classes", "both must be trained for the same classes"),
    ):
        expected, found = teacher.logits.shape[axis], student.logits.shape[axis]
        if expected != found:
            raise ValueError(f"the teacher has {expected} {name}, the student {found}: {remedy}")
    if teacher.coder != student.coder:
        raise ValueError(f"the teacher encodes boxes by {teacher.coder}, the student by {student.coder}: {_SAME}")
    if list(teacher.strides) != list(student.strides):
        raise ValueError(
            f"the teacher's features have strides {list(teacher.strides)}, the student's {list(student.strides)}: "
            "use the same pyramid levels for both"
        )
    for name, outputs in (("teacher", teacher), ("student", student)):
        if len(outputs.features) != len(outputs.strides):
            raise ValueError(f"the {name} has {len(outputs.features)} feature maps for {len(outputs.strides)} strides")
    for level, (theirs, ours) in enumerate(zip(teacher.features, student.features, strict=True)):
        for name, channels, given in (
            ("teacher", theirs.shape[1], teacher_channels),
            ("student", ours.shape[1], student_channels),
        ):
            if channels != given:
                raise ValueError(
                    f"level {level} of the {name}'s features has {channels} channels, but the criterion was made with "
                    f"{name}_channels={given}: pass {name}_channels={channels}"
                )
        if theirs.shape[2:] != ours.shape[2:]:
            raise ValueError(
                f"level {level} of the teacher's features is {tuple(theirs.shape[2:])}, of the student's "
                f"{tuple(ours.shape[2:])} (height, width): both must see the same padded images at the same strides"
            )


def check_anchors(teacher: DetectorOutputs, student: DetectorOutputs) -> None:
    """Raises ValueError where the anchors of teacher and student are not the same boxes.

    Reads values, for which the host waits: meant for once at the start of a run, not for each step.
    """
    if teacher.anchors.shape != student.anchors.shape or not torch.equal(teacher.anchors, student.anchors):
        raise ValueError(f"the anchors of teacher and student differ: {_SAME}, so use the same anchor sizes for both")


def check_targets(targets: Sequence[Target | None], batch: int) -> None:
    """Raises ValueError unless targets has an entry for each of the `batch` images, None or with boxes (N, 4)."""
    if len(targets) != batch:
        raise ValueError(f"targets has {len(targets)} entries, but the batch has {batch} images: pass one an image")
    for index, target in enumerate(targets):
        if target is None:
            continue
        if "boxes" not in target:
            raise ValueError(f"targets[{index}] has no 'boxes': pass boxes (N, 4), or None as the whole target")
        if target["boxes"].dim() != 2 or target["boxes"].shape[1] != 4:
            raise ValueError(f"targets[{index}]['boxes'] is {tuple(target['boxes'].shape)}, but must be (N, 4)")
