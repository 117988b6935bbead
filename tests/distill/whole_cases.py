"""Real detectors' label assignment and losses over random outputs: one case a detector."""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import dataclass, fields
from typing import Any

import torch
from torch import Tensor

from gid_cuda.detectors import FCOS, RetinaNet, dense_losses, fcos_losses
from gid_cuda.detectors.backbones import fpn_backbone
from gid_cuda.detectors.dense_losses import DenseOutputs
from gid_cuda.detectors.fcos_losses import FCOSOutputs
from gid_cuda.distill import GID

from .fakes import leaves, random_outputs

TARGETS = [
    {"boxes": torch.tensor([[10.0, 10, 60, 70], [80, 20, 120, 60]]), "labels": torch.tensor([2, 0])},
    {"boxes": torch.zeros(0, 4), "labels": torch.zeros(0, dtype=torch.int64)},
]


@dataclass
class Case:
    """dense(seed, grad=, device=) gives outputs, with_task puts task losses into them; joined: those of them whose
    gradient goes together with that of the response losses."""

    detector: RetinaNet | FCOS
    dense: Callable[..., Any]
    task_losses: Callable[..., Any]
    joined: set[str]

    def with_task(self, student: Any, device: str = "cpu") -> Any:
        targets = [{key: value.to(device) for key, value in target.items()} for target in TARGETS]
        student.losses, student.task = self.task_losses(student, targets)
        return student

    def total(self, gid: GID, teacher: Any, student: Any) -> list[Tensor]:
        """GID's losses, the task losses joined with them, and all gradients; student.losses is left as it was."""
        before = dict(student.losses)
        losses, found = gid(teacher, student, self.detector)
        joined = {name: student.losses[name] for name, loss in before.items() if student.losses[name] is not loss}
        assert joined.keys() == (self.joined if before else set())  # compiled or not
        everything = [*losses.values(), *joined.values()]
        gradients = torch.autograd.grad(torch.stack(everything).sum(), [*leaves(student), *gid.parameters()])
        student.losses = before
        return [*everything, found.boxes, found.indices, *gradients]


def retinanet_case() -> Case:
    return Case(
        RetinaNet(fpn_backbone("mobilenet_v3_small", channels=4, norm="live"), 3, head_depth=1),
        _retinanet_outputs,
        lambda *both: dense_losses.task_losses(*both, high=0.5, low=0.4, low_quality=True),
        {"classification", "bbox_regression"},
    )


def fcos_case() -> Case:
    return Case(
        FCOS(fpn_backbone("mobilenet_v3_small", channels=32, norm="live"), 3, head_depth=1),
        _fcos_outputs,
        lambda student, targets: fcos_losses.task_losses(student, targets, [len(student.anchors) - 60, 60], radius=1.5),
        {"classification"},
    )


def _retinanet_outputs(seed: int, *, grad: bool = False, device: str = "cpu") -> DenseOutputs:
    return DenseOutputs(**_values(seed, grad, device))


def _fcos_outputs(seed: int, *, grad: bool = False, device: str = "cpu") -> FCOSOutputs:
    """Boxes as the head gives them, no side negative."""
    values = _values(seed, grad, device)
    values["deltas"] = values["deltas"].detach().relu().requires_grad_(grad)
    return FCOSOutputs(**values, centerness=values["logits"].detach()[..., :1].clone().requires_grad_(grad))


def _values(seed: int, grad: bool, device: str) -> dict[str, Any]:
    plain = random_outputs(seed=seed, grad=grad, device=device)
    return {field.name: getattr(plain, field.name) for field in fields(plain) if field.init}
