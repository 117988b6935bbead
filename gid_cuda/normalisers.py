"""What sums are divided by, so that one batch on many processes weighs as it does on one. Needs torch alone."""

from __future__ import annotations

import torch
import torch.distributed as dist
from torch import Tensor


def process_count() -> int:
    """1 where torch.distributed is not initialised."""
    return dist.get_world_size() if dist.is_available() and dist.is_initialized() else 1


def global_normalisers(*counts: Tensor) -> tuple[Tensor, ...]:
    """0-dim counts of this process's batch -> the float32 divisors that make its sums into its share of global means.

    Where torch.distributed is initialised, counts are summed over the processes (one all_reduce for all of them, which
    every process takes part in whatever its counts), and divided by the number of processes: DistributedDataParallel
    averages gradients, so mean over processes of sum_p / (N / W) = sum over processes of sum_p / N. A count that is 0
    everywhere divides by a positive number, so a sum of nothing stays 0.

    A logged loss is therefore the process's own share; the mean over the processes is the loss of the whole batch.
    """
    total = torch.stack(counts)
    processes = process_count()
    if processes > 1:
        dist.all_reduce(total)
    return (total.clamp(min=1).float() / processes).unbind()


def shares_of_means(*counts: Tensor) -> tuple[Tensor, ...]:
    """For losses that have been divided already, each by its 0-dim count (or by 1 where that is 0): factors, float32,
    that make these means of one process into its shares of the global means. As `global_normalisers`, one all_reduce
    that every process takes part in; 1 on one process."""
    return tuple(count.clamp(min=1) / whole for count, whole in zip(counts, global_normalisers(*counts), strict=True))


def global_images(count: int, device: torch.device) -> Tensor | int:
    """`global_normalisers` of one count that the host knows. On one process an int, at least 1, without any kernel."""
    if process_count() == 1:
        return max(1, count)
    return global_normalisers(torch.full((), count, dtype=torch.int64, device=device))[0]
