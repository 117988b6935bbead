"""Which images a training step takes: endless, and a function of the seed and the place in the run alone."""

from __future__ import annotations

from collections.abc import Callable, Iterable, Iterator, Sequence
from itertools import islice

import numpy as np
from numpy.typing import NDArray
from torch.utils.data import Sampler

Draw = tuple[int, bool]
"""What a sampler asks for: index of the image, and whether to flip it."""

Portrait = Callable[[Sequence[int]], NDArray[np.bool_]]
"""Indices of images -> whether each is at least as high as wide."""

_LONGEST_WINDOW = 64  # batches, of which one mixes: twice as many would spare few more of the padded pixels
_BATCH_ORDER = 1  # a third word of the seed: another stream than that of the epochs


class TrainSampler(Sampler[list[Draw]]):
    """Endless batches of draws. Draw number p of a run is a function of (seed, p) alone.

    Each epoch is a permutation of all images drawn from (seed, epoch); a batch may span two epochs, so that no image
    is left out of an epoch and all batches are of one size.
    """

    def __init__(self, length: int, batch_size: int, seed: int, start: int, flip: float) -> None:
        self.length, self.batch_size, self.seed, self.start, self.flip = length, batch_size, seed, start, flip

    def __iter__(self) -> Iterator[list[Draw]]:
        draws = self._draws()
        while True:
            yield [next(draws) for _ in range(self.batch_size)]

    def _draws(self) -> Iterator[Draw]:
        epoch, skip = divmod(self.start * self.batch_size, self.length)
        while True:
            rng = np.random.default_rng([self.seed % 2**64, epoch])
            order = rng.permutation(self.length)[skip:].tolist()
            flips = (rng.random(self.length) < self.flip)[skip:].tolist()
            yield from zip(order, flips, strict=True)
            epoch, skip = epoch + 1, 0


def window_length(*sets: tuple[int, int]) -> int:
    """Batches of a window of `GroupedSampler`, for sets of (images, batch size) whose batches are joined.

    No longer than an epoch of any of them: an image is in a window twice at most, where that spans two epochs.
    """
    return max(1, min(_LONGEST_WINDOW, *(length // batch_size for length, batch_size in sets)))


class GroupedSampler(Sampler[list[Draw]]):
    """The draws of a `TrainSampler`, in batches whose images are all portrait or all not: less of them is padding.

    The run is cut into windows of `window` batches. The draws of a window are sorted by orientation, cut into batches,
    and these shuffled. So a window has the very draws that it would have had, and is a function of (seed, its number)
    alone; at most one batch of it mixes, portraits last. A window of one orientation stays as it is.

    Samplers of the same seed and window length, whose batches are joined, shuffle alike: their portraits come in the
    same steps, as far as they have equally many.
    """

    def __init__(self, draws: TrainSampler, portrait: Portrait, window: int) -> None:
        self.draws, self.portrait, self.window = draws, portrait, window

    def __iter__(self) -> Iterator[list[Draw]]:
        plain, window = self.draws, self.window
        number, done = divmod(plain.start, window)
        batches = iter(TrainSampler(plain.length, plain.batch_size, plain.seed, number * window, plain.flip))
        while True:
            yield from self._grouped(number, list(islice(batches, window)))[done:]
            number, done = number + 1, 0

    def _grouped(self, number: int, batches: list[list[Draw]]) -> list[list[Draw]]:
        draws, size = [draw for batch in batches for draw in batch], self.draws.batch_size
        portrait = self.portrait([index for index, _ in draws])
        if portrait.all() or not portrait.any():
            return batches
        order = np.argsort(portrait, kind="stable")
        rng = np.random.default_rng([self.draws.seed % 2**64, number, _BATCH_ORDER])
        places = rng.permutation(len(batches)) * size
        return [[draws[i] for i in order[place : place + size]] for place in places]


def positions(batch_size: int, parts: int, rank: int, processes: int) -> list[int]:
    """Which images of a batch of all processes are those of process `rank`, part by part.

    Each of the `parts` of a batch is spread over the processes, so that part k holds the same images whether one
    process works on it or many. batch_size is a multiple of parts * processes.
    """
    part = batch_size // parts
    own = part // processes
    return [k * part + rank * own + i for k in range(parts) for i in range(own)]


class OwnPart(Sampler[list[Draw]]):
    """Of each batch that another sampler yields, the draws at these positions."""

    def __init__(self, sampler: Iterable[list[Draw]], places: Sequence[int]) -> None:
        self.sampler, self.places = sampler, places

    def __iter__(self) -> Iterator[list[Draw]]:
        for draws in self.sampler:
            yield [draws[place] for place in self.places]
