"""How the build chooses its compilers, with scripts in the place of nvcc and g++, and what it says when it cannot."""

from __future__ import annotations

import importlib.metadata
import importlib.util
import shutil
import sys
import sysconfig
from pathlib import Path
from types import SimpleNamespace

import pytest
import torch

from build_tools import backend, compile, cuda, host

# Answers as nvcc does, and "compiles" where it finds the runtime in one of the folders that it was given.
NVCC = """#!/bin/sh
case "$*" in
  *--version*) echo "Cuda compilation tools, release {version}, V{version}.88" ;;
  *--list-gpu-arch*) printf 'compute_75\\ncompute_80\\ncompute_90\\ncompute_120\\n' ;;
  *--dryrun*) echo '#$ TOP={root}/bin/..' >&2 ;;
  *) for word in "$@"; do case "$word" in -L*) [ -f "${{word#-L}}/libcudart_static.a" ] && exit 0 ;; esac; done
     echo "In file included from here" >&2; echo "ld: error: cannot find -lcudart_static" >&2; exit 1 ;;
esac
"""


def script(path: Path, text: str) -> Path:
    path.parent.mkdir(parents=True, exist_ok=True)
    path.write_text(text)
    path.chmod(0o755)
    return path


def make_toolkit(root: Path, version: str = "13.0", libraries: str = "lib64") -> Path:
    (root / libraries).mkdir(parents=True)
    (root / libraries / "libcudart_static.a").touch()
    return script(root / "bin" / "nvcc", NVCC.format(version=version, root=root))


@pytest.fixture(autouse=True)
def bare_machine(monkeypatch: pytest.MonkeyPatch, tmp_path: Path) -> None:
    """No CUDA toolkit and no wish about one, wherever the tests run."""
    for name in ("CUDA_HOME", "CUDA_PATH", "GID_CUDA", "TORCH_CUDA_ARCH_LIST", "NVCC_CCBIN", "CXX"):
        monkeypatch.delenv(name, raising=False)
    programs = tmp_path / "programs"
    programs.mkdir()
    (programs / "c++").symlink_to(str(shutil.which("c++") or shutil.which("g++")))
    monkeypatch.setenv("PATH", str(programs))
    monkeypatch.setattr(cuda, "USUAL_FOLDER", tmp_path / "usual")
    find_spec = importlib.util.find_spec
    monkeypatch.setattr(importlib.util, "find_spec", lambda name: None if name == "nvidia" else find_spec(name))
    monkeypatch.setattr(torch.cuda, "is_available", lambda: False)


def find(torch_cuda: str = "13.2") -> tuple[cuda.Toolkit | None, str]:
    return cuda.find_toolkit(torch_cuda, ["g++"])


def test_no_compiler_names_what_to_do(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(importlib.metadata, "requires", lambda name: ["cuda-toolkit[cublas]==13.2.2; extra"])
    assert find() == (
        None,
        "no CUDA 13 compiler was found; set CUDA_HOME to a CUDA 13 toolkit or run `python -m pip install "
        "'nvidia-cuda-nvcc==13.2.*' 'nvidia-nvvm==13.2.*' 'nvidia-cuda-crt==13.2.*' 'nvidia-cuda-runtime==13.2.*' "
        "nvidia-cuda-cccl`, then run `python -m pip install --no-build-isolation -e .` in the source folder",
    )


def test_no_packages_are_offered_before_cuda_13() -> None:
    why_not = find("12.6")[1]
    assert "set CUDA_HOME to a CUDA 12 toolkit, then run" in why_not


def test_cuda_home_comes_before_path(monkeypatch: pytest.MonkeyPatch, tmp_path: Path) -> None:
    make_toolkit(tmp_path / "home", "13.1")
    make_toolkit(tmp_path / "other", "13.0")
    monkeypatch.setenv("PATH", str(tmp_path / "other" / "bin"))
    toolkit, _ = find()
    assert toolkit is not None and (toolkit.version, toolkit.origin) == ("13.0", "PATH")
    monkeypatch.setenv("CUDA_HOME", str(tmp_path / "home"))
    toolkit, why_not = find()
    assert toolkit is not None and (toolkit.version, toolkit.origin, why_not) == ("13.1", "CUDA_HOME", "")


def test_wrapper_is_asked_for_its_root(monkeypatch: pytest.MonkeyPatch, tmp_path: Path) -> None:
    real = make_toolkit(tmp_path / "real")
    wrapper = script(tmp_path / "somewhere" / "bin" / "nvcc", f'#!/bin/sh\nexec {real} "$@"\n')
    monkeypatch.setenv("PATH", str(wrapper.parent))
    toolkit, _ = find()
    assert toolkit is not None
    assert toolkit.nvcc == (str(wrapper), "-ccbin", "g++", f"-L{tmp_path / 'real' / 'lib64'}")


def test_compiler_packages_may_be_spread(monkeypatch: pytest.MonkeyPatch, tmp_path: Path) -> None:
    """As in pip's isolated builds: nvcc with the newest runtime in one folder, torch's own runtime in another."""
    first, second = tmp_path / "first" / "cu13", tmp_path / "second" / "cu13"
    make_toolkit(second, "13.2", libraries="lib")
    for root, version in ((first, "13020"), (second, "13050")):
        (root / "include" / "cccl").mkdir(parents=True)
        (root / "include" / "cuda_runtime_api.h").write_text(f"#define CUDART_VERSION  {version}\n")
    (second / "include" / "cccl").rmdir()
    spec = SimpleNamespace(submodule_search_locations=[str(second.parent), str(first.parent)])
    monkeypatch.setattr(importlib.util, "find_spec", lambda name: spec)
    toolkit, _ = find()
    assert toolkit is not None and toolkit.origin == "PyPI packages"
    headers = [f"-I{first}/include", f"-L{first}/lib", "-isystem", f"{first}/include/cccl"]
    assert toolkit.nvcc == (f"{second}/bin/nvcc", "-ccbin", "g++", *headers, f"-L{second}/lib")
    assert find("12.6")[0] is None


def test_usual_folder_is_tried(tmp_path: Path) -> None:
    make_toolkit(tmp_path / "usual")
    assert find()[0] is not None


def test_host_compiler_of_nvcc_can_be_chosen(monkeypatch: pytest.MonkeyPatch, tmp_path: Path) -> None:
    make_toolkit(tmp_path / "usual")
    monkeypatch.setenv("NVCC_CCBIN", "g++-13")
    toolkit, _ = find()
    assert toolkit is not None and "-ccbin" not in toolkit.nvcc


@pytest.mark.parametrize(
    ("flaw", "message"),
    [
        ("absent", "nvcc (from CUDA_HOME) does not exist; set CUDA_HOME"),
        ("broken", "nvcc (from CUDA_HOME) does not run; set CUDA_HOME"),
        ("other major", "nvcc (from CUDA_HOME) is CUDA 12.4, torch has CUDA 13.2; set CUDA_HOME"),
        ("half", "does not compile and link (ld: error: cannot find -lcudart_static); set CUDA_HOME"),
    ],
)
def test_unfit_toolkit(monkeypatch: pytest.MonkeyPatch, tmp_path: Path, flaw: str, message: str) -> None:
    home = tmp_path / "home"
    monkeypatch.setenv("CUDA_HOME", str(home))
    if flaw == "broken":
        script(home / "bin" / "nvcc", "#!/no/such/shell\n")
    elif flaw == "other major":
        make_toolkit(home, "12.4")
    elif flaw == "half":
        make_toolkit(home)
        (home / "lib64" / "libcudart_static.a").unlink()
    toolkit, why_not = find()
    assert toolkit is None and message in why_not


def test_unfit_cuda_home_does_not_hide_a_fit_compiler(monkeypatch: pytest.MonkeyPatch, tmp_path: Path) -> None:
    make_toolkit(tmp_path / "home", "12.4")
    make_toolkit(tmp_path / "usual", "13.0")
    monkeypatch.setenv("CUDA_HOME", str(tmp_path / "home"))
    toolkit, _ = find()
    assert toolkit is not None and toolkit.version == "13.0"


@pytest.mark.parametrize(
    ("pins", "minor"),
    [
        (["cuda-toolkit[cublas,cudart]==13.0.2; platform_system == 'Linux'"], "13.0"),
        (["filelock", "nvidia-cuda-runtime==13.1.80; x"], "13.1"),
        (["filelock"], "13.2"),
    ],
)
def test_packages_are_of_the_minor_version_that_torch_pins(
    monkeypatch: pytest.MonkeyPatch, pins: list[str], minor: str
) -> None:
    monkeypatch.setattr(importlib.metadata, "requires", lambda name: pins)
    packages = cuda.compiler_packages("13.2")
    assert packages == [*(f"{name}=={minor}.*" for name in cuda.COMPILER_PACKAGES), "nvidia-cuda-cccl"]


def test_packages_for_a_torch_without_metadata(monkeypatch: pytest.MonkeyPatch) -> None:
    def requires(name: str) -> list[str]:
        raise importlib.metadata.PackageNotFoundError(name)

    monkeypatch.setattr(importlib.metadata, "requires", requires)
    assert cuda.compiler_packages("13.1")[0] == "nvidia-cuda-nvcc==13.1.*"


def test_backend_asks_for_packages_only_where_they_are_of_use(monkeypatch: pytest.MonkeyPatch, tmp_path: Path) -> None:
    monkeypatch.setattr(torch.version, "cuda", "13.2")
    monkeypatch.setattr(backend.build_meta, "get_requires_for_build_wheel", lambda settings: ["wheel"])
    monkeypatch.setattr(backend.build_meta, "get_requires_for_build_editable", lambda settings: [])
    assert backend.get_requires_for_build_wheel() == ["wheel", *cuda.compiler_packages("13.2")]
    assert backend.get_requires_for_build_editable() == cuda.compiler_packages("13.2") != []
    monkeypatch.setenv("GID_CUDA", "0")
    assert backend.get_requires_for_build_wheel() == ["wheel"]
    monkeypatch.delenv("GID_CUDA")
    monkeypatch.setattr(torch.version, "cuda", None)
    assert backend.get_requires_for_build_editable() == []
    monkeypatch.setattr(torch.version, "cuda", "13.2")
    make_toolkit(tmp_path / "usual")
    assert backend.get_requires_for_build_editable() == []


def architectures(tmp_path: Path) -> list[str]:
    nvcc = make_toolkit(tmp_path / "toolkit")
    return cuda.architectures(cuda.Toolkit((str(nvcc),), "13.0", "a test"))


def test_default_architectures(tmp_path: Path) -> None:
    assert architectures(tmp_path) == ["7.5", "8.0", "9.0+PTX"]


@pytest.mark.parametrize(
    ("visible", "chosen"),
    [
        ([(9, 0), (8, 0), (9, 0)], ["8.0", "9.0+PTX"]),
        ([(13, 0)], ["7.5", "8.0", "9.0+PTX"]),  # newer than nvcc: the PTX serves it
    ],
)
def test_visible_gpus_are_built_for(
    monkeypatch: pytest.MonkeyPatch, tmp_path: Path, visible: list[tuple[int, int]], chosen: list[str]
) -> None:
    monkeypatch.setattr(torch.cuda, "is_available", lambda: True)
    monkeypatch.setattr(torch.cuda, "device_count", lambda: len(visible))
    monkeypatch.setattr(torch.cuda, "get_device_capability", lambda index: visible[index])
    assert architectures(tmp_path) == chosen


@pytest.mark.parametrize(
    ("value", "chosen"),
    [
        ("8.0;9.0+PTX", ["8.0", "9.0+PTX"]),
        (" 8.0 9.0a, 8.0;", ["8.0", "9.0a"]),
        ("12.0", ["12.0"]),
        (" ; ", ["7.5", "8.0", "9.0+PTX"]),
    ],
)
def test_architecture_list(monkeypatch: pytest.MonkeyPatch, tmp_path: Path, value: str, chosen: list[str]) -> None:
    monkeypatch.setenv("TORCH_CUDA_ARCH_LIST", value)
    assert architectures(tmp_path) == chosen


@pytest.mark.parametrize("entry", ["Ampere", "8", "5.0", "8.0+ptx", "80"])
def test_bad_architecture_list(monkeypatch: pytest.MonkeyPatch, tmp_path: Path, entry: str) -> None:
    monkeypatch.setenv("TORCH_CUDA_ARCH_LIST", f"9.0;{entry}")
    with pytest.raises(SystemExit) as caught:
        architectures(tmp_path)
    assert str(caught.value) == (
        f"error: TORCH_CUDA_ARCH_LIST has {entry!r}, which CUDA 13.0 cannot build for; it takes any of "
        "7.5 8.0 9.0 12.0, each with an optional +PTX, separated by spaces or semicolons"
    )


def test_architecture_flags() -> None:
    assert cuda.flags(["8.0", "9.0+PTX"]) == [
        "-gencode=arch=compute_80,code=sm_80",
        "-gencode=arch=compute_90,code=sm_90",
        "-gencode=arch=compute_90,code=compute_90",
    ]


def plan(monkeypatch: pytest.MonkeyPatch, torch_cuda: str | None) -> compile.Plan:
    monkeypatch.setattr(torch.version, "cuda", torch_cuda)
    return compile.make_plan()


def test_plan_says_in_one_line_what_is_built(
    monkeypatch: pytest.MonkeyPatch, tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    assert plan(monkeypatch, "13.2").toolkit is None
    assert capsys.readouterr().out.startswith(
        "gid_cuda: CPU kernels alone: no CUDA 13 compiler was found; set CUDA_HOME"
    )
    assert plan(monkeypatch, None).toolkit is None
    line = capsys.readouterr().out
    assert line.startswith("gid_cuda: CPU kernels alone: gid_cuda was built with a torch that has no CUDA")
    make_toolkit(tmp_path / "usual")
    assert plan(monkeypatch, "13.2").architectures == ["7.5", "8.0", "9.0+PTX"]
    line = capsys.readouterr().out
    usual = tmp_path / "usual"
    assert line == f"gid_cuda: CPU and CUDA kernels (CUDA 13.0 from {usual}, for 7.5 8.0 9.0+PTX)\n"
    monkeypatch.setenv("GID_CUDA", "0")
    assert plan(monkeypatch, "13.2").toolkit is None
    line = capsys.readouterr().out
    assert line.count("\n") == 1 and line.startswith("gid_cuda: CPU kernels alone: GID_CUDA=0 was set")


@pytest.mark.parametrize("torch_cuda", ["13.2", None])
def test_cuda_kernels_asked_for_in_vain(monkeypatch: pytest.MonkeyPatch, torch_cuda: str | None) -> None:
    monkeypatch.setenv("GID_CUDA", "1")
    with pytest.raises(SystemExit, match="^error: GID_CUDA=1 asks for CUDA kernels, but "):
        plan(monkeypatch, torch_cuda)


def test_bad_gid_cuda(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("GID_CUDA", "yes")
    with pytest.raises(SystemExit, match="^error: GID_CUDA is 'yes': set 0"):
        cuda.wish()


def test_cuda_is_for_linux(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(sys, "platform", "darwin")
    assert cuda.hindrance("13.2") == "CUDA kernels are built on Linux only"
    monkeypatch.setattr(sys, "platform", "win32")
    with pytest.raises(SystemExit, match="^error: gid_cuda is built on Linux; on Windows build it inside WSL$"):
        host.compiler()


def test_no_host_compiler(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("CXX", "no-such-compiler -m64")
    with pytest.raises(SystemExit, match="^error: there is no C\\+\\+ compiler 'no-such-compiler': install g\\+\\+ 10"):
        host.compiler()


def test_old_host_compiler(monkeypatch: pytest.MonkeyPatch, tmp_path: Path) -> None:
    text = '#!/bin/sh\ncase "$*" in *--version*) echo "g++ 8.3.0" ;; *) exit 1 ;; esac\n'
    monkeypatch.setenv("CXX", str(script(tmp_path / "g++-8", text)))
    with pytest.raises(
        SystemExit, match="^error: g\\+\\+ 8.3.0 does not compile C\\+\\+20: set CXX to g\\+\\+ 10 or newer$"
    ):
        host.compiler()


def test_old_torch(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(torch, "__version__", "2.9.1+cu128")
    with pytest.raises(SystemExit, match="^error: the build needs torch 2.10 or newer and finds 2.9.1"):
        host.import_torch()


def test_old_setuptools(monkeypatch: pytest.MonkeyPatch) -> None:
    host.check_setuptools()
    monkeypatch.setattr(importlib.metadata, "version", lambda name: "65.5.0")
    with pytest.raises(
        SystemExit, match="^error: the build needs setuptools 77 or newer and finds 65.5.0: run `python"
    ):
        host.check_setuptools()


def test_no_torch(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setitem(sys.modules, "torch", None)
    with pytest.raises(SystemExit, match="^error: the build needs torch.*or leave out --no-build-isolation$"):
        host.import_torch()


def test_no_python_headers(monkeypatch: pytest.MonkeyPatch, tmp_path: Path) -> None:
    monkeypatch.setattr(sysconfig, "get_paths", lambda: {"include": str(tmp_path)})
    with pytest.raises(SystemExit, match="^error: there is no .*Python.h: install Python's C headers"):
        host.python_includes()


def test_pybind11_is_taken_from_its_own_package(tmp_path: Path) -> None:
    """torch brings a copy along, which in 2.11 is an error under the stable ABI's define."""
    rules = compile.ninja_file(compile.Plan(["c++"], None, [], "none asked for"), tmp_path)
    command = rules.partition("rule python\n")[2].partition("\n\n")[0].splitlines()[0]
    assert command.index(str(host.python_includes()[1])) < command.index(f"{Path(torch.__file__).parent / 'include'}")


@pytest.mark.parametrize(("missing", "ask"), [("pybind11", host.python_includes), ("ninja", host.ninja)])
def test_missing_build_packages(monkeypatch: pytest.MonkeyPatch, missing: str, ask) -> None:
    monkeypatch.setattr(importlib.util, "find_spec", lambda name: None)
    monkeypatch.setenv("PATH", "/nowhere")
    with pytest.raises(SystemExit, match=f"^error: the build needs {missing}: run `python -m pip install torch"):
        ask()
