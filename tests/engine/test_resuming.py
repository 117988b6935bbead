"""A last.pt that cannot be gone on with is refused in one sentence; and which processes go on unasked."""

from __future__ import annotations

import copy
import json
from pathlib import Path
from types import SimpleNamespace
from typing import Any

import pytest
import torch
from engine_helpers import plain_config

from gid_cuda.engine import elastic
from gid_cuda.engine.checkpoint import load_checkpoint, save_checkpoint
from gid_cuda.engine.trainer import train
from gid_cuda.errors import UserError

GONE = object()
DAMAGES: dict[str, tuple[str, Any, str]] = {
    "no classes": ("classes", GONE, "has no classes: it is damaged"),
    "no metrics": ("metrics", GONE, "has no metrics: it is damaged"),
    "odd metrics": ("metrics", 3, "has something else than an evaluation's numbers as its metrics"),
    "odd state": ("resume", [1], "has a list as its resume"),
    "no optimizer": ("resume.optimizer", GONE, r"\(it has no 'optimizer'\)"),
    "no groups": ("resume.optimizer.param_groups", [], "a different number of parameter groups"),
    "a momentum of another shape": (
        "resume.optimizer.state.0.momentum_buffer", torch.zeros(3), r"momentum_buffer of shape \(3,\) for a weight of"
    ),
    "another version's progress": ("resume.progress.more", 1, "unexpected keyword argument 'more'"),
    "a text for a step": ("resume.progress.step", "x", "it says that 'x' steps are done, and 1"),
    "a text for the seconds": ("resume.progress.seconds", "x", "seconds is 'x', and no number"),
    "half the metrics": ("metrics", {"step": 1, "AP": 3.0}, r"\(it has no 'per_class'\)"),
    "a momentum of text": ("resume.optimizer.state.0.exp_avg", "x", "exp_avg is a str"),
    "other steps": ("resume.progress.step", 7, "it says that 7 steps are done, and 1"),
    "no random states": ("resume.random", {}, r"\(it has no 'torch'\)"),
    "a random state cut short": ("resume.random.torch", torch.zeros(3, dtype=torch.uint8), "cannot be resumed"),
    "another detector's weights": ("model", {"w": torch.zeros(3)}, "Missing key.*the detector's code has changed"),
}  # fmt: skip


@pytest.fixture(scope="module")
def last(data: Path, tmp_path_factory: pytest.TempPathFactory) -> dict[str, Any]:
    folder = tmp_path_factory.mktemp("run") / "run"
    train(plain_config(data, folder, "train.steps=1"))
    return {key: value for key, value in load_checkpoint(folder / "last.pt").items() if key != "format"}


@pytest.mark.parametrize("damage", DAMAGES)
def test_a_damaged_training_state(damage: str, last: dict[str, Any], data: Path, tmp_path: Path) -> None:
    path, value, told = DAMAGES[damage]
    content = copy.deepcopy(last)
    *way, name = [int(part) if part.isdigit() else part for part in path.split(".")]
    place = content
    for part in way:
        place = place[part]
    if value is GONE:
        del place[name]
    else:
        place[name] = value
    save_checkpoint(tmp_path / "last.pt", content)
    before = sorted(p.name for p in tmp_path.iterdir())
    with pytest.raises(UserError, match=f"last.pt .*{told}.*(begin anew with --overwrite|give another)"):
        train(plain_config(data, tmp_path, "train.steps=2"), resume=True)
    assert sorted(p.name for p in tmp_path.iterdir()) == before


def test_a_file_that_is_none(data: Path, tmp_path: Path) -> None:
    (tmp_path / "last.pt").write_bytes(b"PK\x03\x04")
    told = "last.pt cannot be read: it is damaged .*; begin anew with --overwrite or another output"
    with pytest.raises(UserError, match=f"{told}$"):
        train(plain_config(data, tmp_path, "train.steps=2"), resume=True)
    (tmp_path / "best.pt").touch()
    with pytest.raises(UserError, match=f"{told}; model.weights={tmp_path}/best.pt with another "):
        train(plain_config(data, tmp_path, "train.steps=2"), resume=True)


def test_the_optimizer_s_settings_are_the_config_s(last: dict[str, Any], data: Path, tmp_path: Path) -> None:
    """torch would take them from the file, and the config beside the run would say what was not done."""
    content = copy.deepcopy(last)
    del content["resume"]["optimizer"]["param_groups"][0]["betas"]  # as of another version of torch
    save_checkpoint(tmp_path / "last.pt", content)
    train(plain_config(data, tmp_path, "train.steps=2", "train.weight_decay=0.5"), resume=True)
    (group,) = load_checkpoint(tmp_path / "last.pt")["resume"]["optimizer"]["param_groups"]
    assert group["weight_decay"] == 0.5 and group["betas"] == (0.9, 0.999)
    assert last["resume"]["optimizer"]["param_groups"][0]["weight_decay"] == 0.05


def test_a_best_pt_of_another_kind_is_no_best(last: dict[str, Any], data: Path, tmp_path: Path) -> None:
    save_checkpoint(tmp_path / "last.pt", last)
    save_checkpoint(tmp_path / "best.pt", {**last, "metrics": {"AP": "high"}})
    assert train(plain_config(data, tmp_path, "train.steps=2"), resume=True)["best_step"] == 2


def test_only_what_torchrun_starts_again_goes_on_unasked(tmp_path: Path, monkeypatch: Any) -> None:
    """Other launchers have the same parent process twice, where a person starts them twice with --overwrite."""
    monkeypatch.setattr(elastic, "dist", SimpleNamespace(is_initialized=lambda: True))
    for name in ("TORCHELASTIC_RUN_ID", "TORCHELASTIC_ERROR_FILE"):
        monkeypatch.delenv(name, raising=False)

    def begun_and_started_again(first: str | None, second: str | None) -> bool:
        answers = []
        for report in (first, second):
            if report is not None:
                monkeypatch.setenv("TORCHELASTIC_RUN_ID", "none")
                monkeypatch.setenv("TORCHELASTIC_ERROR_FILE", report)
            monkeypatch.setattr(elastic, "_begun_here", set())  # a new process
            answers.append(elastic.is_restarted(tmp_path))
            elastic.mark_begun(tmp_path)
        assert not answers[0]
        return answers[1]

    assert not begun_and_started_again(None, None)
    assert begun_and_started_again("/logs/none_x/attempt_0/0/error.json", "/logs/none_x/attempt_1/0/error.json")
    assert not begun_and_started_again("/logs/none_y/attempt_0/0/error.json", "/logs/none_z/attempt_0/0/error.json")
    assert begun_and_started_again("", "")  # --log-dir /dev/null: the same torchrun is this process's parent
    assert len(json.loads((tmp_path / elastic.MARK).read_text())) == 1
