"""The checks that find what goes wrong silently."""

from __future__ import annotations

from pathlib import Path
from typing import Any

import pytest
import torch
from engine_helpers import plain_config
from test_evaluation import Oracle

from gid_cuda.data import DetectionDataset, build_dataset
from gid_cuda.distill import LOSS_NAMES
from gid_cuda.engine.checks import BALANCE_STEPS, Balance, balance_warning, finite_values, teacher_check
from gid_cuda.errors import UserError


@pytest.fixture(scope="module")
def val_set(tmp_path_factory: pytest.TempPathFactory) -> DetectionDataset:
    root = tmp_path_factory.mktemp("val")
    more = ["data.generated.val_images=70", "data.generated.train_images=1", "data.generated.width=96"]
    return build_dataset(plain_config(root, root, *more).data, "val")


def check(targets: list[dict[str, Any]], dataset: DetectionDataset) -> tuple[str, str | None]:
    return teacher_check(Oracle(targets), dataset, batch_size=8, workers=0, device=torch.device("cpu"))


def sampled(dataset: DetectionDataset) -> list[dict[str, Any]]:
    """The ground truth of the (at most) 64 images that are looked at."""
    count = min(64, len(dataset))
    samples = [dataset[i * len(dataset) // count] for i in range(count)]
    return [{"boxes": s.boxes, "labels": s.labels} for s in samples]


def test_a_good_teacher_passes(val_set: DetectionDataset) -> None:
    summary, warning = check(sampled(val_set), val_set)
    assert summary == "teacher: AP50 100.0 on 64 validation images" and warning is None


def test_a_teacher_with_its_classes_in_another_order(val_set: DetectionDataset) -> None:
    wrong = [{**t, "labels": (t["labels"] + 1) % len(val_set.classes)} for t in sampled(val_set)]
    summary, warning = check(wrong, val_set)
    assert warning is not None and "no better than chance" in warning
    assert "its boxes fit (AP50 100.0 whatever the class), so the order of the classes is likely wrong" in warning


def test_a_teacher_that_looks_at_other_images(val_set: DetectionDataset) -> None:
    targets = sampled(val_set)
    _, warning = check(targets[7:] + targets[:7], val_set)
    assert warning is not None and "likely causes: a wrong or untrained weights file" in warning


def keep_boxes(dataset: DetectionDataset, per_image: int) -> None:
    records = dataset.records
    records.offsets[:] = torch.arange(len(dataset) + 1).numpy() * per_image
    for name in ("boxes", "labels", "areas", "kinds"):
        setattr(records, name, getattr(records, name)[: per_image * len(dataset)])


def test_a_teacher_that_says_the_same_of_every_image(data: Path) -> None:
    """Where objects are mostly in one place it has an AP50 of 100, and has learned nothing of the images."""
    dataset = build_dataset(plain_config(data, data).data, "val")
    keep_boxes(dataset, 1)
    dataset.records.boxes[:] = torch.tensor([10.0, 10, 40, 40]).numpy()
    dataset.records.labels[:] = 0
    summary, warning = check(sampled(dataset), dataset)
    assert "AP50 100.0 on 4 validation images" in summary
    assert warning is not None and "no better than chance" in warning


def test_a_teacher_that_finds_nothing(val_set: DetectionDataset) -> None:
    nothing = {"boxes": torch.zeros(0, 4), "labels": torch.zeros(0, dtype=torch.int64)}
    assert check([nothing] * 64, val_set)[1] is not None


def test_validation_images_without_ground_truth(data: Path) -> None:
    dataset = build_dataset(plain_config(data, data).data, "val")
    keep_boxes(dataset, 0)
    nothing = {"boxes": torch.zeros(0, 4), "labels": torch.zeros(0, dtype=torch.int64)}
    summary, warning = check([nothing] * 4, dataset)
    assert "not checked" in summary and warning is None


def test_terms_that_stay_apart() -> None:
    apart = [{"a": 10.0 + i, "b": 0.05, "off": 0.0} for i in range(5)]
    warning = balance_warning(apart)
    assert warning is not None and "a was more than 100 times b in each of the first 5 steps" in warning
    assert "b was more than 100 times a" in balance_warning([{"a": v["b"], "b": v["a"]} for v in apart])
    assert balance_warning([*apart, {"a": 4.0, "b": 0.05, "off": 0.0}]) is None  # they came close once


def test_balance_speaks_once_after_its_steps() -> None:
    values = dict.fromkeys(LOSS_NAMES, 1.0) | {"loss_feature": 500.0, "loss": 9.0}
    balance = Balance(LOSS_NAMES)
    said = [balance.add(values) for _ in range(BALANCE_STEPS + 20)]
    assert [i for i, text in enumerate(said) if text] == [BALANCE_STEPS - 1]
    assert not any(Balance(()).add(values) for _ in range(BALANCE_STEPS + 1))


def test_finite_values_are_means_over_the_parts() -> None:
    parts = [{"a": torch.tensor(1.0), "loss": torch.tensor(4.0)}, {"a": torch.tensor(3.0), "loss": torch.tensor(5.0)}]
    ids = [[1], [2]]
    values = finite_values(parts, torch.tensor(1.0), norm_may_overflow=False, step=3, image_ids=ids)
    assert values == {"a": 2.0, "loss": 4.5}
    parts[1]["a"] = torch.tensor(float("inf"), dtype=torch.float16)
    with pytest.raises(UserError, match="a became inf at step 3 on the images with ids 2;"):
        finite_values(parts, torch.tensor(1.0), norm_may_overflow=False, step=3, image_ids=ids)
    norm = torch.tensor(float("inf"))
    with pytest.raises(UserError, match="the gradient is not finite at step 3 on the images with ids 1, 2;"):
        finite_values(parts[:1] * 2, norm, norm_may_overflow=False, step=3, image_ids=ids)
    assert finite_values(parts[:1] * 2, norm, norm_may_overflow=True, step=3, image_ids=ids)["a"] == 1.0
