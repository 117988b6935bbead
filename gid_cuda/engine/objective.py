"""Student and distillation criterion as one module: what DistributedDataParallel is put around."""

from __future__ import annotations

from collections.abc import Sequence
from typing import Any

import torch
import torch.distributed as dist
from torch import Tensor, nn

from gid_cuda.detectors.outputs import Detector, DetectorOutputs, GeneralInstances, ImageList, Target
from gid_cuda.distill import Method


class Objective(nn.Module):
    """One forward pass of the student -> all losses.

    The teacher is no part of it: it is run before, and DistributedDataParallel would look for its gradients. Both parts
    stay what and where they are; only parameters that are trained here are asked for gradients.
    """

    def __init__(self, student: Detector, criterion: Method | None) -> None:
        super().__init__()
        self.student, self.criterion = student, criterion

    def forward(
        self, images: ImageList, targets: Sequence[Target | None], teacher_outputs: DetectorOutputs | None
    ) -> tuple[dict[str, Tensor], dict[str, Tensor], GeneralInstances | None]:
        """(task losses, distillation losses, the instances of these); without a teacher's outputs the first alone."""
        outputs = self.student(images, targets)
        distilled, instances = {}, None
        if self.criterion is not None and teacher_outputs is not None:
            distilled, instances = self.criterion(teacher_outputs, outputs, self.student, targets)
        task = dict(outputs.losses)  # now, as the response loss may have joined its way back with theirs
        if dist.is_available() and dist.is_initialized():
            name = next(iter(task))
            task[name] = _Everyone.apply(task[name], *[p for p in self.parameters() if p.requires_grad])
        return task, distilled, instances


class _Everyone(torch.autograd.Function):
    """Changes nothing, but has every parameter take part in the backward, without a gradient from here.

    DistributedDataParallel waits for each parameter. One that this batch does not reach (in a user's own detector, say)
    is then one without gradient, at the cost of nothing, where it would be waited for without end.
    """

    @staticmethod
    def forward(ctx: Any, loss: Tensor, *parameters: Tensor) -> Tensor:
        ctx.others = len(parameters)
        return loss.view_as(loss)

    @staticmethod
    def backward(ctx: Any, grad: Tensor) -> tuple[Tensor | None, ...]:
        return grad, *[None] * ctx.others
