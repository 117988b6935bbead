"""A teacher and students on the same image, as in training: what pictures and statistics of instances begin with."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path

import torch

from gid_cuda.config import Config, DistillConfig, ModelConfig
from gid_cuda.data import DetectionDataset, Sample, build_dataset
from gid_cuda.detectors.build import build_detector
from gid_cuda.detectors.outputs import Detector, DetectorOutputs, GeneralInstances, Target
from gid_cuda.detectors.own import Builder, check_adapter
from gid_cuda.distill import check_anchors, select_instances
from gid_cuda.engine.checkpoint import load_checkpoint, load_detector
from gid_cuda.errors import UserError


@dataclass(frozen=True)
class Pairs:
    """The validation set of a distilled run, its teacher, and students with what to call each."""

    dataset: DetectionDataset
    distill: DistillConfig
    teacher: Detector
    students: list[tuple[str, Detector]]


def open_pairs(config: Config, weights: Sequence[Path], device: torch.device, adapter: Builder | None = None) -> Pairs:
    """config: a distilled run's; weights: checkpoints of students; adapter: builds a user's own detectors.

    Raises UserError where the config distils nothing, or a checkpoint does not fit it.
    """
    if config.distill is None or config.teacher is None:
        raise UserError(
            "the config has no distill section, and general instances are what teacher and student disagree about: "
            "give the config of a distilled run with --cfg"
        )
    check_adapter(adapter, config.model, config.teacher)
    dataset = build_dataset(config.data, "val")
    teacher = build_detector(config.teacher, config.input, dataset.classes, adapter=adapter).to(device).eval()
    students = [(_title(path), _student(path, dataset.classes, config.teacher, device, adapter)) for path in weights]
    return Pairs(dataset, config.distill, teacher, students)


@torch.no_grad()
def both_outputs(
    sample: Sample, student: Detector, teacher: Detector, distill: DistillConfig, *, title: str, device: torch.device
) -> tuple[DetectorOutputs, DetectorOutputs, GeneralInstances, list[Target]]:
    """One image through both (by the student's transform) -> outputs of teacher and student, selection, targets.

    Boxes and targets are in pixels of the transformed image. All instances of the selection are given, whichever kinds
    are distilled. title: names the student in the UserError that says that the anchors differ.
    """
    target: Target = {"boxes": sample.boxes.to(device), "labels": sample.labels.to(device)}
    images, targets = student.transform([sample.image.to(device).float() / 255], [target])
    ours, theirs = student(images), teacher(images)
    try:
        check_anchors(theirs, ours)
    except ValueError as error:
        raise UserError(f"{title}: {error}") from None
    instances = select_instances(
        theirs,
        ours,
        top_k=distill.top_k,
        nms_iou=distill.nms_iou,
        min_size=distill.min_size,
        pre_nms_top_k=distill.pre_nms_top_k,
    )
    return theirs, ours, instances, targets


def _title(path: Path) -> str:
    step = load_checkpoint(path).get("step")
    return f"{path.resolve().parent.name}/{path.name}, step {step}"


def _student(
    path: Path, classes: list[str], teacher: ModelConfig, device: torch.device, adapter: Builder | None
) -> Detector:
    detector, config, own = load_detector(path, adapter)
    kinds = config.model.detector, teacher.detector
    if kinds[0] != kinds[1] and "own" not in kinds:  # of one's own: its outputs decide
        raise UserError(
            f"{path} is of detector {kinds[0]}, and the config's teacher of {kinds[1]}, whose boxes are others: give "
            f"checkpoints of {kinds[1]}, or the config that this one was trained with"
        )
    if list(own) != list(classes):
        raise UserError(
            f"{path} was trained on the classes {', '.join(own)}, and the validation set has {', '.join(classes)}: "
            "give the config that it was trained with"
        )
    return detector.to(device).eval()
