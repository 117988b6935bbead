"""What results are made with: machine, packages, commit. Imports no torch and touches no GPU, which belongs to runs."""

from __future__ import annotations

import os
import platform
import re
import subprocess
from importlib import metadata
from pathlib import Path


def cpu_name() -> str:
    """The processor's model as the system names it, and how many cores this process may use."""
    cores = len(os.sched_getaffinity(0)) if hasattr(os, "sched_getaffinity") else os.cpu_count() or 1
    return f"{_cpu_model()}, {cores} cores"


def _cpu_model() -> str:
    try:
        lines = Path("/proc/cpuinfo").read_text(encoding="utf-8").splitlines()
    except OSError:
        return platform.processor() or platform.machine()
    names = [line.partition(":")[2].strip() for line in lines if line.startswith("model name")]
    return names[0] if names else platform.machine()


def package_version(package: str) -> str | None:
    """Without importing it, which takes seconds; None where it is not installed."""
    try:
        return metadata.version(package)
    except metadata.PackageNotFoundError:
        return None


def git_commit() -> str | None:
    """The commit of the checkout that this package is part of, with -dirty where tracked files were changed.

    None where it is part of none: a package that was installed into some other project's checkout is not in its files.
    Copied without its .git, it is what GID_CUDA_COMMIT in the environment says, a hash as git prints it.
    """
    if _ask("git", "ls-files", "--error-unmatch", Path(__file__).name) is not None:
        return _ask("git", "describe", "--always", "--dirty", "--abbrev=12", "--exclude=*")
    told = os.environ.get("GID_CUDA_COMMIT", "")
    return told if re.fullmatch(r"[0-9a-f]{7,64}(-dirty)?", told) else None


def nvidia_smi(query: str) -> list[str]:
    """Its answer to --query-gpu=`query`, a line a GPU; empty where there is no driver."""
    answer = _ask("nvidia-smi", f"--query-gpu={query}", "--format=csv,noheader")
    return answer.splitlines() if answer else []


def _ask(*command: str) -> str | None:
    """What a program prints; None where there is no such program, it refuses, or says nothing."""
    try:
        run = subprocess.run(command, capture_output=True, text=True, cwd=Path(__file__).parent, timeout=20)
    except (OSError, subprocess.TimeoutExpired):
        return None
    lines = [line.strip() for line in run.stdout.splitlines() if line.strip()]
    return "\n".join(lines) if run.returncode == 0 and lines else None
