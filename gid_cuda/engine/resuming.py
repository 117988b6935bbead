"""Going on with a run: what last.pt holds is put in its places, or refused in one sentence."""

from __future__ import annotations

from pathlib import Path
from typing import Any

import torch

from gid_cuda.engine.checkpoint import set_random_states
from gid_cuda.engine.run import Run
from gid_cuda.errors import UserError


def restore(run: Run, content: dict[str, Any], path: Path) -> list[str]:
    """`run.restore`, whose notes are returned, but UserError, naming `path`, for whatever does not fit.

    The file is a checkpoint of this project, but it may have been changed or cut by other programs, and the code of a
    user's own detector may have changed since it was written.
    """
    try:
        _check_progress(content)
        notes = run.restore(content)
        _check_optimizer(run.optimizer)
        for states in (content["resume"]["random"], *content["resume"].get("random_of_others", [])):
            set_random_states(states)  # to see that it can be done: before the first step it is done again
    except Exception as error:  # a file of unknown content raises anything
        raise UserError(
            f"{path} cannot be resumed ({_why(error)}): it is damaged, or the detector's code has changed since; begin "
            "anew with --overwrite or another output"
        ) from None
    return notes


def _check_progress(content: dict[str, Any]) -> None:
    progress, metrics = content["resume"]["progress"], content["metrics"]
    step = progress["step"]
    if isinstance(step, bool) or not isinstance(step, int) or step < 0 or step != content["step"]:
        raise ValueError(f"it says that {step!r} steps are done, and {content['step']!r}")
    for name, value in progress.items():
        if not isinstance(value, int | float):
            raise ValueError(f"{name} is {value!r}, and no number")
    if metrics is not None and not (isinstance(metrics["step"], int) and metrics["per_class"] is not None):
        raise ValueError(f"its metrics are of step {metrics['step']!r}")


def _check_optimizer(optimizer: torch.optim.Optimizer) -> None:
    """torch takes a state of any shape, and fused kernels read it as one of the parameter's."""
    for group in optimizer.param_groups:
        for parameter in group["params"]:
            for name, value in optimizer.state.get(parameter, {}).items():
                if not isinstance(value, torch.Tensor | int | float | None):
                    raise ValueError(f"{name} is a {type(value).__name__}")
                if isinstance(value, torch.Tensor) and value.dim() > 0 and value.shape != parameter.shape:
                    raise ValueError(f"{name} of shape {tuple(value.shape)} for a weight of {tuple(parameter.shape)}")


def _why(error: Exception) -> str:
    if isinstance(error, KeyError):
        return f"it has no {error}"
    return " ".join(str(error).split())[:200] or type(error).__name__
