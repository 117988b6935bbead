"""The training loop: teacher, plain student and distilled student alike."""

from __future__ import annotations

import time
from contextlib import closing
from dataclasses import asdict
from pathlib import Path
from typing import Any

import torch
from torch import Tensor
from torchvision.models.detection.image_list import ImageList

from gid_cuda.config import Config
from gid_cuda.data import DetectionDataset, build_loader
from gid_cuda.detectors.outputs import Detector, Target
from gid_cuda.detectors.own import Builder, check_adapter
from gid_cuda.distill import kind_counts
from gid_cuda.engine import checks, distributed, elastic, optim, skipping
from gid_cuda.engine.batches import device_of, step_batches, to_device
from gid_cuda.engine.contract import check_contract
from gid_cuda.engine.deterministic import deterministic
from gid_cuda.engine.evaluation import format_metrics
from gid_cuda.engine.interrupt import Interrupt
from gid_cuda.engine.log import QuietLog, RunLog
from gid_cuda.engine.milestones import due, evaluate_run, owes_evaluation, part_size, save_run
from gid_cuda.engine.resuming import restore
from gid_cuda.engine.run import Run
from gid_cuda.engine.run_folder import adopt_best, check_folder, open_folder, resume_content, write_metrics
from gid_cuda.engine.run_lock import RunLock
from gid_cuda.engine.run_record import write_run_record
from gid_cuda.engine.setup import build_data, build_run, count_parameters, describe, start_random, without_compiled_code


@distributed.processes()
def train(
    config: Config, *, resume: bool = False, overwrite: bool = False, adapter: Builder | None = None
) -> dict[str, Any]:
    """Train `config.model` on `config.data`, with the help of `config.teacher` where `config.distill` is set.

    Everything is written to the folder `config.output`. resume: go on from the last.pt there, or begin where there is
    none. overwrite: replace the run that is there. adapter: builds a user's own detector. Returns what metrics.json
    holds: the metrics of the finished model (percent), AP and step of the best checkpoint, parameters, seconds of
    training, step.
    Raises UserError for mistakes in config, data or weights, for a detector that breaks its contract, and where a loss
    stops being finite; Stopped, a KeyboardInterrupt, where a signal ended the run, whose steps are then saved.
    Under torchrun all processes call this with the same arguments, see `engine.distributed`; processes that it starts
    again go on from last.pt, whatever resume and overwrite say.
    """
    with Interrupt() as interrupt, deterministic(config.deterministic), RunLock(config.output) as lock:
        return _train(config, interrupt, lock, resume=resume, overwrite=overwrite, adapter=adapter)


def _train(
    config: Config, interrupt: Interrupt, lock: RunLock, *, resume: bool, overwrite: bool, adapter: Builder | None
) -> dict[str, Any]:
    distributed.check_batch(config.train.batch_size, config.train.accumulate)
    if config.data.unlabeled is not None:
        distributed.check_batch(
            config.data.unlabeled.batch_size, config.train.accumulate, "data.unlabeled.batch_size"
        )
    if elastic.is_restarted(config.output):
        resume, overwrite, lock.insists = True, False, False
    distributed.on_main(lambda: check_folder(config, resume=resume, overwrite=overwrite))
    distributed.on_main(lock.take)  # before anything is read that another process may be writing
    check_adapter(adapter, config.model, config.teacher if config.distill is not None else None)
    with distributed.first_of_each_machine():
        data = build_data(config.data)
    classes = data.train.classes
    run = build_run(config, classes, adapter=adapter)
    content = distributed.on_main(lambda: resume_content(config, classes)) if resume else None
    notes = []
    if content is not None:
        notes = restore(run, content, config.output / "last.pt")
        run.progress = distributed.on_main(lambda: adopt_best(config.output, run.progress))
    _check_contract(config, run, data.train)
    folder = distributed.on_main(lambda: open_folder(config, lock, overwrite=overwrite))
    elastic.mark_begun(folder)
    settings, progress = config.train, run.progress
    distributed.on_main(lambda: write_run_record(folder, config, classes, step=progress.step))
    # Closed whatever happens: an error's traceback keeps its frames, and with them loader processes.
    with _open_log(config, run, folder) as log, closing(step_batches(config, run, data, log)) as batches:
        for line in describe(config, run, data):
            log.say(line)
        if resume:
            log.say(f"resumed after step {progress.step}" if content else "nothing to resume here: beginning anew")
            if progress.step >= settings.steps:
                log.say(f"train.steps is {settings.steps}: no step is left to do")
            for line in notes:
                log.say(line)
        if run.teacher is not None and content is None:
            _check_teacher(config, run.teacher, data.val, log)
        balance = checks.Balance(run.criterion.loss_names if run.criterion is not None and progress.step == 0 else ())
        start_random(config, content)
        log.start_clock()

        interrupt.finish_steps()

        while True:
            if owes_evaluation(config, run):
                with interrupt.leaving():
                    evaluate_run(config, run, data.val, folder, log, interrupt.leave_if_asked)
                save_run(folder / "last.pt", config, run, classes)
            if progress.step >= settings.steps:
                break
            began = time.monotonic()
            # The mean of the parts' losses is that of the whole batch for a task loss that is a mean over images. GID's
            # terms are means over instances or masked boxes of the part, and live batch norm sees it: these come close.
            parts = next(batches).cut(settings.accumulate)
            lr = optim.learning_rate(settings, progress.step)
            optim.set_learning_rate(run.optimizer, lr)
            run.optimizer.zero_grad(set_to_none=True)
            before = skipping.remember(config, run)
            terms = []  # of each part: scalars on the device
            for number, part in enumerate(parts):
                with distributed.accumulating(run.objective, last=number == len(parts) - 1):
                    losses, others = compute_losses(config, run, *to_device(config, run, part, number))
                    total = torch.stack(list(losses.values())).sum()
                    run.scaler.scale(total / len(parts)).backward()
                terms.append({**losses, "loss": total, **others})
            try:
                values = update(config, run, terms, [part.labelled_ids for part in parts])
                run.skipped_in_a_row = 0
            except checks.NotFinite as problem:
                log.skipped(progress.step + 1, skipping.skip(config, run, before, problem))
                values = {}
            progress.step += 1
            progress.seconds += time.monotonic() - began
            if values:
                log.train(progress.step, values, lr=lr, images=images_a_step(config))
                if warning := balance.add(values):
                    log.say(warning)
            stopping = distributed.any_process(interrupt.asked())
            if stopping or owes_evaluation(config, run) or due(progress.step, settings.checkpoint_every):
                save_run(folder / "last.pt", config, run, classes)
            if stopping:
                raise interrupt.stopped(f"--resume goes on after step {progress.step}, which is saved")

        assert run.metrics is not None
        log.say(format_metrics(run.metrics))
    result = {**run.metrics, **asdict(progress), "parameters": count_parameters(run.student)}
    distributed.on_main(lambda: write_metrics(folder, result))
    return result


def compute_losses(
    config: Config, run: Run, images: ImageList, targets: list[Target | None]
) -> tuple[dict[str, Tensor], dict[str, Tensor]]:
    """One forward pass -> (weighted losses by name, other numbers for the log), scalars on the device."""
    with run.autocast:
        with torch.no_grad():  # the teacher first: what it needs in passing is free again for the student
            teacher_outputs = run.teacher(images) if run.teacher is not None else None
        task, distilled, instances = run.objective(images, targets, teacher_outputs)
    losses = {f"loss_{name.removeprefix('loss_')}": value for name, value in task.items()}
    if config.distill is None:
        return losses, {}
    growth = min(1.0, (run.progress.step + 1) / max(1, config.distill.warmup_steps))
    losses.update({name: growth * value for name, value in distilled.items()})
    if instances is None:
        return losses, {}
    return losses, {"instances": instances.counts.float().mean(), **kind_counts(instances, targets)}


def update(config: Config, run: Run, terms: list[dict[str, Tensor]], image_ids: list[list[int]]) -> dict[str, float]:
    """The weights' step from the gradients of a step's parts -> means of their `terms`, which were on the device.

    Means over all processes, which thus all see alike whether the step can be taken."""
    terms, image_ids = distributed.terms_of_all(terms), distributed.ids_of_all(image_ids)
    run.scaler.unscale_(run.optimizer)
    norm = optim.gradient_norm(run.parameters, config.train.clip_grad_norm)
    values = checks.finite_values(  # the one wait for the device in a step, before any weight changes
        terms, norm, norm_may_overflow=run.scaler.is_enabled(), step=run.progress.step + 1, image_ids=image_ids
    )
    run.scaler.step(run.optimizer)
    run.scaler.update()
    if run.average is not None:
        run.average.update()
    return values


def _open_log(config: Config, run: Run, folder: Path) -> RunLog:
    if not distributed.is_main():
        return QuietLog(distributed.rank())
    settings, owed = config.train, owes_evaluation(config, run)
    step = run.progress.step
    return RunLog(folder, start_step=step, steps=settings.steps, every=settings.log_every, evaluating=owed)


def images_a_step(config: Config) -> int:
    unlabeled = config.data.unlabeled
    return config.train.batch_size + (unlabeled.batch_size if unlabeled is not None else 0)


def _check_contract(config: Config, run: Run, dataset: DetectionDataset) -> None:
    """Two images through both detectors: a user's own may give what breaks, or teaches nothing, much later."""
    batch = next(iter(build_loader(dataset, batch_size=2, workers=0, train=True, seed=config.seed)))
    images, targets = to_device(config, run, batch)
    raw = [image.to(device_of(run)).float() / 255 for image in batch.images]
    with run.autocast, without_compiled_code(config):
        check_contract(run.student, run.teacher, images, targets, raw, len(dataset.classes))


def _check_teacher(config: Config, teacher: Detector, dataset: DetectionDataset, log: RunLog) -> None:
    device = next(teacher.parameters()).device
    with without_compiled_code(config):
        summary, warning = checks.teacher_check(
            teacher, dataset, batch_size=part_size(config), workers=config.data.workers, device=device
        )
    log.say(summary)
    if warning:
        log.say(warning)
