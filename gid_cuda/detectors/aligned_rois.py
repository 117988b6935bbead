"""RoIAlign as mmdetection's Faster R-CNN has it, in the place of torchvision's."""

from __future__ import annotations

from collections.abc import Mapping, Sequence

import torch
from torch import Tensor
from torch.nn import functional as F
from torchvision.ops import MultiScaleRoIAlign

from gid_cuda.detectors.dense_losses import to_device
from gid_cuda.ops import multilevel_roi_align


class AlignedRoIAlign(MultiScaleRoIAlign):
    """Half-pixel centres and one sample a feature cell, where torchvision's is shifted and takes four samples a bin.

    names, strides: the levels by the backbone's names, finest first, and their pixels a cell. output_size: bins a side.
    A box of 224 x 224 pixels belongs to stride 16, as in torchvision's.
    """

    def __init__(self, names: Sequence[str], strides: Sequence[int], output_size: int = 7) -> None:
        super().__init__(list(names), output_size, sampling_ratio=0)
        self.strides = list(strides)

    def forward(self, x: Mapping[str, Tensor], boxes: list[Tensor], image_shapes: object = None) -> Tensor:
        """x: maps (B, Ch, H_l, W_l) by name. boxes: per image (N, 4) xyxy pixels -> (sum of N, Ch, P, P)."""
        levels = [x[name] for name in self.featmap_names]
        counts = [len(of_image) for of_image in boxes]
        slots = torch.stack([F.pad(of_image.float(), (0, 0, 0, max(counts) - len(of_image))) for of_image in boxes])
        pooled = multilevel_roi_align(
            levels,
            slots,
            to_device(torch.tensor(counts), slots.device),
            strides=self.strides,
            output_size=self.output_size[0],
            sampling_ratio=self.sampling_ratio,
        )
        return torch.cat([crops[:count] for crops, count in zip(pooled, counts, strict=True)])
