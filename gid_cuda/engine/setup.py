"""From a config to what a run works with: data, device, detectors, criterion, optimizer."""

from __future__ import annotations

import random
from contextlib import AbstractContextManager, nullcontext
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import numpy as np
import torch
import torch.compiler.config
from torch import nn

from gid_cuda._library import cuda_missing_reason
from gid_cuda.config import Config, DataConfig, DistillConfig, ModelConfig, load_config
from gid_cuda.data import DetectionDataset, UnlabeledImages, build_dataset, build_training
from gid_cuda.data.unlabeled import without_images_of
from gid_cuda.detectors.build import build_detector
from gid_cuda.detectors.outputs import Detector
from gid_cuda.detectors.own import Builder
from gid_cuda.distill import Method, build_method
from gid_cuda.engine import optim
from gid_cuda.engine.checkpoint import set_random_states
from gid_cuda.engine.device import choose_device
from gid_cuda.engine.distributed import process_count, rank
from gid_cuda.engine.draws import process_seed
from gid_cuda.engine.ema import WeightAverage
from gid_cuda.engine.run import Run
from gid_cuda.errors import UserError


def build_run(config: Config, classes: list[str], *, adapter: Builder | None = None) -> Run:
    """Detectors with their weights, criterion and optimizer, on the config's device. adapter: builds a user's own."""
    device = choose_device(config.device)
    seed_all(config.seed)  # the student comes first: plain and distilled runs of one seed start from the same weights
    student = _detector(config, config.model, classes, device, adapter)
    teacher = criterion = None
    if config.distill is not None:
        assert config.teacher is not None  # the schema has seen to it
        teacher = _teacher(config, config.teacher, classes, device, adapter)
        criterion = _criterion(config, student, teacher).to(device)
    if config.train.compile:
        _compile(student, teacher)
    parameters = optim.trainable(student, criterion)
    autocast, scaler = optim.precision(config.train.amp, device)
    optimizer = optim.build_optimizer(config.train, parameters)
    average = WeightAverage(student, config.train.ema_decay) if config.train.ema_decay is not None else None
    return Run(student.train(), teacher, criterion, parameters, optimizer, autocast, scaler, average)


@dataclass(frozen=True)
class Data:
    """train and val are of the same classes in the same order; unlabeled images, where there are any, join train."""

    train: DetectionDataset
    val: DetectionDataset
    unlabeled: UnlabeledImages | None


def build_data(config: DataConfig) -> Data:
    train, unlabeled = build_training(config)
    val = build_dataset(config, "val")
    if train.classes != val.classes:
        raise UserError(
            f"data: the training part has the classes {', '.join(train.classes)} and the validation part "
            f"{', '.join(val.classes)}: name those to use, in one order, in data.classes"
        )
    if unlabeled is not None and config.unlabeled is not None and config.unlabeled.images is not None:
        # Else the metrics would be of images that were distilled on.
        folder = config.root / config.unlabeled.images
        unlabeled = without_images_of(unlabeled, val.records, folder, "is evaluated on")
    return Data(train, val, unlabeled)


def require_teacher(config: Config, path: str | Path) -> None:
    """UserError where the teacher's weights file is missing, naming the command that makes it.

    path: the config's file; the config that trains the teacher is looked for beside it.
    """
    weights = config.teacher.weights if config.distill is not None and config.teacher is not None else None
    if weights is None or weights == "coco" or Path(weights).exists():
        return
    build_data(config.data)  # missing data is told first: whoever trains the teacher needs it, too
    command = "scripts/train.py --cfg CONFIG_OF_THE_TEACHER"
    for candidate in sorted(Path(path).parent.glob("*.yaml")):
        try:
            if load_config(candidate).output.resolve() == Path(weights).parent.resolve():
                command = f"scripts/train.py --cfg {candidate}"
        except UserError:
            continue  # another file that is not a config; this one is not about it
    if config.teacher is not None and config.teacher.detector == "own":
        command += " --adapter FILE"
    raise UserError(
        f"teacher.weights: {weights} does not exist: train the teacher first with `{command}`, "
        "or name another file with teacher.weights=..."
    )


def seed_all(seed: int) -> None:
    """Every generator that training draws from."""
    torch.manual_seed(seed)
    random.seed(seed)
    np.random.seed(seed % 2**32)


def start_random(config: Config, content: dict[str, Any] | None) -> None:
    """Last before the loop: building and checking have drawn different amounts in plain, distilled and resumed runs."""
    seed_all(process_seed(config.seed, rank()))
    if content is not None:
        saved = [content["resume"]["random"], *content["resume"].get("random_of_others", [])]
        if rank() < len(saved):  # else there are more processes than there were
            set_random_states(saved[rank()])


def describe(config: Config, run: Run, data: Data) -> list[str]:
    """What a run starts with, one line each: the first place to look when a result surprises."""
    device = run.parameters[0].device
    where = torch.cuda.get_device_name(device) if device.type == "cuda" else f"CPU, {torch.get_num_threads()} threads"
    missing = cuda_missing_reason() if device.type == "cuda" else None
    kernels = f"plain PyTorch, because {missing}" if missing else device.type.upper()
    kind = "labelled training" if config.data.labeled_fraction < 1 else "training"
    lines = [
        f"device: {where}; kernels: {kernels}; mixed precision: {config.train.amp if device.type == 'cuda' else 'off'}",
        *_describe_processes(config),
        f"data: {len(data.train)} {kind} and {len(data.val)} validation images, {len(data.train.classes)} classes: "
        + ", ".join(data.train.classes),
        *(f"data, training part: {note}" for note in data.train.notes),
        *(f"data, validation part: {note}" for note in data.val.notes),
    ]
    if data.unlabeled is not None and config.data.unlabeled is not None:
        each, labelled = config.data.unlabeled.batch_size, config.train.batch_size
        lines.append(
            f"data: {len(data.unlabeled)} images without labels, {each} of them in each step besides {labelled} "
            "labelled ones"
        )
        lines += [f"data, unlabelled part: {note}" for note in data.unlabeled.notes]
    detectors = [("model", config.model, run.student)]
    if run.teacher is not None and config.teacher is not None:
        detectors.append(("teacher", config.teacher, run.teacher))
    for name, model, detector in detectors:
        millions = count_parameters(detector) / 1e6
        kind = f"own {type(detector).__name__}" if model.detector == "own" else f"{model.detector} {model.backbone}"
        lines.append(f"{name}: {kind}, {millions:.2f} M parameters")
        lines += [f"{name}: {note}" for note in detector.weight_notes]
    if config.distill is not None:
        lines.append(f"distillation: {config.distill.method}")
    if run.average is not None:
        lines.append(f"averaging: of the model's weights, decay {run.average.decay}; evaluated and saved as the model")
    return lines


def _describe_processes(config: Config) -> list[str]:
    if (count := process_count()) == 1:
        return []
    size, parts = config.train.batch_size, config.train.accumulate
    return [
        f"processes: {count}, each with {size // count} of a step's {size} images"
        + (f" in {parts} parts" if parts > 1 else "")
        + "; train.lr stays as it is"
    ]


def count_parameters(detector: nn.Module) -> int:
    return sum(p.numel() for p in detector.parameters())


def _detector(
    config: Config, model: ModelConfig, classes: list[str], device: torch.device, adapter: Builder | None
) -> Detector:
    distill = config.distill or DistillConfig()
    detector = build_detector(
        model,
        config.input,
        classes,
        response_cls=distill.response_cls,
        response_smooth_l1_beta=distill.response_smooth_l1_beta,
        fused_losses=config.train.fused_losses,
        adapter=adapter,
    ).to(device)
    return detector.to(memory_format=torch.channels_last) if config.train.channels_last else detector


def _teacher(
    config: Config, model: ModelConfig, classes: list[str], device: torch.device, adapter: Builder | None
) -> Detector:
    try:
        return _detector(config, model, classes, device, adapter).eval().requires_grad_(False)
    except UserError as error:  # told as of a model, whose keys are the same
        raise UserError(f"teacher: {error}") from None


def _compile(*detectors: Detector | None) -> None:
    """In place. Where batches differ in size, the second size makes torch compile anew, then for all sizes."""
    # Teacher and student often run the same code, which torch gives up compiling after eight variants.
    torch.compiler.config.recompile_limit = max(64, torch.compiler.config.recompile_limit)
    for detector in detectors:
        if detector is not None:
            detector.compile()


def without_compiled_code(config: Config) -> AbstractContextManager[Any]:
    """For evaluations: each of their many image sizes would be waited for."""
    return torch.compiler.set_stance("force_eager") if config.train.compile else nullcontext()


def _criterion(config: Config, student: Detector, teacher: Detector) -> Method:
    assert config.distill is not None
    try:
        return build_method(config.distill.method, student, teacher, **config.distill.method_options())
    except ValueError as error:
        raise UserError(f"distill: {error}") from None
