"""A training step by part, with distillation and without, in the same process: what distillation costs.

The trainer's own functions run, in its order; nothing of it is copied but the order. On a GPU the device is waited for
after each part, so that its time is its own: the parts add up to a little more than a step takes in training.
"""

from __future__ import annotations

import argparse
import json
import statistics
import tempfile
import time
from collections import defaultdict
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from dataclasses import dataclass, replace
from pathlib import Path
from typing import Any

import torch
from torchvision.models.detection.image_list import ImageList

from benchmarks import machine
from benchmarks.stand_ins import class_names, tame, with_stand_ins
from gid_cuda.config import Config, load_config
from gid_cuda.data import Batch, DetectionDataset, build_dataset
from gid_cuda.detectors.own import Builder, check_adapter, load_adapter
from gid_cuda.engine import trainer
from gid_cuda.engine.batches import to_device, train_loader
from gid_cuda.engine.run import Run
from gid_cuda.engine.setup import build_run
from gid_cuda.errors import UserError
from gid_cuda.files import write_text

PARTS = ("data", "transform", "teacher", "student", "task loss", "criterion", "backward", "optimizer")
_MEANINGS = {
    "data": "wait for the loader",
    "transform": "to the device, normalise, resize, pad",
    "teacher": "forward",
    "student": "forward of the network",
    "task loss": "forward",
    "criterion": "forward",
    "backward": "of everything",
    "optimizer": "norm of the gradient, check, weights",
}
WARM_UP = 3  # steps of each kind
DEFAULT_STEPS = 20
_WAITING = 0.02  # share of a step from which the loader is said to be waited for

Times = dict[str, list[float]]


class Stopwatch:
    """Adds up where the time goes: each lap is the time since the one before, under a part's name."""

    def __init__(self, device: torch.device) -> None:
        self.device, self.parts, self._last = device, defaultdict(float), 0.0

    def start(self) -> None:
        self.parts.clear()
        self._last = self._now()

    def lap(self, part: str) -> None:
        now = self._now()
        self.parts[part] += now - self._last
        self._last = now

    def _now(self) -> float:
        if self.device.type == "cuda":
            torch.cuda.synchronize(self.device)
        return time.perf_counter()


def main(arguments: argparse.Namespace) -> None:
    """Time, print, and write to arguments.json where given. cfg, overrides: of the config; device: auto, cpu or cuda;
    steps: how many of each kind, None: DEFAULT_STEPS."""
    device = machine.pick_device(arguments.device or "auto")
    config = load_config(arguments.cfg, [*arguments.overrides, f"device={device.type}"])
    if config.distill is None:
        raise UserError(f"{arguments.cfg} has no distill section: the step benchmark compares with and without one")
    adapter = load_adapter(arguments.adapter)
    check_adapter(adapter, config.model, config.teacher)
    with tempfile.TemporaryDirectory() as folder:
        results = measure(config, Path(folder), arguments.steps or DEFAULT_STEPS, adapter)
    results = {"config": str(arguments.cfg), "overrides": list(arguments.overrides), **results}
    print(table(results))
    if arguments.json is not None:
        content = {"machine": machine.describe(device), "step": results}
        write_text(Path(arguments.json), json.dumps(content, indent=1) + "\n")


@dataclass
class Prepared:
    """What a training step needs. config: with stand-ins for missing files; notes: a sentence for each of those."""

    config: Config
    run: Run
    dataset: DetectionDataset
    notes: list[str]


def prepare(
    config: Config,
    folder: Path,
    adapter: Builder | None = None,
    other_images: Callable[[Config, Path, int], Config] | None = None,
) -> Prepared:
    """`folder` is for images that are drawn. other_images: gives the config others, of at most so many classes; the
    detectors keep those of its own, which are those of their weights."""
    replaced, notes = with_stand_ins(config, folder)
    dataset = build_dataset(replaced.data, "train")
    names = class_names(config, replaced, dataset.classes)
    if other_images is not None:
        replaced = other_images(replaced, folder, len(names))
        dataset = build_dataset(replaced.data, "train")
    run = build_run(replaced, names, adapter=adapter)
    for detector, name in ((run.student, "model"), (run.teacher, "teacher")):
        if getattr(replaced, name) != getattr(config, name):
            tame(detector)
    return Prepared(replaced, run, dataset, notes)


def measure(config: Config, folder: Path, steps: int, adapter: Builder | None = None) -> dict[str, Any]:
    """Medians in seconds: {"distilled": {part: s}, "plain": {part: s}, ...}; `folder` is for images that are drawn."""
    prepared = prepare(config, folder, adapter)
    replaced, run = prepared.config, prepared.run
    runs = {"distilled": run, "plain": replace(run, teacher=None, criterion=None)}
    watch = Stopwatch(run.parameters[0].device)
    batches = iter(train_loader(replaced, run, prepared.dataset))
    loader = _loader_alone(batches)
    times: dict[str, Times] = {kind: {part: [] for part in PARTS} for kind in runs}
    with _watched(run, watch):
        for step in range(WARM_UP + steps):
            for kind, one in runs.items():  # in turn: what else the machine does hits both
                watch.start()
                images = one_step(replaced, one, batches, watch.lap)
                if step >= WARM_UP:
                    for part, values in times[kind].items():
                        values.append(watch.parts[part])
    medians = {kind: {part: statistics.median(parts[part]) for part in PARTS} for kind, parts in times.items()}
    whole = {kind: statistics.median(map(sum, zip(*parts.values(), strict=True))) for kind, parts in times.items()}
    return {
        **medians,
        "step_s": whole,
        "criterion": _criterion(times, whole["distilled"]),
        "loader_alone_s": loader,
        "workers": replaced.data.workers,
        "images": replaced.train.batch_size,
        "padded": list(images.tensors.shape),
        "classes": run.student.num_classes,
        "amp": replaced.train.amp if watch.device.type == "cuda" else "off",
        "steps": steps,
        "notes": prepared.notes,
    }


def _criterion(times: dict[str, Times], step: float) -> dict[str, float]:
    """Its forward, what it adds to the backward (step by step), and both as a share of the distilled step."""
    forward = statistics.median(times["distilled"]["criterion"])
    pairs = zip(times["distilled"]["backward"], times["plain"]["backward"], strict=True)
    backward = statistics.median(distilled - plain for distilled, plain in pairs)
    return {"forward_s": forward, "backward_s": backward, "share": (forward + backward) / step}


def one_step(config: Config, run: Run, batches: Iterator[Batch], lap: Callable[[str], None]) -> ImageList:
    """One step of the trainer's loop; returns its last part's images. lap: told the name of each part at its end."""
    batch = next(batches)
    lap("data")
    parts = batch.cut(config.train.accumulate)
    run.optimizer.zero_grad(set_to_none=True)
    terms = []
    for part in parts:
        images, targets = to_device(config, run, part)
        lap("transform")
        losses, others = trainer.compute_losses(config, run, images, targets)
        total = torch.stack(list(losses.values())).sum()
        run.scaler.scale(total / len(parts)).backward()
        lap("backward")
        terms.append({**losses, "loss": total, **others})
    trainer.update(config, run, terms, [part.labelled_ids for part in parts])
    lap("optimizer")
    return images


@contextmanager
def _watched(run: Run, watch: Stopwatch) -> Iterator[None]:
    """Laps within `compute_losses`: at the ends of teacher, student and criterion, and around the task losses.

    A user's own detector may compute those anywhere: they then count as the student's forward."""

    def lap(part: str) -> Callable[..., None]:
        return lambda *_: watch.lap(part)

    student, task_losses = run.student, getattr(run.student, "_task_losses", None)

    def timed_task_losses(*arguments: Any) -> Any:
        watch.lap("student")
        losses = task_losses(*arguments)
        watch.lap("task loss")
        return losses

    hooks = [
        run.teacher.register_forward_hook(lap("teacher")),
        student.register_forward_hook(lap("student")),
        run.criterion.register_forward_hook(lap("criterion")),
    ]
    if task_losses is not None:
        student._task_losses = timed_task_losses
    try:
        yield
    finally:
        if task_losses is not None:
            del student._task_losses
        for hook in hooks:
            hook.remove()


def _loader_alone(batches: Iterator[Batch], count: int = 8) -> float:
    """Seconds a batch when nothing else runs; the first ones, while the workers start, do not count."""
    for _ in range(2):
        next(batches)
    start = time.perf_counter()
    for _ in range(count):
        next(batches)
    return (time.perf_counter() - start) / count


def table(results: dict[str, Any]) -> str:
    """What `measure` found, to read."""
    both = [results["distilled"], results["plain"]]
    lines = [
        f"training step of {results['config']}: {results['images']} images, padded to "
        f"{results['padded'][2]}x{results['padded'][3]}, {results['classes']} classes, amp {results['amp']}; "
        f"medians of {results['steps']} steps each, in turn",
        *(f"note: {note}" for note in results["notes"]),
        f"{'milliseconds':<48} {'distilled':>10} {'plain':>10}",
    ]
    for part in PARTS:
        name = f"{part} ({_MEANINGS[part]})"
        cells = [f"{1e3 * times[part]:10.1f}" if times[part] else f"{'-':>10}" for times in both]
        lines.append(f"{name:<48} {cells[0]} {cells[1]}")
    whole = results["step_s"]
    lines.append(f"{'step':<48} {1e3 * whole['distilled']:10.1f} {1e3 * whole['plain']:10.1f}")
    criterion = results["criterion"]
    lines.append(
        f"criterion: {100 * criterion['share']:.1f} % of the distilled step (its forward "
        f"{1e3 * criterion['forward_s']:.1f} ms, its part of the backward {1e3 * criterion['backward_s']:.1f} ms)"
    )
    return "\n".join([*lines, _loader_line(results)])


def _loader_line(results: dict[str, Any]) -> str:
    wait, step = results["distilled"]["data"], results["step_s"]["distilled"]
    alone = f"alone it makes a batch in {1e3 * results['loader_alone_s']:.1f} ms with {results['workers']} workers"
    if wait <= _WAITING * step:
        return f"loader: the step does not wait for it; {alone}"
    return f"loader: the step waits for it, {100 * wait / step:.0f} % of its time; {alone}: raise data.workers"
