"""The other half: what nvcc makes of the same kernels."""

from __future__ import annotations

import re
import subprocess
from pathlib import Path

import pytest
import torch
from emulator import SOURCES, compiler

from build_tools import compile as build
from build_tools import cuda
from gid_cuda._library import build_info, cuda_library_path


def kernel_names() -> set[str]:
    found: set[str] = set()
    for source in (SOURCES / "cuda").glob("*.cuh"):
        found |= set(re.findall(r"(\w+_kernel)\(const __grid_constant__", source.read_text()))
    return found


def test_the_build_compiled_every_kernel():
    if build_info()["cuda"] is None:
        pytest.skip(str(build_info()["cuda_missing"]))
    names, library = kernel_names(), cuda_library_path()
    assert len(names) == 18
    content = library.read_bytes()
    assert not [name for name in names if name.encode() not in content]
    sources = [*SOURCES.glob("cuda/*"), *SOURCES.glob("common/*")]
    newer = [source.name for source in sources if source.stat().st_mtime > library.stat().st_mtime]
    assert not newer, f"{newer} changed after the CUDA library was built: python -m pip install -e ."


@pytest.mark.slow
@pytest.mark.parametrize("source", sorted((SOURCES / "cuda").glob("*.cu")), ids=lambda path: path.stem)
def test_no_kernel_spills_registers(source, tmp_path):
    """Nor keeps an array in local memory, nor needs more shared memory than any block gets."""
    if torch.version.cuda is None:
        pytest.skip("this torch has no CUDA")
    toolkit, why_not = cuda.find_toolkit(torch.version.cuda, compiler())
    if toolkit is None:
        pytest.skip(why_not)
    includes = [f"-I{SOURCES}", "-isystem", str(Path(torch.__file__).parent / "include")]
    architectures = cuda.flags([name.removesuffix("+PTX") for name in cuda.DEFAULT_ARCHITECTURES])
    command = [*toolkit.nvcc, *build.NVCC_FLAGS, *architectures, "-Xptxas=-v", *includes, "-c", str(source)]
    done = subprocess.run([*command, "-o", str(tmp_path / "object.o")], capture_output=True, text=True, check=False)
    assert done.returncode == 0, done.stderr
    frames = re.findall(r"(\d+) bytes stack frame, (\d+) bytes spill stores, (\d+) bytes spill loads", done.stderr)
    assert len(frames) >= len(architectures)
    assert set(frames) == {("0", "0", "0")}, done.stderr
    assert all(int(shared) <= 48 * 1024 for shared in re.findall(r"(\d+) bytes smem", done.stderr))
