"""Which CUDA compiler to use, and for which GPUs.

The choice is made twice with the same code: by the backend, to ask pip for the compiler packages where no toolkit fits,
and by the build itself. A compiler counts only when it has the major version of torch's CUDA and a trial compile and
link passes: wrapper scripts, half toolkits and host compilers that are too new are all found that way.
"""

from __future__ import annotations

import functools
import importlib.metadata
import importlib.util
import os
import re
import shutil
import subprocess
import sys
import tempfile
from dataclasses import dataclass
from pathlib import Path

DEFAULT_ARCHITECTURES = "7.5 8.0 9.0+PTX"
FIRST_MAJOR_ON_PYPI = 13  # before CUDA 13 the packages on PyPI hold no nvcc
COMPILER_PACKAGES = ("nvidia-cuda-nvcc", "nvidia-nvvm", "nvidia-cuda-crt", "nvidia-cuda-runtime", "nvidia-cuda-cccl")

TRIAL = """
#include <cuda_bf16.h>
#include <cuda_fp16.h>
__global__ void kernel() {}
extern "C" int launch() { kernel<<<1, 1>>>(); return cudaGetLastError(); }
"""


@dataclass(frozen=True)
class Toolkit:
    nvcc: tuple[str, ...]  # the command: the compiler, its host compiler, its library folders
    version: str  # "13.0"
    origin: str  # where it was found, for people to read


def wish() -> str:
    """GID_CUDA: "0" CPU kernels alone, "1" CUDA kernels or an error, "" CUDA kernels where a compiler is found."""
    value = os.environ.get("GID_CUDA", "")
    if value not in ("", "0", "1"):
        raise SystemExit(f"error: GID_CUDA is {value!r}: set it to 0 (CPU kernels alone), 1 (CUDA kernels) or leave it out")
    return value


@functools.cache
def find_toolkit(torch_cuda: str | None, host_compiler: str) -> tuple[Toolkit | None, str]:
    """The compiler to use for a torch with CUDA `torch_cuda` ("13.2"), or None and one sentence that says why not."""
    if wish() == "0":
        return None, "GID_CUDA=0 was set at build time; build again without it"
    if not sys.platform.startswith("linux"):
        return None, "CUDA kernels are built on Linux only"
    if torch_cuda is None:
        return None, "the torch at build time had no CUDA; install a CUDA build of torch and build again"
    reasons = []
    for path, origin in _candidates(torch_cuda):
        found = _probe(path, origin, torch_cuda, host_compiler)
        if isinstance(found, Toolkit):
            return found, ""
        reasons.append(found)
    major = torch_cuda.split(".")[0]
    why = "; ".join(reasons) if reasons else f"no CUDA {major} compiler was found"
    return None, f"{why}; install the CUDA {major} toolkit, set CUDA_HOME to it, and build again"


def compiler_packages(torch_cuda: str) -> list[str]:
    """The PyPI packages that make a CUDA compiler of the minor version that torch itself pins."""
    if int(torch_cuda.split(".")[0]) < FIRST_MAJOR_ON_PYPI:
        return []
    try:
        pins = " ".join(importlib.metadata.requires("torch") or [])
    except importlib.metadata.PackageNotFoundError:
        pins = ""
    toolkit = re.search(r"cuda-toolkit(?:\[[^]]*\])?==([\d.]*\d)", pins)
    if toolkit:
        return [f"cuda-toolkit[nvcc,cccl]=={toolkit[1]}"]
    runtime = re.search(r"nvidia-cuda-runtime==(\d+\.\d+)", pins)
    minor = runtime[1] if runtime else torch_cuda
    return [f"{name}=={minor}.*" for name in COMPILER_PACKAGES]


def architectures(toolkit: Toolkit) -> list[str]:
    """The GPU architectures to build for, as "8.0" or "9.0+PTX"."""
    wanted = os.environ.get("TORCH_CUDA_ARCH_LIST", "").strip()
    if wanted:
        source = "TORCH_CUDA_ARCH_LIST"
    else:
        wanted, source = _visible_architectures(toolkit), "the default"
    chosen = list(dict.fromkeys(re.split(r"[\s;,]+", wanted.strip(" ;,"))))
    known = _known_architectures(toolkit)
    for entry in chosen:
        match = re.fullmatch(r"(\d+)\.(\d)[af]?(\+PTX)?", entry)
        if not match or match[1] + match[2] not in known:
            numbers = " ".join(f"{name[:-1]}.{name[-1]}" for name in known)
            raise SystemExit(
                f"error: {source} has {entry!r}, which CUDA {toolkit.version} cannot build for; "
                f"it takes any of {numbers}, each with an optional +PTX, separated by spaces or semicolons"
            )
    return chosen


def architecture_flags(chosen: list[str]) -> list[str]:
    flags = []
    for entry in chosen:
        number = entry.removesuffix("+PTX").replace(".", "")
        flags.append(f"-gencode=arch=compute_{number},code=sm_{number}")
        if entry.endswith("+PTX"):
            flags.append(f"-gencode=arch=compute_{number},code=compute_{number}")
    return flags


def _candidates(torch_cuda: str) -> list[tuple[Path, str]]:
    found = []
    for name in ("CUDA_HOME", "CUDA_PATH"):
        if os.environ.get(name):
            found.append((Path(os.environ[name]) / "bin" / "nvcc", name))
    on_path = shutil.which("nvcc")
    if on_path:
        found.append((Path(on_path), "PATH"))
    usual = Path("/usr/local/cuda/bin/nvcc")
    if usual.is_file():
        found.append((usual, "/usr/local/cuda"))
    packages = importlib.util.find_spec("nvidia")
    for folder in (packages.submodule_search_locations or []) if packages else []:
        nvcc = Path(folder) / f"cu{torch_cuda.split('.')[0]}" / "bin" / "nvcc"
        if nvcc.is_file():
            found.append((nvcc, "PyPI packages"))
    return found


def _probe(path: Path, origin: str, torch_cuda: str, host_compiler: str) -> Toolkit | str:
    """The toolkit around an nvcc, or why it cannot be used."""
    name = f"{path} (from {origin})"
    answer = _run([str(path), "--version"])
    release = re.search(r"release (\d+\.\d+)", answer.stdout)
    if not release:
        return f"{name} does not run"
    if release[1].split(".")[0] != torch_cuda.split(".")[0]:
        return f"{name} is CUDA {release[1]}, torch has CUDA {torch_cuda}"
    command = [str(path)]
    if "NVCC_CCBIN" not in os.environ:  # which nvcc reads itself
        command += ["-ccbin", host_compiler]
    command += [f"-L{folder}" for folder in _library_folders(path)]
    problem = _try_compile(command)
    if problem:
        return f"{name} does not compile and link ({problem})"
    return Toolkit(tuple(command), release[1], origin)


def _library_folders(nvcc: Path) -> list[str]:
    """Where libcudart_static.a may be, by nvcc's own word for its root: its path may be that of a wrapper script."""
    answer = _run([str(nvcc), "--dryrun", "-x", "cu", os.devnull])
    root = re.search(r"^#\$ TOP=(.+)$", answer.stderr, re.MULTILINE)
    if not root:
        return []
    top = Path(root[1].strip()).resolve()
    return [str(folder) for folder in (top / "lib64", top / "lib") if folder.is_dir()]


def _try_compile(command: list[str]) -> str:
    """Empty where a small kernel compiles and links with the static runtime, else the first line of the complaint."""
    with tempfile.TemporaryDirectory() as folder:
        source = Path(folder) / "trial.cu"
        source.write_text(TRIAL)
        answer = _run([*command, "-std=c++20", "-shared", "-Xcompiler", "-fPIC", "-cudart", "static",
                       "-o", f"{folder}/trial.so", str(source)])  # fmt: skip
        if answer.returncode == 0:
            return ""
        lines = (answer.stderr + answer.stdout).strip().splitlines() or [f"exit status {answer.returncode}"]
        return next((line for line in lines if "error" in line), lines[0]).replace(folder, "").strip()


def _known_architectures(toolkit: Toolkit) -> list[str]:
    """What this nvcc compiles for: ["75", "80", ...]."""
    return re.findall(r"compute_(\d+)\b", _run([toolkit.nvcc[0], "--list-gpu-arch"]).stdout)


def _visible_architectures(toolkit: Toolkit) -> str:
    """The GPUs of this machine; the default where there is none, or one that is unknown to this nvcc."""
    import torch

    if not torch.cuda.is_available():
        return DEFAULT_ARCHITECTURES
    known = _known_architectures(toolkit)
    visible = sorted({torch.cuda.get_device_capability(index) for index in range(torch.cuda.device_count())})
    if not all(f"{major}{minor}" in known for major, minor in visible):
        return DEFAULT_ARCHITECTURES
    return " ".join(f"{major}.{minor}" for major, minor in visible)


def _run(command: list[str]) -> subprocess.CompletedProcess[str]:
    try:
        return subprocess.run(command, capture_output=True, text=True, check=False)
    except OSError as problem:
        return subprocess.CompletedProcess(command, 127, "", str(problem))
