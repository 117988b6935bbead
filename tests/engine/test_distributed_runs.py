"""Whole runs by torchrun: who writes, how they end together, and how they begin again when a process is killed."""

from __future__ import annotations

import json
import os
import signal
import subprocess
import sys
from collections.abc import Callable, Iterator
from pathlib import Path
from typing import Any

import pytest
import torch
from engine_helpers import CONFIGS, tiny_overrides
from launched import ENVIRONMENT, ROOT, Launched, free_port
from zygote import PATIENCE

from gid_cuda.engine.checkpoint import load_checkpoint

pytestmark = pytest.mark.slow
TINY = ["model.norm=frozen", "input.min_size=[48,64]", "train.batch_size=4"]
Torchrun = Callable[..., Launched]
needs_proc = pytest.mark.skipif(not Path("/proc").is_dir(), reason="looks for the processes in /proc")


@pytest.fixture
def torchrun(tmp_path: Path) -> Iterator[Torchrun]:
    runs: list[Launched] = []

    def start(*arguments: str, **more: Any) -> Launched:
        runs.append(Launched(tmp_path / "said", *arguments, **more))
        return runs[-1]

    yield start
    for run in runs:
        run.end()


def steps(folder: Path) -> list[dict[str, Any]]:
    lines = (folder / "log.jsonl").read_text().splitlines() if (folder / "log.jsonl").exists() else []
    return [entry for entry in map(json.loads, lines) if entry["kind"] == "train"]


def test_two_processes_train_and_evaluate_as_one(torchrun: Torchrun, data: Path, tmp_path: Path) -> None:
    """The same losses and AP as one process; each line once; a folder as of one process."""
    from gid_cuda.config import load_config
    from gid_cuda.engine.trainer import train

    more = [*TINY, "train.steps=4", "train.eval_every=2"]
    two, one = tmp_path / "two", tmp_path / "one"
    status, out, err = torchrun(*tiny_overrides(data, two, *more)).finished()
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
    status, out, err = torchrun(*arguments, script="evaluate.py").finished()
    assert status == 0 and out.count("AP50") == 1
    assert f"{result['AP']:.1f}" in out


@pytest.mark.parametrize("mistake", ["batch", "folder", "unknown key", "argument"])
def test_a_mistake_is_told_once(mistake: str, torchrun: Torchrun, data: Path, tmp_path: Path) -> None:
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
    status, out, err = torchrun(*tiny_overrides(data, tmp_path / "run", *TINY), *arguments).finished()
    assert status != 0 and err.count(expected) == 1 and err.count("error: ") == 1
    assert 'train.py", line' not in err  # torchrun's own report apart, no traceback


@needs_proc
@pytest.mark.parametrize("rank", [0, 1])
def test_a_killed_worker_is_restarted_and_the_run_goes_on(
    rank: int, torchrun: Torchrun, data: Path, tmp_path: Path
) -> None:
    """With --overwrite on the command line and an earlier run in the folder: the same weights as undisturbed,
    and the same average of them."""
    more = [*TINY, "train.steps=40", "train.checkpoint_every=2", "train.ema_decay=0.9", "--overwrite"]
    undisturbed, killed = tmp_path / "undisturbed", tmp_path / "killed"
    killed.mkdir()
    (killed / "last.pt").write_text("of an earlier run")
    status, _, err = torchrun(*tiny_overrides(data, undisturbed, *more)).finished()
    assert status == 0, err
    run = torchrun(*tiny_overrides(data, killed, *more), restarts=1)
    run.until(lambda: len(steps(killed)) >= 5)
    os.kill(run.worker(rank), signal.SIGKILL)
    status, out, err = run.finished()
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


@needs_proc
def test_a_restart_does_not_go_on_with_a_run_that_was_refused(
    torchrun: Torchrun, data: Path, tmp_path: Path, monkeypatch: Any
) -> None:
    """Without --resume the second attempt refuses an earlier run as the first did, and says so; with the variable, too,
    that many_gpus.md tells to set, though torchrun heeds it only where machines find each other by themselves."""
    monkeypatch.setenv("TORCH_DISABLE_SHARE_RDZV_TCP_STORE", "1")
    folder = tmp_path / "run"
    folder.mkdir()
    (folder / "last.pt").write_text("of an earlier run")
    status, out, err = torchrun(*tiny_overrides(data, folder, *TINY), restarts=1).finished()
    assert status != 0 and err.count("already holds a run") == 2 and "resumed" not in out
    assert (folder / "last.pt").read_text() == "of an earlier run"


@needs_proc
@pytest.mark.parametrize("name", ["SIGTERM", "SIGINT"])
def test_torchrun_is_stopped(name: str, torchrun: Torchrun, data: Path, tmp_path: Path) -> None:
    """It hands the signal on: the step is finished and saved, told once, and the run goes on from there."""
    undisturbed, stopped = tmp_path / "undisturbed", tmp_path / "stopped"
    run = torchrun(*tiny_overrides(data, stopped, *TINY, "train.steps=400", "train.schedule=constant"))
    run.until(lambda: len(steps(stopped)) >= 3)
    run.send(getattr(signal, name))
    status, _, err = run.finished()
    step = load_checkpoint(stopped / "last.pt")["step"]
    assert status != 0 and 3 <= step < 400 and step == steps(stopped)[-1]["step"]
    assert err.count(f"stopped by {name}: --resume goes on after step {step}, which is saved") == 1
    more = [*TINY, f"train.steps={step + 2}", "train.schedule=constant"]
    for folder, resume in ((undisturbed, []), (stopped, ["--resume"])):
        status, _, err = torchrun(*tiny_overrides(data, folder, *more), *resume).finished()
        assert status == 0, err
    a, b = (load_checkpoint(folder / "last.pt")["model"] for folder in (undisturbed, stopped))
    assert [key for key, value in a.items() if not torch.equal(value, b[key])] == []


NO_ROOM = """
import runpy, signal, sys, time
from gid_cuda.engine import milestones, trainer
from gid_cuda.errors import UserError

save = trainer.save_run

def save_and_be_stopped(*arguments):
    save(*arguments)
    signal.raise_signal(signal.SIGTERM)

def refuse(path, content):
    time.sleep(1)
    raise UserError(f"no room for {path}")

milestones.save_checkpoint, trainer.save_run = refuse, save_and_be_stopped
sys.argv[0] = SCRIPT
runpy.run_path(SCRIPT, run_name="__main__")
"""


@needs_proc
@pytest.mark.parametrize("eval_every", [0, 1])
def test_nothing_is_called_saved_before_it_is(
    eval_every: int, torchrun: Torchrun, data: Path, tmp_path: Path
) -> None:
    """Rank 1, which has nothing to write, would be the first to leave: after its step, or out of the evaluation."""
    script, folder = tmp_path / "no_room.py", tmp_path / "run"
    script.write_text(f"SCRIPT = {str(ROOT / 'scripts' / 'train.py')!r}\n{NO_ROOM}")
    more = [*TINY, "train.steps=400", f"train.eval_every={eval_every}"]
    run = torchrun(*tiny_overrides(data, folder, *more), script=str(script))
    if not eval_every:  # else the first step is followed by an evaluation, before which all is saved
        run.until(lambda: len(steps(folder)) >= 1)
        run.send(signal.SIGTERM)
    status, _, err = run.finished()
    assert status != 0 and err.count("error: no room for") == 1 and "stopped by" not in err


def test_another_launcher_begins_anew_each_time(data: Path, tmp_path: Path) -> None:
    """Its processes have one parent, as those of a restart have; --overwrite means what it says."""
    said = []
    for _ in range(2):
        port, workers = str(free_port()), []
        for rank in ("0", "1"):
            command = [sys.executable, str(ROOT / "scripts" / "train.py"), "--cfg", str(CONFIGS / "demo_student.yaml")]
            given = {"RANK": rank, "LOCAL_RANK": rank, "WORLD_SIZE": "2", "MASTER_ADDR": "127.0.0.1"}
            workers.append(
                subprocess.Popen(
                    [*command, *tiny_overrides(data, tmp_path / "run", *TINY), "--overwrite"],
                    env={**os.environ, **ENVIRONMENT, **given, "MASTER_PORT": port}, text=True, stdout=subprocess.PIPE,
                )
            )  # fmt: skip
        said += [worker.communicate(timeout=2 * PATIENCE)[0] for worker in workers]
        assert [worker.returncode for worker in workers] == [0, 0]
    assert "resumed" not in "".join(said) and "".join(said).count("step 1/3") == 2
