"""What numbers were made with, as an experiment notes it beside each of its runs."""

from __future__ import annotations

import platform
from functools import lru_cache

import gid_cuda
from gid_cuda.machine import cpu_name, git_commit, nvidia_smi, package_version


@lru_cache(maxsize=1)
def describe_machine() -> dict[str, str]:
    """Plain text by name; "none" where there is nothing of the kind."""
    return {
        "GPU": "; ".join(nvidia_smi("name,driver_version")) or "none",
        "CPU": cpu_name(),
        "system": f"{platform.system()} {platform.machine()}",
        "Python": platform.python_version(),
        "torch": package_version("torch") or "unknown",
        "torchvision": package_version("torchvision") or "unknown",
        "gid_cuda": gid_cuda.__version__,
        "git commit": git_commit() or "none",
    }
