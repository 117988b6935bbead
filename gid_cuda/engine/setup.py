"""From a config to what a run works with: data, device, detectors, criterion, optimizer, and their state to save."""

from __future__ import annotations

import random
from contextlib import AbstractContextManager, nullcontext
from dataclasses import asdict, dataclass, field
from pathlib import Path
from typing import Any

import numpy as np
import torch
import torch.compiler.config
from torch import nn

from gid_cuda._library import cuda_missing_reason
from gid_cuda.config import Config, DataConfig, DistillConfig, ModelConfig, load_config
from gid_cuda.data import DetectionDataset, UnlabeledImages, build_dataset, build_training
from gid_cuda.detectors.build import build_detector
from gid_cuda.detectors.outputs import Detector
from gid_cuda.detectors.own import Builder
from gid_cuda.distill import Method, build_method
from gid_cuda.engine import optim
from gid_cuda.engine.checkpoint import random_states, set_random_states
from gid_cuda.engine.device import choose_device
from gid_cuda.engine.distributed import gathered, process_count, rank, wrap
from gid_cuda.engine.draws import process_seed
from gid_cuda.engine.objective import Objective
from gid_cuda.errors import UserError


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
    progress: Progress = field(default_factory=Progress)
    metrics: dict[str, Any] | None = None  # of the latest evaluation
    skipped_in_a_row: int = 0  # steps, up to the last one
    told: set[str] = field(default_factory=set)  # what has been said of files that cannot be read
    objective: nn.Module = field(init=False)  # student and criterion; of many processes, in DistributedDataParallel

    def __post_init__(self) -> None:
        self.objective = wrap(Objective(self.student, self.criterion))

    def resume_state(self) -> dict[str, Any]:
        """All but the student's weights, as plain containers and tensors. Asked by all processes, right on rank 0."""
        own = random_states()
        return {
            "optimizer": self.optimizer.state_dict(),
            "scaler": self.scaler.state_dict(),
            "criterion": self.criterion.state_dict() if self.criterion is not None else None,
            "progress": asdict(self.progress),
            "random": own,
            "random_of_others": gathered(own)[1:],  # of ranks 1, 2, ...
        }

    def restore(self, content: dict[str, Any]) -> None:
        """From a checkpoint with its training state, all but the random states: see `start_random`."""
        saved = content["resume"]
        self.student.load_state_dict(content["model"])
        self.optimizer.load_state_dict(saved["optimizer"])
        if saved["scaler"]:  # empty where it was off: on the CPU, or before train.amp became fp16
            self.scaler.load_state_dict(saved["scaler"])
        if self.criterion is not None:
            self.criterion.load_state_dict(saved["criterion"])
        self.progress = Progress(**saved["progress"])
        self.metrics = content["metrics"]


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
    return Run(student.train(), teacher, criterion, parameters, optimizer, autocast, scaler)


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
    lines = [
        f"device: {where}; kernels: {kernels}; mixed precision: {config.train.amp if device.type == 'cuda' else 'off'}",
        *_describe_processes(config),
        f"data: {len(data.train)} training and {len(data.val)} validation images, {len(data.train.classes)} classes: "
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
