"""`train.on_nan: skip`: a step whose loss or gradient is not finite is left out, as if its batch had not been."""

from __future__ import annotations

import torch
from torch import Tensor

from gid_cuda.config import Config
from gid_cuda.engine.checks import NotFinite
from gid_cuda.engine.run import Run

MOST_SKIPPED = 10  # steps in a row; then it is no single bad batch, and every further one is lost time


def remember(config: Config, run: Run) -> list[Tensor]:
    """Before a step's forward passes: what they change by themselves, the running statistics of live batch norm."""
    if config.train.on_nan == "stop":
        return []
    return [buffer.clone() for buffer in _buffers(run)]


def skip(config: Config, run: Run, before: list[Tensor], problem: NotFinite) -> str:
    """Counts the step and puts back what it has changed -> a sentence for the log. No weight has been changed yet.

    The step counts for the schedule, and fp16's scaler judges its gradients as ever. Raises `problem` where the config
    says stop, and after MOST_SKIPPED in a row.
    """
    if config.train.on_nan == "stop":
        raise problem
    run.progress.skipped += 1
    run.skipped_in_a_row += 1
    if run.skipped_in_a_row == MOST_SKIPPED:
        raise NotFinite(f"{problem.what}, the last of {MOST_SKIPPED} such steps in a row", skipping=True)
    with torch.no_grad():
        for buffer, old in zip(_buffers(run), before, strict=True):
            buffer.copy_(old)
    run.scaler.update()
    return f"{problem.what}: this step was left out ({run.progress.skipped} so far)"


def _buffers(run: Run) -> list[Tensor]:
    return [*run.student.buffers(), *(run.criterion.buffers() if run.criterion is not None else ())]
