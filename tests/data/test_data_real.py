"""A real data set in both layouts, where the variable GID_BCCD names its folder (github.com/Shenggan/BCCD_Dataset)."""

from __future__ import annotations

import os
from pathlib import Path

import pytest
import torch

from gid_cuda.config import DataConfig
from gid_cuda.data import build_dataset, build_loader

FOLDER = os.environ.get("GID_BCCD", "")
pytestmark = pytest.mark.skipif(not FOLDER, reason="GID_BCCD does not name a folder")


def test_both_layouts_agree_and_its_flaws_are_told() -> None:
    split = {"annotations": "instances_trainval.json", "images": "JPEGImages"}
    coco = build_dataset(DataConfig(format="coco", root=Path(FOLDER), train=split), "train")
    config = DataConfig(format="voc", root=Path(FOLDER), train={"split": "trainval"}, classes=coco.classes)
    voc = build_dataset(config, "train")
    assert coco.classes == ["RBC", "WBC", "Platelets"] and len(coco) == len(voc) == 292
    for data in (coco, voc):
        assert len(data.notes) == 1 and "2 x box of zero or negative size" in data.notes[0]
    by_name = {voc.path(i).name: i for i in range(len(voc))}
    for i in range(len(coco)):
        j = by_name[coco.path(i).name]
        a, b = (
            sorted(zip(r.boxes[s].tolist(), r.labels[s].tolist(), strict=True))
            for r, s in ((data.records, slice(*data.records.offsets[k : k + 2])) for data, k in ((coco, i), (voc, j)))
        )
        assert a == b


def test_every_image_decodes() -> None:
    split = {"annotations": "instances_test.json", "images": "JPEGImages"}
    data = build_dataset(DataConfig(format="coco", root=Path(FOLDER), val=split), "val")
    batches = list(build_loader(data, batch_size=16, workers=0, train=False))
    assert sum(len(batch.images) for batch in batches) == 72
    assert not any(batch.unreadable for batch in batches)
    assert all(image.dtype == torch.uint8 and image.shape == (3, 480, 640) for b in batches for image in b.images)
