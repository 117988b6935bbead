"""The first thing that an exported network does."""

from __future__ import annotations

import torch
from torch import Tensor, nn
from torchvision.models.detection.transform import GeneralizedRCNNTransform


class Normalised(nn.Module):
    """Images in [0, 1] become what the detector's `transform` gives its backbone: minus mean, divided by the standard
    deviation. `detect.prepare` pads with the mean, which is 0 from here on, as torchvision's padding is."""

    mean: Tensor
    std: Tensor

    def __init__(self, transform: GeneralizedRCNNTransform) -> None:
        super().__init__()
        self.register_buffer("mean", torch.tensor(transform.image_mean)[:, None, None])
        self.register_buffer("std", torch.tensor(transform.image_std)[:, None, None])

    def forward(self, images: Tensor) -> Tensor:
        """(B, 3, H, W) -> (B, 3, H, W)."""
        return (images - self.mean) / self.std
