"""Which device a run uses."""

from __future__ import annotations

import torch

from gid_cuda.errors import UserError


def choose_device(name: str) -> torch.device:
    """auto (the GPU where there is one), cpu or cuda."""
    if name == "cuda" and not torch.cuda.is_available():
        raise UserError("device is cuda, but torch sees no GPU here: set device=auto or device=cpu")
    if name == "auto":
        name = "cuda" if torch.cuda.is_available() else "cpu"
    return torch.device(name)
