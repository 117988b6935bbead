"""scripts/predict.py: a checkpoint and a folder of images in, pictures and COCO results out."""

from __future__ import annotations

import contextlib
import io
import json
import runpy
import sys
from pathlib import Path

import numpy as np
import pytest
import torch
from PIL import Image
from pycocotools.coco import COCO

from gid_cuda.config import config_from_dict, config_to_dict
from gid_cuda.detectors.build import build_detector
from gid_cuda.detectors.outputs import Detector
from gid_cuda.engine.checkpoint import save_checkpoint
from gid_cuda.engine.inference import coco_ids, find_images, predict_files
from gid_cuda.errors import UserError
from gid_cuda.viz.drawing import PALETTE

SCRIPT = Path(__file__).parent.parent / "scripts" / "predict.py"
CLASSES = ["cat", "dog"]
NAMES = ["a.png", "b.png", "c.tiff", "d.png"]  # of `folder`
CPU = torch.device("cpu")


class Finder(Detector):
    """Finds the bright pixels of an image as one "dog", and claims a faint "cat" everywhere."""

    def predict(self, images):
        found = []
        for image in images:
            y, x = torch.nonzero(image.mean(dim=0) > 0.5, as_tuple=True)
            box = torch.stack([x.min(), y.min(), x.max() + 1, y.max() + 1]).float()
            boxes = torch.stack([box, torch.tensor([0.0, 0, image.shape[2], image.shape[1]])])
            found.append({"boxes": boxes, "scores": torch.tensor([0.9, 0.1]), "labels": torch.tensor([1, 0])})
        return found


def save_image(path: Path, box: tuple[int, int, int, int], *, mode: str = "RGB", size=(160, 120)) -> Path:
    """A dark picture with a bright box, in the given mode."""
    pixels = np.zeros((size[1], size[0]), np.uint8)
    pixels[box[1] : box[3], box[0] : box[2]] = 200
    image = Image.fromarray(pixels)
    if mode == "I;16":
        image = Image.fromarray(pixels.astype(np.uint16) * 257)
    path.parent.mkdir(parents=True, exist_ok=True)
    (image if mode == "I;16" else image.convert(mode)).save(path)
    return path


@pytest.fixture
def folder(tmp_path) -> Path:
    folder = tmp_path / "photos"
    save_image(folder / "b.png", (20, 30, 80, 90))
    save_image(folder / "a.png", (10, 10, 50, 40), mode="L")
    save_image(folder / "c.tiff", (60, 20, 150, 110), mode="I;16")
    save_image(folder / "d.png", (60, 20, 150, 110), mode="RGBA")
    (folder / "notes.txt").write_text("no image")
    return folder


def predict(folder: Path, output: Path, **options):
    return predict_files(Finder(), CLASSES, find_images([folder]), output, device=CPU, **options)


def test_pictures_have_boxes_and_results_have_the_numbers(folder, tmp_path):
    done = predict(folder, tmp_path / "out", batch_size=3)
    assert [p.name for p in done.pictures] == ["a.jpg", "b.jpg", "c.jpg", "d.jpg"]
    assert done.detections == 4 and done.unreadable == []
    entries = json.loads(done.results.read_text())
    assert entries[1] == {
        "image_id": 2,
        "file_name": "b.png",
        "category_id": 2,
        "category_name": "dog",
        "bbox": [20.0, 30.0, 60.0, 60.0],
        "score": 0.9,
    }
    assert [e["bbox"] for e in entries[2:]] == [[60.0, 20.0, 90.0, 90.0]] * 2  # 16 bits and alpha alike
    picture = np.asarray(Image.open(done.pictures[1])).astype(int)
    assert picture.shape == (600, 800, 3)
    dog = [int(PALETTE[1][i : i + 2], 16) for i in (1, 3, 5)]
    border = picture[200:400, 101:103]  # x = 20 of 160 pixels, at 800
    assert np.abs(border - dog).mean() < 25  # JPEG
    assert np.abs(picture[200:400, 70:90] - dog).mean() > 80


def test_the_threshold_holds_for_pictures_and_results(folder, tmp_path):
    everything = predict(folder, tmp_path / "all", score_threshold=0.0)
    nothing = predict(folder, tmp_path / "none", score_threshold=0.95)
    assert everything.detections == 8 and nothing.detections == 0
    assert json.loads(nothing.results.read_text()) == []
    blank = np.asarray(Image.open(nothing.pictures[0]).convert("RGB")).astype(int)
    assert np.ptp(blank, axis=2).max() < 12  # grey: no box was drawn


def test_pycocotools_reads_the_results_with_the_ids_of_the_annotations(folder, tmp_path):
    truth = {
        "images": [{"id": 100 + i, "file_name": f, "width": 160, "height": 120}
                   for i, f in enumerate(NAMES)],
        "categories": [{"id": 7, "name": "dog"}, {"id": 3, "name": "cat"}],
        "annotations": [],
    }  # fmt: skip
    file = tmp_path / "truth.json"
    file.write_text(json.dumps(truth))
    files = find_images([folder])
    ids = coco_ids(file, files, CLASSES)
    assert ids == ([100, 101, 102, 103], [3, 7])
    done = predict_files(Finder(), CLASSES, files, tmp_path / "out", device=CPU, ids=ids)
    with contextlib.redirect_stdout(io.StringIO()):
        loaded = COCO(str(file)).loadRes(str(done.results))
    assert loaded.loadAnns(loaded.getAnnIds(imgIds=[101], catIds=[7]))[0]["bbox"] == [20, 30, 60, 60]


def test_the_numbering_without_annotations_is_readable_by_pycocotools_too(folder, tmp_path):
    done = predict(folder, tmp_path / "out")
    truth = COCO()
    truth.dataset = {"images": [{"id": i} for i in range(1, 5)], "categories": [{"id": 1}, {"id": 2}]}
    with contextlib.redirect_stdout(io.StringIO()):
        truth.createIndex()
        assert len(truth.loadRes(str(done.results)).getAnnIds(catIds=[2])) == 4


def test_unreadable_images_are_left_out_and_the_others_keep_their_numbers(folder, tmp_path):
    (folder / "a.png").write_bytes(b"not a picture")
    whole = (folder / "d.png").read_bytes()
    (folder / "d.png").write_bytes(whole[: len(whole) // 2])
    done = predict(folder, tmp_path / "out", batch_size=1)
    assert [e["image_id"] for e in json.loads(done.results.read_text())] == [2, 3]
    assert [p.name for p in done.pictures] == ["b.jpg", "c.jpg"]
    assert "a.png" in done.unreadable[0] and "d.png" in done.unreadable[1]


def test_equal_stems_do_not_overwrite_each_other(tmp_path):
    places = [tmp_path / "x" / "a.png", tmp_path / "x" / "a.bmp", tmp_path / "y" / "A.png"]
    for i, place in enumerate(places):
        save_image(place, (10 * i, 10, 50, 40))
    done = predict_files(Finder(), CLASSES, find_images(places), tmp_path / "out", device=CPU)
    assert [p.name for p in done.pictures] == ["a.jpg", "a_2.jpg", "A_3.jpg"]
    assert all(p.is_file() for p in done.pictures)


def test_mistakes(folder, tmp_path):
    (tmp_path / "empty").mkdir()
    with pytest.raises(
        UserError, match=r"no images in .*empty: looked for .bmp, .*; folders inside it are not searched"
    ):
        find_images([tmp_path / "empty"])
    with pytest.raises(UserError, match=r"missing does not exist: --images takes a folder or image files"):
        find_images([folder, tmp_path / "missing"])
    with pytest.raises(UserError, match=r"photos holds the images themselves: give another folder with --output"):
        predict(folder, folder)
    (tmp_path / "bad").mkdir()
    (tmp_path / "bad" / "x.jpg").write_bytes(b"")
    with pytest.raises(UserError, match=r"none of the 1 images could be read; the first: .*x.jpg"):
        predict(tmp_path / "bad", tmp_path / "out")
    with pytest.raises(UserError, match=r"the folder .*notes.txt.* cannot be made: .*; give another with --output"):
        predict(folder, tmp_path / "photos" / "notes.txt" / "out")


@pytest.mark.parametrize(
    "content, message",
    [
        (None, r"annotation file .*truth.json cannot be read: No such file"),
        ("{", r"truth.json is no COCO annotation file: it has no images and categories with ids"),
        ("[]", r"truth.json is no COCO annotation file"),
        ('{"images": [], "categories": []}', r"truth.json does not list a.png \(4 of 4 are missing\): give"),
        (
            json.dumps({
                "images": [{"id": i, "file_name": f"x/{n}"} for i, n in enumerate(NAMES)],
                "categories": [{"id": 1, "name": "cat"}],
            }),
            r"truth.json has no category 'dog', but the detector has: cat, dog",
        ),
    ],
)  # fmt: skip
def test_mistakes_in_annotations(folder, tmp_path, content, message):
    file = tmp_path / "truth.json"
    if content is not None:
        file.write_text(content)
    with pytest.raises(UserError, match=message):
        coco_ids(file, find_images([folder]), CLASSES)


@pytest.fixture(scope="module")
def checkpoint(tmp_path_factory) -> Path:
    """An untrained detector that is made sure of something: its classification bias is raised."""
    raw = {
        "output": "unused",
        "data": {"format": "generated", "root": "unused"},
        "input": {"min_size": [64], "max_size": 96},
        "model": {"backbone": "mobilenet_v3_small", "norm": "live", "fpn_channels": 8, "head_depth": 1,
                  "anchor_sizes": [16, 32, 48, 64, 96], "detections_per_img": 5},
        "train": {"steps": 1},
    }  # fmt: skip
    config = config_from_dict(raw, name="test")
    torch.manual_seed(0)
    detector = build_detector(config.model, config.input, CLASSES)
    torch.nn.init.constant_(detector.head.classification_head.cls_logits.bias, 2.0)
    path = tmp_path_factory.mktemp("run") / "best.pt"
    content = {"model": detector.state_dict(), "classes": CLASSES, "config": config_to_dict(config), "step": 1}
    save_checkpoint(path, {**content, "metrics": None})
    return path


def run_script(monkeypatch, *arguments: object) -> int:
    """The script's exit status, run in this process."""
    monkeypatch.setattr(sys, "argv", ["predict.py", *map(str, arguments)])
    try:
        runpy.run_path(str(SCRIPT), run_name="__main__")
    except SystemExit as end:
        return int(end.code or 0)
    return 0


def test_the_script_needs_the_checkpoint_alone(monkeypatch, capsys, folder, tmp_path, checkpoint):
    (folder / "e.png").write_bytes(b"broken")
    out = tmp_path / "out"
    status = run_script(monkeypatch, "--weights", checkpoint, "--images", folder, "--output", out, "--device", "cpu")
    said = capsys.readouterr()
    assert status == 0
    assert "1 of 5 images could not be read, left out; e.g. " in said.out and "e.png" in said.out
    assert f"4 pictures in {out}" in said.out
    entries = json.loads((out / "results.json").read_text())
    assert f"{len(entries)} boxes with a score of 0.3 or more in {out / 'results.json'}" in said.out
    assert len(entries) == 20 and all(e["score"] >= 0.3 for e in entries)
    assert {e["category_name"] for e in entries} <= set(CLASSES)


def test_the_script_tells_mistakes_in_a_sentence(monkeypatch, capsys, folder, tmp_path, checkpoint):
    assert run_script(monkeypatch, "--weights", tmp_path / "none.pt", "--images", folder) == 2
    said = capsys.readouterr().err
    assert said.startswith("error: ") and "none.pt" in said and "Traceback" not in said
    assert run_script(monkeypatch, "--weights", checkpoint, "--images", tmp_path / "nowhere") == 2
    assert capsys.readouterr().err == (
        f"error: {tmp_path / 'nowhere'} does not exist: --images takes a folder or image files\n"
    )
    arguments = ["--weights", checkpoint, "--images", folder]
    assert run_script(monkeypatch, *arguments, "--score-threshold", "30") == 2
    assert "30 is not between 0 and 1" in capsys.readouterr().err
    assert run_script(monkeypatch, *arguments, "--batch-size", "0") == 2
    assert "0 is not above 0" in capsys.readouterr().err
