"""Which device a run uses."""

from __future__ import annotations

import os

import torch

from gid_cuda.engine.distributed import local_rank
from gid_cuda.errors import UserError
from gid_cuda.gpus import require_kernels


def require_gpu(name: str) -> None:
    """UserError where `device` is cuda and there is none. Starts nothing on a GPU."""
    if name == "cuda" and not torch.cuda.is_available():
        raise UserError("device is cuda, but torch sees no GPU here: set device=auto or device=cpu")


def choose_device(name: str) -> torch.device:
    """auto (the GPU where there is one), cpu or cuda; of many processes each has a GPU of its own."""
    require_gpu(name)
    if name == "auto":
        name = "cuda" if torch.cuda.is_available() else "cpu"
    device = torch.device(name)
    if name == "cuda" and local_rank() > 0:
        if local_rank() >= torch.cuda.device_count():
            raise UserError(
                f"torchrun started {os.environ.get('LOCAL_WORLD_SIZE', local_rank() + 1)} processes on a machine with "
                f"{torch.cuda.device_count()} GPUs, and each needs its own: give --nproc-per-node "
                f"{torch.cuda.device_count()}, or device=cpu"
            )
        device = torch.device("cuda", local_rank())
    require_kernels(device)
    return device
