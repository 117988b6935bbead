"""What each setting of the training loop is worth: a step as configured beside one with that setting the other way.

Both are built in one process and take their steps in turn, so that what else the machine does hits both. Steps are
timed whole, without waiting for the device within them.
"""

from __future__ import annotations

import argparse
import gc
import json
import statistics
import tempfile
import time
from collections.abc import Callable, Iterator
from dataclasses import dataclass, replace
from pathlib import Path
from typing import Any

import torch
from torch.utils.data import Dataset

from benchmarks import machine
from benchmarks.stand_ins import both_orientations
from benchmarks.step import DEFAULT_STEPS, WARM_UP, one_step, prepare
from gid_cuda.config import Config, TrainConfig, load_config
from gid_cuda.data import Batch, DetectionDataset
from gid_cuda.data.dataset import Sample
from gid_cuda.detectors.own import Builder, check_adapter, load_adapter
from gid_cuda.engine.batches import padding_share, train_loader
from gid_cuda.engine.run import Run
from gid_cuda.files import write_text

EMA_DECAY = 0.999  # what the average is switched on with


@dataclass
class Side:
    """One of the two that are compared: it takes its own steps with its own weights and loader processes."""

    config: Config
    run: Run
    batches: Iterator[Batch]
    padding: float = 0.0  # share of the padded images' pixels, over the steps that were timed


@dataclass(frozen=True)
class Switch:
    """name: as in the tables. change: the config with the setting the other way. tell: how it stands in a config."""

    name: str
    tell: Callable[[Config], str]
    change: Callable[[Config], Config] = lambda config: config
    other_images: Callable[[Config, Path, int], Config] | None = None  # of both sides, see `step.prepare`
    run: Callable[[Run], None] = lambda _: None  # the other side's, once it is built
    images: Callable[[DetectionDataset], Any] = lambda images: images  # the other side's
    pinned: bool = True
    cuda_only: bool = False


def _flag(key: str, section: str = "train") -> Switch:
    """A switch that is a key of the config."""

    def value(config: Config) -> bool:
        return bool(getattr(getattr(config, section), key))

    def change(config: Config) -> Config:
        part = getattr(config, section).model_copy(update={key: not value(config)})
        return config.model_copy(update={section: part})

    return Switch(f"{section}.{key}", lambda config: "on" if value(config) else "off", change)


def _averaged(train: TrainConfig) -> TrainConfig:
    return train.model_copy(update={"ema_decay": EMA_DECAY if train.ema_decay is None else None})


def _unfuse(run: Run) -> None:
    for group in run.optimizer.param_groups:
        group["fused"] = False  # torch then takes its loop over lists of tensors on CUDA, and over tensors on the CPU


class FloatImages(Dataset[Sample]):
    """A data set whose images are float32: what the loader and the way to the device would carry without uint8."""

    def __init__(self, images: DetectionDataset) -> None:
        self.images = images

    def __len__(self) -> int:
        return len(self.images)

    def __getitem__(self, index: int) -> Sample:
        sample = self.images[index]
        return replace(sample, image=sample.image.float())

    def __getattr__(self, name: str) -> Any:
        if name == "images":  # not there yet: a loader process that is no fork is making it
            raise AttributeError(name)
        return getattr(self.images, name)


SWITCHES = (
    _flag("channels_last"),
    _flag("fused_losses"),
    Switch("fused optimizer", lambda _: "on", run=_unfuse),
    Switch("uint8 images to the device", lambda _: "on", images=FloatImages),
    Switch("pinned memory", lambda _: "on", pinned=False, cuda_only=True),
    replace(_flag("group_by_aspect", "data"), other_images=both_orientations),
    Switch(
        "train.ema_decay",
        lambda config: "off" if config.train.ema_decay is None else f"{config.train.ema_decay:g}",
        lambda config: config.model_copy(update={"train": _averaged(config.train)}),
    ),
    _flag("compile"),
)


def main(arguments: argparse.Namespace) -> None:
    """Time, print, and write to arguments.json where given; see `step.main` for the arguments."""
    device = machine.pick_device(arguments.device or "auto")
    config = load_config(arguments.cfg, [*arguments.overrides, f"device={device.type}"])
    adapter = load_adapter(arguments.adapter)
    check_adapter(adapter, config.model, config.teacher)
    steps = arguments.steps or DEFAULT_STEPS
    content: dict[str, Any] = {
        "machine": machine.describe(device),
        "config": str(arguments.cfg),
        "overrides": list(arguments.overrides),
        "images": config.train.batch_size,
        "steps": steps,
        "switches": [],
    }
    print(f"training step of {arguments.cfg}: {config.train.batch_size} images; medians of {steps} steps each, in turn")
    print("ratio: median over the steps, step by step")
    print(f"{'':<28} {'':>6} {'as it is':>11} {'the other way':>14} {'ratio':>7}", flush=True)
    for switch in SWITCHES:
        if switch.cuda_only and device.type != "cuda":
            continue
        with tempfile.TemporaryDirectory() as folder:
            content["switches"].append(measure(switch, config, Path(folder), steps, adapter))
        _tidy(device)
        print(line(content["switches"][-1]), flush=True)
        if arguments.json is not None:
            write_text(Path(arguments.json), json.dumps(content, indent=1) + "\n")


def measure(
    switch: Switch, config: Config, folder: Path, steps: int, adapter: Builder | None = None
) -> dict[str, Any]:
    """Median seconds of a step as configured and with `switch` the other way; `folder` is for images that are drawn."""
    sides = [
        _side(switch, config, folder, adapter, other=False),
        _side(switch, switch.change(config), folder, adapter, other=True),
    ]
    times: list[list[float]] = [[], []]
    for number in range(WARM_UP + steps):
        for side, taken in zip(sides, times, strict=True):
            seconds = _timed_step(side, count=number >= WARM_UP)
            if number >= WARM_UP:
                taken.append(seconds)
    return {
        "name": switch.name,
        "setting": switch.tell(config),
        "step_s": statistics.median(times[0]),
        "other_s": statistics.median(times[1]),
        "ratio": statistics.median(other / own for own, other in zip(*times, strict=True)),
        "padding": [side.padding / steps for side in sides],
    }


def _tidy(device: torch.device) -> None:
    """Between two pairs, with nothing left that holds the first: the next one needs the memory."""
    gc.collect()
    torch.compiler.reset()
    if device.type == "cuda":
        torch.cuda.empty_cache()


def _side(switch: Switch, config: Config, folder: Path, adapter: Builder | None, *, other: bool) -> Side:
    prepared = prepare(config, folder, adapter, switch.other_images)
    images: Any = prepared.dataset
    if other:
        switch.run(prepared.run)
        images = switch.images(images)
    loader = train_loader(prepared.config, prepared.run, images, pinned=switch.pinned or not other)
    return Side(prepared.config, prepared.run, iter(loader))


def _timed_step(side: Side, *, count: bool) -> float:
    began = _now(side)
    images = one_step(side.config, side.run, side.batches, lambda _: None)
    seconds = _now(side) - began
    if count:
        side.padding += padding_share(images)
    return seconds


def _now(side: Side) -> float:
    device = side.run.parameters[0].device
    if device.type == "cuda":
        torch.cuda.synchronize(device)
    return time.perf_counter()


def line(result: dict[str, Any]) -> str:
    """What `measure` found, to read; a ratio above 1 says that the setting as it is pays."""
    own, other = (1e3 * result[key] for key in ("step_s", "other_s"))
    text = f"{result['name']:<28} {result['setting']:>6} {own:8.1f} ms {other:11.1f} ms {result['ratio']:6.3f}x"
    before, after = (100 * share for share in result["padding"])
    return text if before == after else f"{text}  (padding {before:.0f} %, the other way {after:.0f} %)"
