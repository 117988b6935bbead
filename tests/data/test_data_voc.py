"""VOC layout: what is read, which flaws are counted, which mistakes are told; and the same boxes as in COCO layout."""

from __future__ import annotations

from pathlib import Path
from typing import Any

import pytest
import torch
from data_helpers import CocoSet, VocSet

from gid_cuda.config import DataConfig
from gid_cuda.data import build_dataset
from gid_cuda.errors import UserError


def fails(message: str) -> Any:
    return pytest.raises(UserError, match=message)


def test_what_is_read(voc: VocSet) -> None:
    data = voc.build()
    assert data.classes == ["bird", "cat", "dog"]  # of both splits, so that both number them alike
    assert data.classes == voc.build("val").classes
    assert data.category_ids == [1, 2, 3] and data.image_ids == [1] and data.notes == []
    sample = data[0]
    assert sample.boxes.tolist() == [[2, 3, 12, 15], [20.5, 1, 29.75, 21]]
    assert sample.labels.tolist() == [2, 1]
    assert sample.path == str(voc.root / "JPEGImages" / "a.png")


def test_one_based_counts_from_one_and_includes_the_last_pixel(voc: VocSet) -> None:
    data = voc.build("val", one_based=True)
    assert data.ground_truth()["annotations"][0]["bbox"] == [0, 0, 40, 30]
    assert voc.build("val").ground_truth()["annotations"][0]["bbox"] == [1, 1, 39, 29]


def test_difficult_objects(voc: VocSet) -> None:
    """Ignored in evaluation, not trained on."""
    truth = voc.build("val").ground_truth()
    assert [(a["category_id"], a["iscrowd"], a["ignore"]) for a in truth["annotations"]] == [(1, 0, 0), (2, 0, 1)]
    voc.split("train", ["a", "b"])
    data = voc.build()
    assert data[1].labels.tolist() == [0]
    assert data.notes == ["1 x difficult object, not trained on, e.g. in b.png"]


def test_classes_of_the_config(voc: VocSet) -> None:
    data = voc.build(classes=["dog", "bird", "whale"])  # a small split need not have every class
    assert data.classes == ["dog", "bird", "whale"] and data[0].labels.tolist() == [0]
    with fails(r"data.classes names 'brd' \(did you mean 'bird'\?\), which .*Annotations does not have; it has bird"):
        voc.build(classes=["brd", "cat"])
    with fails("data.classes names 'cat' twice"):
        voc.build(classes=["cat", "cat"])


def test_image_without_objects_stays(voc: VocSet) -> None:
    voc.image("empty", [])
    voc.split("train", ["a", "empty"])
    assert voc.build()[1].boxes.shape == (0, 4)


def test_jpg_wins_where_a_name_has_several_images(voc: VocSet) -> None:
    (voc.root / "JPEGImages" / "a.jpg").write_bytes(b"")
    (voc.root / "JPEGImages" / "a.webp").write_bytes(b"")
    assert voc.build().path(0).name == "a.jpg"


def test_split_lines(voc: VocSet) -> None:
    """Splits of one class carry a flag; names may have spaces; empty lines and Windows' marks do not matter."""
    voc.image("two words", [("cat", 1, 1, 5, 5)])
    voc.image("c 1", [("cat", 1, 1, 5, 5)])
    path = voc.root / "ImageSets" / "Main" / "train.txt"
    path.write_bytes("\ufeffa -1\r\n\r\ntwo words  1\r\nc 1\r\n".encode())
    data = voc.build()
    assert [data.path(i).stem for i in range(len(data))] == ["a", "two words", "c 1"]


@pytest.mark.parametrize("size", [None, (0, 0), ("", "nan"), (-3, 5)])
def test_missing_size_comes_from_the_file(voc: VocSet, size: Any) -> None:
    voc.image("a", [("dog", 2, 3, 12, 150)], size=size)
    data = voc.build()
    assert data.records.sizes.tolist() == [[40, 30]]
    assert data[0].boxes.tolist() == [[2, 3, 12, 30]]


def test_flaws_are_counted_and_skipped(voc: VocSet) -> None:
    objects = [
        ("cat", 5, 5, 5, 9),
        ("cat", "nan", 5, 6, 9),
        ("cat", "", 5, 6, 9),
        ("cat", 50, 5, 60, 9),
        ("cat", 30, 5, 60, 9),
        ("two\nlines", 1, 2, 3, 4),
    ]
    voc.image("flawed", objects)
    voc.image("unsized", [("cat", 1, 1, 2, 2)], size=None)
    (voc.root / "JPEGImages" / "unsized.png").write_bytes(b"nothing")
    voc.xml("no_image", "<annotation/>")
    voc.split("train", ["a", "flawed", "a", "no_xml", "no_image", "unsized"])
    data = voc.build()
    assert len(data) == 2 and len(data[1].boxes) == 1
    where = f"train.txt of {voc.root.name}: 1 x "
    assert [note.replace("2 x", "1 x") for note in data.notes] == [
        where + "image named twice by the split, skipped, e.g. a",
        where + "image without Annotations/NAME.xml, skipped, e.g. no_xml",
        where + "object without a printable name, skipped, e.g. in flawed.xml",
        where + f"image missing from {voc.root}/JPEGImages, skipped, e.g. no_image.jpg",
        where + f"unreadable image, skipped, e.g. {voc.root}/JPEGImages/unsized.png: not an image of a known kind"
        " (JPEG, PNG, BMP, TIFF, WEBP, GIF, PPM, JPEG2000)",
        where + "box with a coordinate that is not a finite number, skipped, e.g. (nan, 5, 6, 9) in flawed.png",
        where + "box of zero or negative size, skipped, e.g. (5, 5, 5, 9) in flawed.png",
        where + "box wholly outside its image, skipped, e.g. (50, 5, 60, 9) in flawed.png",
        where + "box partly outside its image, clipped, e.g. (30, 5, 60, 9) in flawed.png",
    ]
    assert sum("2 x" in note for note in data.notes) == 1  # the two coordinates that are no numbers


# mistakes that leave nothing to read


@pytest.mark.parametrize("folder", ["", "Annotations", "ImageSets/Main"])
def test_missing_folder(voc: VocSet, folder: str) -> None:
    (voc.root / folder).rename(voc.root.parent / "moved")
    with fails(f"VOC data set not found: looked for the folder {voc.root / folder}; VOC layout is JPEGImages, "):
        voc.build()


def test_missing_images(voc: VocSet) -> None:
    (voc.root / "JPEGImages").rename(voc.root / "Pictures")
    with fails("VOC images not found: looked for the folder .*JPEGImages; VOC layout is"):
        voc.build()
    config = DataConfig(format="voc", root=voc.root, train={"split": "train", "images": "train2017"})
    with fails(r"VOC images \(data.train.images\) not found: looked for the folder .*train2017;"):
        build_dataset(config, "train")
    config = DataConfig(format="voc", root=voc.root, train={"split": "train", "images": "Pictures"})
    assert len(build_dataset(config, "train")) == 1


def test_missing_split(voc: VocSet) -> None:
    (voc.root / "ImageSets" / "Main" / "train.txt").unlink()
    with fails("VOC split not found: looked for .*ImageSets/Main/train.txt; VOC layout is"):
        voc.build()
    with fails("data.train.split is not set: format voc needs a name of ImageSets/Main, without .txt"):
        build_dataset(DataConfig(format="voc", root=voc.root, val={"split": "val"}), "train")


def test_empty_split(voc: VocSet) -> None:
    voc.split("train", [""])
    with fails("the VOC split .*train.txt names no images: the data set is empty"):
        voc.build()


def test_split_that_is_not_text(voc: VocSet) -> None:
    (voc.root / "ImageSets" / "Main" / "train.txt").write_bytes(b"\xff\xfe\x00")
    with fails("the VOC split .*train.txt cannot be read as text"):
        voc.build()


def test_no_image_there(voc: VocSet) -> None:
    (voc.root / "JPEGImages" / "a.png").unlink()
    with fails("none of the 1 images of the VOC split can be used: looked in .*JPEGImages for a.jpg and the others"):
        voc.build()


def test_nothing_annotated(voc: VocSet) -> None:
    voc.image("a", [])
    voc.image("b", [])
    with fails("no object of the splits has a name in .*Annotations: check data.train.split"):
        voc.build()
    with fails("the training data under .* has no usable box of cat"):
        voc.build(classes=["cat"])


@pytest.mark.parametrize("text", ["", "<annotation>", "<a></b>", b"\x00\x01", "<annotation>&undefined;</annotation>"])
def test_broken_xml(voc: VocSet, text: str | bytes) -> None:
    voc.xml("a", text)
    with fails(r"a.xml is not readable XML \(.*\): mend it, or take its image out of the split"):
        voc.build()


BOMB = """<!DOCTYPE x [<!ENTITY a "ha"><!ENTITY b "&a;&a;&a;&a;&a;&a;&a;&a;">]>
<annotation><object><name>&b;</name></object></annotation>"""


@pytest.mark.parametrize("encoding", ["utf-8", "utf-16"])
def test_entities_are_never_expanded(voc: VocSet, encoding: str) -> None:
    voc.xml("a", f'<?xml version="1.0" encoding="{encoding}"?>\n{BOMB}'.encode(encoding))
    with fails("a.xml declares a document type .*remove it"):
        voc.build()


@pytest.mark.parametrize("name", ["../a", "/etc/hosts", "..\\a"])
def test_names_may_not_leave_the_folder(voc: VocSet, name: str) -> None:
    voc.split("train", [name])
    with fails("train.txt names .*, which leads out of the .*folder"):
        voc.build()


def test_same_as_coco(voc: VocSet, tmp_path: Path) -> None:
    """One set in both layouts: the same images, boxes and labels."""
    rows = {"a": [("dog", 2, 3, 12, 15), ("cat", 20.5, 1, 29.75, 21)], "b": [("bird", 0, 0, 40, 30)], "cc": []}
    ids = {"bird": 5, "cat": 6, "dog": 9}
    twin = CocoSet(tmp_path / "twin", categories=[{"id": key, "name": name} for name, key in ids.items()])
    for name, objects in rows.items():
        voc.image(name, objects)
        key = twin.image(f"{name}.png")
        (twin.root / "images" / f"{name}.png").write_bytes((voc.root / "JPEGImages" / f"{name}.png").read_bytes())
        for label, x1, y1, x2, y2 in objects:
            twin.box(key, [x1, y1, x2 - x1, y2 - y1], ids[label])
    voc.split("train", list(rows))
    one, other = voc.build(), twin.build()
    assert one.classes == other.classes and one.notes == other.notes == []
    assert one.records.areas.tolist() == other.records.areas.tolist()
    for left, right in zip(one, other, strict=True):  # type: ignore[call-overload]
        assert torch.equal(left.image, right.image)
        assert left.boxes.tolist() == right.boxes.tolist() and left.labels.tolist() == right.labels.tolist()
