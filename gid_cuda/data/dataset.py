"""One data set class for every format: the readers give `Records`, this decodes images and hands out samples."""

from __future__ import annotations

import os
from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import numpy as np
import torch
from numpy.typing import NDArray
from torch import Tensor
from torch.utils.data import Dataset

from gid_cuda.data.images import UnreadableImage, read_image
from gid_cuda.data.records import CROWD, DIFFICULT, OBJECT, Records, one_line


@dataclass
class Sample:
    """One image: (3, H, W) uint8 RGB; boxes (N, 4) float32 xyxy pixels; labels (N,) int64 in 0..C-1."""

    image: Tensor
    boxes: Tensor
    labels: Tensor
    image_id: int
    path: str


class DetectionDataset(Dataset[Sample]):
    """Images with boxes. Labels are 0..C-1 in the order of `classes`.

    Samples carry what is trained on: neither crowds nor VOC's difficult objects. Images without boxes stay: they teach
    what is background.
    """

    def __init__(self, records: Records, notes: list[str] | None = None) -> None:
        self.records = records
        self.classes = records.classes
        self.category_ids = records.category_ids
        self.image_ids: list[int] = records.image_ids.tolist()
        self.notes = records.notes + (notes or [])

    def __len__(self) -> int:
        return len(self.records.files)

    def path(self, index: int) -> Path:
        return self.records.path(index)

    def portrait(self, indices: Sequence[int]) -> NDArray[np.bool_]:
        """Whether each of these images is at least as high as wide. No file is opened."""
        width, height = self.records.sizes[list(indices)].T
        return height >= width

    def __getitem__(self, index: int) -> Sample:
        """UnreadableImage where the file cannot be decoded, or is of another size than its annotations say."""
        records, path = self.records, self.path(index)
        image = read_image(path)
        width, height = records.sizes[index].tolist()
        if image.shape[1:] != (height, width):
            found, name = f"{image.shape[2]}x{image.shape[1]}", one_line(str(path), 1000)
            raise UnreadableImage(f"{name}: is {found} pixels but annotated as {width}x{height}")
        rows = slice(records.offsets[index], records.offsets[index + 1])
        plain = records.kinds[rows] == OBJECT
        boxes = torch.from_numpy(records.boxes[rows][plain])
        labels = torch.from_numpy(records.labels[rows][plain].astype(np.int64))
        return Sample(image, boxes, labels, int(records.image_ids[index]), str(path))

    def ground_truth(self) -> dict[str, Any]:
        """COCO format: crowds have iscrowd=1, VOC's difficult objects ignore=1.

        pycocotools overwrites `ignore` with `iscrowd` when it prepares an evaluation: whoever evaluates has to put it
        back.
        """
        r = self.records
        owner = np.repeat(r.image_ids, np.diff(r.offsets)).tolist()
        left_top, size = r.boxes[:, :2], r.boxes[:, 2:] - r.boxes[:, :2]
        boxes = np.concatenate([left_top, size], 1).tolist()
        columns = zip(owner, r.labels.tolist(), boxes, r.areas.tolist(), r.kinds.tolist(), strict=True)
        annotations = [
            {
                "id": number,  # from 1: pycocotools takes 0 as "unmatched"
                "image_id": image,
                "category_id": r.category_ids[label],
                "bbox": box,
                "area": area,
                "iscrowd": int(kind == CROWD),
                "ignore": int(kind == DIFFICULT),
            }
            for number, (image, label, box, area, kind) in enumerate(columns, start=1)
        ]
        images = [
            {"id": image, "file_name": os.fsdecode(name), "width": width, "height": height}
            for image, name, (width, height) in zip(self.image_ids, r.files.tolist(), r.sizes.tolist(), strict=True)
        ]
        categories = [{"id": key, "name": name} for key, name in zip(r.category_ids, r.classes, strict=True)]
        return {"images": images, "annotations": annotations, "categories": categories}
