"""From the name of a method to the method."""

from __future__ import annotations

from typing import Any

from gid_cuda.detectors.outputs import Detector
from gid_cuda.distill.fine_grained import FineGrained
from gid_cuda.distill.fitnet import FitNet
from gid_cuda.distill.gid import GID
from gid_cuda.distill.mimicking import Mimicking
from gid_cuda.distill.rival import Rival

Method = GID | Rival
"""What all have: `loss_names`, and a forward(teacher_outputs, student_outputs, student_detector, targets=None) that
gives the weighted losses by these names, and the `GeneralInstances` they are of, or None."""


def build_method(method: str, student: Detector, teacher: Detector, **options: Any) -> Method:
    """`method` is a value of the config's `distill.method`; options are its class's. ValueError where it does not fit
    the detectors, or an option is out of range."""
    channels = student.out_channels, teacher.out_channels
    match method:
        case "gid":
            return GID(*channels, **options)
        case "fitnet":
            rival: Rival = FitNet(*channels, **options)
        case "fine_grained":
            rival = FineGrained(*channels, **options)
        case "mimicking":
            rival = Mimicking(*channels, **options)
        case _:
            raise ValueError(f"method is {method!r}, but must be one of gid, fitnet, fine_grained, mimicking")
    rival.check_detector(student)
    return rival
