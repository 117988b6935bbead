"""One class of a larger set, such as COCO's person: what is kept, in training and in evaluation."""

from __future__ import annotations

from pathlib import Path

import pytest
from data_helpers import CocoSet, VocSet

from gid_cuda.data import build_loader
from gid_cuda.engine.evaluation import coco_metrics


@pytest.fixture
def people(tmp_path: Path) -> CocoSet:
    """Image 1: a person, a dog over it and a crowd of each; image 2: a dog; image 3: nothing."""
    made = CocoSet(tmp_path / "people")
    made.categories = [{"id": key, "name": name} for key, name in [(18, "dog"), (1, "person"), (90, "tie")]]
    first, second = made.image("1.png", key=1), made.image("2.png", key=2)
    made.image("3.png", key=3)
    made.box(first, [2, 3, 10, 12], 1)
    made.box(first, [3, 3, 10, 12], 18)
    made.box(first, [20, 3, 15, 20], 1, iscrowd=1)
    made.box(first, [1, 20, 30, 9], 18, iscrowd=1)
    made.box(second, [2, 3, 10, 12], 18)
    return made


def test_person_alone(people: CocoSet) -> None:
    data = people.build("train", classes=["person"])
    assert data.classes == ["person"] and data.category_ids == [1] and data.image_ids == [1, 2, 3]
    assert [data[i].labels.tolist() for i in range(3)] == [[0], [], []]
    assert data[0].boxes.tolist() == [[2, 3, 12, 15]]
    assert data.notes == ["1 x crowd box, not trained on, e.g. in 1.png"]  # the dogs' crowd is of no class that counts


def test_images_without_the_class_are_trained_on_as_background(people: CocoSet) -> None:
    data = people.build("train", classes=["person"])
    batch = next(iter(build_loader(data, batch_size=3, workers=0, train=True)))
    assert sorted(batch.image_ids) == [1, 2, 3]
    assert sorted(len(target["labels"]) for target in batch.targets) == [0, 0, 1]


def test_evaluation_counts_that_class_alone(people: CocoSet) -> None:
    data = people.build("val", classes=["person"])
    truth = data.ground_truth()
    assert truth["categories"] == [{"id": 1, "name": "person"}]
    assert [(a["category_id"], a["iscrowd"]) for a in truth["annotations"]] == [(1, 0), (1, 1)]
    hit = {"image_id": 1, "category_id": 1, "bbox": [2, 3, 10, 12], "score": 0.5}
    in_the_crowd = {"image_id": 1, "category_id": 1, "bbox": [21, 4, 5, 5], "score": 0.9}
    in_the_dogs = {"image_id": 1, "category_id": 1, "bbox": [2, 21, 9, 7], "score": 0.9}
    on_the_dog = {"image_id": 2, "category_id": 1, "bbox": [2, 3, 10, 12], "score": 0.9}
    metrics = coco_metrics(truth, [hit, in_the_crowd], data.image_ids)
    assert metrics["AP"] == pytest.approx(100) and metrics["per_class"] == {"person": metrics["AP"]}
    for false_alarm in (in_the_dogs, on_the_dog):
        assert coco_metrics(truth, [hit, false_alarm], data.image_ids)["AP"] == pytest.approx(50)


def test_one_class_of_voc(voc: VocSet) -> None:
    """The difficult cat is the cat's; the bird's image stays."""
    voc.split("train", ["a", "b"])
    data = voc.build("train", classes=["cat"])
    assert [data[i].labels.tolist() for i in range(2)] == [[0], []] and data.category_ids == [1]
    truth = data.ground_truth()
    assert [(a["image_id"], a["ignore"]) for a in truth["annotations"]] == [(1, 0), (2, 1)]
    assert [len(voc.build("train", classes=["dog", "bird"])[i].labels) for i in range(2)] == [1, 1]
