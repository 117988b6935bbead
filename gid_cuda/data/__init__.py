"""Data sets in COCO or Pascal VOC layout, a generated one, and the loaders over them."""

from gid_cuda.data.build import build_dataset
from gid_cuda.data.dataset import DetectionDataset, Sample
from gid_cuda.data.images import UnreadableImage, read_image
from gid_cuda.data.loaders import Batch, Loader, build_loader

__all__ = [
    "Batch",
    "DetectionDataset",
    "Loader",
    "Sample",
    "UnreadableImage",
    "build_dataset",
    "build_loader",
    "read_image",
]
