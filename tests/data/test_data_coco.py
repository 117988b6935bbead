"""COCO layout: what is read, which flaws are counted, which mistakes are told."""

from __future__ import annotations

import os
import re
from pathlib import Path
from typing import Any

import pytest
import torch
from data_helpers import NAMES, CocoSet
from PIL import Image

from gid_cuda.config import DataConfig
from gid_cuda.data import UnreadableImage, build_dataset
from gid_cuda.errors import UserError


def fails(message: str) -> Any:
    return pytest.raises(UserError, match=message)


def test_what_is_read(coco: CocoSet) -> None:
    data = coco.build()
    assert data.classes == NAMES and data.category_ids == [1, 4, 7]
    assert data.image_ids == [10, 11] and len(data) == 2 and data.notes == []
    first, second = data[0], data[1]
    assert first.image.shape == (3, 30, 40) and first.image.dtype == torch.uint8
    assert first.boxes.dtype == torch.float32 and first.boxes.tolist() == [[2, 3, 12, 15], [20.5, 1, 29.75, 21]]
    assert first.labels.dtype == torch.int64 and first.labels.tolist() == [1, 0]
    assert first.image_id == 10 and second.image_id == 11
    assert second.path == str(coco.root / "images" / "sub" / "b.png")
    assert second.boxes.tolist() == [[0, 0, 50, 20]] and second.labels.tolist() == [2]


def test_ground_truth(coco: CocoSet) -> None:
    coco.box(11, [5, 5, 10, 10], 4, iscrowd=1)
    truth = coco.build("val").ground_truth()
    assert truth["categories"] == [{"id": 1, "name": "cat"}, {"id": 4, "name": "dog"}, {"id": 7, "name": "bird"}]
    assert truth["images"] == coco.images
    keys = ("id", "image_id", "category_id", "bbox", "area", "iscrowd")
    assert [tuple(a[key] for key in keys) for a in truth["annotations"]] == [
        (1, 10, 4, [2, 3, 10, 12], 77, 0),  # the area of its segment, as given
        (2, 10, 1, [20.5, 1, 9.25, 20], 185, 0),
        (3, 11, 7, [0, 0, 50, 20], 1000, 0),
        (4, 11, 4, [5, 5, 10, 10], 100, 1),
    ]
    assert all(a["ignore"] == 0 for a in truth["annotations"])


def test_classes_are_kept_and_renumbered(coco: CocoSet) -> None:
    data = coco.build(classes=["bird", "dog"])
    assert data.classes == ["bird", "dog"] and data.category_ids == [7, 4]
    assert data[0].labels.tolist() == [1] and data[1].labels.tolist() == [0]
    assert data.notes == []  # left out by wish, not a flaw
    assert [a["category_id"] for a in data.ground_truth()["annotations"]] == [4, 7]


def test_image_without_boxes_stays(coco: CocoSet) -> None:
    coco.image("empty.png")
    sample = coco.build()[2]
    assert sample.boxes.shape == (0, 4) and sample.labels.shape == (0,)


def test_missing_sizes_come_from_the_file(coco: CocoSet) -> None:
    del coco.images[0]["width"]
    coco.images[1]["height"] = None
    data = coco.build()
    assert data.records.sizes.tolist() == [[40, 30], [50, 20]] and data.notes == []


FLAWS = {
    "box of zero or negative size, skipped": [[5, 5, 0, 4], [5, 5, 3, -1]],
    "box with a coordinate that is not a finite number, skipped": [
        [float("nan"), 1, 2, 2],
        [1, 1, float("inf"), 2],
        [1, 1, "wide", 2],
        [1, None, 2, 2],
        [10**400, 1, 2, 2],
    ],
    "box wholly outside its image, skipped": [[40, 0, 5, 5], [0, -9, 5, 9], [100, 100, 5, 5]],
    "annotation without four box coordinates, skipped": [None, [1, 2, 3], [1, 2, 3, 4, 5], "1234", {}],
}


@pytest.mark.parametrize("kind", FLAWS)
@pytest.mark.parametrize("part", ["train", "val"])
def test_flawed_boxes_are_counted_and_skipped(coco: CocoSet, kind: str, part: str) -> None:
    for box in FLAWS[kind]:
        coco.box(10, box)
    data = coco.build(part)
    assert len(data.notes) == 1
    assert data.notes[0].startswith(f"instances.json: {len(FLAWS[kind])} x {kind}, e.g. ")
    assert len(data[0].boxes) == 2
    assert len(data.ground_truth()["annotations"]) == 3


def test_boxes_are_clipped_and_only_more_than_rounding_is_told(coco: CocoSet) -> None:
    coco.box(10, [-5, 10, 20, 50])
    coco.box(10, [30, 10, 10.25, 5])
    data = coco.build()
    assert data[0].boxes[2:].tolist() == [[0, 10, 15, 30], [30, 10, 40, 15]]
    assert data.notes == ["instances.json: 1 x box partly outside its image, clipped, e.g. (-5, 10, 15, 60) in a.png"]


def test_flawed_entries_are_counted_and_skipped(coco: CocoSet) -> None:
    coco.images.append({"id": 50, "file_name": "gone.png", "width": 5, "height": 5})
    coco.images.append({"id": 10, "file_name": "a.png", "width": 40, "height": 30})
    coco.box(50, [1, 1, 2, 2])
    coco.box(99, [1, 1, 2, 2])
    coco.box("10", [1, 1, 2, 2])  # type: ignore[arg-type]
    coco.box(10, [1, 1, 2, 2], 2)
    coco.box(10, [1, 1, 2, 2], None)
    coco.annotations.append("not an object")
    data = coco.build()
    assert len(data) == 2 and len(data[0].boxes) == 2
    assert data.notes == [
        f"instances.json: 1 x image missing from {coco.root / 'images'}, skipped, e.g. gone.png",
        "instances.json: 1 x image with the id of an earlier one, skipped, e.g. id 10, a.png",
        "instances.json: 1 x box of an image that is missing or unreadable, skipped, e.g. annotation 103, image 50",
        "instances.json: 2 x box of an image that is not listed, skipped, e.g. annotation 104, image 99",
        "instances.json: 2 x box of an unknown category, skipped, e.g. annotation 106, category 2",
        "instances.json: 1 x annotation that is not an object, skipped, e.g. annotation 8",
    ]


def test_unreadable_where_the_size_is_asked_for(coco: CocoSet) -> None:
    (coco.root / "images" / "broken.png").write_bytes(b"nothing")
    coco.images.append({"id": 50, "file_name": "broken.png"})
    coco.box(50, [1, 1, 2, 2])
    unreadable, box = coco.build().notes
    assert "1 x unreadable image, skipped, e.g." in unreadable and "broken.png: not an image" in unreadable
    assert "1 x box of an image that is missing or unreadable" in box


def test_crowds_are_not_trained_on(coco: CocoSet) -> None:
    coco.box(11, [5, 5, 10, 10], 4, iscrowd=1)
    coco.box(11, [6, 5, 10, 10], 4, iscrowd=1)
    data = coco.build("train")
    assert data.notes == ["2 x crowd box, not trained on, e.g. in sub/b.png"]
    assert len(data[1].boxes) == 1
    assert coco.build("val").notes == []


def test_other_size_than_annotated(coco: CocoSet) -> None:
    """The boxes would not fit the picture; likely it was rotated by its EXIF orientation when it was annotated."""
    coco.images[0].update(width=30, height=40)
    data = coco.build()
    with pytest.raises(UnreadableImage, match="a.png: is 40x30 pixels but annotated as 30x40"):
        data[0]


def test_names_with_odd_characters(coco: CocoSet) -> None:
    coco.image("Größe 1.png")
    for name in ("line\nbreak.png", "\ud800.png", "", "sub", "x" * 300, "\ud800/a.png"):
        coco.images.append({"id": 50 + len(coco.images), "file_name": name, "width": 5, "height": 5})
    data = coco.build()
    assert len(data) == 3 and data[2].image.shape == (3, 30, 40)
    note = data.notes[0]
    assert "6 x image missing" in note and note.isprintable()


# mistakes that leave nothing to read


def test_missing_root(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.chdir(tmp_path)
    split = {"annotations": "instances.json", "images": "images"}
    with fails(
        f"COCO data set not found: looked for the folder datasets/coco from {tmp_path}; point elsewhere with "
        r"data.root=\.\.\., or annotations or images of that split, or take configs/demo.yaml, which needs no download"
    ):
        build_dataset(DataConfig(format="coco", root=Path("datasets/coco"), train=split, val=split), "train")


def test_missing_file_or_folder(coco: CocoSet) -> None:
    coco.write()
    (coco.root / "instances.json").rename(coco.root / "other.json")
    with fails(f"COCO annotations not found: looked for {coco.root}/instances.json; point elsewhere"):
        build_dataset(coco.config(), "train")
    (coco.root / "other.json").rename(coco.root / "instances.json")
    (coco.root / "images").rename(coco.root / "pictures")
    with fails(f"COCO images not found: looked for the folder {coco.root}/images; point elsewhere"):
        build_dataset(coco.config(), "train")


@pytest.mark.parametrize("key", ["annotations", "images"])
def test_part_not_set(coco: CocoSet, key: str) -> None:
    coco.write()
    split = {"annotations": "instances.json", "images": "images"}
    split.pop(key)
    with fails(rf"data.val.{key} is not set: format coco needs it"):
        build_dataset(DataConfig(format="coco", root=coco.root, val=split), "val")  # type: ignore[arg-type]


def lists(images: str = "[]", categories: str = '[{"id": 1, "name": "a"}]') -> bytes:
    return f'{{"annotations": [], "images": {images}, "categories": {categories}}}'.encode()


@pytest.mark.parametrize(
    ("content", "message"),
    [
        (b"", "is not a readable JSON file"),
        (b'{"images": [', "is not a readable JSON file"),
        (b"\xff\xfe\x00", "is not a readable JSON file"),
        (b"[" * 200_000, "is not a readable JSON file"),
        (b"[]", "holds a list, not COCO annotations"),
        (b'{"images": [], "annotations": []}', "has no list 'categories'"),
        (lists(images="{}"), "has no list 'images'"),
        (lists(categories="[]"), "has no categories"),
        (lists(), "lists no images: the data set is empty"),
        (lists(categories='[{"id": "1", "name": "a"}]'), "has a category without an integer id and a printable"),
        (lists(categories='[{"id": 1, "name": "\\ud800"}]'), "has a category without an integer id and a printable"),
        (lists(categories="[3]"), "has a category without an integer id and a printable name: '3'"),
        (lists(images="[5]"), "has an image without an integer id and a file_name: '5'"),
        (lists(images='[{"id": NaN, "file_name": "a"}]'), "has an image without an integer id and a file_name"),
        (lists(images='[{"id": 1, "file_name": 1}]'), "has an image without an integer id and a file_name"),
    ],
)
def test_broken_files(coco: CocoSet, content: bytes, message: str) -> None:
    coco.write()
    (coco.root / "instances.json").write_bytes(content)
    with fails(f"^{re.escape(f'{coco.root}/instances.json {message}')}") as caught:
        build_dataset(coco.config(), "train")
    assert "\n" not in str(caught.value)


def test_ids_may_be_whole_floats(coco: CocoSet) -> None:
    coco.images[0]["id"] = 10.0
    coco.categories[0]["id"] = 1.0
    data = coco.build()
    assert data.image_ids == [10, 11] and data.category_ids == [1, 4, 7] and len(data[0].boxes) == 2


def test_ambiguous_categories(coco: CocoSet) -> None:
    coco.categories.append({"id": 9, "name": "cat"})
    with fails(r"two categories of .*instances.json have id 9 or name 'cat': make each unique"):
        coco.build()


def test_unknown_class(coco: CocoSet) -> None:
    with fails(r"names 'Brid' \(did you mean 'bird'\?\), which .*instances.json does not have; it has cat, dog, bird"):
        coco.build(classes=["cat", "Brid"])
    with fails(r"data.classes names 'zeppelin', which .* does not have; it has cat, dog, bird"):
        coco.build(classes=["zeppelin"])


def test_selection_of_classes(coco: CocoSet) -> None:
    with fails("data.classes is an empty list: name at least one class"):
        coco.build(classes=[])
    with fails("data.classes names 'dog' twice"):
        coco.build(classes=["dog", "cat", "dog"])


def test_no_image_there(coco: CocoSet) -> None:
    coco.write()
    for path in coco.root.glob("images/**/*.png"):
        path.unlink()
    with fails("none of the 2 images of .*instances.json can be used: looked in .*images for 'a.png' and the others;"):
        build_dataset(coco.config(), "train")


def test_no_usable_box(coco: CocoSet) -> None:
    coco.annotations.clear()
    coco.box(10, [1, 1, 0, 0])
    coco.box(10, [1, 1, 5, 5], iscrowd=1)
    with fails(f"the training data under {coco.root} has no usable box of cat, dog, bird: nothing could be learned"):
        coco.build("train")
    assert coco.build("val").notes[-1] == f"the validation data under {coco.root} has no usable box: AP is undefined"


# names that lead out of the image folder


@pytest.mark.parametrize("name", ["../secret.png", "/etc/hosts", "sub/../../secret.png", "..\\secret.png", "C:\\x.png"])
def test_names_may_not_leave_the_folder(coco: CocoSet, name: str) -> None:
    Image.new("RGB", (5, 5)).save((coco.root / "images").parent / "secret.png")
    coco.images.append({"id": 50, "file_name": name, "width": 5, "height": 5})
    with fails(r"instances.json names the image .*, which leads out of the image folder .*images: names must be "):
        coco.build()


@pytest.mark.parametrize("folder", [True, False])
def test_links_may_not_leave_the_folder(coco: CocoSet, folder: bool) -> None:
    outside = coco.root / "outside"
    outside.mkdir()
    Image.new("RGB", (5, 5)).save(outside / "secret.png")
    link = coco.root / "images" / ("link" if folder else "link.png")
    os.symlink(outside if folder else outside / "secret.png", link)
    name = "link/secret.png" if folder else "link.png"
    coco.images.append({"id": 50, "file_name": name, "width": 5, "height": 5})
    with fails(f"names the image '{name}', which leads out of the image folder"):
        coco.build()


def test_links_inside_and_of_the_folder_itself_are_fine(coco: CocoSet) -> None:
    (coco.root / "images").rename(coco.root / "elsewhere")
    os.symlink(coco.root / "elsewhere", coco.root / "images")
    os.symlink(coco.root / "elsewhere" / "a.png", coco.root / "elsewhere" / "link.png")
    coco.images.append({"id": 50, "file_name": "link.png", "width": 40, "height": 30})
    data = coco.build()
    assert len(data) == 3 and torch.equal(data[0].image, data[2].image)
