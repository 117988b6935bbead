"""The commands: what they print, how they end, and that a user's mistake never shows a traceback."""

from __future__ import annotations

import os
import runpy
import subprocess
import sys
from pathlib import Path
from typing import Any

import pytest
import yaml
from engine_helpers import CONFIGS, TINY_TEACHER, tiny_overrides

from gid_cuda.engine import trainer

SCRIPTS = CONFIGS.parent / "scripts"


@pytest.fixture
def run(monkeypatch: Any, capsys: Any) -> Any:
    """Runs a script in this process: (exit status, stdout, stderr)."""

    def call(name: str, *arguments: str) -> tuple[int, str, str]:
        monkeypatch.setattr(sys, "argv", [name, *arguments])
        status = 0
        try:
            runpy.run_path(str(SCRIPTS / name), run_name="__main__")
        except SystemExit as ended:
            status = ended.code
        said = capsys.readouterr()
        return status, said.out, said.err

    return call


def test_teacher_plain_and_distilled_by_the_commands_alone(run: Any, data: Path, tmp_path: Path) -> None:
    teacher = tiny_overrides(data, tmp_path / "teacher", "model.fpn_channels=24")
    assert run("train.py", "--cfg", str(CONFIGS / "demo_teacher.yaml"), *teacher)[0] == 0
    student = tiny_overrides(data, tmp_path / "student", *TINY_TEACHER, f"teacher.weights={tmp_path}/teacher/best.pt")
    demo = str(CONFIGS / "demo.yaml")
    status, out, _ = run("train.py", "--cfg", demo, *student, "--overwrite")
    assert status == 0 and "response_cls" in out
    status, out, err = run("train.py", "--cfg", demo, *student)
    assert status == 2 and err.startswith("error: output: ") and "--resume" in err and "Traceback" not in err
    status, out, _ = run("train.py", "--cfg", demo, "--resume", *student, "train.steps=4")
    assert status == 0 and "resumed after step 3" in out
    status, out, _ = run("train.py", "--cfg", demo, "--overwrite", *student, "distill=none")
    assert status == 0 and "response_cls" not in out and "teacher:" not in out
    best = str(tmp_path / "student" / "best.pt")
    status, out, err = run("evaluate.py", "--cfg", demo, "--weights", best, *student)
    assert err == f"model: weights: {best}\n"
    assert status == 0 and out.splitlines()[0].split()[:3] == ["AP", "AP50", "AP75"] and "gear" in out


@pytest.mark.parametrize("name", ["train.py", "evaluate.py"])
def test_a_users_mistake_is_one_sentence(name: str, run: Any, tmp_path: Path) -> None:
    weights = ["--weights", "x.pt"] if name == "evaluate.py" else []
    status, out, err = run(name, "--cfg", str(tmp_path / "gone.yaml"), *weights)
    assert status == 2 and out == ""
    assert err == f"error: config file {tmp_path}/gone.yaml cannot be read: No such file or directory\n"
    status, _, err = run(name, "--cfg", str(CONFIGS / "demo.yaml"), *weights, "train.stesp=3")
    assert status == 2
    assert err == "error: override 'train.stesp=3': unknown key train.stesp; did you mean train.steps?\n"


@pytest.mark.parametrize("name", ["retina", "retina_student", "retina_teacher"])
def test_no_coco_on_the_disk(name: str, run: Any, tmp_path: Path, monkeypatch: Any) -> None:
    monkeypatch.chdir(tmp_path)
    status, _, err = run("train.py", "--cfg", str(CONFIGS / f"{name}.yaml"))
    assert status == 2 and len(err.splitlines()) == 1
    for part in ("data/coco", str(tmp_path), "data.root=", "configs/demo.yaml"):
        assert part in err
    assert list(tmp_path.iterdir()) == []


def test_a_missing_teacher_names_the_command_that_trains_it(
    run: Any, data: Path, tmp_path: Path, monkeypatch: Any
) -> None:
    monkeypatch.chdir(tmp_path)
    status, _, err = run("train.py", "--cfg", str(CONFIGS / "demo.yaml"), *tiny_overrides(data, tmp_path / "run"))
    assert status == 2
    assert f"train the teacher first with `scripts/train.py --cfg {CONFIGS}/demo_teacher.yaml`, or name another" in err
    status, _, err = run(
        "train.py", "--cfg", str(CONFIGS / "demo.yaml"), *tiny_overrides(data, tmp_path / "run"), "teacher.weights=x.pt"
    )
    assert status == 2 and "teacher.weights: x.pt does not exist: train the teacher first" in err


def test_evaluating_weights_that_are_not_there(run: Any, data: Path, tmp_path: Path) -> None:
    overrides = tiny_overrides(data, tmp_path / "run")
    cfg = str(CONFIGS / "demo_student.yaml")
    status, _, err = run("evaluate.py", "--cfg", cfg, "--weights", str(tmp_path / "gone.pt"), *overrides)
    assert status == 2 and "no such file" in err and "gone.pt" in err


def test_an_interrupted_run(run: Any, data: Path, tmp_path: Path, monkeypatch: Any) -> None:
    def interrupt(*_: Any) -> None:
        raise KeyboardInterrupt

    monkeypatch.setattr(trainer, "compute_losses", interrupt)
    overrides = tiny_overrides(data, tmp_path / "run")
    status, _, err = run("train.py", "--cfg", str(CONFIGS / "demo_student.yaml"), *overrides)
    assert status == 130 and "--resume" in err and "Traceback" not in err


def test_as_a_program_of_its_own(tmp_path: Path) -> None:
    """Executable, from any folder."""
    (tmp_path / "x.yaml").write_text(yaml.safe_dump({"output": "run"}))
    command = [sys.executable, str(SCRIPTS / "train.py"), "--cfg", "x.yaml"]
    ended = subprocess.run(command, cwd=tmp_path, capture_output=True, text=True, timeout=120)
    assert ended.returncode == 2
    assert ended.stderr == "error: x.yaml: data is missing\nx.yaml: train is missing\n"
    for script in ("train.py", "evaluate.py"):
        assert os.access(SCRIPTS / script, os.X_OK)
        assert (SCRIPTS / script).read_text().startswith("#!/usr/bin/env python3\n")
