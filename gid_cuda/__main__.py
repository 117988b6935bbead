"""`python -m gid_cuda`: what was built, what is active here, and what is missing with the command that mends it."""

from __future__ import annotations

import argparse
import importlib.util
import platform
import sys
from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path

import torch

import gid_cuda

# Needed for training; operators and losses do without. Distribution: the module that it is imported as.
PACKAGES = {
    "torchvision": "torchvision",
    "numpy": "numpy",
    "pycocotools": "pycocotools",
    "pydantic": "pydantic",
    "pyyaml": "yaml",
    "pillow": "PIL",
    "matplotlib": "matplotlib",
    "tensorboard": "tensorboard",
    "tqdm": "tqdm",
}


@dataclass(frozen=True)
class Gpu:
    name: str
    capability: tuple[int, int]


def main(arguments: Sequence[str] = ()) -> int:
    argparse.ArgumentParser(prog="python -m gid_cuda", description=__doc__, allow_abbrev=False).parse_args(arguments)
    try:
        from gid_cuda import _library
    except ImportError as problem:
        print(f"error: {problem}", file=sys.stderr)
        return 1
    gpus = visible_gpus()
    info, reason = _library.build_info(), _library.cuda_missing_reason()
    rows = [("gid_cuda", f"{gid_cuda.__version__} in {Path(gid_cuda.__file__).parent}"), *built_rows(info)]
    rows.append(("running", f"torch {torch.__version__}, Python {platform.python_version()}"))
    driver = _library.driver_version()
    rows.append(("driver", f"NVIDIA, up to CUDA {driver[0]}.{driver[1]}" if driver else "no NVIDIA driver"))
    rows += [(f"GPU {i}", f"{gpu.name}, architecture {_number(gpu.capability)}") for i, gpu in enumerate(gpus)]
    hindrance = cuda_hindrance(info, reason, gpus, _library.BUILD_COMMAND)
    active = reason is None and any(covers(info["architectures"], gpu.capability) for gpu in gpus)
    rows.append(("active", "CPU kernels and CUDA kernels" if active else "CPU kernels"))
    missing = [f"CUDA kernels: {hindrance}"] if hindrance else []
    missing += missing_packages()
    rows += [("missing" if i == 0 else "", line) for i, line in enumerate(missing or ["nothing"])]
    for label, text in rows:
        print(f"{label:<12}{text}")
    return 0


def built_rows(info: dict) -> list[tuple[str, str]]:
    """What `_C.build_info()` says of the libraries."""
    built = "CPU kernels alone"
    if info["cuda"] is not None:
        built = f"CPU kernels; CUDA {info['cuda']} kernels for architectures {' '.join(info['architectures'])}"
    return [
        ("built", built),
        ("built with", f"torch {info['torch']}, loads under torch {info['abi']} and newer (stable ABI)"),
        ("", f"Python {info['python']}, {info['compiler']}"),
    ]


def cuda_hindrance(info: dict, reason: str | None, gpus: list[Gpu], build_command: str) -> str | None:
    """Why no CUDA kernel runs here, or not on every GPU, and what mends it; None where all is well."""
    if reason is not None:
        return reason
    if not gpus:
        return "torch sees no GPU; `nvidia-smi` lists those that the driver sees, CUDA_VISIBLE_DEVICES may hide them"
    visible = sorted({gpu.capability for gpu in gpus})
    strange = [_number(capability) for capability in visible if not covers(info["architectures"], capability)]
    if not strange:
        return None
    wanted = " ".join(_number(capability) for capability in visible)
    return (
        f"none were built for architecture {' '.join(strange)}; "
        f'run `TORCH_CUDA_ARCH_LIST="{wanted}" {build_command}` in the source folder'
    )


def covers(architectures: list[str], capability: tuple[int, int]) -> bool:
    """True where kernels built for these architectures ("8.0", "9.0a", "9.0+PTX") run on a GPU of this capability."""
    for entry in architectures:
        number, _, ptx = entry.partition("+")
        special = number[-1] in "af"  # code for one architecture alone
        built = tuple(int(part) for part in number.rstrip("af").split("."))
        if built == capability or (ptx and not special and built <= capability):
            return True
        if not special and built[0] == capability[0] and built[1] <= capability[1]:
            return True
    return False


def visible_gpus() -> list[Gpu]:
    if not torch.cuda.is_available():
        return []
    indices = range(torch.cuda.device_count())
    return [Gpu(torch.cuda.get_device_name(i), torch.cuda.get_device_capability(i)) for i in indices]


def missing_packages() -> list[str]:
    absent = " ".join(name for name, module in PACKAGES.items() if importlib.util.find_spec(module) is None)
    return [f"for training: run `python -m pip install {absent}`"] if absent else []


def _number(capability: tuple[int, int]) -> str:
    return f"{capability[0]}.{capability[1]}"


if __name__ == "__main__":
    sys.exit(main(sys.argv[1:]))
