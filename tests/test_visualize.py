"""scripts/visualize.py and scripts/compare.py on a small distilled run."""

from __future__ import annotations

import json
import runpy
import sys
from pathlib import Path

import numpy as np
import pytest
import torch
from PIL import Image

from gid_cuda.config import DistillConfig, config_from_dict, config_to_dict, load_config
from gid_cuda.data import build_dataset
from gid_cuda.data.images import UnreadableImage
from gid_cuda.detectors.build import build_detector
from gid_cuda.engine.checkpoint import save_checkpoint
from gid_cuda.engine.instance_statistics import statistics_of
from gid_cuda.engine.pairs import both_outputs, open_pairs
from gid_cuda.engine.pictures import choose_images, distilled_kinds, instances_of_image
from gid_cuda.errors import UserError
from gid_cuda.viz.heat_map import _grids
from gid_cuda.viz.instances import STYLES

SCRIPTS = Path(__file__).parent.parent / "scripts"
CPU = torch.device("cpu")
MODEL = {
    "backbone": "mobilenet_v3_small",
    "norm": "live",
    "fpn_channels": 8,
    "head_depth": 1,
    "anchor_sizes": [16, 32, 48, 64, 96],
}


@pytest.fixture(scope="module")
def run(tmp_path_factory) -> Path:
    """A folder with distill.yaml, plain.yaml, a teacher's and two students' checkpoints, and generated data."""
    folder = tmp_path_factory.mktemp("run")
    data = {"format": "generated", "root": str(folder / "data"), "generated": {"train_images": 1, "val_images": 6}}
    raw = {
        "output": str(folder / "unused"),
        "data": data,
        "input": {"min_size": [108], "max_size": 192},  # not the images' own 144: pictures must be scaled back
        "model": MODEL,
        "train": {"steps": 1},
    }
    (folder / "plain.yaml").write_text(json.dumps(raw))
    raw["teacher"] = {**MODEL, "weights": str(folder / "teacher.pt")}
    raw["distill"] = {"top_k": 8}
    (folder / "distill.yaml").write_text(json.dumps(raw))
    config = load_config(folder / "plain.yaml")
    classes = build_dataset(config.data, "val").classes
    for seed, name in enumerate(["teacher", "early", "late"]):
        torch.manual_seed(seed)
        detector = build_detector(config.model, config.input, classes)
        torch.nn.init.normal_(detector.head.classification_head.cls_logits.weight, std=0.5)  # sure of something
        content = {"model": detector.state_dict(), "classes": classes, "config": config_to_dict(config), "step": seed}
        save_checkpoint(folder / f"{name}.pt", {**content, "metrics": None})
    return folder


def run_script(monkeypatch, name: str, *arguments: object) -> int:
    """The script's exit status, run in this process."""
    monkeypatch.setattr(sys, "argv", [name, *map(str, arguments)])
    try:
        runpy.run_path(str(SCRIPTS / name), run_name="__main__")
    except SystemExit as end:
        return int(end.code or 0)
    return 0


def load(run: Path, name: str):
    config = load_config(run / "distill.yaml", [f"teacher.weights={run / name}"])
    return build_detector(config.teacher, config.input, build_dataset(config.data, "val").classes).eval()


def test_what_is_drawn_is_the_selection_in_the_pixels_of_the_image(run):
    config = load_config(run / "distill.yaml")
    sample = build_dataset(config.data, "val")[0]
    part = instances_of_image(
        sample, load(run, "early.pt"), load(run, "teacher.pt"), config.distill, title="x", device=CPU
    )
    assert len(part.boxes) == len(part.scores) == len(part.kinds) > 0
    assert part.heat.shape == sample.image.shape[1:]
    assert (part.scores.diff() <= 0).all() and part.scores[0] > 0
    limits = torch.tensor([192.0, 144, 192, 144])
    assert (part.boxes >= 0).all() and (part.boxes <= limits + 1e-3).all()
    assert part.boxes[:, 2:].max() > 108  # in the pixels of the image, not of the network's input
    assert 0.5 * part.scores[0] < part.heat.max() <= 1  # the best box lies in the image, but not on a pixel's centre
    assert set(part.kinds) <= set(STYLES)


def test_a_student_that_equals_the_teacher_has_a_dark_map(run):
    config = load_config(run / "distill.yaml")
    sample = build_dataset(config.data, "val")[0]
    teacher = load(run, "teacher.pt")
    part = instances_of_image(sample, teacher, teacher, config.distill, title="x", device=CPU)
    assert part.heat.max() == 0 and (part.scores == 0).all()


def test_pictures_and_curves_in_one_call(run, monkeypatch, capsys, tmp_path):
    (tmp_path / "run").mkdir()
    (tmp_path / "run" / "log.jsonl").write_text('{"kind": "train", "step": 1, "loss": 2.0, "loss_feature": 1.0}\n')
    out = tmp_path / "pictures"
    status = run_script(
        monkeypatch, "visualize.py", "--cfg", run / "distill.yaml", "--weights", run / "early.pt", run / "late.pt",
        "--images", 2, "--output", out, "--curves", tmp_path / "run", "--names", "a run", "--device", "cpu",
    )  # fmt: skip
    said = capsys.readouterr()
    assert status == 0, said.err
    paths = [Path(line) for line in said.out.split()]
    ids = build_dataset(load_config(run / "distill.yaml").data, "val").image_ids
    assert paths == [out / f"instances_{ids[0]}.png", out / f"instances_{ids[3]}.png", out / "curves.png"]
    for path in paths:
        picture = np.asarray(Image.open(path))
        assert 300 <= picture.shape[1] <= 1100 and picture.std() > 5


@pytest.mark.parametrize("detector, rows", [("fcos", 1), ("faster_rcnn", 3)])
def test_other_detectors(run, detector, rows):
    """Their boxes lie on grids as the map needs them; Faster R-CNN's are the proposals, of one class."""
    default = ["model.fpn_channels=32", "model.head_depth=4", "model.anchor_sizes=[32, 64, 128, 256, 512]"]
    config = load_config(run / "plain.yaml", [f"model.detector={detector}", *default])
    dataset = build_dataset(config.data, "val")
    torch.manual_seed(0)
    student, teacher = (build_detector(config.model, config.input, dataset.classes).eval() for _ in range(2))
    distill = load_config(run / "distill.yaml").distill
    sample = dataset[0]
    theirs, ours, found, targets = both_outputs(sample, student, teacher, distill, title="x", device=CPU)
    cells = [(f.shape[2], f.shape[3]) for f in ours.features]
    assert len(ours.anchors) == rows * sum(h * w for h, w in cells)
    centers = (ours.anchors[:, :2] + ours.anchors[:, 2:]) / 2
    assert _grids(torch.zeros(len(centers)), centers, cells) is not None
    part = instances_of_image(sample, student, teacher, distill, title="x", device=CPU)
    assert len(part.boxes) == int(found.counts[0]) and part.heat.max() > 0 and part.heat.shape == sample.image.shape[1:]
    assert len(targets[0]["boxes"]) == len(sample.boxes)


def test_statistics_in_one_call(run, monkeypatch, capsys, tmp_path):
    status = run_script(
        monkeypatch, "visualize.py", "--cfg", run / "distill.yaml", "--weights", run / "early.pt", run / "late.pt",
        "--images", 0, "--statistics", 3, "--output", tmp_path, "--device", "cpu",
    )  # fmt: skip
    said = capsys.readouterr()
    assert status == 0, said.err
    assert said.out.split() == [str(tmp_path / "statistics.png"), str(tmp_path / "statistics.json")]
    assert np.asarray(Image.open(tmp_path / "statistics.png")).std() > 5
    early, late = json.loads((tmp_path / "statistics.json").read_text())["students"]
    assert early["student"].endswith("early.pt, step 1") and late["student"].endswith("late.pt, step 2")
    # the same as from each image for itself
    config = load_config(run / "distill.yaml")
    dataset = build_dataset(config.data, "val")
    student, teacher = load(run, "early.pt"), load(run, "teacher.pt")
    parts = [
        instances_of_image(dataset[i], student, teacher, config.distill, title="x", device=CPU)
        for i in choose_images(dataset, 3)
    ]
    kinds = [kind for part in parts for kind in part.kinds]
    assert early["images"] == 3 and early["instances"] == len(kinds) > 3
    assert early["kinds"] == {name: kinds.count(name) for name in early["kinds"]}
    scores = torch.cat([part.scores for part in parts])
    assert early["score"]["mean"] == pytest.approx(float(scores.mean()), abs=1e-6)
    assert sum(early["iou"]["counts"][10:]) >= kinds.count("positive")


def test_an_image_that_cannot_be_read_is_left_out_of_statistics(run, monkeypatch):
    config = load_config(run / "distill.yaml")
    pairs = open_pairs(config, [run / "early.pt"], CPU)
    (title, student), read = pairs.students[0], type(pairs.dataset).__getitem__

    def broken(dataset, index):
        if index == 1:
            raise UnreadableImage("1.jpg cannot be decoded")
        return read(dataset, index)

    monkeypatch.setattr(type(pairs.dataset), "__getitem__", broken)
    assert statistics_of(pairs, [0, 1], student, title=title, device=CPU).images == 1
    with pytest.raises(UserError, match="none of the 1 sampled validation images can be read: 1.jpg cannot be"):
        statistics_of(pairs, [1], student, title=title, device=CPU)


def test_chosen_images(run, monkeypatch):
    dataset = build_dataset(load_config(run / "distill.yaml").data, "val")
    assert choose_images(dataset, 3, []) == [0, 2, 4]
    assert choose_images(dataset, 50, []) == list(range(6))
    wanted = [dataset.image_ids[4], dataset.image_ids[1]]
    assert choose_images(dataset, 3, wanted) == [4, 1]
    names = [str(dataset.path(2)), dataset.path(5).name, dataset.path(3).stem]
    assert choose_images(dataset, 3, [], names) == [2, 5, 3]
    assert choose_images(dataset, 3, wanted, ["/".join(dataset.path(0).parts[-2:])]) == [4, 1, 0]
    with pytest.raises(UserError, match="the validation set has no image with id 12345; its ids go from"):
        choose_images(dataset, 3, [12345])
    with pytest.raises(UserError, match="has no image file 1; its first is"):
        choose_images(dataset, 3, [], ["1"])
    monkeypatch.setattr(dataset, "path", lambda index: Path(f"/data/{'ab'[index % 2]}/same.jpg"))
    with pytest.raises(UserError, match="6 image files of the validation set are called same.jpg, among them /data/a/"):
        choose_images(dataset, 3, [], ["same.jpg"])


def other_student(run: Path, path: Path, *, rename: bool = False, anchors: list[int] | None = None) -> Path:
    """early.pt, as if trained for other classes or anchors."""
    content = torch.load(run / "early.pt", weights_only=True)
    if rename:
        content["classes"] = [f"other {name}" for name in content["classes"]]
    content["config"]["model"]["anchor_sizes"] = anchors or MODEL["anchor_sizes"]
    torch.save(content, path)
    return path


def fcos_student(run: Path, path: Path) -> Path:
    config = load_config(run / "plain.yaml").model_dump(mode="json")
    config["model"] |= {"detector": "fcos", "fpn_channels": 32, "anchor_sizes": [32, 64, 128, 256, 512]}
    config = config_from_dict(config, name="fcos")
    content = torch.load(run / "early.pt", weights_only=True)
    content["model"] = build_detector(config.model, config.input, content["classes"]).state_dict()
    torch.save({**content, "config": config_to_dict(config)}, path)
    return path


@pytest.mark.parametrize(
    ("distill", "said"),
    [
        ({}, ""),
        ({"kinds": ["positive", "negative"]}, "of them teach: positive, negative"),
        ({"kinds": "ground_truth"}, "none of them teaches: ground truth does"),
        ({"method": "fitnet"}, "none of them teaches: the method is fitnet"),
    ],
)
def test_which_of_the_instances_teach_is_said(distill, said):
    assert distilled_kinds(DistillConfig(**distill)) == said


def test_mistakes(run, monkeypatch, capsys, tmp_path):
    def error_of(*arguments: object) -> str:
        assert run_script(monkeypatch, "visualize.py", "--output", tmp_path / "out", *arguments) == 2
        said = capsys.readouterr().err
        assert "Traceback" not in said
        return said

    assert "nothing to draw: give --cfg and --weights (with --images or --statistics above 0), or" in error_of()
    assert "--image-ids, --image-files and --statistics need --cfg and --weights" in error_of("--statistics", 3)
    assert "argument --statistics: -1 is below 0" in error_of("--statistics", -1)
    assert "--cfg and --weights go together" in error_of("--cfg", run / "distill.yaml")
    early, cfg = run / "early.pt", run / "distill.yaml"
    assert "nothing to draw" in error_of("--cfg", cfg, "--weights", early, "--images", 0)
    text = error_of("--cfg", cfg, "--weights", early, "--image-files", "no.jpg")
    assert text.startswith("error: the validation set has no image file no.jpg; its first is ")
    text = error_of("--cfg", run / "plain.yaml", "--weights", early)
    assert text.startswith("error: the config has no distill section") and "give the config of a distilled run" in text
    text = error_of("--cfg", cfg, "--weights", other_student(run, tmp_path / "x.pt", rename=True))
    assert (
        "x.pt was trained on the classes other gear, " in text
        and ", and the validation set has gear, " in text
        and "give the config that it was trained with" in text
    )
    text = error_of("--cfg", cfg, "--weights", other_student(run, tmp_path / "x.pt", anchors=[8, 16, 32, 64, 96]))
    assert "x.pt, step 1: the anchors of teacher and student differ" in text
    text = error_of("--cfg", cfg, "teacher.weights=gone.pt", "--weights", early)
    assert text.startswith("error: teacher.weights: gone.pt does not exist: train the teacher first")
    assert "none.pt does not exist" in error_of("--cfg", cfg, "--weights", run / "none.pt")
    assert f"{run} is a folder: give a file, such as {run / 'best.pt'}" in error_of("--cfg", cfg, "--weights", run)
    text = error_of("--cfg", cfg, "--weights", early, fcos_student(run, tmp_path / "fcos.pt"))
    assert "fcos.pt is of detector fcos, and the config's teacher of retinanet, whose boxes are others" in text
    assert "has no log.jsonl" in error_of("--curves", tmp_path)
    (tmp_path / "file").write_text("")
    text = error_of("--cfg", cfg, "--weights", early, "--output", tmp_path / "file")
    assert "file is a file, expected a folder: give another with --output" in text


def test_compare(monkeypatch, capsys, tmp_path):
    for name, ap in [("teacher", 40.0), ("plain", 30.0)]:
        (tmp_path / name).mkdir()
        text = f'{{"AP": {ap}, "AP50": 60.0, "parameters": 11000000, "seconds": 60.0}}'
        (tmp_path / name / "metrics.json").write_text(text)
    runs = [tmp_path / "teacher", tmp_path / "plain"]
    assert run_script(monkeypatch, "compare.py", *runs, "--baseline", "plain") == 0
    assert "+10.0" in capsys.readouterr().out
    assert run_script(monkeypatch, "compare.py", *runs, "--names", "T", "P", "--markdown") == 0
    assert capsys.readouterr().out.startswith("| run ")
    assert run_script(monkeypatch, "compare.py", *runs, tmp_path / "gone") == 2
    assert capsys.readouterr().err.startswith(f"error: {tmp_path / 'gone'} has no metrics.json")
