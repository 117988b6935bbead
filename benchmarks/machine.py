"""What figures were made with, and how much memory is left."""

from __future__ import annotations

import datetime
import os
import platform
import sys
from pathlib import Path
from typing import Any

import torch
import torchvision

from gid_cuda import _library
from gid_cuda.errors import UserError
from gid_cuda.gpus import require_kernels
from gid_cuda.machine import cpu_name, git_commit, nvidia_smi

ROOT = Path(__file__).parent.parent


def pick_device(name: str) -> torch.device:
    """ "cpu", "cuda" or "auto" (CUDA where torch sees it); a UserError where there is no CUDA but it is asked for."""
    if name == "auto":
        name = "cuda" if torch.cuda.is_available() else "cpu"
    if name == "cuda" and not torch.cuda.is_available():
        raise UserError("--device cuda: torch sees no CUDA device; `python -m gid_cuda` tells why, --device cpu works")
    device = torch.device(name, 0) if name == "cuda" else torch.device(name)
    require_kernels(device)
    return device


def describe(device: torch.device) -> dict[str, Any]:
    """Everything that a figure hangs on, as plain JSON values."""
    return {
        "device": torch.cuda.get_device_name(device) if device.type == "cuda" else cpu_name(),
        "kind": device.type,
        "cpu": cpu_name(),
        "threads": torch.get_num_threads(),
        "torch": torch.__version__,
        "torchvision": torchvision.__version__,
        "cuda": torch.version.cuda,
        "driver": next(iter(nvidia_smi("driver_version")), "unknown") if device.type == "cuda" else None,
        "kernels": _kernels(device),
        "python": platform.python_version(),
        "system": platform.system(),
        "commit": git_commit() or "unknown",
        "date": datetime.datetime.now(datetime.timezone.utc).strftime("%Y-%m-%d %H:%M UTC"),
        "command": " ".join(["python", *sys.argv]).replace(f"{ROOT}{os.sep}", ""),
    }


def _kernels(device: torch.device) -> str:
    """Which kernels the operators run: on a GPU without them, a table would compare PyTorch with itself."""
    if device.type == "cpu":
        return "CPU"
    reason = _library.cuda_missing_reason()
    return "CUDA" if reason is None else f"none, plain PyTorch runs instead: {reason}"


def available_bytes(device: torch.device) -> int | None:
    """Memory that can still be taken; None where the system does not tell."""
    if device.type == "cuda":
        cached = torch.cuda.memory_reserved(device) - torch.cuda.memory_allocated(device)
        return torch.cuda.mem_get_info(device)[0] + cached
    try:
        lines = Path("/proc/meminfo").read_text().splitlines()
    except OSError:
        return None
    for line in lines:
        if line.startswith("MemAvailable:"):
            return 1024 * int(line.split()[1])
    return None
