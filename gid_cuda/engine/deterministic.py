"""`deterministic: true`: two runs of one config on one machine end with the same bits on a GPU, too."""

from __future__ import annotations

import contextlib
import os
import re
from collections.abc import Iterator

import torch

from gid_cuda.errors import UserError

_WORKSPACES = (":4096:8", ":16:8")  # under which cuBLAS is reproducible, and torch believes it


@contextlib.contextmanager
def deterministic(on: bool) -> Iterator[None]:
    """Deterministic algorithms alone, while it lasts; torch's settings are given back as they were. off: as it is.

    On the CPU, training is reproducible without it. Raises UserError for an operator that has no deterministic form.
    """
    if not on:
        yield
        return
    _cublas_workspace()
    cudnn = torch.backends.cudnn
    before = torch.get_deterministic_debug_mode(), cudnn.deterministic, cudnn.benchmark
    torch.use_deterministic_algorithms(True)
    cudnn.deterministic, cudnn.benchmark = True, False
    try:
        yield
    except RuntimeError as error:
        told = _explain(str(error))
        if told is None:
            raise
        raise UserError(told) from None
    finally:
        torch.set_deterministic_debug_mode(before[0])
        cudnn.deterministic, cudnn.benchmark = before[1:]


def _cublas_workspace() -> None:
    """Read by cuBLAS and by torch when the first matrix is multiplied on the GPU."""
    has = os.environ.setdefault("CUBLAS_WORKSPACE_CONFIG", _WORKSPACES[0])
    if has not in _WORKSPACES:
        raise UserError(
            f"deterministic: the environment has CUBLAS_WORKSPACE_CONFIG={has}, under which cuBLAS is not "
            f"reproducible: unset it, or set it to {' or '.join(_WORKSPACES)}"
        )


def _explain(error: str) -> str | None:
    """torch's refusal in one sentence; None where it is about something else."""
    if operator := re.match(r"(\S+) does not have a deterministic implementation", error):
        return (
            f"deterministic: torch has no deterministic form of {operator[1]} on this device, which this model or loss "
            "needs: use a model without it, or set deterministic=false"
        )
    if "CUBLAS_WORKSPACE_CONFIG" in error:
        return (
            "deterministic: a matrix was multiplied on the GPU before CUBLAS_WORKSPACE_CONFIG was set: set "
            f"CUBLAS_WORKSPACE_CONFIG={_WORKSPACES[0]} in the environment before the program starts"
        )
    return None
