"""What sums are divided by, so that one batch on many processes weighs as it does on one."""

from __future__ import annotations

import torch
import torch.distributed as dist
from torch import Tensor


def global_normalisers(*counts: Tensor) -> tuple[Tensor, ...]:
    """0-dim counts of this process's batch -> the float32 divisors that make its sums into its share of global means.

    Where torch.distributed is initialised, counts are summed over the processes (one all_reduce for all of them, which
    every process takes part in whatever its counts), and divided by the number of processes: DistributedDataParallel
    averages gradients, so mean over processes of sum_p / (N / W) = sum over processes of sum_p / N. A count that is 0
    everywhere divides by a positive number, so a sum of nothing stays 0.

    A logged loss is therefore the process's own share; the mean over the processes is the loss of the whole batch.
    """
    total = torch.stack(counts)
    processes = 1
    if dist.is_available() and dist.is_initialized():
        processes = dist.get_world_size()
        if processes > 1:
            dist.all_reduce(total)
    return (total.clamp(min=1).float() / processes).unbind()
