"""Detectors as distillation sees them: `outputs` has the shared types, each other file adapts one detector.

Importing this package, or `outputs`, needs torch alone; torchvision is imported with the first detector.
"""

from __future__ import annotations

from importlib import import_module
from typing import TYPE_CHECKING, Any

if TYPE_CHECKING:
    from gid_cuda.detectors.build import build_detector
    from gid_cuda.detectors.faster_rcnn import FasterRCNN
    from gid_cuda.detectors.fcos import FCOS
    from gid_cuda.detectors.retinanet import RetinaNet

__all__ = ["FCOS", "FasterRCNN", "RetinaNet", "build_detector"]

_MODULES = {"FCOS": "fcos", "FasterRCNN": "faster_rcnn", "RetinaNet": "retinanet", "build_detector": "build"}


def __getattr__(name: str) -> Any:
    if name not in _MODULES:
        raise AttributeError(f"module {__name__!r} has no attribute {name!r}")
    return getattr(import_module(f"{__name__}.{_MODULES[name]}"), name)
