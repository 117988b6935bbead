"""The pictures of a run: what student and teacher disagree about in chosen validation images, and its curves."""

from __future__ import annotations

from collections.abc import Sequence
from pathlib import Path

import torch

from gid_cuda.config import Config, DistillConfig
from gid_cuda.data import DetectionDataset, Sample
from gid_cuda.detectors.outputs import Detector
from gid_cuda.detectors.own import Builder
from gid_cuda.distill import KIND_NAMES, instance_kinds
from gid_cuda.engine.inference import make_folder
from gid_cuda.engine.pairs import both_outputs, open_pairs
from gid_cuda.errors import UserError
from gid_cuda.ops import gi_score
from gid_cuda.viz.curves import curves_figure
from gid_cuda.viz.heat_map import gi_heat_map
from gid_cuda.viz.instances import InstancesOfImage, instances_figure


def draw_instances(
    config: Config,
    weights: Sequence[Path],
    output: Path,
    *,
    count: int = 4,
    image_ids: Sequence[int] = (),
    image_files: Sequence[str] = (),
    device: torch.device,
    adapter: Builder | None = None,
) -> list[Path]:
    """Writes `instances_<image id>.png` into `output` for each chosen image and returns the paths.

    config:  a distilled run's: its validation set, teacher and distill settings (all GI kinds are shown, whichever are
             distilled)
    weights: checkpoints of students; several stand side by side, e.g. early and late in a run
    count:   how many images, spread evenly over the validation set; image_ids, image_files: these instead
    adapter: builds a user's own detectors
    Raises UserError where the parts do not fit each other.
    """
    pairs = open_pairs(config, weights, device, adapter)
    dataset = pairs.dataset
    indices = choose_images(dataset, count, image_ids, image_files)
    make_folder(output)
    paths = []
    for index in indices:
        sample = dataset[index]
        parts = [
            instances_of_image(sample, student, pairs.teacher, pairs.distill, title=title, device=device)
            for title, student in pairs.students
        ]
        heading = f"image {sample.image_id}: {Path(sample.path).name}"
        note = distilled_kinds(pairs.distill)
        figure = instances_figure(sample.image, sample.boxes, parts, heading, note=note)
        paths.append(output / f"instances_{sample.image_id}.png")
        figure.savefig(paths[-1])
    return paths


def distilled_kinds(distill: DistillConfig) -> str:
    """Which of the instances that are shown teach; nothing to say where all of them do."""
    if distill.method != "gid":
        return f"none of them teaches: the method is {distill.method}"
    if distill.kinds == "ground_truth":
        return "none of them teaches: ground truth does"
    return "" if distill.kinds == "all" else f"of them teach: {', '.join(distill.kinds)}"


def draw_curves(runs: Sequence[Path], names: Sequence[str], output: Path) -> Path:
    """Writes `curves.png` into `output`, see `curves_figure`, and returns its path."""
    figure = curves_figure(runs, names)
    make_folder(output)
    path = output / "curves.png"
    figure.savefig(path)
    return path


def choose_images(
    dataset: DetectionDataset, count: int, image_ids: Sequence[int] = (), image_files: Sequence[str] = ()
) -> list[int]:
    """The indices of these ids and of these files, or of `count` images spread evenly: files are often sorted by what
    they show.

    image_files: paths, or their last parts ("val/000001.jpg", "000001.jpg"), with or without suffix.
    """
    if image_ids or image_files:
        return [_index_of_id(dataset, key) for key in image_ids] + [_index_of_file(dataset, n) for n in image_files]
    count = min(count, len(dataset))
    return [i * len(dataset) // count for i in range(count)]


def _index_of_id(dataset: DetectionDataset, image_id: int) -> int:
    if image_id not in dataset.image_ids:
        raise UserError(
            f"the validation set has no image with id {image_id}; its ids go from {min(dataset.image_ids)} "
            f"to {max(dataset.image_ids)}"
        )
    return dataset.image_ids.index(image_id)


def _index_of_file(dataset: DetectionDataset, name: str) -> int:
    wanted = Path(name).parts
    found = []
    for index in range(len(dataset)):
        path = dataset.path(index)
        if any(p.parts[-len(wanted) :] == wanted for p in (path, path.with_suffix(""))):
            found.append(index)
    if len(found) == 1:
        return found[0]
    if not found:
        raise UserError(f"the validation set has no image file {name}; its first is {dataset.path(0)}")
    first, second = (dataset.path(i) for i in found[:2])
    raise UserError(
        f"{len(found)} image files of the validation set are called {name}, among them {first} and {second}: "
        "give more of the path"
    )


@torch.no_grad()
def instances_of_image(
    sample: Sample, student: Detector, teacher: Detector, distill: DistillConfig, *, title: str, device: torch.device
) -> InstancesOfImage:
    """One image through both detectors as in training (by the transform of the student), and the selection; all is
    given in the pixels of the image file."""
    theirs, ours, instances, targets = both_outputs(sample, student, teacher, distill, title=title, device=device)
    kinds = instance_kinds(instances, targets)[0].tolist()
    scores, _ = gi_score(theirs.logits, ours.logits, theirs.boxes, ours.boxes, ours.image_sizes)
    height, width = sample.image.shape[1:]
    seen_height, seen_width = ours.image_sizes[0].tolist()
    scale = torch.tensor([width / seen_width, height / seen_height] * 2)
    filled = int(instances.counts[0])
    return InstancesOfImage(
        title=title,
        boxes=instances.boxes[0, :filled].cpu() * scale,
        scores=instances.scores[0, :filled].cpu(),
        kinds=[KIND_NAMES[kind] for kind in kinds[:filled]],
        heat=gi_heat_map(scores[0], ours, 0, (height, width)),
    )
