"""What changes while a run goes on, and how it is saved and restored."""

from __future__ import annotations

from contextlib import AbstractContextManager, nullcontext
from dataclasses import asdict, dataclass, field
from typing import Any

import torch
from torch import nn

from gid_cuda.detectors.outputs import Detector
from gid_cuda.distill import Method
from gid_cuda.engine.checkpoint import random_states
from gid_cuda.engine.distributed import average_over_processes, gathered, running_statistics, wrap
from gid_cuda.engine.ema import WeightAverage
from gid_cuda.engine.objective import Objective


@dataclass
class Progress:
    """How far a run has come; part of its checkpoint."""

    step: int = 0  # steps done
    seconds: float = 0.0  # of training, evaluations left out
    best_ap: float = -1.0
    best_step: int = 0
    skipped: int = 0  # of the steps done, those that were left out because of NaN


@dataclass
class Run:
    """What changes while a run goes on. teacher and criterion are None in plain training."""

    student: Detector
    teacher: Detector | None
    criterion: Method | None  # the distillation losses
    parameters: list[nn.Parameter]  # those that are trained: the student's and the adaptation layer
    optimizer: torch.optim.Optimizer
    autocast: AbstractContextManager[Any]
    scaler: torch.amp.GradScaler
    average: WeightAverage | None = None  # of the student's weights
    progress: Progress = field(default_factory=Progress)
    metrics: dict[str, Any] | None = None  # of the latest evaluation
    skipped_in_a_row: int = 0  # steps, up to the last one
    told: set[str] = field(default_factory=set)  # what has been said of files that cannot be read
    objective: nn.Module = field(init=False)  # student and criterion; of many processes, in DistributedDataParallel

    def __post_init__(self) -> None:
        self.objective = wrap(Objective(self.student, self.criterion))

    def averaged(self) -> AbstractContextManager[None]:
        """Within, the student has the weights that are evaluated: their average, where there is one."""
        return self.average.in_place() if self.average is not None else nullcontext()

    def model_state(self) -> dict[str, Any]:
        """The weights that are evaluated."""
        return self.average.state_dict() if self.average is not None else self.student.state_dict()

    def average_running_statistics(self) -> None:
        """Live batch norm's, of student and average, over all processes."""
        own = self.average.running_statistics() if self.average is not None else []
        average_over_processes([*running_statistics(self.student), *own])

    def resume_state(self) -> dict[str, Any]:
        """All but `model_state`, as plain containers and tensors. Asked by all processes, right on rank 0."""
        own = random_states()
        return {
            "optimizer": self.optimizer.state_dict(),
            "scaler": self.scaler.state_dict(),
            "criterion": self.criterion.state_dict() if self.criterion is not None else None,
            # Beside the average, which is `model_state`, the weights that the optimizer works on.
            "ema": {"updates": self.average.updates, "student": self.student.state_dict()} if self.average else None,
            "progress": asdict(self.progress),
            "random": own,
            "random_of_others": gathered(own)[1:],  # of ranks 1, 2, ...
        }

    def restore(self, content: dict[str, Any]) -> list[str]:
        """From a checkpoint with its training state, all but the random states: see `start_random`.

        Returns what is to be told. Raises anything where the content does not fit: see `resuming.restore`."""
        saved = content["resume"]
        notes = self._restore_student(content["model"], saved.get("ema"))
        self._restore_optimizer(saved["optimizer"])
        if saved["scaler"]:  # empty where it was off: on the CPU, or before train.amp became fp16
            self.scaler.load_state_dict(saved["scaler"])
        if self.criterion is not None:
            self.criterion.load_state_dict(saved["criterion"])
        self.progress = Progress(**saved["progress"])
        # Of the average, where there was one: once that is dropped, they are not this model's.
        self.metrics = content["metrics"] if self.average is not None or saved.get("ema") is None else None
        return notes

    def _restore_optimizer(self, saved: dict[str, Any]) -> None:
        """Momenta and the like; what is set (weight decay, betas) stays the config's, which may have been changed."""
        (group,) = self.optimizer.param_groups
        groups = [{**group, "params": old["params"]} for old in saved["param_groups"]]
        self.optimizer.load_state_dict({"state": saved["state"], "param_groups": groups})

    def _restore_student(self, model: dict[str, Any], ema: dict[str, Any] | None) -> list[str]:
        self.student.load_state_dict(model)
        if ema is None:
            anew = "train.ema_decay: the checkpoint has no average of the weights, so it begins with the next step"
            return [anew] if self.average is not None else []
        if self.average is not None:
            self.average.restore(ema["updates"])
        self.student.load_state_dict(ema["student"])
        dropped = "train.ema_decay is none: the checkpoint's average of the weights is dropped"
        return [dropped] if self.average is None else []
