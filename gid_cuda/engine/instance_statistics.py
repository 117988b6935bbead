"""Statistics of general instances over validation images: of checkpoints against their teacher."""

from __future__ import annotations

import json
from collections.abc import Sequence
from pathlib import Path

import torch

from gid_cuda.config import Config
from gid_cuda.data.images import UnreadableImage
from gid_cuda.detectors.outputs import Detector
from gid_cuda.detectors.own import Builder
from gid_cuda.distill import KIND_NAMES, instance_kinds, overlaps
from gid_cuda.engine.inference import make_folder
from gid_cuda.engine.pairs import Pairs, both_outputs, open_pairs
from gid_cuda.engine.pictures import choose_images
from gid_cuda.errors import UserError
from gid_cuda.viz.statistics import InstanceStatistics, statistics_data, statistics_figure


def draw_statistics(
    config: Config,
    weights: Sequence[Path],
    output: Path,
    *,
    count: int,
    device: torch.device,
    adapter: Builder | None = None,
) -> list[Path]:
    """Writes `statistics.png` and, with the same numbers, `statistics.json` into `output`; returns their paths.

    config, weights, adapter: see `draw_instances`. count: how many images, spread evenly over the validation set;
    those that cannot be read are left out. Raises UserError where the parts do not fit each other.
    """
    pairs = open_pairs(config, weights, device, adapter)
    indices = choose_images(pairs.dataset, count)
    parts = [statistics_of(pairs, indices, student, title=title, device=device) for title, student in pairs.students]
    make_folder(output)
    picture, numbers = output / "statistics.png", output / "statistics.json"
    numbers.write_text(json.dumps(statistics_data(parts), indent=1) + "\n", encoding="utf-8")
    heading = f"general instances, {pairs.distill.top_k} an image at most"
    statistics_figure(parts, heading).savefig(picture)
    return [picture, numbers]


def statistics_of(
    pairs: Pairs, indices: Sequence[int], student: Detector, *, title: str, device: torch.device
) -> InstanceStatistics:
    """All general instances of the teacher and this student in the images at `indices`."""
    rows, kinds, images = [torch.zeros(0, 3)], [], 0
    problem = None
    for index in indices:
        try:
            sample = pairs.dataset[index]
        except UnreadableImage as error:
            problem = error
            continue
        images += 1
        *_, found, targets = both_outputs(sample, student, pairs.teacher, pairs.distill, title=title, device=device)
        filled = int(found.counts[0])
        values = torch.stack([found.scores, *overlaps(found, targets)], dim=-1)  # (1, K, 3)
        rows.append(values[0, :filled].cpu())
        kinds += [KIND_NAMES[kind] for kind in instance_kinds(found, targets)[0, :filled].tolist()]
    if problem is not None and images == 0:
        raise UserError(f"none of the {len(indices)} sampled validation images can be read: {problem}")
    score, iou, iop = torch.cat(rows).unbind(1)
    return InstanceStatistics(title, images, score, iou, iop, kinds)
