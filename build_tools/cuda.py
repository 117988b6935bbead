"""Which CUDA compiler to use, and for which GPUs.

The choice is made twice with the same code: by the backend, to ask pip for the compiler packages where no toolkit fits,
and by the build itself. A compiler counts only when it has the major version of torch's CUDA and a trial compile and
link passes: wrapper scripts, half toolkits and host compilers that are too new are all found that way.
"""

from __future__ import annotations

import importlib.metadata
import importlib.util
import os
import re
import shlex
import shutil
import subprocess
import sys
import tempfile
from dataclasses import dataclass
from pathlib import Path

BUILD_AGAIN = "`python -m pip install --no-build-isolation -e .` in the source folder"
USUAL_FOLDER = Path("/usr/local/cuda")
DEFAULT_ARCHITECTURES = ("7.5", "8.0", "9.0+PTX")
PYPI = "PyPI packages"
FIRST_MAJOR_ON_PYPI = 13  # before CUDA 13 the packages on PyPI hold no nvcc
# All of one minor version: nvcc refuses the headers of another. CCCL alone is indifferent, and torch brings one along.
COMPILER_PACKAGES = ("nvidia-cuda-nvcc", "nvidia-nvvm", "nvidia-cuda-crt", "nvidia-cuda-runtime")
HEADER_PACKAGE = "nvidia-cuda-cccl"

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
        raise SystemExit(f"error: GID_CUDA is {value!r}: set 0 (CPU kernels alone), 1 (CUDA kernels too) or nothing")
    return value


def hindrance(torch_cuda: str | None) -> str:
    """Why CUDA kernels cannot be built, whatever compiler there is; empty where they can. `torch_cuda`: "13.2"."""
    if wish() == "0":
        return f"GID_CUDA=0 was set when gid_cuda was built; unset it and run {BUILD_AGAIN}"
    if not sys.platform.startswith("linux"):
        return "CUDA kernels are built on Linux only"
    if torch_cuda is None:
        return f"gid_cuda was built with a torch that has no CUDA; install one that has and run {BUILD_AGAIN}"
    return ""


def find_toolkit(torch_cuda: str, cxx: list[str]) -> tuple[Toolkit | None, str]:
    """The compiler for a torch with this CUDA and this C++ compiler, or None and a sentence: why not, what mends it."""
    reasons = []
    for path, origin in _candidates(torch_cuda):
        found = _probe(path, origin, torch_cuda, cxx)
        if isinstance(found, Toolkit):
            return found, ""
        reasons.append(found)
    major = torch_cuda.split(".")[0]
    why = "; ".join(reasons) if reasons else f"no CUDA {major} compiler was found"
    packages = shlex.join(compiler_packages(torch_cuda))
    pip = f" or run `python -m pip install {packages}`" if packages else ""
    return None, f"{why}; set CUDA_HOME to a CUDA {major} toolkit{pip}, then run {BUILD_AGAIN}"


def compiler_packages(torch_cuda: str) -> list[str]:
    """The PyPI packages that make a CUDA compiler of the minor version that torch itself pins."""
    if int(torch_cuda.split(".")[0]) < FIRST_MAJOR_ON_PYPI:
        return []
    try:
        pins = " ".join(importlib.metadata.requires("torch") or [])
    except importlib.metadata.PackageNotFoundError:
        pins = ""
    pin = re.search(r"(?:cuda-toolkit|nvidia-cuda-runtime)(?:\[[^]]*\])?==(\d+\.\d+)", pins)
    minor = pin[1] if pin else torch_cuda
    return [*(f"{name}=={minor}.*" for name in COMPILER_PACKAGES), HEADER_PACKAGE]


def architectures(toolkit: Toolkit) -> list[str]:
    """The GPU architectures to build for, as "8.0" or "9.0+PTX"."""
    wanted = os.environ.get("TORCH_CUDA_ARCH_LIST", "").strip()
    known = _known_architectures(toolkit)
    if not wanted.strip(" ;,"):
        return _visible_architectures(known) or [name for name in DEFAULT_ARCHITECTURES if _is_known(name, known)]
    chosen = list(dict.fromkeys(re.split(r"[\s;,]+", wanted.strip(" ;,"))))
    for entry in chosen:
        if not _is_known(entry, known):
            numbers = " ".join(f"{name[:-1]}.{name[-1]}" for name in known)
            raise SystemExit(
                f"error: TORCH_CUDA_ARCH_LIST has {entry!r}, which CUDA {toolkit.version} cannot build for; "
                f"it takes any of {numbers}, each with an optional +PTX, separated by spaces or semicolons"
            )
    return chosen


def flags(chosen: list[str]) -> list[str]:
    """nvcc's flags for these architectures."""
    found = []
    for entry in chosen:
        number = entry.removesuffix("+PTX").replace(".", "")
        found.append(f"-gencode=arch=compute_{number},code=sm_{number}")
        if entry.endswith("+PTX"):
            found.append(f"-gencode=arch=compute_{number},code=compute_{number}")
    return found


def _candidates(torch_cuda: str) -> list[tuple[Path, str]]:
    """Every nvcc there is, best first, with the place that it was found in."""
    places = [(Path(os.environ[name]) / "bin", name) for name in ("CUDA_HOME", "CUDA_PATH") if os.environ.get(name)]
    on_path = shutil.which("nvcc")
    if on_path:
        places.append((Path(on_path).parent, "PATH"))
    places.append((USUAL_FOLDER / "bin", str(USUAL_FOLDER)))
    places += [(folder / "bin", PYPI) for folder in _package_folders(torch_cuda)]
    found: dict[Path, tuple[Path, str]] = {}
    for folder, origin in places:
        nvcc = folder / "nvcc"
        if nvcc.is_file() or origin.startswith("CUDA_"):  # a wrong CUDA_HOME is worth a word
            found.setdefault(nvcc.resolve(), (nvcc, origin))
    return list(found.values())


def _package_folders(torch_cuda: str) -> list[Path]:
    """Where the PyPI packages of this CUDA major version are: in pip's isolated builds spread over two folders."""
    packages = importlib.util.find_spec("nvidia")
    places = (packages.submodule_search_locations or []) if packages else []
    return [Path(place) / f"cu{torch_cuda.split('.')[0]}" for place in places]


def _probe(path: Path, origin: str, torch_cuda: str, cxx: list[str]) -> Toolkit | str:
    """The toolkit around an nvcc, or why it cannot be used."""
    name = f"{path} (from {origin})"
    answer = _run([str(path), "--version"])
    release = re.search(r"release (\d+\.\d+)", answer.stdout)
    if not path.is_file() or not release:
        return f"{name} does not {'run' if path.is_file() else 'exist'}"
    if release[1].split(".")[0] != torch_cuda.split(".")[0]:
        return f"{name} is CUDA {release[1]}, torch has CUDA {torch_cuda}"
    command = [str(path)]
    if "NVCC_CCBIN" not in os.environ:  # which nvcc reads itself
        compiler = [word for word in cxx if not word.startswith("-")][-1]  # CXX="ccache g++ -m64" names g++
        command += ["-ccbin", compiler]
    if origin == PYPI:
        command += _package_flags(_package_folders(torch_cuda), release[1])
    command += [f"-L{folder}" for folder in _library_folders(path)]
    problem = _try_compile(command)
    if problem:
        return f"{name} does not compile and link ({problem})"
    return Toolkit(tuple(command), release[1], origin)


def _package_flags(folders: list[Path], release: str) -> list[str]:
    """The runtime of nvcc's own version, where pip has put a newer one beside nvcc; and CCCL wherever it is."""
    number = "{}{:02d}0".format(*(int(part) for part in release.split(".")))  # "13.2" is 13020 in the headers
    found = []
    for folder in folders:
        header = folder / "include" / "cuda_runtime_api.h"
        if header.is_file() and re.search(rf"define\s+CUDART_VERSION\s+{number}\b", header.read_text()):
            found += [f"-I{folder / 'include'}", f"-L{folder / 'lib'}"]
    for folder in folders:
        if (folder / "include" / "cccl").is_dir():
            found += ["-isystem", str(folder / "include" / "cccl")]
    return found


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


def _is_known(entry: str, known: list[str]) -> bool:
    match = re.fullmatch(r"(\d+)\.(\d)[af]?(\+PTX)?", entry)
    return match is not None and match[1] + match[2] in known


def _visible_architectures(known: list[str]) -> list[str]:
    """Those of this machine's GPUs, the newest with PTX: the environment may move to a newer one.

    None where there is no GPU, or one that this nvcc does not know.
    """
    import torch

    if not torch.cuda.is_available():
        return []
    visible = sorted({torch.cuda.get_device_capability(index) for index in range(torch.cuda.device_count())})
    names = [f"{major}.{minor}" for major, minor in visible]
    return [*names[:-1], f"{names[-1]}+PTX"] if all(_is_known(name, known) for name in names) else []


def _run(command: list[str]) -> subprocess.CompletedProcess[str]:
    try:
        return subprocess.run(command, capture_output=True, text=True, check=False)
    except OSError as problem:
        return subprocess.CompletedProcess(command, 127, "", str(problem))
