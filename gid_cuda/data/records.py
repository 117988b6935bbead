"""What the readers produce: plain columns of numbers, and the count of flaws met on the way."""

from __future__ import annotations

import difflib
import math
import os
import stat
from collections.abc import Sequence
from dataclasses import dataclass, field
from pathlib import Path, PurePosixPath, PureWindowsPath

import numpy as np
from numpy.typing import NDArray

from gid_cuda.errors import UserError

OBJECT, CROWD, DIFFICULT = 0, 1, 2


@dataclass
class Records:
    """A data set without its pixels. N images, M boxes; image i owns boxes offsets[i] to offsets[i + 1].

    Columns instead of objects: loader processes share them, where Python objects would be copied page by page as their
    reference counts are touched.

    files:  names relative to `folder`, UTF-8 bytes      sizes:  (N, 2) int32 width, height
    boxes:  (M, 4) float32 xyxy pixels                   labels: (M,) int32, 0..C-1
    areas:  (M,) float32 pixels, as COCO splits sizes    kinds:  (M,) uint8, OBJECT, CROWD or DIFFICULT
    """

    classes: list[str]
    category_ids: list[int]
    folder: Path
    files: NDArray[np.bytes_]
    image_ids: NDArray[np.int64]
    sizes: NDArray[np.int32]
    offsets: NDArray[np.int64]
    boxes: NDArray[np.float32]
    labels: NDArray[np.int32]
    areas: NDArray[np.float32]
    kinds: NDArray[np.uint8]
    notes: list[str]


@dataclass
class Flaws:
    """Counts each kind of flaw and keeps the first example: one line a kind, however many there are."""

    source: str
    _seen: dict[str, tuple[int, str]] = field(default_factory=dict)

    def add(self, kind: str, example: str, count: int = 1) -> None:
        before, first = self._seen.get(kind, (0, example))
        self._seen[kind] = (before + count, first)

    def notes(self) -> list[str]:
        return [f"{self.source}: {count} x {kind}, e.g. {first}" for kind, (count, first) in self._seen.items()]


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
    areas = np.where(np.isfinite(own) & (own > 0), own, (clipped[:, 2:] - clipped[:, :2]).prod(1))
    return Records(
        classes=classes,
        category_ids=category_ids,
        folder=folder,
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


class ImageFolder:
    """Says which file names of an annotation file exist in the image folder, and refuses those that lead out of it.

    Whole folders are listed instead of asking for each file: COCO has 118,000 of them, often on a network drive.
    """

    def __init__(self, folder: Path, named_in: Path) -> None:
        self.folder = folder
        self._named_in = named_in
        self._root = Path(os.path.realpath(folder))
        self._listed: dict[str, dict[str, bool]] = {}

    def has(self, name: str) -> bool:
        """Whether the file is there. UserError for a name that leaves the folder."""
        parts = PurePosixPath(name.replace("\\", "/")).parts
        if ".." in parts or "\0" in name or PurePosixPath(name).is_absolute() or PureWindowsPath(name).drive:
            self._refuse(name)
        parent, _, base = name.rpartition("/")
        if parent not in self._listed:
            self._listed[parent] = self._list(parent, name)
        is_link = self._listed[parent].get(base)
        if is_link is None:  # not listed under this spelling; the file system may take upper and lower case as one
            try:
                if not stat.S_ISREG(os.stat(self.folder / name).st_mode):
                    return False
            except (OSError, ValueError):
                return False
        if is_link is not False:
            self._require_inside(self.folder / name, name)
        return True

    def stems(self) -> dict[str, str]:
        """File names of the folder itself by their stem; .jpg wins where there are several."""
        self._listed.setdefault("", self._list("", ""))
        names = sorted(self._listed[""], key=lambda name: (name.lower().endswith((".jpg", ".jpeg")), name))
        return {PurePosixPath(name).stem: name for name in names}

    def _list(self, parent: str, name: str) -> dict[str, bool]:
        where = self.folder / parent
        self._require_inside(where, name)
        try:
            with os.scandir(where) as entries:
                return {entry.name: entry.is_symlink() for entry in entries if entry.is_file()}
        except OSError:
            return {}

    def _require_inside(self, path: Path, name: str) -> None:
        real = Path(os.path.realpath(path))
        if real != self._root and self._root not in real.parents:
            self._refuse(name)

    def _refuse(self, name: str) -> None:
        raise UserError(
            f"{self._named_in} names the image {name!r}, which leads out of the image folder {self.folder}: "
            "names must be relative and stay inside it; mend the name, or copy the file where it is a link"
        )


def require_folder(path: Path, what: str, advice: str) -> None:
    if not path.is_dir():
        raise UserError(f"{what} not found: looked for the folder {path}{_here(path)}; {advice}")


def require_file(path: Path, what: str, advice: str) -> None:
    if not path.is_file():
        raise UserError(f"{what} not found: looked for {path}{_here(path)}; {advice}")


def _here(path: Path) -> str:
    return "" if path.is_absolute() else f" from {Path.cwd()}"


def check_selection(wanted: list[str]) -> None:
    """The config's `classes`: at least one, each once."""
    if not wanted:
        raise UserError("data.classes is an empty list: name at least one class, or leave it out to take all")
    twice = [name for name in wanted if wanted.count(name) > 1]
    if twice:
        raise UserError(f"data.classes names {twice[0]!r} twice: name each class once")


def nearest(name: str, known: Sequence[str]) -> str | None:
    """The known name that `name` was probably meant to be."""
    lower = {other.lower(): other for other in known}
    close = difflib.get_close_matches(name.lower(), lower, n=1)
    return lower[close[0]] if close else None


def unknown_class(name: str, known: Sequence[str], where: Path) -> UserError:
    meant = nearest(name, known)
    hint = f" (did you mean {meant!r}?)" if meant else ""
    return UserError(f"data.classes names {name!r}{hint}, which {where} does not have; it has {', '.join(known)}")
