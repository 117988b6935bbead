"""Checkpoint files: whole or not there, read without executing anything, refused in one sentence."""

from __future__ import annotations

import pickle
import random
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch

from gid_cuda.engine import checkpoint
from gid_cuda.engine.checkpoint import load_checkpoint, load_detector, random_states, save_checkpoint, set_random_states
from gid_cuda.errors import UserError


def test_what_is_saved_comes_back(tmp_path: Path) -> None:
    content = {"model": {"w": torch.arange(3.0)}, "step": 4, "metrics": None, "random": (1, (2, 3), "x")}
    save_checkpoint(tmp_path / "last.pt", content)
    loaded = load_checkpoint(tmp_path / "last.pt")
    assert torch.equal(loaded.pop("model")["w"], content.pop("model")["w"])
    assert loaded == {"format": 1, **content}
    assert [p.name for p in tmp_path.iterdir()] == ["last.pt"]


@pytest.mark.parametrize("failing", ["save", "fsync", "replace"])
def test_a_failed_save_keeps_the_old_file_and_says_so(failing: str, tmp_path: Path, monkeypatch: Any) -> None:
    path = tmp_path / "last.pt"
    save_checkpoint(path, {"step": 1})

    def fail(*args: Any) -> None:
        raise OSError(28, "No space left on device")

    owner = torch if failing == "save" else checkpoint.os
    monkeypatch.setattr(owner, failing, fail)
    with pytest.raises(UserError, match="could not be written .*No space left.*; the checkpoint .* is intact"):
        save_checkpoint(path, {"step": 2})
    with pytest.raises(UserError, match="nothing was written"):
        save_checkpoint(tmp_path / "best.pt", {"step": 2})
    monkeypatch.undo()
    assert load_checkpoint(path)["step"] == 1
    assert [p.name for p in tmp_path.iterdir()] == ["last.pt"]


def test_a_folder_that_is_not_there(tmp_path: Path) -> None:
    with pytest.raises(UserError, match="could not be written .*No such file or directory.*; nothing was written"):
        save_checkpoint(tmp_path / "gone" / "last.pt", {"step": 2})


class Evil:
    def __reduce__(self) -> Any:
        return (print, ("executed",))


def test_files_that_are_no_checkpoint(tmp_path: Path, capsys: Any) -> None:
    whole = tmp_path / "whole.pt"
    save_checkpoint(whole, {"model": {"w": torch.zeros(1000)}})
    files = {
        "truncated": whole.read_bytes()[:-500],
        "empty": b"",
        "text": b"hello",
        "pickle": pickle.dumps(Evil()),
    }
    for name, content in files.items():
        (tmp_path / name).write_bytes(content)
        with pytest.raises(UserError, match=f"checkpoint .*{name} cannot be read: it is damaged or no checkpoint"):
            load_checkpoint(tmp_path / name)
    assert "executed" not in capsys.readouterr().out
    torch.save({"w": torch.zeros(1)}, tmp_path / "foreign")
    with pytest.raises(UserError, match="foreign is no checkpoint of gid_cuda"):
        load_checkpoint(tmp_path / "foreign")
    with pytest.raises(UserError, match="gone.pt does not exist"):
        load_checkpoint(tmp_path / "gone.pt")


def test_weights_that_do_not_fit_their_own_config(teacher: Path, tmp_path: Path) -> None:
    content = load_checkpoint(teacher)
    content["model"].popitem()
    save_checkpoint(tmp_path / "odd.pt", content)
    with pytest.raises(UserError, match="odd.pt: its weights do not fit its own config"):
        load_detector(tmp_path / "odd.pt")
    content["config"]["train"]["lr"] = "fast"
    save_checkpoint(tmp_path / "odd.pt", content)
    with pytest.raises(UserError, match="config inside .*odd.pt: train.lr has the text 'fast', expected a number"):
        load_detector(tmp_path / "odd.pt")


def test_random_states_come_back(tmp_path: Path) -> None:
    """Through a file, and with numpy's and Python's generators in the middle of a pair of normal numbers."""

    def draw() -> tuple[float, ...]:
        return torch.rand(()).item(), np.random.normal(), np.random.random(), random.gauss(0, 1), random.random()

    draw()
    save_checkpoint(tmp_path / "x", {"random": random_states()})
    expected = draw()
    assert draw() != expected
    set_random_states(load_checkpoint(tmp_path / "x")["random"])
    assert draw() == expected
