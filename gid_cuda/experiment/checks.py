"""What can be known before the first run begins and would else end the last one after days. Nothing is trained."""

from __future__ import annotations

import os
from collections.abc import Mapping
from pathlib import Path

from gid_cuda.config import Config, DistillConfig, ModelConfig
from gid_cuda.errors import UserError
from gid_cuda.experiment.matrix import TEACHER, Experiment, PlannedRun
from gid_cuda.experiment.state import State


def check_start(experiment: Experiment, states: Mapping[str, State]) -> None:
    """UserError for an output that cannot be written, a missing weights file or GPU, or detectors that cannot be built.

    states: of every run; what is done is not looked at, as it needs nothing any more.
    """
    _check_output(experiment.output)
    pending = [run for run in experiment.runs if states[run.key].kind != "done"]
    for run in pending:
        _check_weights(experiment, run)
    built: set[str] = set()
    for run in pending:
        try:
            _check_device(run.config)
            _check_detectors(run.config, built)
        except UserError as error:
            raise UserError(f"{experiment.path}, {_place(run)}: {error}") from None


def _place(run: PlannedRun) -> str:
    row = TEACHER if run.row == TEACHER else f"row {run.row}"
    return f"detector {run.detector}, {row}" if run.detector else row


def _check_output(output: Path) -> None:
    there = next((folder for folder in (output, *output.absolute().parents) if os.path.lexists(folder)), Path("/"))
    if not there.is_dir():
        raise UserError(f"output: {there} is a file, expected a folder: name another")
    if not os.access(there, os.W_OK | os.X_OK):
        raise UserError(f"output: {there} cannot be written: name another folder, or have its permissions changed")


def _check_weights(experiment: Experiment, run: PlannedRun) -> None:
    """Of files that no run of this experiment makes."""
    config, needed = run.config, {"model.weights": run.config.model.weights}
    if config.distill is not None and config.teacher is not None and run.teacher is None:
        needed["teacher.weights"] = config.teacher.weights
    for key, weights in needed.items():
        if weights in (None, "coco") or Path(weights or "").is_file():
            continue
        found = f"is a folder: name a file, such as {Path(weights or '') / 'best.pt'}"
        if not Path(weights or "").exists():
            found = "does not exist: name another file (relative to the working directory), or make this one first"
        raise UserError(f"{experiment.path}, {_place(run)}: {key}: {weights} {found}")


def _check_device(config: Config) -> None:
    if config.device == "cuda":
        from gid_cuda.engine.device import require_gpu  # late: torch takes seconds

        require_gpu(config.device)


def _check_detectors(config: Config, built: set[str]) -> None:
    """Builds them without memory for their weights, on torch's meta device; each kind once, as `built` remembers."""
    models = [("", config.model)]
    if config.distill is not None and config.teacher is not None:
        models.append(("teacher: ", config.teacher))
    known = repr([config.input, config.distill, *(model for _, model in models)])
    if known in built or any(model.detector == "own" for _, model in models):
        return  # of one's own: its adapter decides when the run begins
    built.add(known)
    import torch  # late, as above

    from gid_cuda.detectors import weights
    from gid_cuda.detectors.build import build_detector
    from gid_cuda.distill import build_method

    distill, detectors = config.distill or DistillConfig(), []
    for prefix, model in models:
        try:
            if model.weights == "coco" or model.weights is None and model.backbone_weights is not None:
                weights.check_torchvision_input(model.weights or "imagenet", config.input)
            with torch.device("meta"):
                detectors.append(build_detector(
                    _without_weights(model), config.input, ["any"], response_cls=distill.response_cls,
                    response_smooth_l1_beta=distill.response_smooth_l1_beta,
                ))  # fmt: skip
        except UserError as error:
            raise UserError(f"{prefix}{error}") from None
    if config.distill is not None:
        try:
            with torch.device("meta"):
                build_method(config.distill.method, *detectors, **config.distill.method_options())
        except ValueError as error:
            raise UserError(f"distill: {error}") from None


def _without_weights(model: ModelConfig) -> ModelConfig:
    return model.model_copy(update={"weights": None, "backbone_weights": None})
