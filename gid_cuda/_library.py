"""Loads the compiled operators: the CPU library always, the CUDA library where this torch and driver can run it."""

from __future__ import annotations

import ctypes
import importlib
import importlib.machinery
from pathlib import Path

import torch

BUILD_COMMAND = "python -m pip install -e ."

try:
    _C = importlib.import_module("gid_cuda._C")
except ImportError as problem:
    raise ImportError(
        f"gid_cuda's compiled operators do not load ({problem}): build them with `{BUILD_COMMAND}` in the source folder"
    ) from None


def build_info() -> dict[str, object]:
    """What the libraries were built from and for: versions, compiler, flags, architectures."""
    return _C.build_info()


def cuda_missing_reason() -> str | None:
    """None where the CUDA kernels are active, else one sentence that says why not and what mends it."""
    return _CUDA_MISSING


def driver_version() -> tuple[int, int] | None:
    """The CUDA version that the NVIDIA driver supports; None without a driver. Touches no GPU."""
    try:
        driver = ctypes.CDLL("libcuda.so.1")
    except OSError:
        return None
    version = ctypes.c_int()
    if driver.cuDriverGetVersion(ctypes.byref(version)) != 0:
        return None
    return version.value // 1000, version.value % 1000 // 10


def _load_cuda() -> str | None:
    built = build_info()["cuda"]
    if built is None:
        return str(build_info()["cuda_missing"])
    if torch.version.cuda is None:
        return f"this torch ({torch.__version__}) has no CUDA; install a CUDA build of torch (https://pytorch.org)"
    driver = driver_version()
    if driver is None:
        return "no NVIDIA driver was found; on a machine with an NVIDIA GPU install its driver"
    if driver[0] < int(str(built).split(".")[0]):
        return (
            f"the kernels were built with CUDA {built}, the driver supports CUDA {driver[0]}.{driver[1]}; update the "
            f"driver, or build with an older toolkit and a torch for it: `{BUILD_COMMAND} --no-build-isolation`"
        )
    try:
        torch.ops.load_library(str(cuda_library_path()))
    except OSError as problem:
        return f"the CUDA library does not load ({problem}); build again with `{BUILD_COMMAND}`"
    return None


def cuda_library_path() -> Path:
    """Where the build puts the CUDA library."""
    return Path(__file__).with_name("_C_cuda" + importlib.machinery.EXTENSION_SUFFIXES[0])


_CUDA_MISSING = _load_cuda()
