"""What the methods that the paper compares itself with have in common: all of them imitate features."""

from __future__ import annotations

from typing import ClassVar

from torch import nn

from gid_cuda.detectors.outputs import Detector, DetectorOutputs, Family
from gid_cuda.distill.checks import check_outputs
from gid_cuda.distill.feature import Adaptation


class Rival(nn.Module):
    """Base of a method with one loss between the teacher's features and the student's, once these are adapted.

    A method joins by a file with a subclass, a section in the config's `distill`, and a case in `build_method`. Its
    forward takes what `GID`'s does, and gives its loss by name, a 0-dim float32 tensor, and None in place of instances.

    loss_names: the keys of what forward gives. families: the detectors that it is for; needs: what these have, in
    words. weight: lambda. adapt: the layer from the student's channels to the teacher's, one for all levels, as f_adapt
    of `GID`: "1x1", "3x3" or "none" (needs equal channels). Raises ValueError for what is out of range.
    """

    loss_names: ClassVar[tuple[str, ...]]
    families: ClassVar[tuple[Family, ...]] = ("anchor-free", "anchor-based", "two-stage")
    needs: ClassVar[str] = ""

    def __init__(self, student_channels: int, teacher_channels: int, *, weight: float, adapt: str) -> None:
        super().__init__()
        name = type(self).__name__
        for what, value in (("student_channels", student_channels), ("teacher_channels", teacher_channels)):
            if not value >= 1:
                raise ValueError(f"{name}: {what} is {value}, but must be at least 1")
        if not weight > 0:
            raise ValueError(f"{name}: weight is {weight}, but must be above 0")
        if adapt not in ("1x1", "3x3", "none"):
            raise ValueError(f"{name}: adapt is {adapt!r}, but must be one of 1x1, 3x3, none")
        if adapt == "none" and student_channels != teacher_channels:
            raise ValueError(
                f"{name}: adapt='none' needs equal channels, but the student has {student_channels} and the teacher "
                f"{teacher_channels}: use adapt='1x1'"
            )
        self.student_channels, self.teacher_channels = student_channels, teacher_channels
        self.weight = weight
        self.adapt: nn.Module = nn.Identity()
        if adapt != "none":
            self.adapt = Adaptation(student_channels, teacher_channels, kernel_size=int(adapt[0]))

    def check_detector(self, student: Detector) -> None:
        """ValueError where the method is not for detectors like this one."""
        if student.family not in self.families:
            raise ValueError(
                f"{type(self).__name__} is for detectors with {self.needs} alone, and {type(student).__name__} is "
                f"{student.family}, so the paper's tables have no such pair: use method gid or fitnet (a detector of "
                f"your own that is {' or '.join(self.families)} says so by its attribute family)"
            )

    def check(self, teacher: DetectorOutputs, student: DetectorOutputs, detector: Detector) -> None:
        """What each forward asks first. Looks at shapes alone. Raises ValueError."""
        self.check_detector(detector)
        check_outputs(teacher, student, self.teacher_channels, self.student_channels)
