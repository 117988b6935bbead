"""Compiles csrc into the two libraries with ninja: only what has changed, several files at a time.

`_C` is a Python module with the CPU kernels. `_C_cuda` is a plain library that registers the CUDA kernels when loaded.
"""

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

from build_tools import cuda, host

ROOT = Path(__file__).resolve().parent.parent
SOURCES = ROOT / "csrc"
CPU_LIBRARY, CUDA_LIBRARY = "gid_cuda._C", "gid_cuda._C_cuda"

ABI, ABI_DEFINE = "2.10", "-DTORCH_TARGET_VERSION=0x020a000000000000"
COMMON = ["-std=c++20", "-O3", "-DNDEBUG", ABI_DEFINE]
# No contraction to FMA anywhere: NMS decides by it (nvcc and gcc contract by default), and CPU kernels, CUDA kernels
# and reference round alike. Where a fused multiply-add pays it can be asked for by name.
CXX_FLAGS = [*COMMON, "-fPIC", "-fvisibility=hidden", "-ffp-contract=off", "-Wall", "-Wno-unknown-pragmas"]
NVCC_HOST_FLAGS = "-fPIC,-fvisibility=hidden,-ffp-contract=off"
NVCC_FLAGS = [*COMMON, "-DUSE_CUDA", "-lineinfo", "-fmad=false", "-Xcompiler", NVCC_HOST_FLAGS]


@dataclass(frozen=True)
class Plan:
    """What is built, with what: no toolkit means CPU kernels alone."""

    cxx: list[str]
    toolkit: cuda.Toolkit | None
    architectures: list[str]
    why_not: str


class BuildLibraries(build_ext):
    """setuptools' build_ext with the compile handed to ninja, and without the CUDA library where none can be built."""

    def run(self) -> None:
        self.plan = make_plan()
        if self.plan.toolkit is None:
            Path(self.get_ext_fullpath(CUDA_LIBRARY)).unlink(missing_ok=True)  # of an earlier build
            self.extensions = [extension for extension in self.extensions if extension.name != CUDA_LIBRARY]
        super().run()

    def build_extensions(self) -> None:
        built = compile_libraries(self.plan, self.distribution.get_version())
        for extension in self.extensions:
            output = Path(self.get_ext_fullpath(extension.name))
            output.parent.mkdir(parents=True, exist_ok=True)
            shutil.copyfile(built[extension.name], output)


def make_plan() -> Plan:
    """Decides what to build and says it in one line."""
    torch_cuda = host.import_torch().version.cuda
    cxx = host.compiler()
    toolkit, why_not = None, cuda.hindrance(torch_cuda)
    if not why_not:
        toolkit, why_not = cuda.find_toolkit(torch_cuda, cxx)
    if toolkit is None:
        if cuda.wish() == "1":
            raise SystemExit(f"error: GID_CUDA=1 asks for CUDA kernels, but {why_not}")
        print(f"gid_cuda: CPU kernels alone: {why_not}", flush=True)
        return Plan(cxx, None, [], why_not)
    chosen = cuda.architectures(toolkit)
    found = f"CUDA {toolkit.version} from {toolkit.origin}, for {' '.join(chosen)}"
    print(f"gid_cuda: CPU and CUDA kernels ({found})", flush=True)
    return Plan(cxx, toolkit, chosen, "")


def build_info(plan: Plan, version: str) -> dict[str, object]:
    """What gid_cuda._C.build_info() will answer."""
    return {
        "version": version,
        "torch": host.import_torch().__version__,
        "abi": ABI,
        "python": platform.python_version(),
        "compiler": host.compiler_version(plan.cxx),
        "flags": shlex.join(CXX_FLAGS),
        "cuda": plan.toolkit.version if plan.toolkit else None,
        "cuda_origin": plan.toolkit.origin if plan.toolkit else None,
        "cuda_flags": shlex.join(NVCC_FLAGS) if plan.toolkit else None,
        "cuda_missing": plan.why_not or None,
        "architectures": plan.architectures,
    }


def compile_libraries(plan: Plan, version: str) -> dict[str, Path]:
    """Brings the libraries up to date in a folder under build/, and returns them by extension name."""
    folder = ROOT / "build" / f"libraries-{sysconfig.get_platform()}-{sys.implementation.cache_tag}"
    folder.mkdir(parents=True, exist_ok=True)
    import fcntl  # not on Windows, which has been told by now what to do

    with open(folder / "lock", "w") as lock:
        fcntl.flock(lock, fcntl.LOCK_EX)  # ninja itself does not mind a second one in the same folder
        info = json.dumps(build_info(plan, version))
        _write_if_new(folder / "build_info.h", f'#define GID_BUILD_INFO R"json({info})json"\n')
        _write_if_new(folder / "build.ninja", ninja_file(plan, folder))
        jobs = ["-j", os.environ["MAX_JOBS"]] if os.environ.get("MAX_JOBS") else []
        if subprocess.run([host.ninja(), "-C", str(folder), *jobs], check=False).returncode:
            raise SystemExit("error: gid_cuda does not compile; the compiler says why above")
    return {CPU_LIBRARY: folder / "_C.so", CUDA_LIBRARY: folder / "_C_cuda.so"}


def ninja_file(plan: Plan, folder: Path) -> str:
    torch = Path(host.import_torch().__file__).parent
    includes = [f"-I{SOURCES}", "-isystem", str(torch / "include")]
    python = [f"-I{folder}"]  # pybind11 before torch: the copy in torch 2.11 refuses users of the stable ABI
    for path in host.python_includes():
        python += ["-isystem", str(path)]
    # Not libtorch: under a torch with CUDA it would bring in CUDA libraries, which one without CUDA lacks.
    link = ["-shared", f"-L{torch / 'lib'}", "-ltorch_cpu"]
    undefined = ["-undefined", "dynamic_lookup"] if sys.platform == "darwin" else []

    compile_cpu = [*plan.cxx, *CXX_FLAGS, *includes]
    lines = [_compile_rule("cpu", compile_cpu), _compile_rule("python", [*plan.cxx, *CXX_FLAGS, *python, *includes])]
    lines.append(_link_rule("link_cpu", plan.cxx, [*link, *undefined]))
    objects = [_compile(lines, "cpu", source) for source in sorted((SOURCES / "cpu").glob("*.cpp"))]
    objects.append(_compile(lines, "python", SOURCES / "ops.cpp"))
    lines.append(f"build _C.so: link_cpu {' '.join(objects)}")
    if plan.toolkit:
        nvcc = list(plan.toolkit.nvcc)
        lines.append(_compile_rule("cuda", [*nvcc, *NVCC_FLAGS, *cuda.flags(plan.architectures), *includes]))
        # The runtime is linked in and hidden: torch has its own, perhaps of another version.
        hidden = ["-cudart", "static", "-Xlinker", "--exclude-libs,ALL"]
        lines.append(_link_rule("link_cuda", nvcc, [*link, "-ltorch_cuda", *hidden]))
        objects = [_compile(lines, "cuda", source) for source in sorted((SOURCES / "cuda").glob("*.cu"))]
        lines.append(f"build _C_cuda.so: link_cuda {' '.join(objects)}")
    return "\n".join(lines) + "\n"


def _compile_rule(name: str, command: list[str]) -> str:
    action = "-MD -MF $out.d -c $in -o $out"
    return f"rule {name}\n  command = {_quote(command)} {action}\n  depfile = $out.d\n  deps = gcc"


def _link_rule(name: str, command: list[str], after: list[str]) -> str:
    return f"rule {name}\n  command = {_quote(command)} -o $out $in {_quote(after)}"


def _compile(lines: list[str], rule: str, source: Path) -> str:
    """Adds the compile of one file to `lines` and returns the object."""
    path = str(source).replace("$", "$$").replace(" ", "$ ").replace(":", "$:")
    lines.append(f"build {source.stem}.{rule}.o: {rule} {path}")
    return f"{source.stem}.{rule}.o"


def _quote(command: list[str]) -> str:
    """For the shell that ninja starts, in ninja's own writing."""
    return shlex.join(command).replace("$", "$$")


def _write_if_new(path: Path, text: str) -> None:
    """Leaves the file's time alone where nothing has changed, so that nothing is compiled again for it."""
    if not path.is_file() or path.read_text() != text:
        path.write_text(text)
