"""The paper's comparison and its ablations (Tables 5 to 7), a few steps each by the commands' own way."""

from __future__ import annotations

import json
import math
from itertools import product
from pathlib import Path
from typing import Any

import pytest
from engine_helpers import distilled_config, plain_config

from gid_cuda.distill import LOSS_NAMES
from gid_cuda.engine.trainer import train
from gid_cuda.errors import UserError

LOSSES = {"fitnet": "loss_hint", "fine_grained": "loss_imitation", "mimicking": "loss_mimic"}
OTHERS = {"fcos": (32, 64), "faster_rcnn": (16, 24)}  # channels of student and teacher
SIZES = "[32, 64, 128, 256, 512]"


def steps(folder: Path) -> list[dict[str, Any]]:
    lines = [json.loads(line) for line in (folder / "log.jsonl").read_text().splitlines()]
    return [line for line in lines if line["kind"] == "train"]


def of(detector: str, section: str) -> list[str]:
    channels = OTHERS[detector][section == "teacher"]
    values = {"detector": detector, "anchor_sizes": SIZES, "fpn_channels": channels, "head_depth": 4}
    return [f"{section}.{key}={value}" for key, value in values.items()]


@pytest.fixture(scope="module")
def teachers(data: Path, teacher: Path, tmp_path_factory: pytest.TempPathFactory) -> dict[str, Path]:
    found = {"retinanet": teacher}
    for detector, (_, channels) in OTHERS.items():
        output = tmp_path_factory.mktemp("teachers") / detector
        train(plain_config(data, output, *of(detector, "model"), f"model.fpn_channels={channels}", "train.steps=1"))
        found[detector] = output / "best.pt"
    return found


def check_training(folder: Path, method: str, count: int) -> None:
    logged = steps(folder)
    assert [entry["step"] for entry in logged] == list(range(1, count + 1))
    for entry in logged:
        assert 0 < entry[LOSSES[method]] < 1000 and math.isfinite(entry["loss"])
        assert not set(entry) & (set(LOSS_NAMES) | set(LOSSES.values()) - {LOSSES[method]}) and "instances" not in entry


@pytest.mark.parametrize("method", ["fitnet", "fine_grained"])
def test_retinanet(method: str, data: Path, teacher: Path, tmp_path: Path) -> None:
    train(distilled_config(data, tmp_path / "run", teacher, f"distill.method={method}"))
    check_training(tmp_path / "run", method, 3)


@pytest.mark.slow
@pytest.mark.parametrize(
    ("detector", "method"),
    [("fcos", "fitnet"), ("faster_rcnn", "fitnet"), ("faster_rcnn", "fine_grained"), ("faster_rcnn", "mimicking")],
)
def test_other_detectors(detector: str, method: str, data: Path, teachers: dict[str, Path], tmp_path: Path) -> None:
    more = [
        *of(detector, "model"),
        *of(detector, "teacher"),
        f"distill.method={method}",
        "distill.mimicking.samples=16",
    ]
    train(distilled_config(data, tmp_path / "run", teachers[detector], *more))
    check_training(tmp_path / "run", method, 3)


def test_resumes_with_its_adaptation(data: Path, teacher: Path, tmp_path: Path) -> None:
    """Two steps and one more are three."""
    more = ["distill.method=fitnet", "train.schedule=constant"]
    whole, parts = tmp_path / "whole", tmp_path / "parts"
    train(distilled_config(data, whole, teacher, *more))
    train(distilled_config(data, parts, teacher, *more, "train.steps=2"))
    train(distilled_config(data, parts, teacher, *more), resume=True)
    assert steps(parts)[-1]["loss"] == steps(whole)[-1]["loss"]


def test_warmup_of_a_rival(data: Path, teacher: Path, tmp_path: Path) -> None:
    for name, steps_of_growth in (("at_once", 0), ("grown", 10)):
        more = ["distill.method=fitnet", f"distill.warmup_steps={steps_of_growth}", "train.steps=1"]
        train(distilled_config(data, tmp_path / name, teacher, *more))
    (first,), (second,) = steps(tmp_path / "at_once"), steps(tmp_path / "grown")
    assert second["loss_hint"] == pytest.approx(0.1 * first["loss_hint"])


@pytest.mark.parametrize(
    ("more", "message"),
    [
        (["distill.method=mimicking"], "mimicking is for .* model.detector is retinanet.*use method gid or fitnet"),
        (["distill.method=fitnet", "distill.fitnet.adapt=none"], "distill: FitNet: adapt='none' needs equal channels"),
    ],
)
def test_what_does_not_fit_is_told_before_training(
    more: list[str], message: str, data: Path, teacher: Path, tmp_path: Path
) -> None:
    with pytest.raises(UserError, match=message):
        train(distilled_config(data, tmp_path / "run", teacher, *more))
    assert not (tmp_path / "run").exists()


KINDS = ["positive", "semi-positive", "negative"]
UNIONS = [
    f"distill.kinds=[{', '.join(kind for kind, use in zip(KINDS, chosen, strict=True) if use)}]"
    for chosen in product([False, True], repeat=3)
    if any(chosen)
]
WEIGHTS = {"lambda_feature": 5e-4, "lambda_relation": 40, "lambda_response": 1}
SUBSETS = [
    tuple(f"distill.{name}={value if use else 0}" for (name, value), use in zip(WEIGHTS.items(), chosen, strict=True))
    for chosen in product([False, True], repeat=3)
]
ABLATIONS = [
    *[(key,) for key in (*UNIONS, "distill.kinds=ground_truth", "distill.top_k=0", "distill.top_k=300")],
    *SUBSETS,
]


@pytest.mark.parametrize("overrides", ABLATIONS, ids="-".join)
def test_ablation(overrides: tuple[str, ...], data: Path, teacher: Path, tmp_path: Path) -> None:
    """Trains, and only what is switched on has a loss."""
    train(distilled_config(data, tmp_path / "run", teacher, *overrides, "train.steps=2", "distill.min_size=0"))
    logged = steps(tmp_path / "run")
    assert len(logged) == 2 and all(math.isfinite(entry[name]) for entry in logged for name in LOSS_NAMES)
    off = {part for part in ("feature", "relation", "response") if f"distill.lambda_{part}=0" in overrides}
    for entry in logged:
        for name in LOSS_NAMES:
            if "distill.top_k=0" in overrides or name.split("_")[1] in off:
                assert entry[name] == 0
            elif overrides in SUBSETS or overrides == ("distill.top_k=300",):
                assert entry[name] > 0
