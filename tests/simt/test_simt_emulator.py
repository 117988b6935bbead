"""The emulator bites: small kernels (kernels/lessons.cpp), right and wrong, under several orders of threads."""

from __future__ import annotations

import pytest
import torch
from emulator import EmulatorError
from torch import Tensor

SEEDS = range(5)


def run(kernels, seed: int, name: str) -> tuple[Tensor, Tensor]:
    given = torch.arange(256.0 if name.startswith("sum") else 64.0)
    out = torch.zeros(64)
    kernels("lessons").call("run_lesson", seed, name, given, out)
    return given, out


@pytest.mark.parametrize("seed", SEEDS)
@pytest.mark.parametrize("name", ["reverse", "reverse_twice", "sum", "warp"])
def test_right_kernels_pass(kernels, name, seed):
    given, out = run(kernels, seed, name)
    if name == "reverse":
        assert torch.equal(out, given.flip(0))
    elif name == "reverse_twice":
        assert torch.equal(out, given)
    elif name == "warp":
        assert torch.equal(out, given.view(32, 2).flip(1).flatten())
    else:
        assert out[0] == given.sum()


@pytest.mark.parametrize("seed", SEEDS)
@pytest.mark.parametrize(
    ("name", "message"),
    [
        ("reverse_without_barrier", r"shared memory that (nothing has written|thread \d+ has (read|written))"),
        ("reverse_twice_without_barrier", r"race: thread \d+ of block 0 .* shared memory that thread \d+ has"),
        ("sum_without_atomic", r"race: .* global memory that thread \d+( of another block)? has (read|written)"),
        ("warp_with_shuffle_alone", r"shared memory that (nothing has written|thread \d+ has (read|written))"),
        ("divergent", r"deadlock in block 0: 32 threads wait at the barrier of lessons.cpp:\d+, 32 of 64 have"),
        ("absent", r"deadlock in block 0: 32 threads wait for lanes of their warp at lessons.cpp:\d+, 32 of 64"),
        ("masks", r"lanes of one warp disagree: the operations or masks at lessons.cpp:\d+ and lessons.cpp:\d+ differ"),
        ("source", r"a shuffle at lessons.cpp:\d+ reads lane \d+, which takes no part"),
        ("two_barriers", r"threads of one block wait at different barriers: lessons.cpp:\d+ and lessons.cpp:\d+"),
        ("out_of_bounds", r"thread 63 of block 0 reads 4 bytes outside of every buffer"),
        ("shared_bounds", r"thread 63 of block 0 writes 4 bytes outside of every buffer"),
        ("misaligned", r"thread 0 of block 0 touches 16 bytes at an address that is not a multiple of 16"),
        ("large", r"the block's shared variables take more than 48 KB"),
    ],
)
def test_wrong_kernels_are_caught(kernels, name, message, seed):
    with pytest.raises(EmulatorError, match=message):
        run(kernels, seed, name)


def test_orders_differ(kernels):
    """Which thread a race is first seen in depends on the seed: the order of threads is not always the same."""
    found = set()
    for seed in SEEDS:
        with pytest.raises(EmulatorError) as problem:
            run(kernels, seed, "reverse_twice_without_barrier")
        found.add(str(problem.value))
    assert len(found) > 1
