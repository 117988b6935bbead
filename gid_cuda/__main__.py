"""`python -m gid_cuda`: what was built, what is active here, and what is missing with the command that mends it."""

from __future__ import annotations

import argparse
import importlib.util
import platform
import sys
from collections.abc import Sequence
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


def main(arguments: Sequence[str] = ()) -> int:
    argparse.ArgumentParser(prog="python -m gid_cuda", description=__doc__, allow_abbrev=False).parse_args(arguments)
    try:
        from gid_cuda import _library, gpus
    except ImportError as problem:
        print(f"error: {problem}", file=sys.stderr)
        return 1
    found, info = gpus.visible_gpus(), _library.build_info()
    rows = [("gid_cuda", f"{gid_cuda.__version__} in {Path(gid_cuda.__file__).parent}"), *built_rows(info)]
    rows.append(("running", f"torch {torch.__version__}, Python {platform.python_version()}"))
    driver = _library.driver_version()
    rows.append(("driver", f"NVIDIA, up to CUDA {driver[0]}.{driver[1]}" if driver else "no NVIDIA driver"))
    rows += [(f"GPU {i}", f"{gpu.name}, architecture {gpus.architectures([gpu])}") for i, gpu in enumerate(found)]
    hindrance = gpus.cuda_hindrance(found)
    active = _library.cuda_missing_reason() is None and any(gpus.covered(gpu) for gpu in found)
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


def missing_packages() -> list[str]:
    absent = " ".join(name for name, module in PACKAGES.items() if importlib.util.find_spec(module) is None)
    return [f"for training: run `python -m pip install {absent}`"] if absent else []


if __name__ == "__main__":
    sys.exit(main(sys.argv[1:]))
