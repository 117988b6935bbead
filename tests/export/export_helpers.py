"""Checkpoints of tiny detectors with bold heads, as a run would leave them."""

from __future__ import annotations

from pathlib import Path
from typing import Any

import numpy as np
import torch
from torch import nn

from gid_cuda.config import Config, config_from_dict, config_to_dict
from gid_cuda.detectors.build import build_detector
from gid_cuda.detectors.outputs import Detector
from gid_cuda.engine.checkpoint import save_checkpoint

CLASSES = ["cat", "dog", "owl"]


def tiny_config(detector: str, **changes: Any) -> Config:
    """changes: of the model section. Images of 96 to 160 pixels."""
    model: dict[str, Any] = {"detector": detector, "backbone": "resnet18", "fpn_channels": 32, "norm": "live"}
    if detector == "retinanet":
        model["anchor_sizes"] = [16, 32, 64, 96, 128]
    if detector != "faster_rcnn":
        model["head_depth"] = 1
    raw = {
        "output": "run",
        "data": {"format": "coco", "root": "/data/mine", "val": {"annotations": "val.json"}},
        "input": {"min_size": [64, 96], "max_size": 160, "mean": [0.4, 0.5, 0.6], "std": [0.2, 0.25, 0.3]},
        "model": {**model, **changes},
        "train": {"steps": 7},
    }
    return config_from_dict(raw, name="test")


def bold(detector: Detector) -> Detector:
    """Batch statistics that fit noise, and heads whose scores spread: an untrained one's are all alike."""
    torch.manual_seed(3)
    norms = [layer for layer in detector.modules() if isinstance(layer, nn.BatchNorm2d)]
    for layer in norms:
        layer.momentum = 1.0
    with torch.no_grad():
        detector.train().backbone(torch.randn(4, 3, 96, 160))
        for name, layer in detector.named_modules():
            if isinstance(layer, nn.Conv2d | nn.Linear) and name.startswith(("head", "rpn", "roi_heads")):
                nn.init.xavier_normal_(layer.weight)
                if layer.bias is not None:
                    nn.init.normal_(layer.bias, std=0.1)
                if name.endswith(("bbox_pred", "bbox_reg")):
                    layer.weight.mul_(0.2)
    return detector.eval()


def checkpoint(path: Path, config: Config, /, **changes: Any) -> Detector:
    """Writes it, and returns the detector that is in it."""
    torch.manual_seed(0)
    detector = bold(build_detector(config.model, config.input, CLASSES))
    metrics = {"step": 7, "AP": 12.34, "AP50": 30.0, "images": 20, "per_class": {"cat": 20.0, "dog": None, "owl": 4.7}}
    content = {
        "model": detector.state_dict(), "classes": CLASSES, "config": config_to_dict(config), "step": 7,
        "metrics": metrics, "resume": {"criterion": {"adapt.weight": torch.zeros(2)}},
    }  # fmt: skip
    path.parent.mkdir(parents=True, exist_ok=True)
    save_checkpoint(path, {**content, **changes})
    return detector


def picture(height: int, width: int, seed: int = 0) -> np.ndarray:
    """(height, width, 3) uint8, smooth blotches."""
    coarse = torch.rand(1, 3, 7, 9, generator=torch.Generator().manual_seed(seed))
    smooth = nn.functional.interpolate(coarse, (height, width), mode="bicubic").clamp(0, 1)[0]
    return smooth.mul(255).round().to(torch.uint8).permute(1, 2, 0).contiguous().numpy()


def as_tensor(image: np.ndarray) -> torch.Tensor:
    """What `predict` and torchvision take."""
    return torch.from_numpy(image.copy()).permute(2, 0, 1).float() / 255
