"""Images without annotations: those of a folder, or the training images whose annotations are left aside."""

from __future__ import annotations

import os
from collections.abc import Iterable, Iterator, Sequence
from pathlib import Path

import numpy as np
import torch
from numpy.typing import NDArray
from torch.utils.data import Dataset

from gid_cuda.data.dataset import Sample
from gid_cuda.data.folders import nested, require_folder
from gid_cuda.data.images import SUFFIXES, UnreadableImage, image_size, read_image
from gid_cuda.data.join import take
from gid_cuda.data.records import Records
from gid_cuda.errors import UserError


class UnlabeledImages(Dataset[Sample]):
    """Image files; their samples have no boxes and are numbered from 0.

    notes: what to know of them, a line each. sizes: (N, 2) width, height in pixels, where they are known.
    """

    def __init__(
        self, files: Iterable[Path], notes: Sequence[str] = (), sizes: NDArray[np.integer] | None = None
    ) -> None:
        # One array instead of many objects: see `Records`.
        self._files = np.array([os.fsencode(file) for file in files], dtype=np.bytes_)
        self.notes = list(notes)
        # (N, 2); 0: not looked at yet
        self._sizes = np.zeros((len(self._files), 2), np.int32) if sizes is None else sizes.astype(np.int32)

    def __len__(self) -> int:
        return len(self._files)

    def path(self, index: int) -> Path:
        return Path(os.fsdecode(self._files[index]))

    def portrait(self, indices: Sequence[int]) -> NDArray[np.bool_]:
        """Whether each of these images is at least as high as wide; one that cannot be read counts as if it were.

        Sizes that are not known are read from the files' headers, now and not at the start, which would have to wait
        for all the files of a folder.
        """
        for index in indices:
            if not self._sizes[index].any():
                try:
                    self._sizes[index] = image_size(self.path(index))
                except UnreadableImage:
                    self._sizes[index] = 1
        width, height = self._sizes[list(indices)].T
        return height >= width

    def __getitem__(self, index: int) -> Sample:
        """UnreadableImage where the file cannot be decoded."""
        path = self.path(index)
        none = torch.zeros((0, 4)), torch.zeros(0, dtype=torch.int64)
        return Sample(read_image(path), *none, image_id=index, path=str(path))


def labelled_part(records: Records, fraction: float) -> tuple[Records, UnlabeledImages]:
    """A random `fraction` of the images, with their boxes, the same in every run; and the others, without theirs.

    At least one image is kept, in its place; a larger fraction keeps those of a smaller one, too.
    """
    count = len(records.files)
    chosen = np.random.default_rng(0).permutation(count)[: max(1, round(fraction * count))]
    keep = np.zeros(count, bool)
    keep[chosen] = True
    rest = [records.path(int(index)) for index in np.flatnonzero(~keep)]
    return take(records, keep), UnlabeledImages(rest, sizes=records.sizes[~keep])


def images_of_folder(folder: Path, labelled: Records) -> UnlabeledImages:
    """The image files in `folder` and the folders in it, by suffix and sorted, without those that `labelled` has.

    UserError where there is none. Links to folders are not followed; those to files are."""
    require_folder(folder, "data.unlabeled.images", "name a folder of images, relative to data.root")
    found = sorted(_walk(folder))
    if not found:
        raise UserError(f"no images in {folder}: data.unlabeled.images is searched for {', '.join(SUFFIXES)}")
    return without_images_of(UnlabeledImages(found), labelled, folder, "the labelled part has, too,")


def without_images_of(images: UnlabeledImages, records: Records, folder: Path, whose: str) -> UnlabeledImages:
    """`images`, which are of `folder`, without those that `records` has, and a note of them: image that `whose` ...

    UserError where none is left."""
    known = _known(folder, records)
    files = [path for path in map(images.path, range(len(images))) if not known or os.path.realpath(path) not in known]
    if not files:
        raise UserError(
            f"all {len(images)} images in {folder} are in the training or the validation data with their labels: "
            "nothing is left for data.unlabeled.images"
        )
    left_out = len(images) - len(files)
    return UnlabeledImages(files, [*images.notes, *[f"{left_out} x image that {whose} left out"] * (left_out > 0)])


def _walk(folder: Path) -> Iterator[Path]:
    for parent, _, names in os.walk(folder):
        yield from (Path(parent, name) for name in names if name.lower().endswith(SUFFIXES))


def _known(folder: Path, records: Records) -> set[str]:
    """Real paths of the records' images; empty where none of their folders is this one, in it, or around it."""
    if not any(nested(folder, other) for other in records.folders):
        return set()
    return {os.path.realpath(records.path(index)) for index in range(len(records.files))}
