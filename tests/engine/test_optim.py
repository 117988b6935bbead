"""Optimizer, schedules, gradient norm, mixed precision."""

from __future__ import annotations

from typing import Any

import pytest
import torch
from torch import nn

from gid_cuda.config import TrainConfig
from gid_cuda.engine.optim import build_optimizer, gradient_norm, learning_rate, precision, trainable


def settings(**keys: Any) -> TrainConfig:
    return TrainConfig(**{"steps": 100, "lr": 0.1, "warmup_steps": 0, **keys})


def test_step_schedule_with_warm_up() -> None:
    config = settings(warmup_steps=4, milestones=[50, 80])
    rates = [learning_rate(config, step) for step in range(100)]
    assert rates[:5] == pytest.approx([0.025, 0.05, 0.075, 0.1, 0.1])
    assert [rates[i] for i in (49, 50, 79, 80, 99)] == pytest.approx([0.1, 0.01, 0.01, 0.001, 0.001])


def test_cosine_schedule() -> None:
    config = settings(schedule="cosine", warmup_steps=10)
    rates = [learning_rate(config, step) for step in range(100)]
    assert rates[9] == rates[10] == pytest.approx(0.1)
    assert rates[55] == pytest.approx(0.05)
    assert 0 < rates[99] < 1e-4
    assert all(a > b for a, b in zip(rates[10:], rates[11:], strict=False))


def test_constant_schedule() -> None:
    assert {learning_rate(settings(schedule="constant"), step) for step in range(100)} == {0.1}


def test_optimizers() -> None:
    model = nn.Linear(2, 2)
    sgd = build_optimizer(settings(momentum=0.5, weight_decay=0.3), trainable(model))
    assert isinstance(sgd, torch.optim.SGD)
    assert (sgd.defaults["lr"], sgd.defaults["momentum"], sgd.defaults["weight_decay"]) == (0.1, 0.5, 0.3)
    adamw = build_optimizer(settings(optimizer="adamw", weight_decay=0.2), trainable(model))
    assert isinstance(adamw, torch.optim.AdamW)
    assert (adamw.defaults["lr"], adamw.defaults["weight_decay"]) == (0.1, 0.2)


def test_trainable_leaves_out_what_is_frozen_and_what_is_not_there() -> None:
    one, other = nn.Linear(1, 1), nn.Linear(1, 1)
    one.weight.requires_grad_(False)
    assert trainable(one, None, other) == [one.bias, other.weight, other.bias]


@pytest.mark.parametrize(("clip", "factor"), [(None, 1.0), (10.0, 1.0), (1.0, 0.2)])
def test_gradient_norm(clip: float | None, factor: float) -> None:
    parameters = [nn.Parameter(torch.zeros(1)) for _ in range(3)]
    parameters[0].grad, parameters[1].grad = torch.tensor([3.0]), torch.tensor([4.0])
    assert gradient_norm(parameters, clip).item() == pytest.approx(5.0)
    assert [p.grad.item() for p in parameters[:2]] == pytest.approx([3.0 * factor, 4.0 * factor], rel=1e-5)


@pytest.mark.parametrize("amp", ["off", "bf16", "fp16"])
def test_mixed_precision_is_off_on_the_cpu(amp: str) -> None:
    autocast, scaler = precision(amp, torch.device("cpu"))
    assert not scaler.is_enabled()
    with autocast:
        assert torch.mm(torch.ones(2, 2), torch.ones(2, 2)).dtype == torch.float32
