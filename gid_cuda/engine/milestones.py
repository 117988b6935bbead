"""What a run does now and then between its steps: evaluate, and save."""

from __future__ import annotations

import time
from collections.abc import Callable
from pathlib import Path
from typing import Any

from gid_cuda.config import Config, config_to_dict
from gid_cuda.data import DetectionDataset
from gid_cuda.engine import distributed
from gid_cuda.engine.batches import device_of, tell_unreadable
from gid_cuda.engine.checkpoint import save_checkpoint
from gid_cuda.engine.evaluation import evaluate
from gid_cuda.engine.log import RunLog
from gid_cuda.engine.run import Run
from gid_cuda.engine.setup import without_compiled_code


def due(step: int, every: int) -> bool:
    return every > 0 and step % every == 0


def owes_evaluation(config: Config, run: Run) -> bool:
    """last.pt is written before an evaluation, too: what ends in the middle of it begins again with it."""
    step = run.progress.step
    is_due = step >= config.train.steps or step > 0 and due(step, config.train.eval_every)
    return is_due and (run.metrics is None or run.metrics["step"] != step or run.progress.best_step == 0)


def evaluate_run(
    config: Config, run: Run, dataset: DetectionDataset, folder: Path, log: RunLog, between: Callable[[], None]
) -> None:
    """Metrics into `run`, best.pt where they are the best so far. between: called after each batch of images."""
    began = time.monotonic()
    run.average_running_statistics()
    with without_compiled_code(config), run.averaged():
        metrics = evaluate(
            run.student,
            dataset,
            batch_size=part_size(config),
            workers=config.data.workers,
            device=device_of(run),
            between=between,
        )
    tell_unreadable(run, log.say, "left out of the evaluation, as it cannot be read", metrics.pop("unreadable"))
    run.metrics = {"step": run.progress.step, **metrics}
    log.evaluated(run.progress.step, run.metrics, time.monotonic() - began)
    if (metrics["AP"] or 0.0) > run.progress.best_ap:
        run.progress.best_ap, run.progress.best_step = metrics["AP"] or 0.0, run.progress.step
        save_run(folder / "best.pt", config, run, dataset.classes, resumable=False)


def save_run(path: Path, config: Config, run: Run, classes: list[str], *, resumable: bool = True) -> None:
    """Called by all processes, as each has random states of its own. Rank 0 writes, and all go on once it has: none
    leaves, and says that nothing is lost, before that is so."""
    run.average_running_statistics()
    state = run.resume_state() if resumable else None
    if distributed.is_main():
        _write(path, config, run, classes, state)
    distributed.barrier()


def _write(path: Path, config: Config, run: Run, classes: list[str], state: dict[str, Any] | None) -> None:
    content = {
        "model": run.model_state(),
        "classes": classes,
        "config": config_to_dict(config),
        "step": run.progress.step,
        "metrics": run.metrics,
    }
    if state is not None:
        content["resume"] = state
    save_checkpoint(path, content)


def part_size(config: Config) -> int:
    return config.train.batch_size // (config.train.accumulate * distributed.process_count())
