"""RoIAlign for Faster R-CNN by this project's operator, where torchvision's will not do."""

from __future__ import annotations

from collections.abc import Mapping, Sequence

import torch
from torch import Tensor
from torch.nn import functional as F
from torchvision.ops import MultiScaleRoIAlign
from torchvision.ops.poolers import initLevelMapper

from gid_cuda.detectors.dense_losses import to_device
from gid_cuda.ops import multilevel_roi_align


class AlignedRoIAlign(MultiScaleRoIAlign):
    """mmdetection's: half-pixel centres and one sample a feature cell, where torchvision's is shifted and takes four
    samples a bin.

    names, strides: the levels by the backbone's names, finest first, and their pixels a cell. output_size: bins a side.
    A box of 224 x 224 pixels belongs to stride 16, as in torchvision's.
    """

    def __init__(self, names: Sequence[str], strides: Sequence[int], output_size: int = 7) -> None:
        super().__init__(list(names), output_size, sampling_ratio=0)
        self.strides = list(strides)

    def forward(self, x: Mapping[str, Tensor], boxes: list[Tensor], image_shapes: object = None) -> Tensor:
        """x: maps (B, Ch, H_l, W_l) by name. boxes: per image (N, 4) xyxy pixels -> (sum of N, Ch, P, P)."""
        return _pool(self, x, boxes, self.strides, aligned=True)


class ShiftedRoIAlign(MultiScaleRoIAlign):
    """torchvision's, told the levels' strides.

    Left alone it takes them from the first batch's sizes before padding, and keeps them: after one that begins with an
    image much smaller than its padding every later crop comes from the wrong place.

    torchvision's kernel adds up gradients on a GPU in any order, and its substitute for torch's deterministic mode
    holds all samples of all boxes in memory: in that mode, the crops are made by this project's operator.
    """

    def __init__(self, names: Sequence[str], strides: Sequence[int], output_size: int = 7) -> None:
        super().__init__(list(names), output_size, sampling_ratio=2)
        self.strides = list(strides)
        self.scales = [1 / stride for stride in strides]
        first, last = strides[0].bit_length() - 1, strides[-1].bit_length() - 1
        self.map_levels = initLevelMapper(
            first, last, canonical_scale=self.canonical_scale, canonical_level=self.canonical_level
        )

    def forward(self, x: dict[str, Tensor], boxes: list[Tensor], image_shapes: list[tuple[int, int]]) -> Tensor:
        """As `AlignedRoIAlign.forward`."""
        if torch.are_deterministic_algorithms_enabled() and boxes[0].is_cuda:
            return _pool(self, x, boxes, self.strides, aligned=False)
        return super().forward(x, boxes, image_shapes)


def _pool(
    pool: MultiScaleRoIAlign, x: Mapping[str, Tensor], boxes: list[Tensor], strides: list[int], *, aligned: bool
) -> Tensor:
    levels = [x[name] for name in pool.featmap_names]
    counts = [len(of_image) for of_image in boxes]
    slots = torch.stack([F.pad(of_image.float(), (0, 0, 0, max(counts) - len(of_image))) for of_image in boxes])
    pooled = multilevel_roi_align(
        levels,
        slots,
        to_device(torch.tensor(counts), slots.device),
        strides=strides,
        output_size=pool.output_size[0],
        sampling_ratio=pool.sampling_ratio,
        aligned=aligned,
    )
    return torch.cat([crops[:count] for crops, count in zip(pooled, counts, strict=True)])
