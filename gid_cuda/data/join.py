"""Makes one set of several: columns one after the other, images counted once."""

from __future__ import annotations

import os
from collections.abc import Sequence
from dataclasses import replace
from itertools import accumulate

import numpy as np
from numpy.typing import NDArray

from gid_cuda.data.folders import nested
from gid_cuda.data.records import Records, one_line


def without_images_of(earlier: Sequence[Records], records: Records) -> Records:
    """`records` without the images that an earlier set has, too (the same file on disk), and a note of them.

    A set never leaves its image folder, by links neither, so only folders that are equal or nested are compared: most
    sets that are joined cost no look at the disk. All records are of one folder each.
    """
    near = [other for other in earlier if nested(other.folders[0], records.folders[0])]
    if not near:
        return records
    known = {path for other in near for path in _real_paths(other)}
    keep = np.array([path not in known for path in _real_paths(records)], bool)
    if keep.all():
        return records
    first = one_line(os.fsdecode(records.files[int(np.argmin(keep))]))
    note = f"{int((~keep).sum())} x image that an earlier set has, too, left out, e.g. {first}"
    return replace(take(records, keep), notes=[*records.notes, note])


def join(parts: Sequence[Records]) -> Records:
    """One set of those in `parts`, which are of the same classes in the same order; a single one stays as it is.

    Image ids become 1..N: those of two sets may be the same. Category ids stay where all parts agree, else 1..C.
    """
    first = parts[0]
    if len(parts) == 1:
        return first
    lengths = [len(part.files) for part in parts]
    agree = all(part.category_ids == first.category_ids for part in parts)
    counts = np.concatenate([np.diff(part.offsets) for part in parts])
    return Records(
        classes=first.classes,
        category_ids=first.category_ids if agree else list(range(1, len(first.classes) + 1)),
        folders=[part.folders[0] for part in parts],
        firsts=[0, *accumulate(lengths[:-1])],
        files=np.concatenate([part.files for part in parts]),
        image_ids=np.arange(1, sum(lengths) + 1, dtype=np.int64),
        sizes=np.concatenate([part.sizes for part in parts]),
        offsets=_offsets(counts),
        boxes=np.concatenate([part.boxes for part in parts]),
        labels=np.concatenate([part.labels for part in parts]),
        areas=np.concatenate([part.areas for part in parts]),
        kinds=np.concatenate([part.kinds for part in parts]),
        notes=[note for part in parts for note in part.notes],
    )


def take(records: Records, keep: NDArray[np.bool_]) -> Records:
    """The images where `keep` (N,) is true, with their boxes."""
    counts = np.diff(records.offsets)
    rows = np.repeat(keep, counts)
    return replace(
        records,
        firsts=[int(keep[:first].sum()) for first in records.firsts],
        files=records.files[keep],
        image_ids=records.image_ids[keep],
        sizes=records.sizes[keep],
        offsets=_offsets(counts[keep]),
        boxes=records.boxes[rows],
        labels=records.labels[rows],
        areas=records.areas[rows],
        kinds=records.kinds[rows],
    )


def _offsets(counts: NDArray[np.int64]) -> NDArray[np.int64]:
    return np.concatenate([[0], np.cumsum(counts)]).astype(np.int64)


def _real_paths(records: Records) -> list[str]:
    """Of every image, links followed. Folders are listed once, instead of asking for each file of them."""
    listed: dict[str, tuple[str, set[str]]] = {}
    paths = []
    for name in map(os.fsdecode, records.files.tolist()):
        parent, base = os.path.split(name)
        if parent not in listed:
            folder = os.path.realpath(records.folders[0] / parent)
            with os.scandir(folder) as entries:
                listed[parent] = folder, {entry.name for entry in entries if entry.is_symlink()}
        folder, links = listed[parent]
        path = os.path.join(folder, base)
        paths.append(os.path.realpath(path) if base in links else path)
    return paths
