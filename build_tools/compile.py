"""Compiles csrc into the two libraries with ninja: only what has changed, several files at a time."""

from __future__ import annotations

import json
import os
import platform
import shlex
import shutil
import subprocess
import sys
import sysconfig
from dataclasses import dataclass
from pathlib import Path

from setuptools.command.build_ext import build_ext

from build_tools import cuda

ROOT = Path(__file__).resolve().parent.parent
SOURCES = ROOT / "csrc"
CPU_LIBRARY, CUDA_LIBRARY = "gid_cuda._C", "gid_cuda._C_cuda"
ABI = "2.10"
BUILD_REQUIREMENTS = "setuptools pybind11 ninja"

COMMON = ["-std=c++20", "-O3", "-DNDEBUG", "-DTORCH_TARGET_VERSION=0x020a000000000000"]
# No contraction to FMA anywhere: the order of NMS depends on it (nvcc and gcc contract by default), and CPU, GPU and
# reference then round alike. Where a fused multiply-add pays it can be asked for by name.
CXX_FLAGS = [*COMMON, "-fPIC", "-fvisibility=hidden", "-ffp-contract=off", "-Wall", "-Wno-unknown-pragmas"]
NVCC_FLAGS = [*COMMON, "-DUSE_CUDA", "-lineinfo", "-fmad=false", "--expt-relaxed-constexpr",
              "-Xcompiler", "-fPIC,-fvisibility=hidden,-ffp-contract=off"]  # fmt: skip


@dataclass(frozen=True)
class Plan:
    """What will be built, with what."""

    cxx: list[str]
    toolkit: cuda.Toolkit | None
    architectures: list[str]
    info: dict[str, object]


class BuildLibraries(build_ext):
    """setuptools' build_ext, with the compile handed to ninja and the CUDA library left out where it cannot be built."""

    def run(self) -> None:
        self.plan = make_plan(self.distribution.get_version())
        if self.plan.toolkit is None:
            self.extensions = [extension for extension in self.extensions if extension.name != CUDA_LIBRARY]
        super().run()

    def build_extensions(self) -> None:
        outputs = {extension.name: Path(self.get_ext_fullpath(extension.name)) for extension in self.extensions}
        folder = ROOT / "build" / f"libraries-{sysconfig.get_platform()}-{sys.implementation.cache_tag}"
        built = compile_libraries(self.plan, folder)
        for name, output in outputs.items():
            if name not in built:
                continue
            output.parent.mkdir(parents=True, exist_ok=True)
            shutil.copyfile(built[name], output)


def make_plan(version: str) -> Plan:
    torch = import_torch()
    cxx = host_compiler()
    toolkit, why_not = cuda.find_toolkit(torch.version.cuda, cxx[-1])
    if toolkit is None and cuda.wish() == "1":
        raise SystemExit(f"error: GID_CUDA=1 asks for CUDA kernels, but {why_not}")
    chosen = cuda.architectures(toolkit) if toolkit else []
    info = {
        "version": version,
        "torch": torch.__version__,
        "abi": ABI,
        "python": platform.python_version(),
        "compiler": _first_line([*cxx, "--version"]),
        "flags": " ".join(CXX_FLAGS),
        "cuda": toolkit.version if toolkit else None,
        "cuda_compiler": toolkit.origin if toolkit else None,
        "cuda_flags": " ".join(NVCC_FLAGS) if toolkit else None,
        "architectures": chosen,
        "cuda_missing": why_not or None,
    }
    if toolkit:
        print(f"gid_cuda: CPU and CUDA kernels (CUDA {toolkit.version} from {toolkit.origin}, for {' '.join(chosen)})")
    else:
        print(f"gid_cuda: CPU kernels alone: {why_not}")
    sys.stdout.flush()
    return Plan(cxx, toolkit, chosen, info)


def import_torch():
    try:
        import torch
    except ImportError as problem:
        raise SystemExit(
            f"error: the build needs torch, which does not import ({problem}): install torch and {BUILD_REQUIREMENTS} "
            "first, or build without --no-build-isolation"
        ) from None
    version = tuple(int(part) for part in torch.__version__.split("+")[0].split(".")[:2])
    if version < (2, 10):
        raise SystemExit(f"error: the build needs torch 2.10 or newer, this is {torch.__version__}: pip install -U torch")
    return torch


def host_compiler() -> list[str]:
    """The C++ compiler as a command, known to take C++20 and to find Python's headers."""
    cxx = shlex.split(os.environ.get("CXX", "")) or ["c++" if shutil.which("c++") else "g++"]
    if not shutil.which(cxx[0]):
        raise SystemExit(
            f"error: no C++ compiler: {cxx[0]!r} was not found; install one (Debian, Ubuntu: apt install g++) or set CXX"
        )
    trial = [*cxx, "-std=c++20", "-fsyntax-only", "-x", "c++", "-"]
    if subprocess.run(trial, input="#include <cstdint>\n", text=True, capture_output=True, check=False).returncode:
        raise SystemExit(f"error: {_first_line([*cxx, '--version'])} does not compile C++20: set CXX to g++ 10 or newer")
    header = Path(sysconfig.get_paths()["include"]) / "Python.h"
    if not header.is_file():
        raise SystemExit(
            f"error: Python's C headers are missing ({header}): install them (Debian, Ubuntu: apt install python3-dev)"
        )
    return cxx


def compile_libraries(plan: Plan, folder: Path) -> dict[str, Path]:
    """Writes folder/build.ninja, runs it, and returns the libraries by extension name."""
    try:
        import pybind11
    except ImportError:
        raise SystemExit(f"error: the build needs pybind11: pip install {BUILD_REQUIREMENTS}") from None
    torch_root = Path(import_torch().__file__).parent
    folder.mkdir(parents=True, exist_ok=True)
    _write_if_new(folder / "build_info.h", f'#define GID_BUILD_INFO R"json({json.dumps(plan.info)})json"\n')

    includes = [f"-I{SOURCES}", f"-isystem{torch_root / 'include'}"]
    python_includes = [f"-I{folder}", f"-isystem{pybind11.get_include()}", f"-isystem{sysconfig.get_paths()['include']}"]
    link = ["-shared", f"-L{torch_root / 'lib'}", "-ltorch_cpu"]
    loose = ["-undefined", "dynamic_lookup"] if sys.platform == "darwin" else []

    file = NinjaFile()
    file.rule("cxx", [*plan.cxx, *CXX_FLAGS, *includes])
    file.rule("cxx_python", [*plan.cxx, *CXX_FLAGS, *includes, *python_includes])
    objects = [file.compile("cxx", source) for source in sorted((SOURCES / "cpu").glob("*.cpp"))]
    objects.append(file.compile("cxx_python", SOURCES / "ops.cpp"))
    file.rule("link", [*plan.cxx], ["-fvisibility=hidden", *link, *loose], depfile=False)
    built = {CPU_LIBRARY: file.link("link", "_C.so", objects)}
    if plan.toolkit and any((SOURCES / "cuda").glob("*.cu")):
        nvcc = list(plan.toolkit.nvcc)
        file.rule("nvcc", [*nvcc, *NVCC_FLAGS, *cuda.architecture_flags(plan.architectures), *includes])
        objects = [file.compile("nvcc", source) for source in sorted((SOURCES / "cuda").glob("*.cu"))]
        # The runtime is linked in, and hidden: torch has its own, perhaps of another version.
        static = ["-cudart", "static", "-Xlinker", "--exclude-libs,ALL", *link, "-ltorch_cuda"]
        file.rule("nvcc_link", nvcc, static, depfile=False)
        built[CUDA_LIBRARY] = file.link("nvcc_link", "_C_cuda.so", objects)
    _write_if_new(folder / "build.ninja", file.text())
    _run_ninja(folder)
    return {name: folder / library for name, library in built.items()}


class NinjaFile:
    """The little of ninja's file format that is needed here."""

    def __init__(self) -> None:
        self.lines = ["ninja_required_version = 1.5"]

    def rule(self, name: str, before: list[str], after: list[str] | None = None, depfile: bool = True) -> None:
        action = "-MD -MF $out.d -c $in -o $out" if depfile else "-o $out $in"
        words = [shlex.quote(word).replace("$", "$$") for word in before]
        words += [action, *(shlex.quote(word).replace("$", "$$") for word in after or [])]
        self.lines += [f"rule {name}", "  command = " + " ".join(words)]
        if depfile:
            self.lines += ["  depfile = $out.d", "  deps = gcc"]

    def compile(self, rule: str, source: Path) -> str:
        target = f"{source.parent.name}-{source.name}.o"
        self.lines.append(f"build {target}: {rule} {_escape(str(source))}")
        return target

    def link(self, rule: str, target: str, objects: list[str]) -> str:
        self.lines.append(f"build {target}: {rule} {' '.join(objects)}")
        return target

    def text(self) -> str:
        return "\n".join(self.lines) + "\n"


def _escape(path: str) -> str:
    return path.replace("$", "$$").replace(" ", "$ ").replace(":", "$:")


def _run_ninja(folder: Path) -> None:
    try:
        import ninja

        program = str(Path(ninja.BIN_DIR) / "ninja")
    except ImportError:
        program = shutil.which("ninja") or ""
    if not program:
        raise SystemExit(f"error: the build needs ninja: pip install {BUILD_REQUIREMENTS}")
    jobs = ["-j", os.environ["MAX_JOBS"]] if os.environ.get("MAX_JOBS") else []
    if subprocess.run([program, "-C", str(folder), *jobs], check=False).returncode:
        raise SystemExit("error: the compiler's messages above say what failed")


def _write_if_new(path: Path, text: str) -> None:
    """Leaves the file's time alone where nothing has changed, so that ninja rebuilds nothing."""
    if not path.is_file() or path.read_text() != text:
        path.write_text(text)


def _first_line(command: list[str]) -> str:
    return subprocess.run(command, capture_output=True, text=True, check=False).stdout.splitlines()[0]
