"""Small Faster R-CNNs whose untrained heads still propose and detect something."""

from __future__ import annotations

from typing import Any

import torch
from detector_helpers import small_input, small_model
from torch import Tensor, nn
from torchvision.models.detection import FasterRCNN as TorchvisionFasterRCNN

from gid_cuda.config import ModelConfig
from gid_cuda.detectors import FasterRCNN, build_detector


def rcnn_model(**changes: Any) -> ModelConfig:
    settings = {"detector": "faster_rcnn", "backbone": "mobilenet_v3_small", "fpn_channels": 16, "head_depth": 4}
    return small_model(**{**settings, **changes})


def settled_rcnn(classes: int = 3, **changes: Any) -> FasterRCNN:
    """With frozen norm: train and eval mode then compute the same."""
    names = [chr(ord("a") + index) for index in range(classes)]
    live = build_detector(rcnn_model(**changes), small_input(), names)
    settle_rcnn(live)
    frozen = build_detector(rcnn_model(norm="frozen", **changes), small_input(), names)
    frozen.load_state_dict(live.state_dict())
    return frozen


@torch.no_grad()
def settle_rcnn(model: TorchvisionFasterRCNN, pixels: Tensor | None = None) -> None:
    """Give an untrained Faster R-CNN what training would: batch statistics and heads that fit `pixels`.

    Heads are bold, but no score is 0 or 1. pixels: (B, 3, H, W), normalised.
    """
    pixels = torch.randn(4, 3, 64, 64) if pixels is None else pixels
    norms = [layer for layer in model.modules() if isinstance(layer, nn.BatchNorm2d)]
    for layer in norms:
        layer.momentum = 1.0
    model.train().backbone(pixels)
    for layer in norms:
        layer.momentum = 0.1
    features = model.eval().backbone(pixels)
    head, heads = model.rpn.head, model.roi_heads
    for layer in head.modules():
        if isinstance(layer, nn.Conv2d):
            nn.init.kaiming_normal_(layer.weight, nonlinearity="relu")
    logits, deltas = head(list(features.values()))
    _scale(head.cls_logits, logits, 2.0)
    _scale(head.bbox_pred, deltas, 0.3)
    # Not by the RoI pool: torchvision's would take its scales from here.
    crops = torch.stack([features["0"][:, :, y : y + 7, x : x + 7] for x in (0, 4, 8) for y in (0, 4, 8)])
    scores, moves = heads.box_predictor(heads.box_head(crops.flatten(0, 1)))
    _scale(heads.box_predictor.cls_score, [scores], 1.0)
    _scale(heads.box_predictor.bbox_pred, [moves], 1.0)


def _scale(layer: nn.Conv2d | nn.Linear, found: list[Tensor], wanted: float) -> None:
    layer.weight.mul_(wanted / torch.cat([one.flatten() for one in found]).std())
    layer.bias.zero_()
