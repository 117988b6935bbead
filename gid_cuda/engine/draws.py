"""Random numbers that depend on a run's seed and on what they are for, not on how the work is shared out."""

from __future__ import annotations

from collections.abc import Iterator
from contextlib import contextmanager

import numpy as np
import torch


@contextmanager
def draws_of_step(seed: int, step: int, first: int) -> Iterator[None]:
    """Within, torch's CPU generator is a function of the seed, the step, and how many images stand before `first`.

    torchvision's transform draws one number an image, its size: with this, the size of an image is the same whether one
    process or many share a batch, and whatever else a run draws. The generator's state is given back as it was.
    """
    generator, state = torch.default_generator, torch.get_rng_state()
    words = np.random.SeedSequence([seed % 2**64, step]).generate_state(1, np.uint64)
    generator.manual_seed(int(words[0] >> np.uint64(1)))
    for _ in range(first):
        torch.empty(1).uniform_()
    try:
        yield
    finally:
        torch.set_rng_state(state)


def process_seed(seed: int, rank: int) -> int:
    """Process 0 draws as the only one would; each of the others for itself, as their samples are of other images."""
    if rank == 0:
        return seed
    return int(np.random.SeedSequence([seed % 2**64, rank]).generate_state(1, np.uint64)[0] >> np.uint64(1))
