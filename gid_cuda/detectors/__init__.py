"""Detectors as distillation sees them: `outputs` has the shared types, each other file adapts one detector.

Importing this package, or `outputs`, needs torch alone; torchvision is imported with the first detector.
"""

from __future__ import annotations

from typing import TYPE_CHECKING, Any

if TYPE_CHECKING:
    from gid_cuda.detectors.build import build_detector
    from gid_cuda.detectors.faster_rcnn import FasterRCNN
    from gid_cuda.detectors.fcos import FCOS
    from gid_cuda.detectors.retinanet import RetinaNet

__all__ = ["FCOS", "FasterRCNN", "RetinaNet", "build_detector"]


def __getattr__(name: str) -> Any:
    if name == "build_detector":
        from gid_cuda.detectors.build import build_detector

        return build_detector
    if name == "FasterRCNN":
        from gid_cuda.detectors.faster_rcnn import FasterRCNN

        return FasterRCNN
    if name == "FCOS":
        from gid_cuda.detectors.fcos import FCOS

        return FCOS
    if name == "RetinaNet":
        from gid_cuda.detectors.retinanet import RetinaNet

        return RetinaNet
    raise AttributeError(f"module {__name__!r} has no attribute {name!r}")
