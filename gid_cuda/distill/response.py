"""Response-based distillation (paper, section 3.4): the outputs of the heads where an instance is assigned to them.

What the assignment F and the two loss functions are is the detector's business; here are their calls and the checks
that tell the author of an adapter what it got wrong.
"""

from __future__ import annotations

import torch
from torch import Tensor

from gid_cuda.detectors.outputs import Detector, DetectorOutputs, GeneralInstances


@torch.no_grad()
def response_mask(detector: Detector, instances: GeneralInstances, student: DetectorOutputs) -> Tensor:
    """Eq. 7: M (B, R) bool, the predicted boxes to which the detector's own label assignment gives an instance."""
    mask = detector.assign(instances, student)
    expected = student.logits.shape[:2]
    if mask.shape != expected or mask.dtype != torch.bool:
        raise ValueError(
            f"{type(detector).__name__}.assign returned {tuple(mask.shape)} {mask.dtype}: "
            f"it must return (B, R) = {tuple(expected)} torch.bool"
        )
    return mask


def response_sums(
    detector: Detector, student: DetectorOutputs, teacher: DetectorOutputs, mask: Tensor
) -> tuple[Tensor, Tensor]:
    """Eq. 8 before its division by N_m: the classification and the regression loss summed over the masked boxes."""
    sums = detector.response_losses(student, teacher, mask)
    for name, value in zip(("first", "second"), sums, strict=True):
        if value.shape != () or value.dtype != torch.float32:
            raise ValueError(
                f"the {name} value of {type(detector).__name__}.response_losses is {tuple(value.shape)} {value.dtype}: "
                "it must be the float32 sum over the masked boxes"
            )
    return sums
