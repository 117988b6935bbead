"""What goes wrong silently in distillation, found while it is cheap: each check gives a sentence or None."""

from __future__ import annotations

import math
from collections.abc import Mapping, Sequence
from itertools import combinations

import torch
from torch import Tensor

from gid_cuda.data import DetectionDataset
from gid_cuda.detectors.outputs import Detector
from gid_cuda.engine.evaluation import coco_metrics, detect
from gid_cuda.errors import UserError

TEACHER_SAMPLE = 64  # validation images
CHANCE_MARGIN = 1.25
BALANCE_STEPS = 100
BALANCE_FACTOR = 100.0


def teacher_check(
    teacher: Detector, dataset: DetectionDataset, *, batch_size: int, workers: int, device: torch.device
) -> tuple[str, str | None]:
    """(what the teacher reaches on a sample of the validation images, a warning where that is no better than chance).

    Chance: an AP50 under 1 %, or hardly above what the same boxes reach on the wrong images (each image's ground truth
    against the detections of the image before it). A wrongly loaded teacher is the commonest mistake.
    """
    count = min(TEACHER_SAMPLE, len(dataset))
    indices = [i * len(dataset) // count for i in range(count)]  # spread evenly: files are often sorted by class
    found = detect(teacher, dataset, batch_size=batch_size, workers=workers, device=device, indices=indices)
    truth, ids = dataset.ground_truth(), found.image_ids
    score = coco_metrics(truth, found.results, ids)["AP50"]
    if score is None:
        return f"teacher: not checked, the {len(ids)} sampled validation images have no ground truth", None
    after = dict(zip(ids, ids[1:] + ids[:1], strict=True))
    shifted = [{**r, "image_id": after[r["image_id"]]} for r in found.results]
    chance = coco_metrics(truth, shifted, ids)["AP50"] if len(ids) > 1 else 0.0
    summary = f"teacher: AP50 {score:.1f} on {len(ids)} validation images"
    if score >= 1.0 and score > CHANCE_MARGIN * chance:
        return summary, None
    anywhere = coco_metrics(truth, found.results, ids, use_classes=False)["AP50"]
    if anywhere >= 1.0 and anywhere > 5 * score:
        cause = f"its boxes fit (AP50 {anywhere:.1f} whatever the class), so the order of the classes is likely wrong"
    else:
        cause = (
            "likely causes: a wrong or untrained weights file, another order of the classes, or input.mean, input.std "
            "and input.min_size that differ from those it was trained with"
        )
    return summary, f"warning: this teacher is no better than chance and will teach nothing; {cause}"


class NotFinite(UserError):
    """A loss or the gradient of a step is not finite. what: that alone, without what to do. skipping: train.on_nan=skip
    is set already."""

    def __init__(self, what: str, *, skipping: bool = False) -> None:
        skip = "" if skipping else ", or leave out single steps with train.on_nan=skip"
        super().__init__(
            f"{what}; no weight and no checkpoint was changed: lower train.lr or set train.clip_grad_norm{skip}; "
            "--resume goes on from the last checkpoint, if there is one"
        )
        self.what = what


class Balance:
    """Watches the weighted distillation terms, `names`, over the first steps of a run; with none of them, nothing."""

    def __init__(self, names: Sequence[str]) -> None:
        self._names = names
        self._history: list[dict[str, float]] = []
        self._watching = len(names) > 0

    def add(self, values: Mapping[str, float]) -> str | None:
        """After each step; gives `balance_warning`'s sentence once, after the last of the first steps."""
        if not self._watching:
            return None
        self._history.append({name: values[name] for name in self._names})
        if len(self._history) < BALANCE_STEPS:
            return None
        self._watching = False
        return balance_warning(self._history)


def balance_warning(history: Sequence[Mapping[str, float]]) -> str | None:
    """history: the weighted distillation terms of the first steps. A warning where two stayed 100 times apart.

    A term that is 0 throughout is switched off (its weight is 0) and takes no part.
    """
    names = [name for name in history[0] if any(values[name] != 0 for values in history)]
    for one, other in combinations(names, 2):
        for large, small in ((one, other), (other, one)):
            if all(abs(values[large]) > BALANCE_FACTOR * abs(values[small]) for values in history):
                return (
                    f"warning: {large} was more than {BALANCE_FACTOR:.0f} times {small} in each of the first "
                    f"{len(history)} steps, so {small} has next to no effect; change their weights in distill "
                    "(for a large loss_feature, reduction: pixel)"
                )
    return None


def finite_values(
    parts: Sequence[Mapping[str, Tensor]],
    norm: Tensor,
    *,
    norm_may_overflow: bool,
    step: int,
    image_ids: list[list[int]],
) -> dict[str, float]:
    """Loss terms of a step's parts, scalars on the device -> their means. The one wait for the device in a step.

    Raises NotFinite where a term, or the norm of the gradient, is not finite; no weight has been changed then.
    norm_may_overflow: fp16's scaler skips such a step by itself.
    """
    names = list(parts[0])
    stacked = torch.stack([part[name].detach().float() for part in parts for name in names] + [norm.detach().float()])
    *flat, norm_value = stacked.tolist()
    rows = [dict(zip(names, flat[i : i + len(names)], strict=True)) for i in range(0, len(flat), len(names))]
    for row, ids in zip(rows, image_ids, strict=True):
        for name, value in row.items():
            if not math.isfinite(value):
                raise NotFinite(f"{name} became {value}{_at(step, ids)}")
    if not math.isfinite(norm_value) and not norm_may_overflow:
        raise NotFinite(f"the gradient is not finite{_at(step, [i for ids in image_ids for i in ids])}")
    return {name: sum(row[name] for row in rows) / len(rows) for name in names}


def _at(step: int, ids: list[int]) -> str:
    return f" at step {step} on the images with ids {', '.join(map(str, ids))}"
