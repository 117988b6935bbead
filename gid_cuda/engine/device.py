"""Which device a run uses."""

from __future__ import annotations

import os

import torch

from gid_cuda.engine.distributed import local_rank
from gid_cuda.errors import UserError


def choose_device(name: str) -> torch.device:
    """auto (the GPU where there is one), cpu or cuda; of many processes each has a GPU of its own."""
    if name == "cuda" and not torch.cuda.is_available():
        raise UserError("device is cuda, but torch sees no GPU here: set device=auto or device=cpu")
    if name == "auto":
        name = "cuda" if torch.cuda.is_available() else "cpu"
    if name == "cuda" and local_rank() > 0:
        if local_rank() >= torch.cuda.device_count():
            raise UserError(
                f"torchrun started {os.environ.get('LOCAL_WORLD_SIZE', local_rank() + 1)} processes on a machine with "
                f"{torch.cuda.device_count()} GPUs, and each needs its own: give --nproc-per-node "
                f"{torch.cuda.device_count()}, or device=cpu"
            )
        return torch.device("cuda", local_rank())
    return torch.device(name)
