"""The training loop: teacher, plain student and distilled student alike."""

from __future__ import annotations

import time
from collections.abc import Iterator
from dataclasses import asdict
from pathlib import Path
from typing import Any

import torch
from torch import Tensor
from torchvision.models.detection.image_list import ImageList

from gid_cuda.config import Config, config_to_dict
from gid_cuda.data import Batch, DetectionDataset, Images, Loader, build_loader
from gid_cuda.detectors.outputs import Detector, DetectorOutputs, Target
from gid_cuda.detectors.own import Builder, check_adapter
from gid_cuda.distill import kind_counts
from gid_cuda.engine import checks, optim
from gid_cuda.engine.checkpoint import save_checkpoint
from gid_cuda.engine.contract import check_contract
from gid_cuda.engine.evaluation import evaluate, format_metrics
from gid_cuda.engine.log import RunLog
from gid_cuda.engine.run_folder import check_folder, open_folder, resume_content, write_metrics
from gid_cuda.engine.setup import (
    Data,
    Run,
    build_data,
    build_run,
    count_parameters,
    describe,
    start_random,
    without_compiled_code,
)


def train(
    config: Config, *, resume: bool = False, overwrite: bool = False, adapter: Builder | None = None
) -> dict[str, Any]:
    """Train `config.model` on `config.data`, with the help of `config.teacher` where `config.distill` is set.

    Everything is written to the folder `config.output`. resume: go on from the last.pt there, or begin where there is
    none. overwrite: replace the run that is there. adapter: builds a user's own detector. Returns what metrics.json
    holds: the metrics of the finished model (percent), AP and step of the best checkpoint, parameters, seconds of
    training, step.
    Raises UserError for mistakes in config, data or weights, for a detector that breaks its contract, and where a loss
    stops being finite.
    """
    check_folder(config, resume=resume, overwrite=overwrite)
    check_adapter(adapter, config.model, config.teacher if config.distill is not None else None)
    data = build_data(config.data)
    run = build_run(config, data.train.classes, adapter=adapter)
    content = resume_content(config, data.train.classes) if resume else None
    if content is not None:
        run.restore(content)
    _check_contract(config, run, data.train)
    folder = open_folder(config, overwrite=overwrite)
    settings, progress = config.train, run.progress
    with RunLog(folder, start_step=progress.step, steps=settings.steps, every=settings.log_every) as log:
        for line in describe(config, run, data):
            log.say(line)
        if resume:
            log.say(f"resumed after step {progress.step}" if content else "nothing to resume here: beginning anew")
        if run.teacher is not None and content is None:
            _check_teacher(config, run.teacher, data.val, log)
        balance = checks.Balance(run.criterion.loss_names if run.criterion is not None and progress.step == 0 else ())
        batches = _batches(config, run, data, log)
        start_random(config, content)
        log.start_clock()

        while progress.step < settings.steps:
            began = time.monotonic()
            # The mean of the parts' losses is that of the whole batch for a task loss that is a mean over images. GID's
            # terms are means over instances or masked boxes of the part, and live batch norm sees it: these come close.
            parts = next(batches).cut(settings.accumulate)
            lr = optim.learning_rate(settings, progress.step)
            optim.set_learning_rate(run.optimizer, lr)
            run.optimizer.zero_grad(set_to_none=True)
            terms = []  # of each part: scalars on the device
            for part in parts:
                losses, others = compute_losses(config, run, *to_device(config, run, part))
                total = torch.stack(list(losses.values())).sum()
                run.scaler.scale(total / len(parts)).backward()
                terms.append({**losses, "loss": total, **others})
            values = update(config, run, terms, [part.names() for part in parts])
            progress.step += 1
            progress.seconds += time.monotonic() - began
            log.train(progress.step, values, lr=lr, images=sum(len(part.images) for part in parts))
            if warning := balance.add(values):
                log.say(warning)
            evaluating = progress.step == settings.steps or _due(progress.step, settings.eval_every)
            if evaluating:
                _evaluate(config, run, data.val, folder, log)
            if evaluating or _due(progress.step, settings.checkpoint_every):
                _save(folder / "last.pt", config, run, data.train.classes)

        if run.metrics is None or run.metrics["step"] != progress.step:  # resumed with fewer steps than were done
            _evaluate(config, run, data.val, folder, log)
        assert run.metrics is not None
        log.say(format_metrics(run.metrics))
    result = {**run.metrics, **asdict(progress), "parameters": count_parameters(run.student)}
    write_metrics(folder, result)
    return result


def compute_losses(
    config: Config, run: Run, images: ImageList, targets: list[Target | None]
) -> tuple[dict[str, Tensor], dict[str, Tensor]]:
    """One forward pass -> (weighted losses by name, other numbers for the log), scalars on the device."""
    with run.autocast:
        with torch.no_grad():  # the teacher first: what it needs in passing is free again for the student
            teacher_outputs = run.teacher(images) if run.teacher is not None else None
        outputs = run.student(images, targets)
        if run.criterion is None or teacher_outputs is None or config.distill is None:
            return _task_losses(outputs), {}
        distilled, instances = run.criterion(teacher_outputs, outputs, run.student, targets)
    losses = _task_losses(outputs)  # now, as the response loss may have joined its way back with theirs
    growth = min(1.0, (run.progress.step + 1) / max(1, config.distill.warmup_steps))
    losses.update({name: growth * value for name, value in distilled.items()})
    if instances is None:
        return losses, {}
    return losses, {"instances": instances.counts.float().mean(), **kind_counts(instances, targets)}


def _task_losses(outputs: DetectorOutputs) -> dict[str, Tensor]:
    return {f"loss_{name.removeprefix('loss_')}": value for name, value in outputs.losses.items()}


def update(config: Config, run: Run, terms: list[dict[str, Tensor]], image_ids: list[list[str]]) -> dict[str, float]:
    """The weights' step from the gradients of a step's parts -> means of their `terms`, which were on the device."""
    run.scaler.unscale_(run.optimizer)
    norm = optim.gradient_norm(run.parameters, config.train.clip_grad_norm)
    values = checks.finite_values(  # the one wait for the device in a step, before any weight changes
        terms, norm, norm_may_overflow=run.scaler.is_enabled(), step=run.progress.step + 1, image_ids=image_ids
    )
    run.scaler.step(run.optimizer)
    run.scaler.update()
    return values


def train_loader(config: Config, run: Run, images: Images, *, batch_size: int | None = None) -> Loader:
    """The batches of the steps that are left. batch_size: other than train.batch_size."""
    return build_loader(
        images,
        batch_size=batch_size or config.train.batch_size,
        workers=config.data.workers,
        train=True,
        seed=config.seed,
        start_step=run.progress.step,
        hflip=config.data.hflip,
        pin_memory=_device(run).type == "cuda",
    )


def _batches(config: Config, run: Run, data: Data, log: RunLog) -> Iterator[Batch]:
    """Labelled images, and after them unlabelled ones where the config asks for them."""
    more: Iterator[Batch] | None = None
    if data.unlabeled is not None and config.data.unlabeled is not None:
        more = iter(train_loader(config, run, data.unlabeled, batch_size=config.data.unlabeled.batch_size))
    for batch in train_loader(config, run, data.train):
        batch = batch if more is None else batch.with_unlabeled(next(more))
        _tell_unreadable(run, log, "the next image stands in for one that cannot be read", batch.unreadable)
        yield batch


def _tell_unreadable(run: Run, log: RunLog, what: str, problems: list[str]) -> None:
    """In one line, and of each file once in a run."""
    new = [line for line in dict.fromkeys(f"{what}: {problem}" for problem in problems) if line not in run.told]
    if new:
        run.told.update(new)
        log.say(f"data: {new[0]}" + (f", and so for {len(new) - 1} more" if len(new) > 1 else ""))


def to_device(config: Config, run: Run, batch: Batch) -> tuple[ImageList, list[Target | None]]:
    """uint8 images -> normalised, resized, padded ones with their targets: once a step, for student and teacher.

    The target of an unlabelled image is None."""
    device = _device(run)
    images = [image.to(device, non_blocking=True).float() / 255 for image in batch.images]
    targets = [{key: value.to(device, non_blocking=True) for key, value in t.items()} for t in batch.targets]
    image_list, targets = run.student.transform(images, targets)
    if config.train.channels_last:
        image_list.tensors = image_list.tensors.contiguous(memory_format=torch.channels_last)
    labelled = len(targets) - batch.unlabeled
    return image_list, [*targets[:labelled], *[None] * batch.unlabeled]


def _due(step: int, every: int) -> bool:
    return every > 0 and step % every == 0


def _check_contract(config: Config, run: Run, dataset: DetectionDataset) -> None:
    """Two images through both detectors: a user's own may give what breaks, or teaches nothing, much later."""
    batch = next(iter(build_loader(dataset, batch_size=2, workers=0, train=True, seed=config.seed)))
    images, targets = to_device(config, run, batch)
    raw = [image.to(_device(run)).float() / 255 for image in batch.images]
    with run.autocast, without_compiled_code(config):
        check_contract(run.student, run.teacher, images, targets, raw, len(dataset.classes))


def _check_teacher(config: Config, teacher: Detector, dataset: DetectionDataset, log: RunLog) -> None:
    device = next(teacher.parameters()).device
    with without_compiled_code(config):
        summary, warning = checks.teacher_check(
            teacher, dataset, batch_size=_part_size(config), workers=config.data.workers, device=device
        )
    log.say(summary)
    if warning:
        log.say(warning)


def _evaluate(config: Config, run: Run, dataset: DetectionDataset, folder: Path, log: RunLog) -> None:
    """Metrics into `run`, best.pt where they are the best so far."""
    began = time.monotonic()
    with without_compiled_code(config):
        metrics = evaluate(
            run.student, dataset, batch_size=_part_size(config), workers=config.data.workers, device=_device(run)
        )
    _tell_unreadable(run, log, "left out of the evaluation, as it cannot be read", metrics.pop("unreadable"))
    run.metrics = {"step": run.progress.step, **metrics}
    log.evaluated(run.progress.step, run.metrics, time.monotonic() - began)
    if (metrics["AP"] or 0.0) > run.progress.best_ap:
        run.progress.best_ap, run.progress.best_step = metrics["AP"] or 0.0, run.progress.step
        _save(folder / "best.pt", config, run, dataset.classes, resumable=False)


def _save(path: Path, config: Config, run: Run, classes: list[str], *, resumable: bool = True) -> None:
    content = {
        "model": run.student.state_dict(),
        "classes": classes,
        "config": config_to_dict(config),
        "step": run.progress.step,
        "metrics": run.metrics,
    }
    if resumable:
        content["resume"] = run.resume_state()
    save_checkpoint(path, content)


def _part_size(config: Config) -> int:
    return config.train.batch_size // config.train.accumulate


def _device(run: Run) -> torch.device:
    return run.parameters[0].device
