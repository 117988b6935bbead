"""The pictures of an experiment's page as PNG files: curves, and what student and teacher disagree about."""

from __future__ import annotations

from collections.abc import Callable
from pathlib import Path

import torch

from gid_cuda.config import Config
from gid_cuda.detectors.own import Builder
from gid_cuda.engine.pictures import draw_instances
from gid_cuda.errors import UserError
from gid_cuda.experiment.matrix import TEACHER, Experiment, PlannedRun, slug
from gid_cuda.viz.curves import curves_figure


def draw_curves(experiment: Experiment, detector: str, done: set[str]) -> Path | None:
    """Losses and AP of each row's first seed that is done; None where no row is."""
    runs = [run for row in experiment.rows if (run := first_done(experiment, detector, row.name, done))]
    if not runs:
        return None
    path = _folder(experiment, detector) / "curves.png"
    sources = [run.folder / "log.jsonl" for run in runs]
    names = [f"{run.row}, seed {run.seed}" for run in runs]
    parts = zip(runs, names, sources, strict=True)
    key = "\n".join(f"{run.key} {name} {source.stat().st_mtime_ns}" for run, name, source in parts)
    return _unless_there(path, key, lambda: _save_curves(runs, names, path))


def draw_row(
    experiment: Experiment, detector: str, row: str, done: set[str], adapter: Builder | None = None
) -> Path | None:
    """General instances of one validation image between the teacher and the row's first seed that is done.

    A plain student is set beside the teacher, too, by the config of a row that distills. None where there is nothing to
    draw; UserError where it cannot be drawn. On the CPU: the GPUs belong to the runs.
    """
    run = first_done(experiment, detector, row, done)
    distilled = [run for run in experiment.runs if run.detector == detector and run.config.distill is not None]
    if run is None or not distilled:
        return None
    weights = run.folder / "best.pt"
    config = run.config if run.config.distill is not None else _selects_alone(distilled[0].config)
    if config.teacher is None or config.teacher.weights is None or not Path(config.teacher.weights).is_file():
        return None
    folder = _folder(experiment, detector) / slug(row)
    key = f"{run.key} {weights.stat().st_mtime_ns} {Path(config.teacher.weights).stat().st_mtime_ns}"

    def draw() -> None:
        device = torch.device("cpu")
        (drawn,) = draw_instances(config, [weights], folder, count=1, device=device, adapter=adapter)
        drawn.replace(folder / "instances.png")

    return _unless_there(folder / "instances.png", key, draw)


def _selects_alone(config: Config) -> Config:
    """How another row chooses instances, without a word of which of them teach: a plain student learns from none."""
    assert config.distill is not None
    return config.model_copy(update={"distill": config.distill.model_copy(update={"method": "gid", "kinds": "all"})})


def first_done(experiment: Experiment, detector: str, row: str, done: set[str]) -> PlannedRun | None:
    return next((run for run in experiment.runs_of(detector, row) if run.key in done and row != TEACHER), None)


def _folder(experiment: Experiment, detector: str) -> Path:
    return experiment.output / "pictures" / slug(detector)


def _save_curves(runs: list[PlannedRun], names: list[str], path: Path) -> None:
    figure = curves_figure([run.folder for run in runs], names)
    figure.savefig(path)


def _unless_there(path: Path, key: str, draw: Callable[[], None]) -> Path:
    """Drawing takes seconds, and a page is written after every run: what the same files gave is kept."""
    told = path.with_suffix(".txt")
    if path.is_file() and told.is_file() and told.read_text(encoding="utf-8") == key:
        return path
    try:
        path.parent.mkdir(parents=True, exist_ok=True)
    except OSError as error:
        raise UserError(f"{path.parent} cannot be written ({error.strerror})") from None
    draw()
    told.write_text(key, encoding="utf-8")
    return path
