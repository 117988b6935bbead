"""The table that compares runs."""

from __future__ import annotations

import json
import subprocess
import sys
from pathlib import Path

import pytest
import yaml

from gid_cuda.errors import UserError
from gid_cuda.viz.table import comparison_table, data_note, plain_run, read_metrics, run_names


def make_run(folder: Path, ap: float | None, *, backbone: str = "resnet18", distill: dict | None = None) -> Path:
    folder.mkdir(parents=True)
    metrics = {"AP": ap, "AP50": None if ap is None else 2 * ap, "parameters": 12_345_678, "seconds": 61.4, "step": 9}
    (folder / "metrics.json").write_text(json.dumps(metrics))
    config = {"model": {"backbone": backbone, "weights": None}, "distill": distill}
    (folder / "config.yaml").write_text(yaml.safe_dump(config))
    return folder


@pytest.fixture
def runs(tmp_path) -> list[Path]:
    return [
        make_run(tmp_path / "teacher", 40.0, backbone="resnet50"),
        make_run(tmp_path / "student", 30.04),
        make_run(tmp_path / "gid", 32.56, distill={"top_k": 10}),
    ]


def test_table(runs):
    lines = comparison_table(runs, ["teacher", "plain student", "distilled"]).splitlines()
    assert [line.split() for line in lines[2:]] == [
        ["teacher", "12.35", "40.0", "80.0", "+10.0", "+19.9", "61"],
        ["plain", "student", "12.35", "30.0", "60.1", "61"],
        ["distilled", "12.35", "32.6", "65.1", "+2.6", "+5.0", "61"],
    ]
    assert "AP vs plain student" in lines[0]
    assert len({len(line) for line in lines}) == 1  # aligned


def test_markdown(runs):
    lines = comparison_table(runs, ["a|b", "plain", "gid"], markdown=True).splitlines()
    assert lines[0].startswith("| run ") and set(lines[1]) <= set("|-: ") and lines[2].startswith("| a\\|b ")
    assert {line.replace("\\|", "").count("|") for line in lines} == {8}


@pytest.mark.parametrize(
    ("keys", "same"),
    [
        ({}, True),
        ({"options": {}, "variant": "torchvision"}, True),  # of a newer version
        ({"variant": "mmdetection"}, False),
        ({"options": {"width": 8}}, False),
        ({"anchor_sizes": [16, 32, 64, 128, 256]}, False),
    ],
)
def test_which_models_are_the_same(runs, keys, same):
    path = runs[1] / "config.yaml"
    config = yaml.safe_load(path.read_text())
    config["model"] |= keys
    path.write_text(yaml.safe_dump(config))
    assert plain_run(runs) == (1 if same else None)


def test_the_plain_run_is_the_distilled_model_without_distillation(runs):
    assert plain_run(runs) == 1
    assert plain_run(runs[:2]) is None
    assert plain_run([runs[0], runs[2]]) is None
    (runs[1] / "config.yaml").unlink()
    assert plain_run(runs) is None
    text = comparison_table(runs, ["a", "b", "c"])
    assert " vs " not in text and "30.0" in text
    assert "AP vs b" in comparison_table(runs, ["a", "b", "c"], baseline="b")


def test_data_that_differ_are_told(runs):
    names = ["teacher", "plain", "gid"]
    assert data_note(runs, names) is None  # no config says anything of data
    for run, root, steps in zip(runs, ("here", "here", "there"), (1, 2, 3), strict=True):
        config = yaml.safe_load((run / "config.yaml").read_text())
        config |= {"data": {"format": "coco", "root": root, "hflip": 0.1 * steps}}
        (run / "config.yaml").write_text(yaml.safe_dump(config))
    told = "evaluated on other data than {}, so AP may not compare: {} (data.root)"
    assert data_note(runs, names) == told.format("teacher", "gid")
    assert data_note(runs[::-1], names[::-1]) == told.format("gid", "plain, teacher")
    assert data_note(runs[:2], names[:2]) is None
    ways = [  # of writing the same
        {"format": "coco", "root": "./data/x/", "val": [{"images": "a", "split": None}], "generated": {"seed": 1}},
        {"format": "coco", "root": str(Path("data/x").absolute()), "val": {"images": "a"}, "one_based": False},
        {"format": "generated", "root": "d", "val": {}, "generated": {"seed": 1, "train_images": 4}},
        {"format": "generated", "root": "d", "val": None, "generated": {"seed": 1, "train_images": 8}},
    ]
    for pair in (ways[:2], ways[2:]):
        for run, data in zip(runs, pair, strict=False):
            (run / "config.yaml").write_text(yaml.safe_dump({"data": data}))
        assert data_note(runs[:2], names[:2]) is None
    (runs[1] / "config.yaml").write_text(yaml.safe_dump({"data": ways[3] | {"generated": {"seed": 2}}}))
    assert str(data_note(runs[:2], names[:2])).endswith(": plain (data.generated)")
    for run, root in zip(runs, ("here", "here", "there"), strict=True):
        (run / "config.yaml").write_text(yaml.safe_dump({"data": {"format": "coco", "root": root}}))
    script = Path(__file__).parents[2] / "scripts" / "compare.py"
    done = subprocess.run([sys.executable, script, *runs], capture_output=True, text=True)
    assert done.returncode == 0 and "32.6" in done.stdout and done.stderr == f"note: {told.format('teacher', 'gid')}\n"


def test_no_ground_truth_and_equal_runs(tmp_path):
    runs = [make_run(tmp_path / "a", 30.0), make_run(tmp_path / "b", None), make_run(tmp_path / "c", 29.99)]
    lines = comparison_table(runs, ["a", "b", "c"], baseline="a").splitlines()
    assert lines[3].split() == ["b", "12.35", "-", "-", "61"]
    assert lines[4].split()[4:6] == ["+0.0", "+0.0"]


def test_names(tmp_path):
    runs = [tmp_path / "x" / "plain", tmp_path / "y" / "plain", tmp_path / "y" / "gid"]
    assert run_names(runs) == ["x/plain", "y/plain", "gid"]
    assert run_names(runs, ["1", "2", "3"]) == ["1", "2", "3"]
    with pytest.raises(UserError, match="2 names for 3 runs: give one name a run"):
        run_names(runs, ["1", "2"])
    twins = [tmp_path / side / "y" / "gid" for side in "ab"]
    assert run_names(twins) == [str(run) for run in twins]
    with pytest.raises(UserError, match="gid is there twice: give each run once"):
        run_names([twins[0], tmp_path / "a" / "x" / ".." / "y" / "gid"])


def test_mistakes(runs, tmp_path):
    with pytest.raises(UserError, match=r"none has no metrics.json: it is not the folder of a run, or .* not finished"):
        read_metrics(tmp_path / "none")
    with pytest.raises(UserError, match=r"config.yaml is a file: give the folder of a run"):
        read_metrics(runs[0] / "config.yaml")
    with pytest.raises(UserError, match=r"no run is called 'x': --baseline has to be one of a, b, c"):
        comparison_table(runs, ["a", "b", "c"], baseline="x")
    (runs[0] / "metrics.json").write_text("{")
    with pytest.raises(UserError, match=r"metrics.json is not JSON"):
        read_metrics(runs[0])
    (runs[0] / "metrics.json").write_text('{"AP": 1}')
    with pytest.raises(UserError, match=r"metrics.json has no parameters, AP50, seconds"):
        read_metrics(runs[0])
