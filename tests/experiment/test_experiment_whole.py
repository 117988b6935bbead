"""The command with the real trainer: killed in the middle of a run, it goes on; then tables, curves and pictures."""

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
import yaml
from experiment_helpers import ROOT
from PIL import Image

from gid_cuda.experiment.matrix import load_experiment
from gid_cuda.experiment.state import LOCK, LOG

TINY = {
    "data": {"workers": 0, "generated": {"width": 96, "height": 64, "train_images": 8, "val_images": 4}},
    "input": {"min_size": [64], "max_size": 96},
    "model": {"backbone": "mobilenet_v3_small", "fpn_channels": 16, "head_depth": 1},
    "train.steps": 3, "train.batch_size": 2, "train.warmup_steps": 2, "train.log_every": 1, "train.checkpoint_every": 1,
    "device": "cpu",
}  # fmt: skip


def command(path: Path, *more: str) -> list[str]:
    return [sys.executable, str(ROOT / "scripts" / "experiment.py"), "--cfg", str(path), *more]


def write(folder: Path, **changes: Any) -> Path:
    content = {
        "output": str(folder / "out"),
        "set": {**TINY, "data.root": str(folder / "data")},
        "student": {"config": str(ROOT / "configs" / "demo.yaml")},
        "teacher": {"config": str(ROOT / "configs" / "demo_teacher.yaml"), "set": {"train.steps": 12}},
        "rows": [
            {"name": "plain", "set": {"distill": "none"}, "paper": {"AP": 36.2}},
            {"name": "GID", "paper": {"AP": 39.1}},
        ],
        **changes,
    }
    path = folder / "tiny.yaml"
    path.write_text(yaml.safe_dump(content, sort_keys=False))
    return path


@pytest.mark.slow
def test_killed_and_started_again(tmp_path: Path) -> None:
    path = write(tmp_path)
    environment = {**os.environ, "PYTHONPATH": str(ROOT)}
    first = subprocess.Popen(command(path), cwd=tmp_path, env=environment)
    teacher = load_experiment(path).runs[0].folder
    deadline = time.monotonic() + 200
    try:
        while not (teacher / "last.pt").exists():  # after its first step
            assert first.poll() is None and time.monotonic() < deadline
            time.sleep(0.01)
    finally:
        first.kill()
        if (teacher / LOCK).exists():
            os.kill(int((teacher / LOCK).read_text()), signal.SIGKILL)
        first.wait()
    second = subprocess.run(command(path), cwd=tmp_path, env=environment, capture_output=True, text=True, timeout=240)
    assert second.returncode == 0, second.stderr
    assert "resumed after step" in (teacher / LOG).read_text()
    out = tmp_path / "out"
    assert "[3/3] GID, seed 0: done" in second.stdout and "against plain" in second.stdout
    steps = [json.loads(line)["step"] for line in (teacher / "log.jsonl").read_text().splitlines()]
    assert steps == sorted(steps) and steps.count(1) == 1
    for name in ("curves.png", "gid/instances.png", "plain/instances.png"):
        assert min(Image.open(out / "pictures" / name).size) > 200
    assert (out / "report.html").read_text().count("data:image/png") == 3
    third = subprocess.run(command(path), cwd=tmp_path, env=environment, capture_output=True, text=True, timeout=240)
    assert third.returncode == 0 and "begins" not in third.stdout


def test_the_command_tells_a_mistake_in_one_sentence(tmp_path: Path) -> None:
    path = write(tmp_path, seeds=[])
    run = subprocess.run(command(path, "--dry-run"), cwd=tmp_path, capture_output=True, text=True,
                         env={**os.environ, "PYTHONPATH": str(ROOT)})  # fmt: skip
    assert run.returncode == 2 and run.stdout == ""
    assert run.stderr == f"error: {path}: seeds has the list [], expected a list with at least 1\n"
    assert sorted(tmp_path.iterdir()) == [path]
