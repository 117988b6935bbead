"""Feature-based distillation (paper, section 3.2): the crops of the instances, their adaptation, their distance."""

from __future__ import annotations

from collections.abc import Sequence

import torch
from torch import Tensor, nn

from gid_cuda.detectors.outputs import GeneralInstances
from gid_cuda.ops import multilevel_roi_align


class Adaptation(nn.Conv2d):
    """f_adapt (eq. 5): one linear layer, with bias, from the student's channels to the teacher's, for all levels.

    Takes crops (N, student_channels, P, P) and gives (N, teacher_channels, P, P); kernel_size 1 or 3 (zero padding).
    It is trained with the student and not needed afterwards. Where the channels agree it starts as the identity, else
    from torch's own initialisation.
    """

    def __init__(self, student_channels: int, teacher_channels: int, kernel_size: int = 1) -> None:
        super().__init__(student_channels, teacher_channels, kernel_size, padding=kernel_size // 2)
        self.identity: Tensor | None
        self.register_buffer("identity", None, persistent=False)
        if student_channels == teacher_channels:
            self.identity = nn.init.dirac_(torch.empty_like(self.weight))
            self.weight = nn.Parameter(self.identity.clone())
            self.bias = nn.Parameter(torch.zeros(teacher_channels))

    def forward(self, crops: Tensor) -> Tensor:
        if self.identity is None:
            return super().forward(crops)
        # x + (W - 1) x is W x, but exact at the start even where convolutions round their inputs (TF32, Winograd):
        # a student that equals its teacher then has a loss of exactly zero.
        return crops + self._conv_forward(crops, self.weight - self.identity, self.bias)


def crop_features(
    features: Sequence[Tensor],
    strides: Sequence[int],
    instances: GeneralInstances,
    output_size: int = 10,
    sampling_ratio: int = 2,
    canonical_size: float = 224.0,
) -> Tensor:
    """RoIAlign of each instance from the FPN level that fits its size: (B, K, Ch, P, P) float32; empty slots are 0.

    features: L maps (B, Ch, H_l, W_l), finest first, with their strides in pixels. P = output_size. canonical_size: the
    side in pixels of boxes that go to stride 16; twice as large, to stride 32.
    """
    crops = multilevel_roi_align(
        features,
        instances.boxes,
        instances.counts,
        strides=strides,
        output_size=output_size,
        sampling_ratio=sampling_ratio,
        canonical_size=canonical_size,
    )
    return crops.float()


def adapt_crops(adapt: nn.Module | None, crops: Tensor, instances: GeneralInstances) -> Tensor:
    """f_adapt on crops (B, K, Ch, P, P). Empty slots are masked after it: its bias has made them more than zero."""
    if adapt is None:
        return crops
    adapted = adapt(crops.flatten(0, 1)).unflatten(0, crops.shape[:2])
    return torch.where(instances.valid[:, :, None, None, None], adapted, 0.0)


def feature_sum(teacher: Tensor, student: Tensor) -> Tensor:
    """Eq. 4 before its division by the number of instances: the sum of ||t_i - s_i||^2 over all instances.

    teacher, student: crops (B, K, Ch, P, P) float32, zero in empty slots. The norm goes over all Ch*P*P of a crop.
    """
    return (teacher - student).square().sum()
