"""COCO average precision by pycocotools, in percent (0 to 100) as the field prints it; None: nothing to count."""

from __future__ import annotations

import contextlib
import io
import itertools
from collections.abc import Callable, Iterable, Sequence
from dataclasses import dataclass
from typing import Any

import numpy as np
import torch
from pycocotools.coco import COCO
from pycocotools.cocoeval import COCOeval

from gid_cuda.config import Config
from gid_cuda.data import DetectionDataset, build_dataset, build_loader
from gid_cuda.detectors.build import build_detector
from gid_cuda.detectors.outputs import Detector
from gid_cuda.detectors.own import Builder, check_adapter
from gid_cuda.engine.device import choose_device
from gid_cuda.engine.distributed import first_of_each_machine, gathered, on_main, process_count, rank

Metrics = dict[str, Any]
"""AP, AP50, AP75, APs, APm, APl, AR (100 detections), ARs, ARm, ARl: percent or None; per_class: AP by class name.
`evaluate` adds images (how many were evaluated) and unreadable (the files that were not)."""


@dataclass
class Detections:
    """What a detector found: COCO results, the ids of the images it has seen, the files that could not be read."""

    results: list[dict[str, Any]]
    image_ids: list[int]
    unreadable: list[str]


def evaluate(
    detector: Detector,
    dataset: DetectionDataset,
    *,
    batch_size: int,
    workers: int,
    device: torch.device,
    between: Callable[[], None] | None = None,
) -> Metrics:
    """COCO metrics of `detector` over all readable images of `dataset`; `unreadable` lists the others.

    Many processes share the work, each image going to one of them, and all get the same metrics. between: called after
    each batch."""
    found = detect(detector, dataset, batch_size=batch_size, workers=workers, device=device, between=between)

    def metrics() -> Metrics:
        numbers = coco_metrics(dataset.ground_truth(), found.results, found.image_ids)
        return {**numbers, "images": len(found.image_ids), "unreadable": found.unreadable}

    return on_main(metrics)


def evaluate_weights(config: Config, weights: str, *, adapter: Builder | None = None) -> Metrics:
    """`evaluate` for a weights file: the detector is `config.model` with these weights; adapter builds a user's own.

    notes, one line each: flaws of the data, how the weights were loaded, files that cannot be read.
    """
    check_adapter(adapter, config.model)
    with first_of_each_machine():
        dataset = build_dataset(config.data, "val")
    model = config.model.model_copy(update={"weights": weights})
    device = choose_device(config.device)
    detector = build_detector(model, config.input, dataset.classes, adapter=adapter).to(device)
    batch_size = config.train.batch_size // config.train.accumulate
    metrics = evaluate(detector, dataset, batch_size=batch_size, workers=config.data.workers, device=device)
    left_out = [f"left out, as it cannot be read: {problem}" for problem in metrics["unreadable"]]
    data_notes = [f"data: {note}" for note in (*dataset.notes, *left_out)]
    return {**metrics, "notes": [*data_notes, *(f"model: {note}" for note in detector.weight_notes)]}


@torch.no_grad()
def detect(
    detector: Detector,
    dataset: DetectionDataset,
    *,
    batch_size: int,
    workers: int,
    device: torch.device,
    indices: Sequence[int] | None = None,
    between: Callable[[], None] | None = None,
) -> Detections:
    """Run `predict` over the data set, or over the images at `indices`; the detector's mode is given back as it was.

    Many processes take whole batches in turn, so that each is what it is with one process: rank 0 gets what all found,
    in the order of the images, and the others get nothing.
    """
    images: Any = dataset if indices is None else torch.utils.data.Subset(dataset, indices)
    share = {"rank": rank(), "processes": process_count()}
    own = []  # of each batch
    was_training = detector.training
    detector.eval()
    try:
        for batch in build_loader(images, batch_size=batch_size, workers=workers, train=False, **share):
            found = Detections([], batch.image_ids, batch.unreadable)
            if batch.images:
                predictions = detector.predict([image.to(device).float() / 255 for image in batch.images])
                found.results += coco_results(predictions, batch.image_ids, dataset.category_ids)
            own.append(found)
            if between is not None:
                between()
    finally:
        detector.train(was_training)
    return _in_order(gathered(own))


def _in_order(batches: Sequence[Sequence[Detections]]) -> Detections:
    """batches: of each process, which took them in turn."""
    whole = Detections([], [], [])
    for turn in itertools.zip_longest(*batches):
        for batch in turn:
            if batch is not None:
                whole.results += batch.results
                whole.image_ids += batch.image_ids
                whole.unreadable += batch.unreadable
    return whole


def coco_results(
    predictions: Iterable[dict[str, Any]], image_ids: Iterable[int], category_ids: Sequence[int]
) -> list[dict[str, Any]]:
    """`predict`'s lists -> entries of a COCO results file: bbox is x, y, width, height in pixels."""
    results = []
    for prediction, image_id in zip(predictions, image_ids, strict=True):
        boxes = prediction["boxes"].cpu()
        boxes = torch.cat([boxes[:, :2], boxes[:, 2:] - boxes[:, :2]], dim=1).tolist()
        for box, score, label in zip(boxes, prediction["scores"].tolist(), prediction["labels"].tolist(), strict=True):
            results.append({"image_id": image_id, "category_id": category_ids[label], "bbox": box, "score": score})
    return results


class _Evaluation(COCOeval):
    """COCOeval in which a difficult box of VOC is neither hit nor miss, however many detections lie on it.

    pycocotools knows two kinds of ignored boxes: crowds forgive any number of detections, by IoP; those of another size
    one detection each, by IoU. A difficult box, by VOC's rule, forgives any number by IoU. Normal boxes are matched
    first, as ever.
    """

    def _prepare(self) -> None:
        super()._prepare()  # which overwrites `ignore` by `iscrowd`
        for truth in self._gts.values():
            for annotation in truth:
                annotation["iscrowd"] = annotation["crowd"]
                annotation["ignore"] = annotation["crowd"] or annotation["difficult"]

    def computeIoU(self, imgId: int, catId: int) -> Any:
        """`evaluate` calls it for all images before it matches any. Here `iscrowd` means IoP, there that a box may be
        matched again."""
        ious = super().computeIoU(imgId, catId)
        for category in [catId] if self.params.useCats else self.params.catIds:
            for annotation in self._gts.get((imgId, category), ()):
                annotation["iscrowd"] = annotation["ignore"]
        return ious


def coco_metrics(
    ground_truth: dict[str, Any], results: list[dict[str, Any]], image_ids: Sequence[int], *, use_classes: bool = True
) -> Metrics:
    """ground_truth: {images, annotations, categories} in COCO's format. Only the images in `image_ids` count.

    No detections at all is an AP of 0. `use_classes=False` scores boxes whatever their class.
    """
    truth = [
        # Numbered from 1: pycocotools takes a match with the annotation 0 for a miss.
        {**a, "id": number, "crowd": int(a.get("iscrowd", 0)), "difficult": int(a.get("ignore", 0))}
        for number, a in enumerate(ground_truth["annotations"], start=1)
    ]
    found = [
        {**r, "id": number, "iscrowd": 0, "area": r["bbox"][2] * r["bbox"][3]}
        for number, r in enumerate(results, start=1)
    ]
    with contextlib.redirect_stdout(io.StringIO()):
        run = _Evaluation(_coco(ground_truth, truth), _coco(ground_truth, found), iouType="bbox")
        run.params.imgIds = list(image_ids)
        run.params.useCats = int(use_classes)
        if image_ids:
            run.evaluate()
            run.accumulate()
    names = {c["id"]: c["name"] for c in ground_truth["categories"]}
    return _summary(run, names, use_classes) if image_ids else _empty(names)


def _coco(ground_truth: dict[str, Any], annotations: list[dict[str, Any]]) -> COCO:
    coco = COCO()
    coco.dataset = {**ground_truth, "annotations": annotations}
    coco.createIndex()
    return coco


_AREAS = ("", "s", "m", "l")  # the order of COCOeval's area ranges: all, small, medium, large


def _summary(run: COCOeval, names: dict[int, str], use_classes: bool) -> Metrics:
    precision = run.eval["precision"][..., -1]  # (10 IoUs, 101 recalls, classes, 4 areas) at 100 detections an image
    recall = run.eval["recall"][..., -1]  # (10 IoUs, classes, 4 areas)
    metrics: Metrics = {"AP": None, "AP50": _mean(precision[0, :, :, 0]), "AP75": _mean(precision[5, :, :, 0])}
    for area, suffix in enumerate(_AREAS):
        metrics[f"AP{suffix}"] = _mean(precision[..., area])
    for area, suffix in enumerate(_AREAS):
        metrics[f"AR{suffix}"] = _mean(recall[..., area])
    if use_classes:
        place = {category: k for k, category in enumerate(run.params.catIds)}  # sorted by id; names go by label
        metrics["per_class"] = {name: _mean(precision[:, :, place[category], 0]) for category, name in names.items()}
    return metrics


def _empty(names: dict[int, str]) -> Metrics:
    keys = ["AP", "AP50", "AP75", "APs", "APm", "APl", "AR", "ARs", "ARm", "ARl"]
    return {**dict.fromkeys(keys), "per_class": dict.fromkeys(names.values())}


def _mean(values: np.ndarray) -> float | None:
    """Percent over what is counted; pycocotools writes -1 where there is no ground truth (of that class and size)."""
    counted = values[values > -1]
    return 100 * float(counted.mean()) if counted.size else None


def format_metrics(metrics: Metrics) -> str:
    """Two aligned tables: the ten COCO numbers, then AP by class."""

    def cell(value: float | None) -> str:
        return "-" if value is None else f"{value:.1f}"

    overall = {name: value for name, value in metrics.items() if name[:2] in ("AP", "AR")}
    lines = ["".join(f"{name:>7}" for name in overall), "".join(f"{cell(value):>7}" for value in overall.values())]
    width = max([len(name) for name in metrics["per_class"]] + [5])
    lines += ["", f"{'class':<{width}}{'AP':>7}"]
    lines += [f"{name:<{width}}{cell(value):>7}" for name, value in metrics["per_class"].items()]
    return "\n".join(lines)
