"""Data sets in COCO or Pascal VOC layout, a generated one, and the loaders over them."""

from gid_cuda.data.build import build_dataset, build_training
from gid_cuda.data.dataset import DetectionDataset, Sample
from gid_cuda.data.images import UnreadableImage, read_image
from gid_cuda.data.loaders import Batch, Images, Loader, build_loader
from gid_cuda.data.unlabeled import UnlabeledImages

__all__ = [
    "Batch",
    "DetectionDataset",
    "Images",
    "Loader",
    "Sample",
    "UnlabeledImages",
    "UnreadableImage",
    "build_dataset",
    "build_loader",
    "build_training",
    "read_image",
]
