"""torchvision's COCO weights: the rows of our classes gathered by name."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass
from typing import TYPE_CHECKING, Any

from torch import nn
from torchvision.models import WeightsEnum
from torchvision.models.detection import (
    FasterRCNN_ResNet50_FPN_Weights,
    FCOS_ResNet50_FPN_Weights,
    RetinaNet_ResNet50_FPN_Weights,
)
from torchvision.ops.misc import FrozenBatchNorm2d

from gid_cuda.detectors.outputs import Detector
from gid_cuda.detectors.weights import gather_classes, listed, load_state, torchvision_state
from gid_cuda.errors import UserError

if TYPE_CHECKING:
    from gid_cuda.config import ModelConfig

_NOT_A_CLASS = {"__background__", "n/a"}  # rows of torchvision's 91 that name nothing


@dataclass(frozen=True)
class _Source:
    """weights: torchvision's. model: what they were made with, of a config's model section. zero_eps: see below."""

    weights: WeightsEnum
    model: dict[str, Any]
    zero_eps: bool


_BACKBONE = {"backbone": "resnet50", "fpn_channels": 256}
_HEAD, _ANCHORS = {"head_depth": 4}, {"anchor_sizes": [32, 64, 128, 256, 512], "variant": "torchvision"}
_SOURCES = {
    "retinanet": _Source(RetinaNet_ResNet50_FPN_Weights.COCO_V1, {**_BACKBONE, **_HEAD, **_ANCHORS}, zero_eps=True),
    "fcos": _Source(FCOS_ResNet50_FPN_Weights.COCO_V1, {**_BACKBONE, **_HEAD}, zero_eps=False),
    "faster_rcnn": _Source(FasterRCNN_ResNet50_FPN_Weights.COCO_V1, {**_BACKBONE, **_ANCHORS}, zero_eps=True),
}


def load_coco(detector: Detector, model: ModelConfig, classes: Sequence[str]) -> list[str]:
    """torchvision's COCO weights: class rows gathered by name, those of other classes stay newly initialised.

    Returns notes, one line each. Raises UserError where the detector is not the one that they were made for.
    """
    source = _SOURCES[model.detector]
    _check_model(source.model, model)
    names = [name.casefold() for name in source.weights.meta["categories"]]
    if any(rows.background for rows in detector.class_rows):
        names = names[1:]  # "__background__", which gather_classes leaves in its place
    rows = {name: row for row, name in enumerate(names) if name not in _NOT_A_CLASS}
    matches = [rows.get(name.casefold()) for name in classes]
    load_state(detector, gather_classes(torchvision_state(source.weights), detector, matches, len(names)), "coco")
    if source.zero_eps:
        _absorb_zero_eps(detector)
    new = [name for name, row in zip(classes, matches, strict=True) if row is None]
    notes = [f"weights: coco, {len(classes) - len(new)} of {len(classes)} classes taken over by name"]
    if new:
        notes.append(f"weights: coco has no class {listed(new)}: initialised anew")
    return notes


def _check_model(made: dict[str, Any], model: ModelConfig) -> None:
    if other := [f"{key} {getattr(model, key)}" for key, value in made.items() if getattr(model, key) != value]:
        known = listed(f"{key} {value}" for key, value in made.items())
        raise UserError(
            f"weights: coco exists for {known} alone, and this config has {listed(other)}: "
            "change that, give a checkpoint file, or use backbone_weights: imagenet"
        )


def _absorb_zero_eps(detector: nn.Module) -> None:
    """torchvision's older COCO_V1 weights go with eps = 0 in batch norm (`overwrite_eps`), which no state dict records.

    Less eps in the variance has the same effect, and whoever loads our checkpoint has it too.
    """
    for layer in detector.modules():
        if isinstance(layer, FrozenBatchNorm2d | nn.BatchNorm2d):
            layer.running_var -= layer.eps
