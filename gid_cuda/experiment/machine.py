"""What numbers were made with: read without touching a GPU, which belongs to the runs."""

from __future__ import annotations

import os
import platform
import subprocess
from functools import lru_cache
from importlib import metadata
from pathlib import Path

import gid_cuda


@lru_cache(maxsize=1)
def describe_machine() -> dict[str, str]:
    """Plain text by name; "none" where there is nothing of the kind."""
    return {
        "GPU": _ask("nvidia-smi", "--query-gpu=name,driver_version", "--format=csv,noheader") or "none",
        "CPU": f"{_cpu_model()}, {_cores()} cores",
        "system": f"{platform.system()} {platform.machine()}",
        "Python": platform.python_version(),
        "torch": _version("torch"),
        "torchvision": _version("torchvision"),
        "gid_cuda": gid_cuda.__version__,
        "git commit": _ask("git", "describe", "--always", "--dirty", "--abbrev=12", "--exclude=*") or "none",
    }


def _version(package: str) -> str:
    """Without importing it, which takes seconds."""
    try:
        return metadata.version(package)
    except metadata.PackageNotFoundError:
        return "unknown"


def _cores() -> int:
    return len(os.sched_getaffinity(0)) if hasattr(os, "sched_getaffinity") else os.cpu_count() or 1


def _cpu_model() -> str:
    try:
        lines = Path("/proc/cpuinfo").read_text(encoding="utf-8").splitlines()
    except OSError:
        return platform.processor() or platform.machine()
    names = [line.partition(":")[2].strip() for line in lines if line.startswith("model name")]
    return names[0] if names else platform.machine()


def _ask(*command: str) -> str | None:
    """A program's answer on one line; None where there is no such program, or it refuses."""
    try:
        run = subprocess.run(command, capture_output=True, text=True, cwd=Path(__file__).parent, timeout=20)
    except (OSError, subprocess.TimeoutExpired):
        return None
    lines = [line.strip() for line in run.stdout.splitlines() if line.strip()]
    return "; ".join(lines) if run.returncode == 0 and lines else None
