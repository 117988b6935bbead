"""The settings of the loop, each the other way: what is built differs in that one thing, and the step still runs."""

from __future__ import annotations

import argparse
import json
import pickle
from pathlib import Path
from typing import Any

import pytest
import torch
from test_benchmark_step import CONFIGS, TINY

from benchmarks import switches
from benchmarks.stand_ins import both_orientations
from benchmarks.switches import SWITCHES, FloatImages, Switch
from gid_cuda.config import Config, GeneratedConfig, config_from_dict, config_to_dict, load_config
from gid_cuda.data import build_dataset
from gid_cuda.data.generated import generate
from gid_cuda.data.scenes import CLASSES
from gid_cuda.detectors.build import build_detector
from gid_cuda.engine.checkpoint import save_checkpoint

BY_NAME = {switch.name: switch for switch in SWITCHES}
COMPILED = "train.compile"  # takes minutes


def tiny(folder: Path, *overrides: str) -> Config:
    drawn = ["data.generated.train_images=4", "data.generated.width=96", "data.generated.height=64", "device=cpu"]
    places = [f"data.root={folder / 'data'}", f"teacher.weights={folder / 'teacher.pt'}"]
    return load_config(CONFIGS / "demo.yaml", [*TINY, *drawn, *places, *overrides])


@pytest.mark.parametrize("name", [name for name in BY_NAME if "." in name])
def test_a_key_is_changed_and_nothing_else(name: str, tmp_path: Path) -> None:
    config = tiny(tmp_path)
    changed = BY_NAME[name].change(config)
    section, key = name.split(".")
    before, after = config_to_dict(config), config_to_dict(changed)
    assert before[section].pop(key) != after[section].pop(key)
    assert before == after
    config_from_dict(config_to_dict(changed), name="changed")  # what the schema takes
    assert BY_NAME[name].tell(config) != BY_NAME[name].tell(changed)
    assert config_to_dict(BY_NAME[name].change(changed))[section][key] == config_to_dict(config)[section][key] or (
        name == "train.ema_decay"
    )


def test_the_optimizer_is_not_fused() -> None:
    weight = torch.nn.Parameter(torch.ones(3))
    run = argparse.Namespace(optimizer=torch.optim.AdamW([weight], fused=True))
    BY_NAME["fused optimizer"].run(run)  # type: ignore[arg-type]
    weight.grad = torch.ones(3)
    with torch.profiler.profile() as profile:
        run.optimizer.step()
    assert not any("fused" in event.name for event in profile.events())


def test_images_are_float_and_the_same(tmp_path: Path) -> None:
    images = build_dataset(tiny(tmp_path).data, "train")
    floats = FloatImages(images)
    assert len(floats) == len(images) and floats.classes == images.classes
    assert floats[1].image.dtype == torch.float32
    assert torch.equal(floats[1].image, images[1].image.float()) and torch.equal(floats[1].boxes, images[1].boxes)
    again = pickle.loads(pickle.dumps(floats))  # as to a loader process that is no fork
    assert torch.equal(again[1].image, floats[1].image)


@pytest.mark.parametrize("name", ["data.group_by_aspect", "train.channels_last"])
def test_a_teacher_that_is_there_fits(name: str, tmp_path: Path) -> None:
    """A data set in COCO's format and with classes of its own, and the teacher that was trained on it."""
    root = generate(GeneratedConfig(train_images=4, val_images=1, width=96, height=64), tmp_path)
    split = "{annotations: train.json, images: train}"
    data = ["data.format=coco", f"data.root={root}", f"data.train={split}", f"data.val={split}"]
    config = tiny(tmp_path, *data)
    assert config.teacher is not None
    untrained = config.teacher.model_copy(update={"weights": None, "backbone_weights": None})
    weights = build_detector(untrained, config.input, list(CLASSES)).state_dict()
    content = {"model": weights, "classes": list(CLASSES), "config": config_to_dict(config)}
    save_checkpoint(tmp_path / "teacher.pt", content)
    found = switches.measure(BY_NAME[name], config, tmp_path / "drawn", 1)
    assert found["step_s"] > 0 and found["other_s"] > 0


def test_both_orientations_are_drawn(tmp_path: Path) -> None:
    config = both_orientations(tiny(tmp_path, "train.batch_size=4"), tmp_path, 2)
    images = build_dataset(config.data, "train")
    assert len(images.classes) == 2 and len(images[0].boxes) > 0
    shapes = [tuple(images[i].image.shape[1:]) for i in range(len(images))]
    assert len(shapes) == 32 and shapes.count((64, 96)) == shapes.count((96, 64)) == 16


def test_grouping_is_seen_in_the_padding(tmp_path: Path) -> None:
    found = switches.measure(BY_NAME["data.group_by_aspect"], tiny(tmp_path, "train.batch_size=4"), tmp_path, 6)
    grouped, mixed = found["padding"]
    assert found["setting"] == "on" and grouped < mixed and mixed > 0.1


@pytest.mark.parametrize("switch", [pytest.param(s, id=s.name) for s in SWITCHES if s.name != COMPILED])
def test_steps_of_both_sides_are_timed(switch: Switch, tmp_path: Path) -> None:
    found = switches.measure(switch, tiny(tmp_path), tmp_path, 1)
    assert found["step_s"] > 0 and found["other_s"] > 0
    assert found["ratio"] == found["other_s"] / found["step_s"]


def test_the_table_and_what_is_kept(tmp_path: Path, monkeypatch: Any, capsys: Any) -> None:
    monkeypatch.setattr(switches, "SWITCHES", (BY_NAME["pinned memory"], BY_NAME["fused optimizer"]))
    places = [f"data.root={tmp_path / 'data'}", f"teacher.weights={tmp_path / 'teacher.pt'}", "train.accumulate=2"]
    drawn = ["data.generated.train_images=4", "data.generated.width=96", "data.generated.height=64"]
    switches.main(
        argparse.Namespace(
            cfg=str(CONFIGS / "demo.yaml"), overrides=[*TINY, *drawn, *places], device="cpu", steps=2, adapter=None,
            json=tmp_path / "switches.json",
        )
    )  # fmt: skip
    content = json.loads((tmp_path / "switches.json").read_text())
    (kept,) = content["switches"]  # pinned memory is for GPUs
    assert kept["name"] == "fused optimizer" and kept["setting"] == "on"
    said = capsys.readouterr().out.splitlines()
    assert said[1] == "ratio: median over the steps, step by step"  # so not that of the two columns
    assert said[-1].startswith("fused optimizer") and f"{kept['ratio']:.3f}x" in said[-1]
