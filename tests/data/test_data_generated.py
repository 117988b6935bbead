"""The generated set: exact boxes, the same pictures for the same parameters, never half a set on disk."""

from __future__ import annotations

import json
import os
from pathlib import Path

import numpy as np
import pytest
from pydantic import BaseModel

from gid_cuda.config import DataConfig, GeneratedConfig
from gid_cuda.data import build_dataset, generated, scenes
from gid_cuda.errors import UserError

SMALL = {"train_images": 6, "val_images": 3, "width": 64, "height": 48}


def config(root: Path, **more: int) -> DataConfig:
    return DataConfig(format="generated", root=root, generated=GeneratedConfig(**(SMALL | more)))


def contents(root: Path) -> dict[str, bytes]:
    return {str(path.relative_to(root)): path.read_bytes() for path in root.rglob("*") if path.is_file()}


def test_train_and_val(tmp_path: Path) -> None:
    train, val = (build_dataset(config(tmp_path), part) for part in ("train", "val"))
    assert len(train) == 6 and len(val) == 3
    assert train.classes == val.classes == list(scenes.CLASSES)
    assert train.notes == val.notes == []
    assert train[0].image.shape == (3, 48, 64)
    assert not (train[0].image == val[0].image).all()
    assert build_dataset(config(tmp_path).model_copy(update={"classes": ["ring"]}), "val").classes == ["ring"]


def test_found_again_and_written_anew_for_other_parameters(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    build_dataset(config(tmp_path), "train")
    before = contents(tmp_path)
    with monkeypatch.context() as patch:
        patch.setattr(generated, "draw_scene", None)  # nothing is drawn
        build_dataset(config(tmp_path), "val")
    assert contents(tmp_path) == before
    for more in ({"seed": 1}, {"val_images": 4}, {"width": 72}):
        build_dataset(config(tmp_path, **more), "train")
    assert len(os.listdir(tmp_path)) == 4


def test_same_parameters_same_bytes(tmp_path: Path) -> None:
    for root in ("one", "two"):
        build_dataset(config(tmp_path / root), "train")
    assert contents(tmp_path / "one") == contents(tmp_path / "two")


def test_more_images_leave_the_first_as_they_were(tmp_path: Path) -> None:
    few, many = (build_dataset(config(tmp_path, train_images=n), "train") for n in (2, 4))
    for i in range(2):
        assert (few[i].image == many[i].image).all() and few[i].boxes.tolist() == many[i].boxes.tolist()


def test_interrupted_writing_is_done_again(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    drawn = []

    def interrupted(*arguments: object) -> scenes.Scene:
        drawn.append(arguments)
        if len(drawn) > 7:  # in the val part
            raise KeyboardInterrupt
        return scenes.draw_scene(*arguments)  # type: ignore[arg-type]

    with monkeypatch.context() as patch:
        patch.setattr(generated, "draw_scene", interrupted)
        with pytest.raises(KeyboardInterrupt):
            build_dataset(config(tmp_path), "train")
    assert os.listdir(tmp_path) == []
    assert len(build_dataset(config(tmp_path), "val")) == 3


def test_another_run_may_be_faster(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    write = generated._write_part

    def overtaken(*arguments: object) -> None:
        with monkeypatch.context() as patch:
            patch.setattr(generated, "_write_part", write)
            generated.generate(config(tmp_path).generated, tmp_path)
        write(*arguments)  # type: ignore[arg-type]

    monkeypatch.setattr(generated, "_write_part", overtaken)
    folder = generated.generate(config(tmp_path).generated, tmp_path)
    assert os.listdir(tmp_path) == [folder.name]


def test_place_that_cannot_be_written(tmp_path: Path) -> None:
    (tmp_path / "file").write_text("")
    with pytest.raises(UserError, match=r"the generated data set cannot be written to .*file .*data.root=\.\.\."):
        build_dataset(config(tmp_path / "file"), "train")


def test_a_folder_of_other_files_is_left_alone(tmp_path: Path) -> None:
    """data.root names the user's own data, and data.format has been forgotten."""
    (tmp_path / "instances.json").write_text("{}")
    with pytest.raises(UserError, match=r"holds other files \(instances.json\), .* set data.format=coco or"):
        generated.generate(GeneratedConfig(train_images=1, val_images=1), tmp_path)
    assert [p.name for p in tmp_path.iterdir()] == ["instances.json"]


def test_too_small(tmp_path: Path) -> None:
    with pytest.raises(UserError, match="data.generated asks for images of 64x47 pixels: at least 48x48 are needed"):
        build_dataset(config(tmp_path, height=47), "train")


def test_every_parameter_counts() -> None:
    """The name of the folder is made of all fields; a new one cannot be forgotten."""
    assert issubclass(GeneratedConfig, BaseModel)
    assert set(GeneratedConfig().model_dump()) == set(GeneratedConfig.model_fields)


def block(x: int, y: int, width: int, height: int, label: int | None) -> scenes._Layer:
    solid = np.ones((height, width), np.float32)
    return scenes._Layer(x, y, solid, 0 * solid, np.ones((height, width, 3), np.float32), label)


def scene_of(monkeypatch: pytest.MonkeyPatch, *layers: scenes._Layer) -> scenes.Scene:
    monkeypatch.setattr(scenes, "_layers", lambda *_: list(layers))
    return scenes.draw_scene(100, 80, np.random.default_rng(0))


def test_boxes_are_tight_around_what_can_be_seen(monkeypatch: pytest.MonkeyPatch) -> None:
    below, above = block(10, 20, 40, 20, 3), block(30, 10, 30, 50, 1)
    scene = scene_of(monkeypatch, below, above)
    assert scene.boxes.tolist() == [[10, 20, 30, 40], [30, 10, 60, 60]]
    assert scene.labels.tolist() == [3, 1] and scene.areas.tolist() == [400, 1500]


def test_covers_hide_but_have_no_box(monkeypatch: pytest.MonkeyPatch) -> None:
    scene = scene_of(monkeypatch, block(10, 20, 40, 20, 3), block(10, 20, 20, 20, None))
    assert scene.boxes.tolist() == [[30, 20, 50, 40]]


def test_boxes_end_at_the_border(monkeypatch: pytest.MonkeyPatch) -> None:
    scene = scene_of(monkeypatch, block(-10, 70, 40, 20, 2), block(90, -3, 20, 20, 0))
    assert scene.boxes.tolist() == [[0, 70, 30, 80], [90, 0, 100, 17]]


@pytest.mark.parametrize(("covered", "stays"), [(27, True), (29, False)])
def test_hardly_visible_shapes_are_not_drawn(monkeypatch: pytest.MonkeyPatch, covered: int, stays: bool) -> None:
    """Of 40 columns 13 or 11 can be seen. What is left out hides nothing either."""
    lowest, middle, top = block(0, 20, 100, 20, 0), block(10, 20, 40, 20, 3), block(10, 20, covered, 20, None)
    scene = scene_of(monkeypatch, lowest, middle, top)
    assert scene.labels.tolist() == ([0, 3] if stays else [0])
    assert scene.areas.tolist() == ([1200, 260] if stays else [2000 - 20 * covered])


def test_pictures_are_varied_and_annotated_alike(tmp_path: Path) -> None:
    """Over some pictures: every class, sizes over a wide range, boxes inside the picture."""
    drawn = [scenes.draw_scene(192, 144, np.random.default_rng([0, i])) for i in range(40)]
    boxes, labels = np.concatenate([s.boxes for s in drawn]), np.concatenate([s.labels for s in drawn])
    assert set(labels.tolist()) == set(range(len(scenes.CLASSES)))
    sides = (boxes[:, 2:] - boxes[:, :2]).max(1)
    assert (sides < 20).any() and (sides > 60).any()
    assert (boxes >= 0).all() and (boxes <= [192, 144, 192, 144]).all()
    areas = np.concatenate([s.areas for s in drawn])
    assert (areas > 0).all() and (areas <= (boxes[:, 2:] - boxes[:, :2]).prod(1)).all()


def test_annotations_are_plain_coco(tmp_path: Path) -> None:
    folder = generated.generate(config(tmp_path).generated, tmp_path)
    content = json.loads((folder / "val.json").read_text())
    assert [image["file_name"] for image in content["images"]] == sorted(os.listdir(folder / "val"))
    assert [a["id"] for a in content["annotations"]] == list(range(1, len(content["annotations"]) + 1))
