"""What leaves the house: the student alone as a torchvision state dict and as ONNX, with a model card.

`detect` is copied beside the ONNX file and imports nothing of this package.
"""

from __future__ import annotations

from gid_cuda.export.folder import Export, export

__all__ = ["Export", "export"]
