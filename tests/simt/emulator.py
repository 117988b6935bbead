"""Builds the libraries of emulated kernels and calls their entry points with tensors."""

from __future__ import annotations

import ctypes
import hashlib
import os
import re
import shlex
import shutil
import subprocess
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path

import torch
from torch import Tensor

HERE = Path(__file__).resolve().parent
SOURCES = HERE.parent.parent / "csrc"
TYPES = {torch.float32: 0, torch.float16: 1, torch.bfloat16: 2}
FLAGS = ["-std=c++20", "-fPIC", "-fvisibility=hidden", "-ffp-contract=off", "-Wall", "-Wno-unknown-pragmas"]
# Calls a function at every memory access; the library of that name is not linked, memory.cpp has these functions.
WATCHED = ["-fsanitize=thread", "-O1", "-g1"]


class EmulatorError(Exception):
    """What a GPU would not have forgiven."""


def compiler() -> list[str]:
    return shlex.split(os.environ.get("CXX", "")) or ["c++" if shutil.which("c++") else "g++"]


def build(name: str, cache: Path) -> Path:
    """The library of kernels/<name>.cpp, compiled once for each state of the sources."""
    library = cache / f"{name}-{_digest([*compiler(), *FLAGS, *WATCHED])}.so"
    if not library.is_file():
        cache.mkdir(parents=True, exist_ok=True)
        objects = [_compile(HERE / "kernels" / f"{name}.cpp", cache, WATCHED)]
        objects += [_compile(source, cache, ["-O2"]) for source in sorted(HERE.glob("*.cpp"))]
        with _unfinished(library) as output:
            _run([*compiler(), "-shared", "-o", output, *map(str, objects), "-ldl"])
    return library


def _compile(source: Path, cache: Path, flags: list[str]) -> Path:
    command = [*compiler(), *FLAGS, *flags, f"-I{SOURCES}", f"-I{HERE}", "-c", str(source)]
    target = cache / f"{source.stem}-{_digest(command)}.o"
    if not target.is_file():
        with _unfinished(target) as output:
            _run([*command, "-o", output])
    return target


@contextmanager
def _unfinished(path: Path) -> Iterator[str]:
    """A name to write to; what stands there becomes path, all at once, so that two test processes do no harm. What
    earlier sources gave is deleted."""
    temporary = path.with_name(f"{os.getpid()}-{path.name}")
    yield str(temporary)
    for old in path.parent.glob(f"{path.stem.rpartition('-')[0]}-*{path.suffix}"):
        old.unlink(missing_ok=True)
    temporary.replace(path)


def _digest(command: list[str]) -> str:
    """Names a result by the command and all the sources that it may read."""
    digest = hashlib.sha256(" ".join(command).encode())
    kernels = [*SOURCES.glob("common/*.h"), *SOURCES.glob("cuda/*.cuh")]
    for source in sorted([*kernels, *HERE.glob("*.h"), *HERE.glob("*.cpp"), *HERE.glob("kernels/*.cpp")]):
        digest.update(source.read_bytes())
    return digest.hexdigest()[:16]


def _run(command: list[str]) -> None:
    done = subprocess.run(command, capture_output=True, text=True, check=False)
    if done.returncode:
        raise EmulatorError(f"{shlex.join(command)}\n{done.stderr}")


class Library:
    """Entry points of one library. Tensors become pointers, and are the only memory that the kernels may touch."""

    def __init__(self, path: Path) -> None:
        self.path = path
        self.library = ctypes.CDLL(str(path))
        self.library.simt_add_buffer.argtypes = [ctypes.c_void_p, ctypes.c_size_t]

    def call(self, entry: str, seed: int, *arguments: object) -> None:
        """arguments: tensors, lists of tensors, None, int (int64), bool (int), float, str, or ready ctypes values."""
        self.library.simt_clear_buffers()
        function = getattr(self.library, entry)
        function.restype = ctypes.c_char_p
        problem = function(ctypes.c_uint64(seed), *[self._convert(argument) for argument in arguments])
        if problem is not None:
            raise EmulatorError(self._with_lines(problem.decode()))

    def _convert(self, argument: object) -> object:
        if argument is None:
            return ctypes.c_void_p(None)
        if isinstance(argument, Tensor):
            return ctypes.c_void_p(self._pointer(argument))
        if isinstance(argument, list):
            return (ctypes.c_void_p * len(argument))(*[self._pointer(tensor) for tensor in argument])
        if isinstance(argument, bool):
            return ctypes.c_int(argument)
        if isinstance(argument, int):
            return ctypes.c_int64(argument)
        if isinstance(argument, float):
            return ctypes.c_float(argument)
        if isinstance(argument, str):
            return ctypes.c_char_p(argument.encode())
        return argument

    def _pointer(self, tensor: Tensor) -> int:
        storage = tensor.untyped_storage()
        self.library.simt_add_buffer(storage.data_ptr(), storage.nbytes())
        return tensor.data_ptr()

    def _with_lines(self, problem: str) -> str:
        """[+0x123] as file and line, where binutils are installed."""
        found = re.search(r"\[\+(0x[0-9a-f]+)\]", problem)
        if not found or not shutil.which("addr2line"):
            return problem
        command = ["addr2line", "-e", str(self.path), found[1]]
        line = subprocess.run(command, capture_output=True, text=True, check=False).stdout.split()
        return problem.replace(found[0], f"[{Path(line[0]).name}]") if line else problem


def spoil(*tensors: Tensor) -> None:
    """Fills outputs with what no kernel would write, so that an element left out shows."""
    for tensor in tensors:
        tensor.fill_(float("nan") if tensor.is_floating_point() else -77)
