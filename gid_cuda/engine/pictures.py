"""The pictures of a run: what student and teacher disagree about in chosen validation images, and its curves."""

from __future__ import annotations

from collections.abc import Sequence
from pathlib import Path

import torch

from gid_cuda.config import Config, DistillConfig
from gid_cuda.data import DetectionDataset, Sample, build_dataset
from gid_cuda.detectors.build import build_detector
from gid_cuda.detectors.outputs import Detector, Target
from gid_cuda.detectors.own import Builder, check_adapter
from gid_cuda.distill import (
    NEGATIVE,
    POSITIVE,
    SEMI_POSITIVE,
    UNCOUNTED,
    check_anchors,
    instance_kinds,
    select_instances,
)
from gid_cuda.engine.checkpoint import load_checkpoint, load_detector
from gid_cuda.engine.inference import make_folder
from gid_cuda.errors import UserError
from gid_cuda.ops import gi_score
from gid_cuda.viz.curves import curves_figure
from gid_cuda.viz.instances import InstancesOfImage, gi_heat_map, instances_figure

_KIND_NAMES = {
    POSITIVE: "positive",
    SEMI_POSITIVE: "semi-positive",
    NEGATIVE: "negative",
    UNCOUNTED: "uncounted",
}


def draw_instances(
    config: Config,
    weights: Sequence[Path],
    output: Path,
    *,
    count: int = 4,
    image_ids: Sequence[int] = (),
    device: torch.device,
    adapter: Builder | None = None,
) -> list[Path]:
    """Writes `instances_<image id>.png` into `output` for each chosen image and returns the paths.

    config:  a distilled run's: its validation set, teacher and distill settings (all GI kinds are shown, whichever are
             distilled)
    weights: checkpoints of students; several stand below each other, e.g. early and late in a run
    count:   how many images, spread evenly over the validation set; image_ids: these instead
    adapter: builds a user's own detectors
    Raises UserError where the parts do not fit each other.
    """
    if config.distill is None or config.teacher is None:
        raise UserError(
            "the config has no distill section, and general instances are what teacher and student disagree about: "
            "give the config of a distilled run with --cfg"
        )
    check_adapter(adapter, config.model, config.teacher)
    dataset = build_dataset(config.data, "val")
    indices = choose_images(dataset, count, image_ids)
    teacher = build_detector(config.teacher, config.input, dataset.classes, adapter=adapter).to(device).eval()
    students = [(_title(path), _student(path, dataset.classes, device, adapter)) for path in weights]
    make_folder(output)
    paths = []
    for index in indices:
        sample = dataset[index]
        parts = [
            instances_of_image(sample, student, teacher, config.distill, title=title, device=device)
            for title, student in students
        ]
        heading = f"image {sample.image_id}: {Path(sample.path).name}"
        figure = instances_figure(sample.image, sample.boxes, parts, heading)
        paths.append(output / f"instances_{sample.image_id}.png")
        figure.savefig(paths[-1])
    return paths


def draw_curves(runs: Sequence[Path], names: Sequence[str], output: Path) -> Path:
    """Writes `curves.png` into `output`, see `curves_figure`, and returns its path."""
    figure = curves_figure(runs, names)
    make_folder(output)
    path = output / "curves.png"
    figure.savefig(path)
    return path


def choose_images(dataset: DetectionDataset, count: int, image_ids: Sequence[int]) -> list[int]:
    """The indices of these ids, or of `count` images spread evenly: files are often sorted by what they show."""
    if image_ids:
        unknown = [key for key in image_ids if key not in dataset.image_ids]
        if unknown:
            raise UserError(
                f"the validation set has no image with id {unknown[0]}; its ids go from {min(dataset.image_ids)} "
                f"to {max(dataset.image_ids)}"
            )
        return [dataset.image_ids.index(key) for key in image_ids]
    count = min(count, len(dataset))
    return [i * len(dataset) // count for i in range(count)]


@torch.no_grad()
def instances_of_image(
    sample: Sample, student: Detector, teacher: Detector, distill: DistillConfig, *, title: str, device: torch.device
) -> InstancesOfImage:
    """One image through both detectors as in training (by the transform of the student), and the selection; all is
    given in the pixels of the image file."""
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
    kinds = instance_kinds(instances, targets)[0].tolist()
    scores, _ = gi_score(theirs.logits, ours.logits, theirs.boxes, ours.boxes, ours.image_sizes)
    height, width = sample.image.shape[1:]
    seen_height, seen_width = images.image_sizes[0]
    scale = torch.tensor([width / seen_width, height / seen_height] * 2)
    filled = int(instances.counts[0])
    return InstancesOfImage(
        title=title,
        boxes=instances.boxes[0, :filled].cpu() * scale,
        scores=instances.scores[0, :filled].cpu(),
        kinds=[_KIND_NAMES[kind] for kind in kinds[:filled]],
        heat=gi_heat_map(scores[0], ours, 0, (height, width)),
    )


def _title(path: Path) -> str:
    step = load_checkpoint(path).get("step")
    return f"{path.resolve().parent.name}/{path.name}, step {step}"


def _student(path: Path, classes: list[str], device: torch.device, adapter: Builder | None) -> Detector:
    detector, _, own = load_detector(path, adapter)
    if list(own) != list(classes):
        raise UserError(
            f"{path} was trained on the classes {', '.join(own)}, and the validation set has {', '.join(classes)}: "
            "give the config that it was trained with"
        )
    return detector.to(device).eval()
