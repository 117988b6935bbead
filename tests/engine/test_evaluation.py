"""COCO metrics on hand-made detections: against pycocotools' own numbers, and where it has traps."""

from __future__ import annotations

import contextlib
import copy
import io
from pathlib import Path
from typing import Any

import pytest
import torch
from engine_helpers import plain_config
from pycocotools.coco import COCO
from pycocotools.cocoeval import COCOeval

from gid_cuda.data import build_dataset
from gid_cuda.detectors.outputs import Detector
from gid_cuda.engine import evaluation
from gid_cuda.engine.evaluation import (
    coco_metrics,
    coco_results,
    detect,
    evaluate,
    evaluate_weights,
    format_metrics,
)
from gid_cuda.errors import UserError

SUMMARY = ["AP", "AP50", "AP75", "APs", "APm", "APl", None, None, "AR", "ARs", "ARm", "ARl"]


def truth(*annotations: dict[str, Any], images: int = 2) -> dict[str, Any]:
    rows = [
        {"id": i, "iscrowd": 0, "area": a["bbox"][2] * a["bbox"][3], **a} for i, a in enumerate(annotations, start=1)
    ]
    return {
        "images": [{"id": i, "width": 400, "height": 400} for i in range(1, images + 1)],
        "annotations": rows,
        "categories": [{"id": 3, "name": "cat"}, {"id": 7, "name": "dog"}],
    }


def box(image_id: int, category_id: int, x: float, size: float, **more: Any) -> dict[str, Any]:
    return {"image_id": image_id, "category_id": category_id, "bbox": [x, 10.0, size, size], **more}


def random_case(seed: int) -> tuple[dict[str, Any], list[dict[str, Any]]]:
    """Boxes of all sizes and both classes, a crowd among them, and detections that are near some of them."""
    generator = torch.Generator().manual_seed(seed)

    def draw(low: float, high: float) -> float:
        return low + (high - low) * torch.rand((), generator=generator).item()

    boxes = [box(1 + i % 2, (3, 7)[i % 3 == 0], draw(0, 200), draw(10, 150), iscrowd=int(i == 5)) for i in range(24)]
    found = []
    for b in boxes[:20]:
        x, y, w, h = b["bbox"]
        moved = [x + draw(-5, 5), y + draw(-5, 5), w * draw(0.8, 1.2), h]
        found.append({"image_id": b["image_id"], "category_id": b["category_id"], "bbox": moved, "score": draw(0, 1)})
    return truth(*boxes), found


@pytest.mark.parametrize("seed", range(3))
def test_the_ten_numbers_are_pycocotools_own(seed: int) -> None:
    ground_truth, found = random_case(seed)
    metrics = coco_metrics(ground_truth, found, [1, 2])
    with contextlib.redirect_stdout(io.StringIO()):
        coco = COCO()
        coco.dataset = copy.deepcopy(ground_truth)
        coco.createIndex()
        run = COCOeval(coco, coco.loadRes(copy.deepcopy(found)), "bbox")
        run.evaluate()
        run.accumulate()
        run.summarize()
    expected = {name: 100 * value for name, value in zip(SUMMARY, run.stats, strict=True) if name}
    assert {name: metrics[name] for name in expected} == pytest.approx(expected)
    assert 0 < metrics["AP"] < 100
    assert metrics["AP"] == pytest.approx(sum(metrics["per_class"].values()) / 2)


def test_perfect_detections() -> None:
    ground_truth = truth(box(1, 3, 10, 20), box(2, 7, 30, 200))
    found = [{**box(1, 3, 10, 20), "score": 0.9}, {**box(2, 7, 30, 200), "score": 0.1}]
    metrics = coco_metrics(ground_truth, found, [1, 2])
    assert [metrics[name] for name in ("AP", "AP50", "APs", "APl", "AR", "ARs")] == pytest.approx([100.0] * 6)
    assert metrics["APm"] is None and metrics["ARm"] is None
    assert metrics["per_class"] == pytest.approx({"cat": 100.0, "dog": 100.0})


def test_no_detections_are_an_ap_of_zero_and_no_ground_truth_is_none() -> None:
    metrics = coco_metrics(truth(box(1, 3, 10, 20)), [], [1, 2])
    assert metrics["AP"] == metrics["AR"] == metrics["per_class"]["cat"] == 0.0
    assert metrics["per_class"]["dog"] is None
    for metrics in (coco_metrics(truth(), [], [1, 2]), coco_metrics(truth(box(1, 3, 10, 20)), [], [])):
        assert metrics["AP"] is None and metrics["per_class"] == {"cat": None, "dog": None}


def test_a_difficult_box_is_neither_hit_nor_miss() -> None:
    """Found or not, the AP is that of the other box; and by plain IoU: a small part of it found is a false alarm."""
    plain, difficult = box(1, 3, 10, 50), box(1, 3, 150, 50, ignore=1)
    hit = {**plain, "score": 0.5}
    on_it = {**box(1, 3, 150, 50), "score": 0.9}
    a_part_of_it = {**box(1, 3, 150, 20), "score": 0.9}
    for found, expected in [([hit], 100), ([hit, on_it], 100), ([hit, a_part_of_it], 50)]:
        assert coco_metrics(truth(plain, difficult), found, [1])["AP"] == pytest.approx(expected)
    crowd = box(1, 3, 150, 50, iscrowd=1)  # by contrast: any part of a crowd is forgiven
    assert coco_metrics(truth(plain, crowd), [hit, a_part_of_it], [1])["AP"] == pytest.approx(100)


def test_a_difficult_box_forgives_any_number_of_detections() -> None:
    """VOC's rule; a normal box forgives none."""
    plain, difficult = box(1, 3, 10, 50), box(1, 3, 150, 50, ignore=1)
    hit = {**plain, "score": 0.5}
    on_it = [{**box(1, 3, 150 + i / 2, 50), "score": 0.9 - i / 100} for i in range(3)]  # IoU >= 0.96
    for use_classes in (True, False):
        metrics = coco_metrics(truth(plain, difficult), [hit, *on_it], [1], use_classes=use_classes)
        assert (metrics["AP"], metrics["AR"]) == pytest.approx((100, 100))
    normal = truth(plain, box(1, 3, 150, 50))
    assert coco_metrics(normal, [{**hit, "score": 0.1}, *on_it], [1])["AP50"] < 90
    assert coco_metrics(truth(difficult), on_it, [1])["AP"] is None  # nothing to find, and no false alarm


def test_a_difficult_box_over_a_normal_one() -> None:
    """Their IoU is 2/3. A detection takes the normal box first where it is free and the IoU suffices."""
    plain, difficult = box(1, 3, 10, 50), box(1, 3, 20, 50, ignore=1)
    both, again, hit = ({**b, "score": s} for b, s in ((difficult, 0.9), (difficult, 0.8), (plain, 0.7)))
    assert coco_metrics(truth(plain, difficult), [both, again, hit], [1])["AP"] == pytest.approx(100)
    metrics = coco_metrics(truth(plain, difficult), [both, again], [1])  # the normal box is found up to IoU 0.65
    assert (metrics["AP50"], metrics["AP75"]) == pytest.approx((100, 0)) and metrics["AP"] == pytest.approx(40)
    beside = {**box(1, 3, 45, 50), "score": 0.95}  # IoU 1/3 with the difficult one: a false alarm
    assert coco_metrics(truth(plain, difficult), [beside, hit], [1])["AP"] == pytest.approx(50)


@pytest.mark.parametrize("seed", range(3))
@pytest.mark.parametrize("use_classes", [True, False])
def test_without_difficult_boxes_every_digit_is_pycocotools_own(
    seed: int, use_classes: bool, monkeypatch: pytest.MonkeyPatch
) -> None:
    """Crowds, too: any number of detections inside one, however small a part of it they are, and more beside it."""
    ground_truth, found = random_case(seed)
    generator = torch.Generator().manual_seed(seed)
    for number, annotation in enumerate(ground_truth["annotations"]):
        annotation["iscrowd"] = int(number % 4 == 1)
    for annotation in ground_truth["annotations"]:
        x, y, w, h = annotation["bbox"]
        for cut in (0.2, 0.5, 0.9, 1.6):
            score = torch.rand((), generator=generator).item()
            key = {name: annotation[name] for name in ("image_id", "category_id")}
            found.append({**key, "bbox": [x + 1, y + 1, cut * w, cut * h], "score": score})
    ours = coco_metrics(ground_truth, found, [1, 2], use_classes=use_classes)
    monkeypatch.setattr(evaluation, "_Evaluation", COCOeval)
    assert ours == coco_metrics(ground_truth, found, [1, 2], use_classes=use_classes)
    assert 0 < ours["AP"] < 100


def test_images_that_were_not_seen_do_not_count() -> None:
    ground_truth = truth(box(1, 3, 10, 20), box(2, 3, 10, 20))
    found = [{**box(1, 3, 10, 20), "score": 0.9}]
    assert coco_metrics(ground_truth, found, [1])["AP"] == pytest.approx(100)
    assert coco_metrics(ground_truth, found, [1, 2])["AP"] < 60


def test_an_annotation_of_id_0_counts() -> None:
    """pycocotools by itself takes a match with it for a miss."""
    assert coco_metrics(truth(box(1, 3, 10, 20, id=0)), [{**box(1, 3, 10, 20), "score": 1.0}], [1])["AP"] > 99


def test_inputs_are_left_as_they_were() -> None:
    ground_truth, found = random_case(0)
    before = copy.deepcopy((ground_truth, found))
    coco_metrics(ground_truth, found, [1, 2])
    assert (ground_truth, found) == before


def test_coco_results() -> None:
    prediction = {"boxes": torch.tensor([[1.0, 2, 4, 8]]), "scores": torch.tensor([0.5]), "labels": torch.tensor([1])}
    empty = {"boxes": torch.zeros(0, 4), "scores": torch.zeros(0), "labels": torch.zeros(0, dtype=torch.int64)}
    assert coco_results([prediction, empty], [9, 10], [3, 7]) == [
        {"image_id": 9, "category_id": 7, "bbox": [1.0, 2.0, 3.0, 6.0], "score": 0.5}
    ]


def test_tables() -> None:
    text = format_metrics(coco_metrics(truth(box(1, 3, 10, 20)), [{**box(1, 3, 10, 20), "score": 1.0}], [1]))
    lines = text.splitlines()
    assert lines[0].split() == ["AP", "AP50", "AP75", "APs", "APm", "APl", "AR", "ARs", "ARm", "ARl"]
    assert lines[1].split() == ["100.0"] * 4 + ["-", "-"] + ["100.0"] * 2 + ["-", "-"]
    assert [line.split() for line in lines[3:]] == [["class", "AP"], ["cat", "100.0"], ["dog", "-"]]
    assert len({len(line) for line in lines[3:]}) == 1


class Oracle(Detector):
    """Predicts the data set's own boxes, image after image."""

    def __init__(self, targets: list[dict[str, Any]]) -> None:
        super().__init__()
        self.targets = iter(targets)
        self.saw: list[Any] = []

    def predict(self, images: Any) -> list[dict[str, Any]]:
        assert not self.training and not torch.is_grad_enabled()
        self.saw += images
        targets = [next(self.targets) for _ in images]
        return [{**target, "scores": torch.ones(len(target["boxes"]))} for target in targets]


def test_evaluate_runs_over_the_whole_data_set(data: Path) -> None:
    dataset = build_dataset(plain_config(data, data).data, "val")
    targets = [{"boxes": s.boxes, "labels": s.labels} for s in (dataset[i] for i in range(len(dataset)))]
    oracle = Oracle(targets).train()
    metrics = evaluate(oracle, dataset, batch_size=3, workers=0, device=torch.device("cpu"))
    assert metrics["AP"] == pytest.approx(100) and metrics["images"] == 4 and metrics["unreadable"] == []
    assert oracle.training  # its mode was given back
    assert all(image.dtype == torch.float32 and 0 <= image.min() and image.max() <= 1 for image in oracle.saw)
    found = detect(Oracle(targets[2:]), dataset, batch_size=3, workers=0, device=torch.device("cpu"), indices=[2])
    assert found.image_ids == [dataset.image_ids[2]] and len(found.results) == len(targets[2]["boxes"])


def test_evaluate_weights(data: Path, teacher: Path) -> None:
    config = plain_config(data, data, "model.fpn_channels=24")
    metrics = evaluate_weights(config, str(teacher))
    assert metrics["images"] == 4 and metrics["notes"] == [f"model: weights: {teacher}"]
    with pytest.raises(UserError, match="was made with fpn_channels 24"):
        evaluate_weights(plain_config(data, data), str(teacher))
    with pytest.raises(UserError, match="was trained on [0-9]+ classes and the data has 1"):
        evaluate_weights(plain_config(data, data, "model.fpn_channels=24", "data.classes=[ring]"), str(teacher))


def test_evaluate_weights_tells_what_it_left_out(teacher: Path, tmp_path: Path) -> None:
    config = plain_config(tmp_path, tmp_path, "model.fpn_channels=24")
    broken = build_dataset(config.data, "val").path(1)
    broken.write_bytes(b"no image")
    metrics = evaluate_weights(config, str(teacher))
    assert metrics["images"] == 3
    assert metrics["notes"][0].startswith(f"data: left out, as it cannot be read: {broken}: not an image")
