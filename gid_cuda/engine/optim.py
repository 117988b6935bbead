"""Optimizer, learning-rate schedule, gradient norm, mixed precision: functions of the config alone."""

from __future__ import annotations

import contextlib
import math
from collections.abc import Iterable

import torch
from torch import Tensor, nn

from gid_cuda.config import TrainConfig

_AMP_DTYPES = {"bf16": torch.bfloat16, "fp16": torch.float16}


def trainable(*modules: nn.Module | None) -> list[nn.Parameter]:
    """The parameters with a gradient, in a fixed order."""
    return [p for module in modules if module is not None for p in module.parameters() if p.requires_grad]


def build_optimizer(config: TrainConfig, parameters: list[nn.Parameter]) -> torch.optim.Optimizer:
    """SGD or AdamW. Weight decay holds for all parameters, norms and biases too, as in torchvision's reference.

    Fused: one pass over parameters and state instead of one an operation.
    """
    common = {"lr": config.lr, "weight_decay": config.weight_decay, "fused": True}
    if config.optimizer == "adamw":
        return torch.optim.AdamW(parameters, **common)
    return torch.optim.SGD(parameters, momentum=config.momentum, **common)


def learning_rate(config: TrainConfig, step: int) -> float:
    """For the step after `step` steps are done: linear warm-up, then the schedule.

    Nothing but the step goes in, so a run that is resumed needs no state of it.
    """
    if step < config.warmup_steps:
        return config.lr * (step + 1) / config.warmup_steps
    if config.schedule == "cosine":
        progress = (step - config.warmup_steps) / max(1, config.steps - config.warmup_steps)
        return config.lr * 0.5 * (1 + math.cos(math.pi * progress))
    if config.schedule == "step":
        return config.lr * 0.1 ** sum(step >= milestone for milestone in config.milestones)
    return config.lr


def set_learning_rate(optimizer: torch.optim.Optimizer, lr: float) -> None:
    for group in optimizer.param_groups:
        group["lr"] = lr


def gradient_norm(parameters: Iterable[nn.Parameter], clip: float | None) -> Tensor:
    """L2 norm over all gradients, a scalar on the device; they are scaled down to `clip` where it is given."""
    parameters = list(parameters)
    norm = nn.utils.get_total_norm([p.grad for p in parameters if p.grad is not None])
    if clip is not None:
        nn.utils.clip_grads_with_norm_(parameters, clip, norm)
    return norm


def precision(amp: str, device: torch.device) -> tuple[contextlib.AbstractContextManager, torch.amp.GradScaler]:
    """(autocast, scaler); both do nothing on the CPU or where amp is off. The scaler works for fp16 alone."""
    enabled = device.type == "cuda" and amp != "off"
    autocast = torch.autocast(device.type, dtype=_AMP_DTYPES.get(amp), enabled=enabled)
    return autocast, torch.amp.GradScaler(device.type, enabled=enabled and amp == "fp16")
