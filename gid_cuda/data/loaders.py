"""Loaders: batches of decoded images; in training endless, shuffled, and the same whatever the number of workers."""

from __future__ import annotations

import math
from collections.abc import Callable, Iterable, Iterator
from dataclasses import dataclass, field
from typing import Any

import torch
from torch import Tensor
from torch.utils.data import DataLoader, Dataset

from gid_cuda.data.dataset import DetectionDataset, Sample
from gid_cuda.data.images import UnreadableImage
from gid_cuda.data.sampler import Draw, GroupedSampler, OwnPart, TrainSampler, positions
from gid_cuda.data.unlabeled import UnlabeledImages
from gid_cuda.data.workers import leave_signals_to_the_trainer, loader_context, surviving
from gid_cuda.errors import UserError

Images = DetectionDataset | UnlabeledImages

_MOST_UNREADABLE = 100  # images in a row; then it is not a few broken files
_PER_IMAGE = ("images", "targets", "image_ids", "paths")


@dataclass
class Batch:
    """B images with what is known of them.

    images:     B tensors (3, H, W) uint8
    targets:    B dicts {boxes (N, 4) float32 xyxy pixels, labels (N,) int64}, without crowds and difficult objects
    image_ids:  B ints, the data set's own
    paths:      B file names
    unreadable: "path: reason" of files that could not be decoded. In training the next readable image stands in; in
                evaluation the image is left out, so B may be smaller than asked for, even 0.
    unlabeled:  so many of the images, the last ones, have no labels; their targets are empty, and mean nothing
    """

    images: list[Tensor] = field(default_factory=list)
    targets: list[dict[str, Tensor]] = field(default_factory=list)
    image_ids: list[int] = field(default_factory=list)
    paths: list[str] = field(default_factory=list)
    unreadable: list[str] = field(default_factory=list)
    unlabeled: int = 0

    def add(self, sample: Sample) -> None:
        self.images.append(sample.image)
        self.targets.append({"boxes": sample.boxes, "labels": sample.labels})
        self.image_ids.append(sample.image_id)
        self.paths.append(sample.path)

    def __reduce__(self) -> tuple[Any, ...]:
        """From worker to trainer in three tensors instead of three an image, each of which would take a file handle:
        a few workers ahead by a few batches of 16 images hold more than most systems allow."""
        shapes = [tuple(image.shape) for image in self.images]
        pixels = torch.cat([torch.empty(0, dtype=torch.uint8), *(image.flatten() for image in self.images)])
        boxes = torch.cat([torch.empty(0, 4), *(target["boxes"] for target in self.targets)])
        labels = torch.cat([torch.empty(0, dtype=torch.int64), *(target["labels"] for target in self.targets)])
        counts = [len(target["labels"]) for target in self.targets]
        return _apart, (pixels, shapes, boxes, labels, counts, self.image_ids, self.paths, self.unreadable)

    def with_unlabeled(self, other: Batch) -> Batch:
        """This batch and after it the images of another, without labels."""
        lists = (getattr(self, name) + getattr(other, name) for name in (*_PER_IMAGE, "unreadable"))
        return Batch(*lists, unlabeled=self.unlabeled + len(other.images))

    @property
    def labelled_ids(self) -> list[int]:
        return self.image_ids[: len(self.image_ids) - self.unlabeled]

    def cut(self, count: int) -> list[Batch]:
        """`count` parts with as many labelled and as many unlabelled images each; both must be multiples of it."""
        known, unknown = (len(self.images) - self.unlabeled) // count, self.unlabeled // count
        parts = []
        for part in range(count):
            first = len(self.images) - self.unlabeled + part * unknown
            rows = [*range(part * known, (part + 1) * known), *range(first, first + unknown)]
            lists = ([getattr(self, name)[row] for row in rows] for name in _PER_IMAGE)
            parts.append(Batch(*lists, unlabeled=unknown))
        return parts

    def pin_memory(self) -> Batch:
        """Called by DataLoader where pinned memory was asked for."""
        images = [image.pin_memory() for image in self.images]
        targets = [{key: value.pin_memory() for key, value in target.items()} for target in self.targets]
        return Batch(images, targets, self.image_ids, self.paths, self.unreadable)


def _apart(
    pixels: Tensor, shapes: list[tuple[int, ...]], boxes: Tensor, labels: Tensor, counts: list[int], *others: list[Any]
) -> Batch:
    """Undo `Batch.__reduce__`; images, boxes and labels are views."""
    parts = pixels.split([math.prod(shape) for shape in shapes])
    images = [part.view(shape) for part, shape in zip(parts, shapes, strict=True)]
    targets = [
        {"boxes": box, "labels": label} for box, label in zip(boxes.split(counts), labels.split(counts), strict=True)
    ]
    return Batch(images, targets, *others)


def mirror(sample: Sample) -> Sample:
    """Mirrored left to right, boxes too."""
    width = sample.image.shape[-1]
    x1, y1, x2, y2 = sample.boxes.unbind(-1)
    boxes = torch.stack([width - x2, y1, width - x1, y2], -1)
    return Sample(sample.image.flip(-1), boxes, sample.labels, sample.image_id, sample.path)


class _Batches(Dataset["Batch | str"]):
    """Makes whole batches in the worker: `__getitem__` takes what the sampler yields.

    A user's mistake is returned as its sentence, because DataLoader wraps an exception in the worker's traceback.
    """

    def __init__(self, dataset: Images, train: bool) -> None:
        self.dataset, self.train = dataset, train

    def __getitem__(self, draws: list[Draw]) -> Batch | str:
        batch = Batch()
        try:
            for index, flip in draws:
                sample = self._read(index, batch)
                if sample is not None:
                    batch.add(mirror(sample) if flip else sample)
        except UserError as error:
            return str(error)
        return batch

    def _read(self, index: int, batch: Batch) -> Sample | None:
        tries = min(len(self.dataset), _MOST_UNREADABLE) if self.train else 1
        for step in range(tries):
            try:
                return self.dataset[(index + step) % len(self.dataset)]
            except UnreadableImage as error:
                batch.unreadable.append(str(error))
        if self.train:
            raise UserError(
                f"{tries} images in a row could not be decoded, the last one being {batch.unreadable[-1]}:"
                " check the data set's files"
            )
        return None


def _unchanged(batch: Any) -> Any:
    return batch


class Loader:
    """Iterates once over batches. In training without end (and without a length).

    loader_from(n): a DataLoader that begins with the batch after the first n. A loader process that dies is replaced
    with a warning, and the batches go on as they would have.
    """

    def __init__(self, loader_from: Callable[[int], DataLoader[Batch | str]]) -> None:
        self._loader_from = loader_from

    def __iter__(self) -> Iterator[Batch]:
        for batch in surviving(self._loader_from):
            if isinstance(batch, str):
                raise UserError(batch)
            yield batch

    def __len__(self) -> int:
        return len(self._loader_from(0))


def build_loader(
    dataset: Images,
    *,
    batch_size: int,
    workers: int,
    train: bool,
    seed: int = 0,
    start_step: int = 0,
    hflip: float = 0.0,
    group_window: int = 0,
    pin_memory: bool = False,
    parts: int = 1,
    rank: int = 0,
    processes: int = 1,
) -> Loader:
    """Batches of `dataset`.

    train: endless and shuffled; order and flips are a function of (seed, position in the run) alone, so that
        `start_step=n` continues exactly after the first n batches, whatever the number of workers. Otherwise every
        image once, in order.
    hflip: probability of a horizontal flip; training alone.
    group_window: batches whose images are of one orientation, by windows of so many batches, see `GroupedSampler`;
        0: as they are drawn. Training alone.
    rank, processes: of several processes that work on a data set together, this one's part. In training it takes its
        images of each batch of batch_size, which is that of all (see `positions`; parts: of gradient accumulation), so
        that together they see what one process sees. Otherwise it takes every processes-th batch of batch_size.
    """
    every: list[Draw] = [(index, False) for index in range(0 if train else len(dataset))]

    def loader_from(done: int) -> DataLoader[Batch | str]:
        sampler: Iterable[list[Draw]]
        if train:
            draws = TrainSampler(len(dataset), batch_size, seed, start_step + done, hflip)
            sampler = GroupedSampler(draws, dataset.portrait, group_window) if group_window else draws
            if processes > 1:
                sampler = OwnPart(sampler, positions(batch_size, parts, rank, processes))
        else:
            batches = [every[i : i + batch_size] for i in range(0, len(every), batch_size)]
            sampler = batches[rank::processes][done:]
        return DataLoader(
            _Batches(dataset, train),
            sampler=sampler,
            batch_size=None,  # the sampler yields whole batches already
            num_workers=workers,
            persistent_workers=workers > 0,
            collate_fn=_unchanged,
            pin_memory=pin_memory,
            multiprocessing_context=loader_context() if workers > 0 else None,
            worker_init_fn=leave_signals_to_the_trainer,
            generator=torch.Generator().manual_seed(seed % 2**63),  # else an iterator draws from the global generator
        )

    return Loader(loader_from)
