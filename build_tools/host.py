"""What the build needs of the machine, CUDA apart: torch, a C++ compiler, Python's headers, pybind11 and ninja.

What is missing ends the build with one sentence. SystemExit, not an exception of setuptools: that would come with a
traceback and setuptools' own advice.
"""

from __future__ import annotations

import importlib.metadata
import importlib.util
import os
import shlex
import shutil
import subprocess
import sys
import sysconfig
from pathlib import Path
from types import ModuleType

SETUPTOOLS = 77  # the first that reads `license = "Apache-2.0"` in pyproject.toml
PACKAGES = f"`python -m pip install torch 'setuptools>={SETUPTOOLS}' pybind11 ninja`"


def check_setuptools() -> None:
    """An old one would end in a long complaint about pyproject.toml."""
    version = importlib.metadata.version("setuptools")
    if int(version.split(".")[0]) < SETUPTOOLS:
        raise SystemExit(
            f"error: the build needs setuptools {SETUPTOOLS} or newer and finds {version}: "
            f"run {PACKAGES}, or leave out --no-build-isolation"
        )


def import_torch() -> ModuleType:
    try:
        import torch
    except ImportError as problem:
        raise SystemExit(
            f"error: the build needs torch, which does not import ({problem}): "
            f"run {PACKAGES} first, or leave out --no-build-isolation"
        ) from None
    version = tuple(int(part) for part in torch.__version__.split("+")[0].split(".")[:2])
    if version < (2, 10):
        raise SystemExit(f"error: the build needs torch 2.10 or newer and finds {torch.__version__}: run {PACKAGES}")
    return torch


def compiler() -> list[str]:
    """The C++ compiler as a command, known to take C++20."""
    if sys.platform == "win32":
        raise SystemExit("error: gid_cuda is built on Linux; on Windows build it inside WSL")
    cxx = shlex.split(os.environ.get("CXX", "")) or ["c++" if shutil.which("c++") else "g++"]
    if not shutil.which(cxx[0]):
        raise SystemExit(
            f"error: there is no C++ compiler {cxx[0]!r}: install g++ 10 or newer (Debian: apt install g++) or set CXX"
        )
    trial = subprocess.run(
        [*cxx, "-std=c++20", "-fsyntax-only", "-x", "c++", "-"],
        input="#include <cstdint>\n#include <span>\n",
        text=True,
        capture_output=True,
        check=False,
    )
    if trial.returncode:
        raise SystemExit(f"error: {compiler_version(cxx)} does not compile C++20: set CXX to g++ 10 or newer")
    return cxx


def compiler_version(cxx: list[str]) -> str:
    answer = subprocess.run([*cxx, "--version"], capture_output=True, text=True, check=False)
    return (answer.stdout.splitlines() or [shlex.join(cxx)])[0]


def python_includes() -> list[Path]:
    """The header folders of Python and of pybind11."""
    if not importlib.util.find_spec("pybind11"):
        raise SystemExit(f"error: the build needs pybind11: run {PACKAGES}")
    import pybind11

    folder = Path(sysconfig.get_paths()["include"])
    if not (folder / "Python.h").is_file():
        raise SystemExit(
            f"error: there is no {folder / 'Python.h'}: install Python's C headers (Debian: apt install python3-dev)"
        )
    return [folder, Path(pybind11.get_include())]


def ninja() -> str:
    """The ninja program: the package's own, since PATH does not have it where the environment is not activated."""
    if importlib.util.find_spec("ninja"):
        import ninja

        return str(Path(ninja.BIN_DIR) / "ninja")
    program = shutil.which("ninja")
    if not program:
        raise SystemExit(f"error: the build needs ninja: run {PACKAGES}")
    return program
