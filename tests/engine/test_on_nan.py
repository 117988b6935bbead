"""train.on_nan: skip: a step with a loss that is not finite changes nothing, is counted, and the run goes on."""

from __future__ import annotations

import json
from pathlib import Path
from typing import Any

import pytest
import torch
from engine_helpers import distilled_config, plain_config
from test_trainer import assert_equal_runs, entries
from torch import Tensor

from gid_cuda.data import build_loader
from gid_cuda.engine import checks, optim, skipping, trainer
from gid_cuda.engine.batches import to_device
from gid_cuda.engine.checkpoint import load_checkpoint
from gid_cuda.engine.setup import build_data, build_run
from gid_cuda.engine.trainer import compute_losses, train
from gid_cuda.errors import UserError


def poison(monkeypatch: Any, *steps: int, term: str = "loss_classification") -> None:
    """That term becomes NaN, and with it the gradient."""

    def poisoned(config: Any, run: Any, *rest: Any) -> Any:
        losses, others = compute_losses(config, run, *rest)
        if run.progress.step + 1 in steps:
            losses[term] = losses[term] * torch.tensor(float("nan"))
        return losses, others

    monkeypatch.setattr(trainer, "compute_losses", poisoned)


def keep_every_state(monkeypatch: Any) -> dict[int, dict[str, Tensor]]:
    """All that the checkpoints hold of the student, by step: running statistics too."""
    states: dict[int, dict[str, Tensor]] = {}
    save = trainer.save_run

    def keep(path: Path, config: Any, run: Any, *rest: Any, **more: Any) -> None:
        states[run.progress.step] = {key: value.clone() for key, value in run.student.state_dict().items()}
        save(path, config, run, *rest, **more)

    monkeypatch.setattr(trainer, "save_run", keep)
    return states


def same(a: dict[str, Tensor], b: dict[str, Tensor]) -> bool:
    return all(torch.equal(a[key], b[key]) for key in a)


@pytest.mark.parametrize("term", ["loss_classification", "loss_feature"])
def test_a_step_is_left_out(
    term: str, data: Path, teacher: Path, tmp_path: Path, monkeypatch: Any, capsys: Any
) -> None:
    poison(monkeypatch, 2, term=term)
    states = keep_every_state(monkeypatch)
    more = ["train.on_nan=skip", "train.steps=4", "train.checkpoint_every=1", "model.norm=live"]
    result = train(distilled_config(data, tmp_path / "run", teacher, *more))
    assert result["step"] == 4 and result["skipped"] == 1
    assert "running_mean" in str(list(states[1])) and same(states[1], states[2])
    assert not same(states[2], states[3])
    (entry,) = entries(tmp_path / "run", "skip")
    assert entry["step"] == 2 and entry["what"].startswith(f"{term} became nan at step 2 on the images with ids ")
    assert entry["what"].endswith(": this step was left out (1 so far)") and entry["what"] in capsys.readouterr().out
    steps = entries(tmp_path / "run", "train")
    assert [e["step"] for e in steps] == [1, 3, 4]
    assert [e["lr"] for e in steps] == pytest.approx([0.0005, 0.001, 0.0005])  # of steps 1, 3 and 4
    assert all(value.isfinite().all() for value in states[4].values())
    assert json.loads((tmp_path / "run" / "metrics.json").read_text())["skipped"] == 1


def test_a_gradient_that_is_not_finite(data: Path, tmp_path: Path, monkeypatch: Any) -> None:
    def with_root(config: Any, run: Any, *rest: Any) -> Any:
        losses, others = compute_losses(config, run, *rest)
        if run.progress.step == 1:
            losses["loss_root"] = (run.parameters[0].sum() * 0).sqrt()
        return losses, others

    monkeypatch.setattr(trainer, "compute_losses", with_root)
    result = train(plain_config(data, tmp_path / "run", "train.on_nan=skip"))
    assert result["skipped"] == 1 and "the gradient is not finite" in entries(tmp_path / "run", "skip")[0]["what"]


def test_too_many_in_a_row(data: Path, tmp_path: Path, monkeypatch: Any) -> None:
    """Six in all, of which the last three follow each other."""
    monkeypatch.setattr(skipping, "MOST_SKIPPED", 3)
    poison(monkeypatch, 1, 2, 4, 6, 7, 8)
    more = ["train.on_nan=skip", "train.steps=9", "train.checkpoint_every=1"]
    told = "at step 8 on .*, the last of 3 such steps in a row; no weight and no check"
    with pytest.raises(UserError, match=told) as caught:
        train(plain_config(data, tmp_path / "run", *more))
    assert "on_nan" not in str(caught.value)  # it is set already
    content = load_checkpoint(tmp_path / "run" / "last.pt")
    assert content["step"] == 7 and content["resume"]["progress"]["skipped"] == 5
    assert skipping.MOST_SKIPPED == 3


def test_a_skipped_step_is_resumed_like_any_other(data: Path, tmp_path: Path, monkeypatch: Any) -> None:
    poison(monkeypatch, 2, 4)
    more = ["train.on_nan=skip", "train.eval_every=2", "model.norm=live", "train.schedule=constant"]
    train(plain_config(data, tmp_path / "straight", *more, "train.steps=6"))
    for steps in (2, 4, 6):
        train(plain_config(data, tmp_path / "parts", *more, f"train.steps={steps}"), resume=steps > 2)
    assert_equal_runs(tmp_path / "straight", tmp_path / "parts")
    parts, straight = (load_checkpoint(tmp_path / name / "last.pt") for name in ("parts", "straight"))
    assert parts["resume"]["progress"]["skipped"] == straight["resume"]["progress"]["skipped"] == 2


def test_with_a_scaler(data: Path, tmp_path: Path, monkeypatch: Any) -> None:
    """fp16's: the step after a skipped one unscales its gradients again."""
    poison(monkeypatch, 1)
    config = plain_config(data, tmp_path, "train.on_nan=skip")
    train_set = build_data(config.data).train
    run = build_run(config, train_set.classes)
    run.scaler = torch.amp.GradScaler("cpu", init_scale=8.0)
    batch = next(iter(build_loader(train_set, batch_size=2, workers=0, train=True)))
    told = []
    for _ in range(2):
        before = skipping.remember(config, run)
        run.optimizer.zero_grad()
        losses, _ = trainer.compute_losses(config, run, *to_device(config, run, batch))
        run.scaler.scale(sum(losses.values())).backward()
        try:
            trainer.update(config, run, [losses], [batch.image_ids])
        except checks.NotFinite as problem:
            told.append(skipping.skip(config, run, before, problem))
        run.progress.step += 1
    assert len(told) == 1 and run.scaler.get_scale() == 4.0
    assert optim.gradient_norm(run.parameters, None).isfinite()
