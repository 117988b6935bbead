"""Several sets as one: what a list of splits gives, what each may say of its own, and which mistakes are told."""

from __future__ import annotations

import os
import pickle
from pathlib import Path
from typing import Any

import numpy as np
import pytest
from data_helpers import CocoSet, VocSet

from gid_cuda.config import DataConfig
from gid_cuda.data import DetectionDataset, build_dataset, build_loader
from gid_cuda.errors import UserError


def fails(message: str) -> Any:
    return pytest.raises(UserError, match=message)


@pytest.fixture
def devkit(tmp_path: Path) -> Path:
    """VOC2007 (a, b; test: t) and VOC2012 (a and c, other pictures), as the devkit lays them."""
    old, new = VocSet(tmp_path / "VOC2007"), VocSet(tmp_path / "VOC2012")
    old.image("a", [("dog", 2, 3, 12, 15), ("cat", 20, 1, 30, 21)])
    old.image("b", [])
    old.image("t", [("whale", 1, 1, 9, 9)])
    old.split("trainval", ["a", "b"])
    old.split("test", ["t"])
    new.image("a", [("bird", 5, 5, 25, 25), ("cat", 1, 1, 9, 9, 1)])
    new.image("c", [("cat", 6, 5, 16, 25)])
    new.split("trainval", ["a", "c"])
    return tmp_path


def voc_config(devkit: Path, *more: dict[str, Any], **keys: Any) -> DataConfig:
    train = [{"root": "VOC2007", "split": "trainval"}, {"root": "VOC2012", "split": "trainval"}, *more]
    return DataConfig(format="voc", root=devkit, train=train, val={"root": "VOC2007", "split": "test"}, **keys)


def rows(data: DetectionDataset) -> list[tuple[str, list[Any], list[str]]]:
    """Path under the common root, boxes, class names, of every image that can be decoded."""
    samples = [data[i] for i in range(len(data))]
    return [(s.path, s.boxes.tolist(), [data.classes[label] for label in s.labels]) for s in samples]


def test_voc_07_and_12(devkit: Path) -> None:
    config = voc_config(devkit)
    train, val = build_dataset(config, "train"), build_dataset(config, "val")
    assert train.classes == val.classes == ["bird", "cat", "dog", "whale"]  # of all three splits
    assert train.image_ids == [1, 2, 3, 4] and val.image_ids == [1]
    assert train.category_ids == [1, 2, 3, 4]
    assert rows(train) == [
        (f"{devkit}/VOC2007/JPEGImages/a.png", [[2, 3, 12, 15], [20, 1, 30, 21]], ["dog", "cat"]),
        (f"{devkit}/VOC2007/JPEGImages/b.png", [], []),
        (f"{devkit}/VOC2012/JPEGImages/a.png", [[5, 5, 25, 25]], ["bird"]),
        (f"{devkit}/VOC2012/JPEGImages/c.png", [[6, 5, 16, 25]], ["cat"]),
    ]
    truth = train.ground_truth()
    assert [(a["image_id"], a["category_id"], a["ignore"]) for a in truth["annotations"]] == [
        (1, 3, 0), (1, 2, 0), (3, 1, 0), (3, 2, 1), (4, 2, 0)
    ]  # fmt: skip
    assert [(i["id"], i["file_name"]) for i in truth["images"]] == [
        (1, "a.png"),
        (2, "b.png"),
        (3, "a.png"),
        (4, "c.png"),
    ]
    assert train.notes == ["data.train[1]: 1 x difficult object, not trained on, e.g. in a.png"]


def test_a_list_of_one_is_the_same_as_none(devkit: Path, coco: CocoSet) -> None:
    coco.write()
    split = {"annotations": "instances.json", "images": "images"}
    single = build_dataset(DataConfig(format="coco", root=coco.root, train=split), "train")
    listed = build_dataset(DataConfig(format="coco", root=coco.root, train=[split]), "train")
    assert listed.image_ids == single.image_ids == [10, 11]
    assert rows(listed) == rows(single) and listed.notes == single.notes


def test_as_many_boxes_as_the_parts_one_after_the_other(devkit: Path) -> None:
    """Columns and offsets, against each part read alone."""
    classes = ["bird", "cat", "dog", "whale"]
    joined = build_dataset(voc_config(devkit, classes=classes), "train").records
    parts = [
        build_dataset(
            DataConfig(format="voc", root=devkit / name, train={"split": "trainval"}, classes=classes), "train"
        )
        for name in ("VOC2007", "VOC2012")
    ]
    for column in ("files", "sizes", "boxes", "labels", "areas", "kinds"):
        whole = getattr(joined, column)
        both = [getattr(part.records, column) for part in parts]
        assert whole.dtype == both[0].dtype and whole.tolist() == np.concatenate(both).tolist()
    assert np.diff(joined.offsets).tolist() == [n for part in parts for n in np.diff(part.records.offsets)]
    assert joined.offsets.dtype == np.int64 and len(joined.offsets) == 5


@pytest.mark.parametrize("workers", [0, 2])
def test_loaders_read_every_set(devkit: Path, workers: int) -> None:
    data = build_dataset(voc_config(devkit), "train")
    batches = list(build_loader(data, batch_size=3, workers=workers, train=False))
    assert [path for batch in batches for path in batch.paths] == [str(data.path(i)) for i in range(4)]
    assert [key for batch in batches for key in batch.image_ids] == [1, 2, 3, 4]


def test_what_goes_to_a_worker_is_columns(devkit: Path) -> None:
    """No list of as many Python objects as there are images (the ids apart): workers would copy them page by page."""
    records = pickle.loads(pickle.dumps(build_dataset(voc_config(devkit), "train").records))
    assert {name: len(v) for name, v in vars(records).items() if isinstance(v, list)} == {
        "classes": 4, "category_ids": 4, "folders": 2, "firsts": 2, "notes": 1
    }  # fmt: skip
    assert records.path(3) == devkit / "VOC2012" / "JPEGImages" / "c.png"


def test_each_set_may_say_its_own(devkit: Path, coco: CocoSet) -> None:
    """root (absolute here), format, one_based; what it leaves out is that of `data`."""
    coco.write()
    own = {"format": "coco", "root": str(coco.root), "annotations": "instances.json", "images": "images"}
    train = [
        {"root": "VOC2012", "split": "trainval"},
        {"root": "VOC2007", "split": "trainval", "one_based": False},
        own,
    ]
    config = DataConfig(format="voc", root=devkit, train=train, one_based=True, classes=["dog", "cat", "bird"])
    data = build_dataset(config, "train")
    assert [data.path(i).parent.name for i in range(6)] == ["JPEGImages"] * 4 + ["images", "sub"]
    assert data.records.boxes[[0, 2, 3, 5]].tolist() == [[4, 4, 25, 25], [5, 4, 16, 25], [2, 3, 12, 15], [2, 3, 12, 15]]
    assert data.classes == ["dog", "cat", "bird"]
    assert data.category_ids == [1, 2, 3]  # the COCO set has 4, 1, 7: they do not agree


def test_category_ids_stay_where_all_sets_agree(coco: CocoSet, tmp_path: Path) -> None:
    twin = CocoSet(tmp_path / "twin")
    twin.box(twin.image("x.png"), [1, 1, 5, 5], 7)
    twin.write()
    coco.write()
    parts = [{"root": name, "annotations": "instances.json", "images": "images"} for name in ("coco", "twin")]
    config = DataConfig(format="coco", root=tmp_path, train=parts)
    data = build_dataset(config, "train")
    assert data.category_ids == [1, 4, 7] and data.image_ids == [1, 2, 3]
    assert [a["category_id"] for a in data.ground_truth()["annotations"]] == [4, 1, 7, 7]
    twin.categories[0]["id"] = 2
    twin.write()
    assert build_dataset(config, "train").category_ids == [1, 2, 3]


def test_other_classes_are_told(devkit: Path, coco: CocoSet) -> None:
    coco.write()
    own = {"format": "coco", "root": str(coco.root), "annotations": "instances.json", "images": "images"}
    with fails(
        r"data.train joins sets of different classes: data.train\[0\] has bird, cat, dog, whale and "
        r"data.train\[2\] has cat, dog, bird: name those to use, in one order, in data.classes$"
    ):
        build_dataset(voc_config(devkit, own), "train")
    data = build_dataset(voc_config(devkit, own, classes=["cat", "bird"]), "train")
    assert data.classes == ["cat", "bird"] and len(data) == 6


@pytest.mark.parametrize("root", ["VOC2007", "VOC2012/../VOC2007", "alias"])
def test_an_image_of_two_sets_counts_once(devkit: Path, root: str) -> None:
    """The second set's own pictures stay, with their boxes; the first set's are untouched."""
    old = VocSet(devkit / "VOC2007")
    old.split("more", ["b", "t", "a"])
    os.symlink(devkit / "VOC2007", devkit / "alias")
    data = build_dataset(voc_config(devkit, {"root": root, "split": "more"}), "train")
    assert [str(data.path(i).relative_to(devkit)) for i in range(5)] == [
        "VOC2007/JPEGImages/a.png",
        "VOC2007/JPEGImages/b.png",
        "VOC2012/JPEGImages/a.png",
        "VOC2012/JPEGImages/c.png",
        f"{root}/JPEGImages/t.png",
    ]
    assert rows(data)[4][1:] == ([[1, 1, 9, 9]], ["whale"])
    assert data.image_ids == [1, 2, 3, 4, 5]
    assert data.notes[-1] == "data.train[2]: 2 x image that an earlier set has, too, left out, e.g. b.png"


def test_links_are_followed_to_tell_two_images_apart(devkit: Path) -> None:
    old = VocSet(devkit / "VOC2007")
    old.image("link", [("cat", 1, 1, 9, 9)])
    (devkit / "VOC2007" / "JPEGImages" / "link.png").unlink()
    os.symlink(devkit / "VOC2007" / "JPEGImages" / "a.png", devkit / "VOC2007" / "JPEGImages" / "link.png")
    old.split("linked", ["link"])
    os.symlink(devkit / "VOC2007", devkit / "alias")
    for root in ("VOC2007", "alias"):
        data = build_dataset(voc_config(devkit, {"root": root, "split": "linked"}), "train")
        assert len(data) == 4
        assert data.notes[-1] == "data.train[2]: 1 x image that an earlier set has, too, left out, e.g. link.png"
        assert [data.path(i).name for i in range(4)] == ["a.png", "b.png", "a.png", "c.png"]


def test_both_layouts_of_the_same_pictures(devkit: Path) -> None:
    """A COCO file over a VOC set's pictures: its folder is the parent's, so names have a part more."""
    twin = CocoSet(devkit)
    names = {"id": 1, "name": "cat"}, {"id": 2, "name": "dog"}
    twin.categories = list(names)
    for key, name in enumerate(("VOC2007/JPEGImages/a.png", "VOC2007/JPEGImages/t.png"), start=1):
        twin.images.append({"id": key, "file_name": name, "width": 40, "height": 30})
        twin.box(key, [1, 1, 5, 5], 1)
    twin.write()
    coco = {"format": "coco", "annotations": "instances.json", "images": "."}
    data = build_dataset(voc_config(devkit, coco, classes=["cat", "dog"]), "train")
    assert len(data) == 5 and data.path(4) == devkit / "VOC2007" / "JPEGImages" / "t.png"
    assert any("data.train[2]: 1 x image that an earlier set has, too" in note for note in data.notes)


def test_notes_say_which_set(devkit: Path) -> None:
    VocSet(devkit / "VOC2012").image("c", [("cat", 6, 5, 16, 250)])
    VocSet(devkit / "VOC2007").image("a", [])
    data = build_dataset(voc_config(devkit), "train")
    assert data.notes == [
        "data.train[0]: no usable box of bird, cat, whale",
        "data.train[1]: trainval.txt of VOC2012: 1 x box partly outside its image, clipped, "
        "e.g. (6, 5, 16, 250) in c.png",
        "data.train[1]: 1 x difficult object, not trained on, e.g. in a.png",
    ]


def test_mistakes_name_the_set(devkit: Path) -> None:
    with fails(r"data.train\[2\].split is not set: format voc needs a name"):
        build_dataset(voc_config(devkit, {"root": "VOC2007"}), "train")
    with fails(r"data.train\[2\].annotations is not set: format coco needs it"):
        build_dataset(voc_config(devkit, {"format": "coco"}), "train")
    with fails(f"VOC data set not found: looked for the folder {devkit}/VOC2010;"):
        build_dataset(voc_config(devkit, {"root": "VOC2010", "split": "train"}), "train")
    for year in ("VOC2007", "VOC2012"):
        VocSet(devkit / year).image("a", [])
    VocSet(devkit / "VOC2012").image("c", [])
    with fails(f"the training data under {devkit}/VOC2007 and {devkit}/VOC2012 has no usable box of whale"):
        build_dataset(voc_config(devkit), "train")


def test_a_class_misspelt_is_looked_for_in_all_voc_sets(devkit: Path) -> None:
    known = f"which {devkit}/VOC2007/Annotations and {devkit}/VOC2012/Annotations does not have; it has bird, cat"
    with fails(rf"data.classes names 'brid' \(did you mean 'bird'\?\), {known}"):
        build_dataset(voc_config(devkit, classes=["cat", "brid"]), "train")
    with fails("data.classes names 'whal'"):  # the test split alone has it
        build_dataset(voc_config(devkit, classes=["cat", "whal"]), "train")


@pytest.mark.parametrize(
    ("split", "told"),
    [
        ({"one_based": True}, r"data.train\[2\].one_based is True, which format coco does not read: leave it out"),
        ({"split": "trainval"}, r"data.train\[2\].split is trainval, which format coco does not read"),
        ({"format": "voc", "split": "trainval"}, r"data.train\[2\].annotations is a.json, which format voc does not"),
    ],
)
def test_a_key_of_the_other_format(devkit: Path, split: dict[str, Any], told: str) -> None:
    config = voc_config(devkit, {"format": "coco", "annotations": "a.json", "images": "images", **split})
    with fails(told):
        build_dataset(config, "train")


def test_one_based_without_a_set_that_follows_it(tmp_path: Path, devkit: Path) -> None:
    coco = CocoSet(tmp_path / "coco")
    coco.box(coco.image("a.png"), [2, 3, 10, 10])
    coco.write()
    with fails("data.one_based is true, but only format voc reads it"):
        build_dataset(coco.config(one_based=True), "train")
    split = {"format": "coco", "root": "coco", "annotations": "instances.json", "images": "images"}
    mixed = voc_config(devkit, split, one_based=True, classes=["cat", "dog"])
    assert build_dataset(mixed, "train")[4].boxes.tolist() == [[2, 3, 12, 13]]  # COCO's as they stand
