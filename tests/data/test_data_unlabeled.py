"""Training images without labels: from a folder, or those whose labels are left aside."""

from __future__ import annotations

import os
from pathlib import Path

import numpy as np
import pytest
import torch
from data_helpers import CocoSet
from PIL import Image

from gid_cuda.config import DataConfig
from gid_cuda.data import UnlabeledImages, UnreadableImage, build_dataset, build_loader, build_training
from gid_cuda.engine.setup import build_data
from gid_cuda.errors import UserError


def generated(root: Path, **more: object) -> DataConfig:
    sizes = {"train_images": 10, "val_images": 2, "width": 64, "height": 48}
    return DataConfig(format="generated", root=root, generated=sizes, **more)  # type: ignore[arg-type]


def unlabeled(config: DataConfig) -> UnlabeledImages:
    found = build_training(config)[1]
    assert found is not None
    return found


def picture(path: Path) -> Path:
    path.parent.mkdir(parents=True, exist_ok=True)
    Image.fromarray(np.full((6, 8, 3), 90, np.uint8)).save(path)
    return path


def test_a_fraction_keeps_its_labels_and_the_others_are_images_alone(tmp_path: Path) -> None:
    whole = build_dataset(generated(tmp_path), "train")
    config = generated(tmp_path, labeled_fraction=0.3, unlabeled={"batch_size": 2})
    labelled, rest = build_training(config)
    assert rest is not None and (len(labelled), len(rest)) == (3, 7)
    names = {whole.path(i).name: i for i in range(10)}
    assert {labelled.path(i).name for i in range(3)} | {rest.path(i).name for i in range(7)} == names.keys()
    for i in range(3):  # image and boxes still belong together
        ours, before = labelled[i], whole[names[labelled.path(i).name]]
        assert torch.equal(ours.image, before.image) and torch.equal(ours.boxes, before.boxes)
        assert torch.equal(ours.labels, before.labels) and ours.image_id == before.image_id
    sample = rest[2]
    assert torch.equal(sample.image, whole[names[rest.path(2).name]].image)
    assert sample.boxes.shape == (0, 4) and sample.labels.shape == (0,)
    assert len(build_dataset(config, "val")) == 2  # validation is not cut


def test_the_fraction_is_the_same_each_time_and_a_larger_one_has_it(tmp_path: Path) -> None:
    ids = [build_dataset(generated(tmp_path, labeled_fraction=f), "train").image_ids for f in (0.3, 0.3, 0.6, 0.01)]
    assert ids[0] == ids[1] and set(ids[0]) < set(ids[2]) and len(ids[2]) == 6
    assert len(ids[3]) == 1
    assert ids[0] == sorted(ids[0]) != [1, 2, 3]


def test_a_fraction_of_joined_sets_finds_its_files(tmp_path: Path) -> None:
    names = ["a0.png", "a1.png", "b0.png", *(f"c{i}.png" for i in range(5))]
    for folder in "abc":
        made = CocoSet(tmp_path / folder)
        for name in names:
            if name.startswith(folder):
                made.box(made.image(name), [1, 1, 5, 5])
        made.write()
    split = {"annotations": "instances.json", "images": "images"}
    sets = [{"root": name, **split} for name in "abc"]
    for fraction in (0.2, 0.5, 0.8):  # the smaller two leave a set without any label
        more = {"labeled_fraction": fraction, "unlabeled": {"batch_size": 1}}
        labelled, rest = build_training(DataConfig(format="coco", root=tmp_path, train=sets, val=sets, **more))
        assert rest is not None
        found = [part[i].path for part in (labelled, rest) for i in range(len(part))]  # each is opened
        assert sorted(map(os.path.basename, found)) == names


def test_a_folder_is_searched_with_its_folders_and_without_the_labelled_images(tmp_path: Path) -> None:
    labelled = build_dataset(generated(tmp_path / "data", labeled_fraction=0.5), "train")
    here = labelled.path(0).parent
    inner = picture(here / "more" / "z.PNG")
    (here / "notes.txt").write_text("no image")
    os.symlink(labelled.path(0), here / "more" / "link.jpg")  # the same file under another name
    folder = here.relative_to(tmp_path / "data")
    more = {"labeled_fraction": 0.5, "unlabeled": {"images": str(folder), "batch_size": 1}}
    found = unlabeled(generated(tmp_path / "data", **more))
    names = [found.path(i) for i in range(len(found))]
    assert len(names) == 6 and inner in names and names == sorted(names)
    assert not {labelled.path(i) for i in range(5)} & set(names)
    assert found.notes == ["6 x image that the labelled part has, too, left out"]


def test_a_folder_somewhere_else(tmp_path: Path) -> None:
    for name in ("b.jpg", "a.png"):
        picture(tmp_path / "photos" / name)
    found = unlabeled(generated(tmp_path / "data", unlabeled={"images": str(tmp_path / "photos"), "batch_size": 1}))
    assert [found.path(i).name for i in range(2)] == ["a.png", "b.jpg"] and found.notes == []
    (tmp_path / "photos" / "a.png").write_bytes(b"no image")
    with pytest.raises(UnreadableImage, match=r"a\.png"):
        found[0]


def test_folders_of_no_use(tmp_path: Path) -> None:
    def config(images: Path) -> DataConfig:
        return generated(tmp_path / "data", unlabeled={"images": str(images), "batch_size": 1})

    with pytest.raises(UserError, match=r"data\.unlabeled\.images not found: looked for the folder .*nowhere"):
        build_training(config(tmp_path / "nowhere"))
    (tmp_path / "empty").mkdir()
    with pytest.raises(UserError, match="no images in .*empty: data.unlabeled.images is searched for .bmp"):
        build_training(config(tmp_path / "empty"))
    train = build_dataset(generated(tmp_path / "data"), "train").path(0).parent
    with pytest.raises(UserError, match="all 10 images in .* are in the training or the validation data"):
        build_training(config(train))
    with pytest.raises(UserError, match="labeled_fraction 0.99 keeps the labels of all 10 training images"):
        build_training(generated(tmp_path / "data", labeled_fraction=0.99, unlabeled={"batch_size": 1}))


def test_batches_of_both(tmp_path: Path) -> None:
    config = generated(tmp_path, labeled_fraction=0.4, unlabeled={"batch_size": 6})
    labelled, rest = build_training(config)
    assert rest is not None
    known = next(iter(build_loader(labelled, batch_size=4, workers=1, train=True)))
    more = next(iter(build_loader(rest, batch_size=6, workers=1, train=True)))
    batch = known.with_unlabeled(more)
    assert len(batch.images) == 10 and batch.unlabeled == 6 and known.unlabeled == 0
    assert batch.labelled_ids == known.image_ids
    first, second = batch.cut(2)
    assert first.paths == known.paths[:2] + more.paths[:3] and second.paths == known.paths[2:] + more.paths[3:]
    assert first.unlabeled == second.unlabeled == 3
    assert [len(t["boxes"]) for t in first.targets[:2]] == [len(t["boxes"]) for t in known.targets[:2]]
    assert sorted(more.paths) == sorted(str(rest.path(i)) for i in range(6))


def test_what_is_evaluated_on_is_not_distilled_on(tmp_path: Path) -> None:
    validation = build_dataset(generated(tmp_path / "data"), "val")
    here = validation.path(0).parent
    other = picture(here / "other.png")
    more = {"unlabeled": {"images": str(here.relative_to(tmp_path / "data")), "batch_size": 1}}
    found = build_data(generated(tmp_path / "data", **more)).unlabeled
    assert found is not None and [found.path(i) for i in range(len(found))] == [other]
    assert found.notes == [f"{len(validation)} x image that is evaluated on left out"]
    other.unlink()
    with pytest.raises(UserError, match="images in .* are in the training or the validation data with their labels"):
        build_data(generated(tmp_path / "data", **more))
