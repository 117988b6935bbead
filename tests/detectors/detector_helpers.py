"""Small detectors whose untrained heads still detect something."""

from __future__ import annotations

from typing import Any

import torch
from torch import Tensor, nn

from gid_cuda.config import InputConfig, ModelConfig


def small_model(**changes: Any) -> ModelConfig:
    settings = {"backbone": "resnet18", "fpn_channels": 32, "head_depth": 1, "norm": "live"}
    return ModelConfig(**{**settings, "anchor_sizes": [16, 32, 64, 96, 128], **changes})


def small_input(**changes: Any) -> InputConfig:
    return InputConfig(**{"min_size": [96], "max_size": 128, **changes})


def settle(model: nn.Module, pixels: Tensor | None = None) -> None:
    """Give an untrained torchvision-style RetinaNet what training would: batch statistics and heads that fit `pixels`.

    Heads are bold, but no score is 0 or 1. pixels: (B, 3, H, W), normalised.
    """
    pixels = torch.randn(4, 3, 64, 64) if pixels is None else pixels
    norms = [layer for layer in model.modules() if isinstance(layer, nn.BatchNorm2d)]
    for layer in norms:
        layer.momentum = 1.0
    model.train()
    with torch.no_grad():
        model.backbone(pixels)
        head = model.head
        for layer in head.modules():
            if isinstance(layer, nn.Conv2d):
                nn.init.kaiming_normal_(layer.weight, nonlinearity="relu")
        head.classification_head.cls_logits.bias.zero_()
        found = head(list(model.eval().backbone(pixels).values()))
        head.classification_head.cls_logits.weight.mul_(2 / found["cls_logits"].std())
        head.regression_head.bbox_reg.weight.mul_(0.5 / found["bbox_regression"].std())
    for layer in norms:
        layer.momentum = 0.1
