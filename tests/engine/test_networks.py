"""How both networks are run: the teacher's precision and memory format, and torch.compile of both."""

from __future__ import annotations

import json
from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest
import torch
from engine_helpers import distilled_config, plain_config
from torch import Tensor

from gid_cuda.config import Config
from gid_cuda.engine import trainer
from gid_cuda.engine.batches import to_device, train_loader
from gid_cuda.engine.checkpoint import load_checkpoint
from gid_cuda.engine.run import Run
from gid_cuda.engine.setup import build_data, build_run, without_compiled_code


def first_losses(config: Config) -> tuple[Run, dict[str, float]]:
    train_set = build_data(config.data).train
    run = build_run(config, train_set.classes)
    batch = next(iter(train_loader(config, run, train_set)))
    losses, _ = trainer.compute_losses(config, run, *to_device(config, run, batch))
    return run, {name: loss.item() for name, loss in losses.items()}


@pytest.mark.parametrize("channels_last", [True, False])
def test_the_teacher_runs_without_gradient_in_the_runs_precision_and_format(
    channels_last: bool, data: Path, teacher: Path, tmp_path: Path
) -> None:
    config = distilled_config(data, tmp_path, teacher, f"train.channels_last={str(channels_last).lower()}")
    train_set = build_data(config.data).train
    run = build_run(config, train_set.classes)
    assert run.teacher is not None
    run.autocast = torch.autocast("cpu", dtype=torch.bfloat16)
    seen: list[tuple[bool, Tensor]] = []

    def look(module: Any, inputs: Any, outputs: dict[str, Tensor]) -> None:
        seen.extend((torch.is_grad_enabled(), feature) for feature in (*inputs, *outputs.values()))

    run.teacher.backbone.register_forward_hook(look)
    batch = next(iter(train_loader(config, run, train_set)))
    trainer.compute_losses(config, run, *to_device(config, run, batch))
    assert len(seen) == 6 and not any(grad for grad, _ in seen)
    assert all(feature.dtype == torch.bfloat16 for _, feature in seen[1:])
    large = [feature for _, feature in seen if feature.shape[-1] > 1]
    assert all(f.is_contiguous(memory_format=torch.channels_last) is channels_last for f in large) and len(large) > 3
    kernels = [p for p in run.teacher.parameters() if p.dim() == 4 and p.shape[-1] > 1 and p.shape[1] > 1]
    assert all(p.is_contiguous(memory_format=torch.channels_last) is channels_last for p in kernels) and kernels


def test_backbones_and_heads_are_compiled_in_place(
    data: Path, teacher: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    compiled = []

    def compile(function: Callable[..., Any], **options: Any) -> Callable[..., Any]:
        compiled.append(function.__self__)
        return function

    monkeypatch.setattr(torch, "compile", compile)
    plain, expected = first_losses(distilled_config(data, tmp_path, teacher))
    assert compiled == []
    run, losses = first_losses(distilled_config(data, tmp_path, teacher, "train.compile=true"))
    assert run.teacher is not None and plain.teacher is not None
    assert compiled == [run.student.backbone, run.student.head, run.teacher.backbone, run.teacher.head]
    assert losses == expected
    assert list(run.student.state_dict()) == list(plain.student.state_dict())
    assert list(run.teacher.state_dict()) == list(plain.teacher.state_dict())


def test_evaluations_run_what_is_not_compiled(data: Path, teacher: Path, tmp_path: Path) -> None:
    config = distilled_config(data, tmp_path, teacher, "train.compile=true")

    def which(x: Tensor) -> Tensor:
        return x + (1 if torch.compiler.is_compiling() else 2)

    function = torch.compile(which, backend="eager")
    assert function(torch.zeros(1)) == 1
    with without_compiled_code(config):
        assert function(torch.zeros(1)) == 2
    with without_compiled_code(config.model_copy(update={"train": config.train.model_copy(update={"compile": False})})):
        assert function(torch.zeros(1)) == 1


@pytest.mark.slow
def test_a_compiled_run_is_the_same_run(data: Path, tmp_path: Path) -> None:
    """Batches of several sizes: losses step by step, and a checkpoint that a run without torch.compile goes on from."""
    more = ["model.backbone=resnet18", "input.min_size=[64, 96, 128]", "input.max_size=192", "train.steps=4"]
    torch._dynamo.utils.counters.clear()
    for name, compiled in (("compiled", "true"), ("plain", "false")):
        trainer.train(plain_config(data, tmp_path / name, *more, f"train.compile={compiled}"))
    assert torch._dynamo.utils.counters["stats"]["unique_graphs"] >= 2
    logs = [(tmp_path / name / "log.jsonl").read_text().splitlines() for name in ("compiled", "plain")]
    losses = [[entry["loss"] for entry in map(json.loads, log) if entry["kind"] == "train"] for log in logs]
    assert len(losses[0]) == 4 and losses[0] == pytest.approx(losses[1], rel=1e-2)
    ours, plain = (load_checkpoint(tmp_path / name / "last.pt")["model"] for name in ("compiled", "plain"))
    assert list(ours) == list(plain)
    again = plain_config(data, tmp_path / "compiled", *more, "train.steps=5")
    assert trainer.train(again, resume=True)["step"] == 5
