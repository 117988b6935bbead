"""The step benchmark on tiny images: every part is timed, what is missing is replaced and said so."""

from __future__ import annotations

import argparse
import json
from pathlib import Path
from typing import Any

import pytest

from benchmarks import step
from benchmarks.stand_ins import with_stand_ins
from gid_cuda.config import load_config
from gid_cuda.errors import UserError

CONFIGS = Path(__file__).parents[1] / "configs"
TINY = [
    "input.min_size=[64]", "input.max_size=96", "data.workers=0", "train.batch_size=2",
    "model.fpn_channels=16", "model.head_depth=1", "teacher.fpn_channels=16", "teacher.head_depth=1",
    "model.backbone=resnet18", "teacher.backbone=resnet18",
]  # fmt: skip


def arguments(name: str, *overrides: str, **others: Any) -> argparse.Namespace:
    settings = {"cfg": str(CONFIGS / name), "overrides": [*TINY, *overrides], "device": "cpu", "steps": 2, "json": None}
    return argparse.Namespace(**{**settings, "adapter": None, **others})


@pytest.mark.parametrize("fused", ["true", "false"])
def test_every_part_of_a_step_is_timed(fused: str, tmp_path: Path, capsys: Any) -> None:
    more = ["data.generated.train_images=4", "data.generated.width=96", "data.generated.height=64"]
    places = [f"data.root={tmp_path / 'data'}", f"teacher.weights={tmp_path / 'teacher.pt'}"]  # not those of a run here
    step.main(arguments("demo.yaml", f"train.fused_losses={fused}", *more, *places, json=tmp_path / "step.json"))
    content = json.loads((tmp_path / "step.json").read_text())
    assert content["machine"]["kind"] == "cpu"
    found = content["step"]
    for part in step.PARTS:
        assert found["distilled"][part] > 0
        assert (found["plain"][part] > 0) is (part not in ("teacher", "criterion"))
    for kind in ("distilled", "plain"):
        assert found["step_s"][kind] == pytest.approx(sum(found[kind].values()), rel=0.5)
    share = found["criterion"]["forward_s"] + found["criterion"]["backward_s"]
    assert found["criterion"]["share"] == pytest.approx(share / found["step_s"]["distilled"])
    assert found["padded"][:2] == [2, 3] and found["classes"] == 4
    said = capsys.readouterr().out
    assert f"the teacher has random weights in place of {tmp_path / 'teacher.pt'}" in said
    assert "criterion: " in said and "loader: the step " in said and said.count("teacher (forward)") == 1


def test_a_config_whose_data_and_weights_are_not_there(tmp_path: Path) -> None:
    places = [f"data.root={tmp_path / 'coco'}", f"teacher.weights={tmp_path / 'teacher.pt'}"]
    config = load_config(CONFIGS / "retina.yaml", [*TINY, *places, "device=cpu"])
    found = step.measure(config, tmp_path / "drawn", 1)
    assert found["classes"] == 80 and found["padded"] == [2, 3, 64, 96]
    assert [note.split(" in place of")[0].split(" is not there")[0] for note in found["notes"]] == [
        "the student has random weights", "the teacher has random weights", str(tmp_path / "coco")
    ]  # fmt: skip


def test_what_is_there_is_used(tmp_path: Path) -> None:
    (tmp_path / "coco").mkdir()
    (tmp_path / "best.pt").touch()
    here = [f"data.root={tmp_path / 'coco'}", f"teacher.weights={tmp_path / 'best.pt'}", "model.backbone_weights=null"]
    config = load_config(CONFIGS / "retina.yaml", here)
    assert with_stand_ins(config, tmp_path) == (config, [])


def test_as_many_layers_are_trained_as_with_the_weights(tmp_path: Path) -> None:
    replaced, _ = with_stand_ins(load_config(CONFIGS / "retina.yaml"), tmp_path)
    assert replaced.model.trainable_layers == 3 and replaced.model.backbone_weights is None


def test_a_waiting_step_says_what_to_do() -> None:
    times = {part: 0.1 for part in step.PARTS}
    results = {"distilled": times, "step_s": {"distilled": 0.8}, "loader_alone_s": 0.25, "workers": 1}
    assert "the step waits for it, 12 % of its time" in step._loader_line(results)
    assert "raise data.workers" in step._loader_line(results)


def test_a_config_without_distillation_is_told() -> None:
    with pytest.raises(UserError, match="demo_student.yaml has no distill section"):
        plain = argparse.Namespace(cfg=CONFIGS / "demo_student.yaml", overrides=[], device="cpu", steps=1, json=None)
        step.main(plain)
