"""README's plain loop runs as it stands there, and its tables are those of the result files."""

from __future__ import annotations

import re
import shlex
import subprocess
import sys
from pathlib import Path

import torch
import yaml

from gid_cuda.config import DataConfig, InputConfig, ModelConfig, load_config
from gid_cuda.detectors import build_detector

ROOT = Path(__file__).parent.parent
README = (ROOT / "README.md").read_text()


def test_the_plain_loop_gives_a_loss_that_reaches_student_and_adaptation() -> None:
    (code,) = re.findall(r"```python\n(.*?)```", README, re.DOTALL)
    sizes = {"backbone": "resnet18", "norm": "live", "head_depth": 1}
    settings = InputConfig(min_size=[64], max_size=64)
    teacher = build_detector(ModelConfig(fpn_channels=32, **sizes), settings, ["a", "b"]).eval()
    student = build_detector(ModelConfig(fpn_channels=16, **sizes), settings, ["a", "b"]).train()
    target = {"boxes": torch.tensor([[8.0, 8.0, 40.0, 40.0]]), "labels": torch.tensor([1])}
    names = {
        "torch": torch,
        "teacher": teacher,
        "student": student,
        "optimizer": torch.optim.SGD(student.parameters(), lr=0.01),
        "loader": [([torch.rand(3, 64, 64)] * 2, [target] * 2)],
    }
    exec(code, names)
    assert names["instances"].counts.sum() > 0
    names["loss"].backward()
    for module in (student, names["gid"]):
        assert all(p.grad is not None and p.grad.isfinite().all() for p in module.parameters() if p.requires_grad)


def test_tables_are_those_of_the_result_files() -> None:
    run = subprocess.run([sys.executable, ROOT / "benchmarks" / "readme.py", "--check"], capture_output=True, text=True)
    assert run.returncode == 0, run.stderr


def test_configs_that_readme_names_are_there() -> None:
    named = set(re.findall(r"`((?:configs|examples)/[\w./]+)`", README))
    assert len(named) > 10
    assert [path for path in named if not (ROOT / path).exists()] == []


def test_its_voc_overrides_and_its_joined_sets_are_valid() -> None:
    (command,) = re.findall(r"scripts/train.py (--cfg configs/voc.*?)\n\n", README, re.DOTALL)
    _, path, *overrides = shlex.split(command.replace("\\\n", " "))
    config = load_config(ROOT / path, overrides)
    assert config.data.classes is None and not config.data.one_based
    (block,) = re.findall(r"\n    data:\n(?:    .*\n)+", README)
    data = DataConfig(**yaml.safe_load(block)["data"])
    assert isinstance(data.train, list) and len(data.train) == 3 and data.classes == ["person", "car"]
