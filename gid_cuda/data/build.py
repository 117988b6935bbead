"""From a config to a data set: every set of a part is read, then they are joined."""

from __future__ import annotations

import os
from collections.abc import Sequence
from dataclasses import replace

import numpy as np

from gid_cuda.config import DataConfig
from gid_cuda.data.coco import ELSEWHERE, read_coco
from gid_cuda.data.dataset import DetectionDataset
from gid_cuda.data.folders import require_folder
from gid_cuda.data.join import join, without_images_of
from gid_cuda.data.records import CROWD, DIFFICULT, OBJECT, Records, one_line
from gid_cuda.data.sources import Part, Source, sources
from gid_cuda.data.unlabeled import UnlabeledImages, images_of_folder, labelled_part
from gid_cuda.data.voc import VocSplit, scan_voc, voc_classes, voc_records
from gid_cuda.errors import UserError


def build_dataset(config: DataConfig, part: Part) -> DetectionDataset:
    """The train or val part of a config's data. UserError, one sentence, for anything wrong with it."""
    if part == "train":
        return build_training(config)[0]
    own = sources(config, part)
    joined = _joined(config, part, own)
    return DetectionDataset(joined, _notes(joined, part, own))


def build_training(config: DataConfig) -> tuple[DetectionDataset, UnlabeledImages | None]:
    """The train part, and the images that join it without labels, where `data.unlabeled` asks for any."""
    own = sources(config, "train")
    joined = _joined(config, "train", own)
    rest = UnlabeledImages([])
    if config.labeled_fraction < 1:
        joined, rest = labelled_part(joined, config.labeled_fraction)
    train = DetectionDataset(joined, _notes(joined, "train", own))
    if config.unlabeled is None:
        return train, None
    if config.unlabeled.images is not None:
        return train, images_of_folder(config.root / config.unlabeled.images, joined)
    if not len(rest):
        raise UserError(
            f"data.labeled_fraction {config.labeled_fraction} keeps the labels of all {len(train)} training images: "
            "nothing is left for data.unlabeled"
        )
    return train, rest


def _joined(config: DataConfig, part: Part, own: Sequence[Source]) -> Records:
    """The records of all sources as one set."""
    sets = _read(config, part, own)
    for source, records in zip(own, sets, strict=True):
        if records.classes != sets[0].classes:
            raise UserError(
                f"data.{part} joins sets of different classes: {own[0].key} has {', '.join(sets[0].classes)} and "
                f"{source.key} has {', '.join(records.classes)}: name those to use, in one order, in data.classes"
            )
    sets = [without_images_of(sets[:i], records) for i, records in enumerate(sets)]
    if len(sets) > 1:
        sets = [_with_own_notes(records, part, source.key) for records, source in zip(sets, own, strict=True)]
    return join(sets)


def _read(config: DataConfig, part: Part, own: Sequence[Source]) -> list[Records]:
    """The records of each source, in order."""
    splits = {source: scan_voc(source) for source in own if source.format == "voc"}
    classes = _voc_classes(config, part, list(splits.values())) if splits else []
    return [
        voc_records(splits.pop(source), classes) if source.format == "voc" else _coco(source, config.classes)
        for source in own
    ]


def _voc_classes(config: DataConfig, part: Part, splits: list[VocSplit]) -> list[str]:
    """Those of all VOC splits of the config, both parts' together; the other part is read only where that matters."""
    found = {name for split in splits for name in split.class_names()}
    if config.classes is None or not found.issuperset(config.classes):
        for source in sources(config, "val" if part == "train" else "train"):
            if source.format == "voc" and source.split is not None:
                found |= scan_voc(source).class_names()
    return voc_classes(found, config.classes, [split.annotations for split in splits])


def _coco(source: Source, classes: list[str] | None) -> Records:
    require_folder(source.root, "COCO data set", ELSEWHERE)
    return read_coco(source.need("annotations"), source.need("images"), classes)


def _with_own_notes(records: Records, part: Part, key: str) -> Records:
    """What is to be known of one of several sets, each note with its place in the config."""
    notes = [*records.notes, *(_not_trained_on(records) if part == "train" else [])]
    if len(records.files) and not (records.kinds == OBJECT).any():
        notes.append(f"no usable box of {', '.join(records.classes)}")
    return replace(records, notes=[f"{key}: {note}" for note in notes])


def _notes(records: Records, part: Part, own: Sequence[Source]) -> list[str]:
    """What the numbers of boxes mean for this part. UserError where there is nothing to train on."""
    has_objects = bool((records.kinds == OBJECT).any())
    where = " and ".join(dict.fromkeys(str(source.root) for source in own))
    if part == "val":
        return [] if has_objects else [f"the validation data under {where} has no usable box: AP is undefined"]
    if not has_objects:
        raise UserError(
            f"the training data under {where} has no usable box of {', '.join(records.classes)}:"
            " nothing could be learned from it; check data.train and data.classes"
        )
    return _not_trained_on(records) if len(own) == 1 else []


def _not_trained_on(records: Records) -> list[str]:
    notes = []
    for kind, what in ((CROWD, "crowd box"), (DIFFICULT, "difficult object")):
        rows = np.flatnonzero(records.kinds == kind)
        if len(rows):
            image = int(np.searchsorted(records.offsets, rows[0], side="right")) - 1
            notes.append(f"{len(rows)} x {what}, not trained on, e.g. in {one_line(os.fsdecode(records.files[image]))}")
    return notes
