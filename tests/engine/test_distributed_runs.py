"""Whole runs by torchrun: who writes, how they end together, and how they begin again when a process is killed."""

from __future__ import annotations

import json
import os
import signal
import subprocess
import sys
import time
from pathlib import Path
from typing import Any

import pytest
import torch
from engine_helpers import CONFIGS, tiny_overrides
from test_distributed import free_port

from gid_cuda.engine.checkpoint import load_checkpoint

pytestmark = pytest.mark.slow
ROOT = CONFIGS.parent
TINY = ["model.norm=frozen", "input.min_size=[48,64]", "train.batch_size=4"]


def torchrun(*arguments: str, script: str = "train.py", restarts: int = 0) -> subprocess.Popen[str]:
    command = [
        sys.executable, "-m", "torch.distributed.run", "--nproc-per-node", "2", "--master-port", str(free_port()),
        "--max-restarts", str(restarts), str(ROOT / "scripts" / script), "--cfg", str(CONFIGS / "demo_student.yaml"),
        *arguments,
    ]  # fmt: skip
    paths = {"PYTHONPATH": f"{ROOT}:{os.environ.get('PYTHONPATH', '')}", "GLOO_SOCKET_IFNAME": "lo"}
    return subprocess.Popen(
        command, env={**os.environ, **paths, "OMP_NUM_THREADS": "1"}, text=True, stdout=subprocess.PIPE,
        stderr=subprocess.PIPE,
    )  # fmt: skip


def finished(run: subprocess.Popen[str]) -> tuple[int, str, str]:
    out, err = run.communicate(timeout=900)
    return run.returncode, out, err


def steps(folder: Path) -> list[dict[str, Any]]:
    lines = (folder / "log.jsonl").read_text().splitlines() if (folder / "log.jsonl").exists() else []
    return [entry for entry in map(json.loads, lines) if entry["kind"] == "train"]


def test_two_processes_train_and_evaluate_as_one(data: Path, tmp_path: Path) -> None:
    """The same losses and AP as one process; each line once; a folder as of one process."""
    from gid_cuda.config import load_config
    from gid_cuda.engine.trainer import train

    more = [*TINY, "train.steps=4", "train.eval_every=2"]
    two, one = tmp_path / "two", tmp_path / "one"
    status, out, err = finished(torchrun(*tiny_overrides(data, two, *more)))
    assert status == 0, err
    assert out.count("step 4/4") == 1 and out.count("processes: 2, each with 2 of a step's 4 images") == 1
    result = train(load_config(CONFIGS / "demo_student.yaml", tiny_overrides(data, one, *more)))
    assert {p.name for p in two.iterdir()} == {p.name for p in one.iterdir()} | {"launch.json"}
    assert len(list((two / "tensorboard").iterdir())) == 1
    for found, expected in zip(steps(two), steps(one), strict=True):
        assert found["step"] == expected["step"]
        for name in ("loss", "loss_classification", "loss_bbox_regression", "lr"):
            assert found[name] == pytest.approx(expected[name], rel=1e-3)
    a, b = (load_checkpoint(folder / "last.pt") for folder in (two, one))
    for key, value in b["model"].items():
        torch.testing.assert_close(a["model"][key], value, rtol=1e-3, atol=1e-4)
    assert len(a["resume"]["random_of_others"]) == 1 and b["resume"]["random_of_others"] == []
    arguments = ["--weights", str(one / "best.pt"), *tiny_overrides(data, two, *more)]
    status, out, err = finished(torchrun(*arguments, script="evaluate.py"))
    assert status == 0 and out.count("AP50") == 1
    assert f"{result['AP']:.1f}" in out


@pytest.mark.parametrize("mistake", ["batch", "folder", "unknown key", "argument"])
def test_a_mistake_is_told_once(mistake: str, data: Path, tmp_path: Path) -> None:
    overrides = {
        "batch": (["train.batch_size=3"], "cannot be cut into equal parts for 2 processes"),
        "folder": ([], "already holds a run"),
        "unknown key": (["train.stepz=3"], "unknown key train.stepz"),
        "argument": (["--nonsense"], "unrecognized arguments"),
    }
    (tmp_path / "run").mkdir()
    if mistake == "folder":
        (tmp_path / "run" / "last.pt").write_text("of an earlier run")
    arguments, expected = overrides[mistake]
    status, out, err = finished(torchrun(*tiny_overrides(data, tmp_path / "run", *TINY), *arguments))
    assert status != 0 and err.count(expected) == 1 and err.count("error: ") == 1
    assert 'train.py", line' not in err  # torchrun's own report apart, no traceback


def worker(launcher: int, rank: int) -> int:
    """The process id of a rank of this torchrun."""
    for entry in Path("/proc").iterdir():
        if entry.name.isdigit():
            try:
                parent = int((entry / "stat").read_text().rpartition(")")[2].split()[1])
                if parent == launcher and f"\0RANK={rank}\0".encode() in (entry / "environ").read_bytes():
                    return int(entry.name)
            except OSError:
                continue
    raise AssertionError(f"torchrun has no process of rank {rank}")


@pytest.mark.skipif(not Path("/proc").is_dir(), reason="looks for the processes in /proc")
@pytest.mark.parametrize("rank", [0, 1])
def test_a_killed_worker_is_restarted_and_the_run_goes_on(rank: int, data: Path, tmp_path: Path) -> None:
    """With --overwrite on the command line and an earlier run in the folder: the same weights as undisturbed, and the
    same average of them."""
    more = [*TINY, "train.steps=40", "train.checkpoint_every=2", "train.ema_decay=0.9", "--overwrite"]
    undisturbed, killed = tmp_path / "undisturbed", tmp_path / "killed"
    killed.mkdir()
    (killed / "last.pt").write_text("of an earlier run")
    status, _, err = finished(torchrun(*tiny_overrides(data, undisturbed, *more)))
    assert status == 0, err
    run = torchrun(*tiny_overrides(data, killed, *more), restarts=1)
    began = time.monotonic()
    while len(steps(killed)) < 5:
        assert run.poll() is None and time.monotonic() - began < 600
        time.sleep(0.02)
    os.kill(worker(run.pid, rank), signal.SIGKILL)
    status, out, err = finished(run)
    assert status == 0, err
    assert out.count("resumed after step") == 1 and "Traceback" not in err
    resumed = int(out.partition("resumed after step ")[2].split()[0])
    assert 4 <= resumed < 40 and resumed % 2 == 0
    assert [entry["step"] for entry in steps(killed)] == list(range(1, 41))
    a, b = (load_checkpoint(folder / "last.pt") for folder in (undisturbed, killed))
    assert a["step"] == b["step"] == 40
    own, other = (content["resume"]["ema"]["student"] for content in (a, b))
    for one, two in ((a["model"], b["model"]), (own, other)):
        assert [key for key, value in one.items() if not torch.equal(value, two[key])] == []
    assert any(not torch.equal(value, own[key]) for key, value in a["model"].items())


@pytest.mark.skipif(not Path("/proc").is_dir(), reason="looks for the processes in /proc")
def test_a_restart_does_not_go_on_with_a_run_that_was_refused(data: Path, tmp_path: Path) -> None:
    """Without --resume the second attempt refuses an earlier run as the first did."""
    folder = tmp_path / "run"
    folder.mkdir()
    (folder / "last.pt").write_text("of an earlier run")
    status, out, err = finished(torchrun(*tiny_overrides(data, folder, *TINY), restarts=1))
    assert status != 0 and err.count("already holds a run") == 2 and "resumed" not in out
    assert (folder / "last.pt").read_text() == "of an earlier run"
