"""What the readers produce: plain columns of numbers, and the count of flaws met on the way."""

from __future__ import annotations

import math
import os
from bisect import bisect_right
from collections.abc import Sequence
from dataclasses import dataclass, field
from pathlib import Path

import numpy as np
from numpy.typing import NDArray

OBJECT, CROWD, DIFFICULT = 0, 1, 2


@dataclass
class Records:
    """A data set without its pixels. N images, M boxes; image i owns boxes offsets[i] to offsets[i + 1].

    Columns instead of objects: loader processes share them, where Python objects would be copied page by page as their
    reference counts are touched. Sets that were joined keep their folders: image i lies in the last whose `firsts` is
    not above i.

    files:  names relative to their folder, fsencode()d  sizes:  (N, 2) int32 width, height
    boxes:  (M, 4) float32 xyxy pixels                   labels: (M,) int32, 0..C-1
    areas:  (M,) float32 pixels, as COCO splits sizes    kinds:  (M,) uint8, OBJECT, CROWD or DIFFICULT
    """

    classes: list[str]
    category_ids: list[int]
    folders: list[Path]
    firsts: list[int]  # index of each folder's first image
    files: NDArray[np.bytes_]
    image_ids: NDArray[np.int64]
    sizes: NDArray[np.int32]
    offsets: NDArray[np.int64]
    boxes: NDArray[np.float32]
    labels: NDArray[np.int32]
    areas: NDArray[np.float32]
    kinds: NDArray[np.uint8]
    notes: list[str]

    def path(self, index: int) -> Path:
        return self.folders[bisect_right(self.firsts, index) - 1] / os.fsdecode(self.files[index])


@dataclass
class Flaws:
    """Counts each kind of flaw and keeps the first example: one line a kind, however many there are."""

    source: str
    _seen: dict[str, tuple[int, str]] = field(default_factory=dict)

    def add(self, kind: str, example: str, count: int = 1) -> None:
        before, first = self._seen.get(kind, (0, example))
        self._seen[kind] = (before + count, first)

    def notes(self) -> list[str]:
        return [
            f"{self.source}: {count} x {kind}, e.g. {one_line(first)}" for kind, (count, first) in self._seen.items()
        ]


@dataclass
class BoxTable:
    """Boxes as a reader meets them, in any order of images."""

    images: list[int] = field(default_factory=list)  # index of the image
    boxes: list[tuple[float, float, float, float]] = field(default_factory=list)  # xyxy pixels
    labels: list[int] = field(default_factory=list)
    areas: list[float] = field(default_factory=list)  # NaN: none given
    kinds: list[int] = field(default_factory=list)

    def add(self, image: int, box: tuple[float, float, float, float], label: int, area: float, kind: int) -> None:
        self.images.append(image)
        self.boxes.append(box)
        self.labels.append(label)
        self.areas.append(area)
        self.kinds.append(kind)


def make_records(
    *,
    classes: list[str],
    category_ids: list[int],
    folder: Path,
    files: Sequence[str],
    image_ids: Sequence[int],
    sizes: Sequence[tuple[int, int]],
    table: BoxTable,
    flaws: Flaws,
) -> Records:
    """Cleans the boxes (finite, clipped to the image, not empty) and sorts them by image."""
    images = np.array(table.images, np.int64)
    boxes = np.array(table.boxes, np.float64).reshape(-1, 4)
    labels, kinds = np.array(table.labels, np.int32), np.array(table.kinds, np.uint8)
    areas = np.array(table.areas, np.float64)
    size = np.array(sizes, np.int32).reshape(-1, 2)

    clipped = np.clip(np.nan_to_num(boxes), 0, np.tile(size, 2)[images]).astype(np.float32)
    finite = np.isfinite(boxes).all(1)
    positive = (boxes[:, 2:] > boxes[:, :2]).all(1)
    inside = (clipped[:, 2:] > clipped[:, :2]).all(1)
    moved = np.abs(clipped - np.nan_to_num(boxes)).max(1, initial=0) > 0.5  # less is a rounding, not a flaw
    keep = finite & positive & inside
    for kind, rows in (
        ("box with a coordinate that is not a finite number, skipped", ~finite),
        ("box of zero or negative size, skipped", finite & ~positive),
        ("box wholly outside its image, skipped", finite & positive & ~inside),
        ("box partly outside its image, clipped", keep & moved),
    ):
        if rows.any():
            row = int(np.argmax(rows))
            flaws.add(kind, f"{_text(boxes[row])} in {files[images[row]]}", int(rows.sum()))

    order = np.flatnonzero(keep)
    order = order[np.argsort(images[order], kind="stable")]
    clipped, own = clipped[order], areas[order]
    usable = (own > 0) & (own <= np.finfo(np.float32).max)
    areas = np.where(usable, own, (clipped[:, 2:] - clipped[:, :2]).prod(1))
    return Records(
        classes=classes,
        category_ids=category_ids,
        folders=[folder],
        firsts=[0],
        files=np.array([os.fsencode(name) for name in files], np.bytes_),
        image_ids=np.array(image_ids, np.int64),
        sizes=size,
        offsets=np.searchsorted(images[order], np.arange(len(size) + 1)).astype(np.int64),
        boxes=clipped,
        labels=labels[order],
        areas=areas.astype(np.float32),
        kinds=kinds[order],
        notes=flaws.notes(),
    )


def _text(box: NDArray[np.float64]) -> str:
    return "(" + ", ".join(f"{value:g}" for value in box) + ")"


def number(value: object) -> float:
    """A JSON or XML value as float; NaN where it is none (then the box is counted as not finite)."""
    if isinstance(value, bool) or not isinstance(value, (int, float, str)):
        return math.nan
    try:
        return float(value)
    except (ValueError, OverflowError):
        return math.nan


def one_line(text: str, limit: int = 200) -> str:
    """Fit to be printed, whatever an annotation file has in it: line breaks and lone surrogates are escaped."""
    short = text if len(text) <= limit else text[:limit] + "..."
    return "".join(c if c.isprintable() else c.encode("unicode_escape").decode() for c in short)
