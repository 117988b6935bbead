"""Same seed, same machine, same bits; what a run was made with stands in run.json."""

from __future__ import annotations

import json
import os
import subprocess
import sys
from pathlib import Path
from typing import Any

import pytest
import torch
from engine_helpers import distilled_config, plain_config
from test_trainer import assert_equal_runs, weights

import gid_cuda
from gid_cuda import machine
from gid_cuda.engine.checkpoint import load_checkpoint
from gid_cuda.engine.deterministic import deterministic
from gid_cuda.engine.trainer import train
from gid_cuda.errors import UserError


def test_the_same_seed_gives_the_same_bits(data: Path, teacher: Path, tmp_path: Path) -> None:
    """Whatever has been drawn before in the process, and however many loaders there are."""
    results = []
    for name, more in {"a": [], "b": ["data.workers=2"], "c": ["seed=1"]}.items():
        torch.rand(7)
        results.append(train(distilled_config(data, tmp_path / name, teacher, "seed=5", *more)))
    assert_equal_runs(tmp_path / "a", tmp_path / "b")
    assert {**results[0], "seconds": 0} == {**results[1], "seconds": 0}
    one, other = weights(tmp_path / "a" / "last.pt"), weights(tmp_path / "c" / "last.pt")
    assert any(not torch.equal(one[key], other[key]) for key in one)


DEFAULT_SIZES = "model.anchor_sizes=[32, 64, 128, 256, 512]"
DETECTORS = {
    "retinanet": [],
    "fcos": [DEFAULT_SIZES, "model.fpn_channels=32"],
    "faster_rcnn": [DEFAULT_SIZES, "model.head_depth=4"],
}


@pytest.mark.parametrize("detector", DETECTORS)
def test_deterministic_mode_has_all_operators_that_it_needs(detector: str, data: Path, tmp_path: Path) -> None:
    for name in ("a", "b"):
        more = [f"model.detector={detector}", *DETECTORS[detector], "deterministic=true", "train.steps=2"]
        train(plain_config(data, tmp_path / name, *more))
    assert_equal_runs(tmp_path / "a", tmp_path / "b")


def test_settings_are_given_back(monkeypatch: Any) -> None:
    monkeypatch.delenv("CUBLAS_WORKSPACE_CONFIG", raising=False)
    cudnn = torch.backends.cudnn
    monkeypatch.setattr(cudnn, "benchmark", True)
    with deterministic(False):
        assert not torch.are_deterministic_algorithms_enabled() and "CUBLAS_WORKSPACE_CONFIG" not in os.environ
    with pytest.raises(KeyError), deterministic(True):
        assert torch.are_deterministic_algorithms_enabled() and cudnn.deterministic and not cudnn.benchmark
        assert os.environ["CUBLAS_WORKSPACE_CONFIG"] == ":4096:8"
        raise KeyError
    assert not torch.are_deterministic_algorithms_enabled() and not cudnn.deterministic and cudnn.benchmark
    monkeypatch.setenv("CUBLAS_WORKSPACE_CONFIG", ":0:0")
    with pytest.raises(UserError, match="CUBLAS_WORKSPACE_CONFIG=:0:0, under which cuBLAS is not reproducible: unset"):
        with deterministic(True):
            pass


def test_an_operator_without_a_deterministic_form() -> None:
    maps, indices = torch.rand(1, 1, 2, 2), torch.zeros(1, 1, 2, 2, dtype=torch.int64)
    with pytest.raises(UserError, match=r"no deterministic form of max_unpooling2d\S* on this device.*determ\S+=false"):
        with deterministic(True):
            torch.nn.functional.max_unpool2d(maps, indices, 2)
    with pytest.raises(RuntimeError, match="size mismatch"), deterministic(True):
        raise RuntimeError("size mismatch")
    with pytest.raises(UserError, match="set CUBLAS_WORKSPACE_CONFIG=:4096:8 in the environment"):
        with deterministic(True):  # torch's own words, which begin like this
            raise RuntimeError("Deterministic behavior was enabled ... you must set CUBLAS_WORKSPACE_CONFIG=:4096:8")


def test_the_record_of_a_run(data: Path, tmp_path: Path) -> None:
    train(plain_config(data, tmp_path / "run", "train.steps=1", "seed=3"))
    (first,) = json.loads((tmp_path / "run" / "run.json").read_text())["starts"]
    train(plain_config(data, tmp_path / "run", "train.steps=2", "seed=3", "train.lr=0.002"), resume=True)
    record = json.loads((tmp_path / "run" / "run.json").read_text())
    assert record["classes"] == load_checkpoint(tmp_path / "run" / "last.pt")["classes"]
    assert record["starts"][0] == first and len(record["starts"]) == 2
    assert first["after_step"] == 0 and record["starts"][1]["after_step"] == 1
    assert first["seed"] == first["config"]["seed"] == 3 and record["starts"][1]["config"]["train"]["lr"] == 0.002
    assert first["torch"] == torch.__version__ and first["gid_cuda"] == gid_cuda.__version__
    assert "pytest" in first["command"] and first["git_commit"] == machine.git_commit()
    for key in ("python", "torchvision", "cpu", "system", "date"):
        assert first[key]
    assert {"cuda", "driver", "gpus", "threads", "processes", "working_directory", "deterministic"} < set(first)
    (tmp_path / "run" / "run.json").write_text("damaged")
    train(plain_config(data, tmp_path / "run", "train.steps=2", "seed=3"), resume=True)
    assert len(json.loads((tmp_path / "run" / "run.json").read_text())["starts"]) == 1


def test_the_commit_is_this_packages_own(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """Not that of a checkout into which it was installed."""

    def git(*arguments: str) -> None:
        identity = ["-c", "user.name=x", "-c", "user.email=x@example.com"]
        subprocess.run(["git", *identity, *arguments], cwd=tmp_path, check=True, capture_output=True)

    def commit() -> str:
        code = "import sys; sys.path.insert(0, '.'); import machine; print(machine.git_commit())"
        return subprocess.run(
            [sys.executable, "-c", code], cwd=tmp_path / "package", check=True, capture_output=True, text=True
        ).stdout.strip()

    (tmp_path / "package").mkdir()
    (tmp_path / "package" / "machine.py").write_text(Path(machine.__file__).read_text())
    monkeypatch.delenv("GID_CUDA_COMMIT", raising=False)
    assert commit() == "None"
    monkeypatch.setenv("GID_CUDA_COMMIT", "0123456789ab-dirty")  # a copy without .git
    assert commit() == "0123456789ab-dirty"
    git("init")
    git("commit", "--allow-empty", "-m", "theirs")
    monkeypatch.setenv("GID_CUDA_COMMIT", "what\nnobody asked")
    assert commit() == "None"
    git("add", "package")
    git("commit", "-m", "ours")
    clean = commit()
    assert len(clean) == 12 and clean != "0123456789ab"
    (tmp_path / "package" / "machine.py").write_text(Path(machine.__file__).read_text() + "\n")
    assert commit() == f"{clean}-dirty"
