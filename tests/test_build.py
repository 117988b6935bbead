"""The two libraries as they were built here: what they link, what they register, what they say of themselves."""

from __future__ import annotations

import importlib.machinery
import os
import re
import shutil
import subprocess
import sys
import zipfile
from collections.abc import Callable
from pathlib import Path

import pytest
import torch

import gid_cuda
from benchmarks.machine import pick_device
from build_tools import cuda, host
from gid_cuda import __main__ as report
from gid_cuda import _library, gpus
from gid_cuda.engine.device import choose_device
from gid_cuda.errors import UserError

ROOT = Path(__file__).resolve().parent.parent
INFO = _library.build_info()
CPU_LIBRARY = Path(_library._C.__file__)
LIBRARIES = [CPU_LIBRARY] if INFO["cuda"] is None else [CPU_LIBRARY, _library.cuda_library_path()]
OPERATORS = [
    "gi_score",
    "topk_nms",
    "multilevel_roi_align",
    "multilevel_roi_align_backward",
    "pairwise_distance",
    "pairwise_distance_backward",
]
needs_cuda_library = pytest.mark.skipif(INFO["cuda"] is None, reason="built without CUDA kernels")


def run(*command: str, **environment: str) -> str:
    answer = subprocess.run(command, capture_output=True, text=True, env={**os.environ, **environment}, cwd=ROOT)
    assert answer.returncode == 0, answer.stdout + answer.stderr
    return answer.stdout


@pytest.mark.parametrize("library", LIBRARIES, ids=lambda path: path.name.split(".")[0])
def test_only_the_stable_abi_of_torch_is_used(library: Path) -> None:
    undefined = run("nm", "-D", "--undefined-only", str(library)).split()
    assert "torch_library_impl" in undefined
    assert not [name for name in undefined if re.match(r"_ZN?K?(TI|TS|TV)?N?K?(2at|3c10|5torch)", name)]


@pytest.mark.parametrize("library", LIBRARIES, ids=lambda path: path.name.split(".")[0])
def test_nothing_is_linked_that_another_torch_may_lack(library: Path) -> None:
    needed = re.findall(r"NEEDED.*\[(.+)\]", run("readelf", "-d", str(library)))
    allowed = {"libtorch_cpu.so", "libstdc++.so.6", "libgcc_s.so.1", "libc.so.6", "libm.so.6"}
    if library != CPU_LIBRARY:
        allowed |= {"libtorch_cuda.so"}
    assert "libtorch_cpu.so" in needed
    assert {name for name in needed if not name.startswith("ld-")} <= allowed


def test_sources_include_no_unstable_header() -> None:
    files = [path for path in (ROOT / "csrc").rglob("*") if path.is_file()]
    assert files
    included = {header for path in files for header in re.findall(r"#\s*include\s*<(.+?)>", path.read_text())}
    torch_headers = {header for header in included if header.split("/")[0] in ("torch", "ATen", "c10", "caffe2")}
    stable = ("torch/csrc/stable/", "torch/headeronly/", "torch/csrc/inductor/aoti_torch/c/")
    assert torch_headers
    assert not [header for header in torch_headers if not header.startswith(stable)]


def test_build_info_names_what_was_built() -> None:
    assert INFO["version"] == gid_cuda.__version__
    assert tuple(int(part) for part in INFO["torch"].split(".")[:2]) >= (2, 10)
    assert INFO["abi"] == "2.10" and "TORCH_TARGET_VERSION=0x020a" in INFO["flags"]
    assert "-ffp-contract=off" in INFO["flags"] and "fast" not in INFO["flags"]
    assert (INFO["cuda"] is None) == bool(INFO["cuda_missing"]) == (INFO["architectures"] == [])


@pytest.mark.parametrize("operator", OPERATORS)
def test_every_operator_has_a_cpu_kernel(operator: str) -> None:
    assert torch._C._dispatch_has_kernel_for_dispatch_key(f"gid::{operator}", "CPU")


@needs_cuda_library
@pytest.mark.skipif(torch.version.cuda is None, reason="this torch has no CUDA")
def test_cuda_library_loads_without_a_gpu_and_has_every_kernel() -> None:
    """In a process of its own: where no driver is, this one has the reference in the kernels' place."""
    code = (
        "import torch; from gid_cuda import _library\n"
        "_library.driver_version = lambda: (99, 0)\n"
        "if _library.cuda_missing_reason(): assert _library._load_cuda() is None\n"
        f"for name in {OPERATORS}: assert torch._C._dispatch_has_kernel_for_dispatch_key('gid::' + name, 'CUDA'), name"
    )
    run(sys.executable, "-c", code)


@needs_cuda_library
def test_cuda_library_is_compiled_as_asked() -> None:
    assert "-fmad=false" in INFO["cuda_flags"] and "-lineinfo" in INFO["cuda_flags"]
    assert "use_fast_math" not in INFO["cuda_flags"]
    assert all(re.fullmatch(r"\d+\.\d[af]?(\+PTX)?", name) for name in INFO["architectures"])


def test_cuda_kernels_are_built_where_a_compiler_fits() -> None:
    """Every .cu file goes through nvcc in the build, so a machine with nvcc must not have skipped it."""
    if torch.version.cuda is None or str(INFO["cuda_missing"]).startswith("GID_CUDA=0"):
        pytest.skip("CUDA kernels were not wanted here")
    toolkit, why_not = cuda.find_toolkit(torch.version.cuda, host.compiler())
    if toolkit is None:
        pytest.skip(why_not)
    assert INFO["cuda"] is not None, INFO["cuda_missing"]


def test_report_of_this_machine(capsys: pytest.CaptureFixture[str]) -> None:
    assert report.main() == 0
    rows = dict(re.findall(r"^(\w[\w ]*?) {2,}(.+)$", capsys.readouterr().out, re.MULTILINE))
    assert rows["gid_cuda"].startswith(INFO["version"])
    assert rows["running"].startswith(f"torch {torch.__version__}")
    assert rows["active"].startswith("CPU kernels")
    if _library.cuda_missing_reason():
        assert rows["missing"] == f"CUDA kernels: {_library.cuda_missing_reason()}"
    if INFO["cuda"]:
        assert f"CUDA {INFO['cuda']} kernels for architectures {' '.join(INFO['architectures'])}" in rows["built"]


@pytest.mark.parametrize(
    ("built", "capability", "runs"),
    [
        (["7.5", "8.0", "9.0+PTX"], (7, 5), True),
        (["7.5", "8.0", "9.0+PTX"], (8, 9), True),
        (["7.5", "8.0", "9.0+PTX"], (12, 0), True),
        (["7.5", "8.0", "9.0+PTX"], (7, 0), False),
        (["8.6"], (8, 0), False),
        (["9.0"], (10, 0), False),
        (["9.0a"], (9, 0), True),
        (["9.0a+PTX"], (10, 0), False),
        (["10.0a"], (10, 3), False),
        (["10.0f"], (10, 3), True),
        (["10.3f"], (10, 0), False),
        (["10.0f+PTX"], (12, 0), False),
        ([], (8, 0), False),
    ],
)
def test_which_gpus_an_architecture_list_covers(built: list[str], capability: tuple[int, int], runs: bool) -> None:
    assert gpus.covers(built, capability) is runs


def test_report_of_other_machines(monkeypatch: pytest.MonkeyPatch) -> None:
    old, new = gpus.Gpu("old", (7, 5)), gpus.Gpu("new", (9, 0))
    info = {"architectures": ["8.0", "9.0"], "cuda": "13.0"}
    monkeypatch.setattr(_library, "build_info", lambda: info)
    monkeypatch.setattr(_library, "cuda_missing_reason", lambda: "no driver")
    assert gpus.cuda_hindrance([]) == "no driver"
    monkeypatch.setattr(_library, "cuda_missing_reason", lambda: None)
    assert gpus.cuda_hindrance([new]) is None
    assert "torch sees no GPU" in str(gpus.cuda_hindrance([]))
    told = f'architecture 7.5; run `TORCH_CUDA_ARCH_LIST="7.5 9.0+PTX" {_library.BUILD_COMMAND}`'
    assert told in str(gpus.cuda_hindrance([old, new]))
    older = gpus.Gpu("older", (7, 0))
    told = "none were built for architecture 7.0, and CUDA 13.0 builds for 7.5 and later alone; choose GPUs with CUDA_V"
    assert str(gpus.cuda_hindrance([older, new])).startswith(told)
    monkeypatch.setattr(gpus, "visible_gpus", lambda: [older, gpus.Gpu("newest", (12, 0))])
    monkeypatch.setattr(gpus, "_gpu", lambda device: gpus.visible_gpus()[1])
    with pytest.raises(UserError, match=r'run `TORCH_CUDA_ARCH_LIST="12\.0\+PTX" '):  # 7.0 could not be built
        gpus.require_kernels(torch.device("cuda"))
    info["cuda"] = "12.9"
    assert '"7.0 9.0+PTX"' in str(gpus.cuda_hindrance([older, new]))


@pytest.mark.parametrize("pick", [choose_device, pick_device])
def test_a_gpu_that_nothing_was_built_for_is_refused(
    monkeypatch: pytest.MonkeyPatch, pick: Callable[[str], torch.device]
) -> None:
    monkeypatch.setattr(torch.cuda, "is_available", lambda: True)
    monkeypatch.setattr(torch.cuda, "get_device_name", lambda device: "Old GPU")
    monkeypatch.setattr(torch.cuda, "get_device_capability", lambda device: (9, 0) if device == 1 else (7, 5))
    monkeypatch.setattr(torch.cuda, "device_count", lambda: 2)
    monkeypatch.setattr(_library, "build_info", lambda: {"architectures": ["8.0", "9.0"], "cuda": "13.0"})
    monkeypatch.setattr(_library, "cuda_missing_reason", lambda: None)
    told = "do not run on the Old GPU: none were built for architecture 7.5; "
    with pytest.raises(UserError, match=re.escape(told + 'run `TORCH_CUDA_ARCH_LIST="7.5 9.0+PTX" ')):
        pick("cuda")
    monkeypatch.setattr(_library, "cuda_missing_reason", lambda: "no compiler")  # then plain PyTorch runs there
    assert pick("cuda").type == "cuda"


def test_report_names_missing_packages(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(report, "PACKAGES", {"numpy": "numpy", "left-out": "no_such_module"})
    assert report.missing_packages() == ["for training: run `python -m pip install left-out`"]


def reason_with(monkeypatch: pytest.MonkeyPatch, **changes: object) -> str | None:
    """What _library would say on a machine that has what this one has, but for these changes."""
    info = {"cuda": "13.0", "cuda_missing": None, **{k: v for k, v in changes.items() if k.startswith("cuda")}}
    monkeypatch.setattr(_library, "build_info", lambda: info)
    monkeypatch.setattr(torch.version, "cuda", changes.get("torch", "13.2"))
    monkeypatch.setattr(_library, "driver_version", lambda: changes.get("driver", (13, 1)))
    monkeypatch.setattr(_library, "cuda_library_path", lambda: Path(str(changes.get("path", "/no/such/library.so"))))
    return _library._load_cuda()


def test_why_cuda_kernels_are_not_active(monkeypatch: pytest.MonkeyPatch) -> None:
    assert reason_with(monkeypatch, cuda=None, cuda_missing="no compiler") == "no compiler"
    assert "has no CUDA; install a CUDA build of torch" in str(reason_with(monkeypatch, torch=None))
    assert "no NVIDIA driver was found" in str(reason_with(monkeypatch, driver=None))
    old = str(reason_with(monkeypatch, driver=(12, 4)))
    assert "built with CUDA 13.0, the driver supports CUDA 12.4" in old and "--no-build-isolation" in old
    assert re.search(r"does not load \(.*library\.so.*\); build again", str(reason_with(monkeypatch)))


def test_missing_library_is_one_sentence_with_the_command(
    monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    monkeypatch.setitem(sys.modules, "gid_cuda._C", None)
    monkeypatch.delitem(sys.modules, "gid_cuda._library")
    monkeypatch.delattr(gid_cuda, "_library")
    assert report.main() == 1
    assert re.fullmatch(
        r"error: gid_cuda's compiled operators do not load \(.+\): "
        r"build them with `python -m pip install -e \.` in the source folder\n",
        capsys.readouterr().err,
    )


def test_import_is_light() -> None:
    heavy = ["torchvision", "pydantic", "PIL", "matplotlib", "yaml", "pycocotools"]
    code = (
        "import sys, gid_cuda; assert 'torch' not in sys.modules\n"
        "import gid_cuda.ops, gid_cuda.distill\n"
        f"found = [name for name in {heavy} if name in sys.modules]; assert not found, found"
    )
    run(sys.executable, "-c", code)


@pytest.mark.slow
def test_wheel_has_both_libraries(tmp_path: Path) -> None:
    command = [sys.executable, "-m", "pip", "wheel", "-q", "--no-deps", "--no-build-isolation", "-w", str(tmp_path)]
    run(*command, str(ROOT), GID_CUDA="0" if INFO["cuda"] is None else "1")
    (wheel,) = tmp_path.glob("gid_cuda-*.whl")
    names = zipfile.ZipFile(wheel).namelist()
    suffix = importlib.machinery.EXTENSION_SUFFIXES[0]
    assert "gid_cuda/py.typed" in names and f"gid_cuda/_C{suffix}" in names
    assert (f"gid_cuda/_C_cuda{suffix}" in names) == (INFO["cuda"] is not None)
    assert {name.split("/")[0] for name in names if not name.startswith("gid_cuda-")} == {"gid_cuda"}


@pytest.mark.slow
def test_build_without_cuda_says_so_in_one_line(tmp_path: Path) -> None:
    for name in ("build_tools", "csrc", "gid_cuda"):
        shutil.copytree(ROOT / name, tmp_path / name, ignore=shutil.ignore_patterns("*.so", "__pycache__"))
    for name in ("setup.py", "pyproject.toml", "README.md"):
        shutil.copy(ROOT / name, tmp_path / name)
    (tmp_path / "gid_cuda" / _library.cuda_library_path().name).touch()  # as an earlier build with CUDA leaves it
    command = [sys.executable, "setup.py", "-q", "build_ext", "--inplace"]
    answer = subprocess.run(
        command, capture_output=True, text=True, cwd=tmp_path, env={**os.environ, "GID_CUDA": "0"}, check=True
    )
    assert [line for line in answer.stdout.splitlines() if "kernels" in line] == [
        "gid_cuda: CPU kernels alone: GID_CUDA=0 was set when gid_cuda was built; "
        "unset it and run `python -m pip install --no-build-isolation -e .` in the source folder"
    ]
    assert [path.name.split(".")[0] for path in (tmp_path / "gid_cuda").glob("*.so")] == ["_C"]
    again = subprocess.run(command, capture_output=True, text=True, cwd=tmp_path, env={**os.environ, "GID_CUDA": "0"})
    assert "no work to do" in again.stdout
