"""One data set class for every format: the readers give `Records`, this decodes images and hands out samples."""

from __future__ import annotations

import os
from dataclasses import dataclass
from pathlib import Path
from typing import Any, Literal

import numpy as np
import torch
from torch import Tensor
from torch.utils.data import Dataset

from gid_cuda.config import DataConfig, SplitConfig
from gid_cuda.data.coco import ELSEWHERE, read_coco
from gid_cuda.data.folders import require_folder
from gid_cuda.data.generated import generate
from gid_cuda.data.images import UnreadableImage, read_image
from gid_cuda.data.records import CROWD, DIFFICULT, OBJECT, Records, one_line
from gid_cuda.data.voc import read_voc
from gid_cuda.errors import UserError

Part = Literal["train", "val"]


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
        return self.records.folder / os.fsdecode(self.records.files[index])

    def __getitem__(self, index: int) -> Sample:
        """UnreadableImage where the file cannot be decoded, or is of another size than its annotations say."""
        records, path = self.records, self.path(index)
        image = read_image(path)
        width, height = records.sizes[index].tolist()
        if image.shape[1:] != (height, width):
            raise UnreadableImage(
                f"{path}: is {image.shape[2]}x{image.shape[1]} pixels but annotated as {width}x{height}"
            )
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


def build_dataset(config: DataConfig, part: Part) -> DetectionDataset:
    """The train or val part of a config's data set. UserError, one sentence, for anything wrong with it."""
    split: SplitConfig = getattr(config, part)
    if config.format == "generated":
        folder = generate(config.generated, config.root)
        records = read_coco(folder / f"{part}.json", folder / part, config.classes)
    elif config.format == "coco":
        require_folder(config.root, "COCO data set", ELSEWHERE)
        for key in ("annotations", "images"):
            if getattr(split, key) is None:
                raise UserError(f"data.{part}.{key} is not set: format coco needs it, relative to data.root")
        assert split.annotations is not None and split.images is not None
        records = read_coco(config.root / split.annotations, config.root / split.images, config.classes)
    else:
        records = read_voc(config, part)
    return DetectionDataset(records, _part_notes(records, part, config))


def _part_notes(records: Records, part: Part, config: DataConfig) -> list[str]:
    """What the numbers of boxes mean for this part. UserError where there is nothing to train on."""
    has_objects = bool((records.kinds == OBJECT).any())
    if part == "val":
        return [] if has_objects else [f"the validation data under {config.root} has no usable box: AP is undefined"]
    if not has_objects:
        raise UserError(
            f"the training data under {config.root} has no usable box of {', '.join(records.classes)}:"
            " nothing could be learned from it; check data.train and data.classes"
        )
    notes = []
    for kind, what in ((CROWD, "crowd box"), (DIFFICULT, "difficult object")):
        rows = np.flatnonzero(records.kinds == kind)
        if len(rows):
            image = int(np.searchsorted(records.offsets, rows[0], side="right")) - 1
            notes.append(f"{len(rows)} x {what}, not trained on, e.g. in {one_line(os.fsdecode(records.files[image]))}")
    return notes
