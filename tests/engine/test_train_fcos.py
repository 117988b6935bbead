"""A few steps with FCOS: teacher, plain and distilled student, by the commands' own way."""

from __future__ import annotations

import json
import math
from pathlib import Path
from typing import Any

from engine_helpers import distilled_config, plain_config

from gid_cuda.engine.trainer import train

SIZES = "[32, 64, 128, 256, 512]"  # the default, which the demo's config changes
FCOS = ["model.detector=fcos", f"model.anchor_sizes={SIZES}", "model.fpn_channels=32"]
FCOS_TEACHER = ["teacher.detector=fcos", f"teacher.anchor_sizes={SIZES}", "teacher.fpn_channels=64"]


def last_step(folder: Path) -> dict[str, Any]:
    lines = [json.loads(line) for line in (folder / "log.jsonl").read_text().splitlines()]
    return [line for line in lines if line["kind"] == "train"][-1]


def test_teacher_plain_and_distilled(data: Path, tmp_path: Path) -> None:
    train(plain_config(data, tmp_path / "teacher", *FCOS, "model.fpn_channels=64", "seed=1"))
    teacher = tmp_path / "teacher" / "best.pt"
    more = [*FCOS, *FCOS_TEACHER, "distill.min_size=0"]  # the boxes of an untrained teacher are tiny
    assert math.isfinite(train(distilled_config(data, tmp_path / "distilled", teacher, *more))["AP"])
    assert math.isfinite(train(plain_config(data, tmp_path / "plain", *FCOS, "train.fused_losses=false"))["AP"])
    plain, distilled = last_step(tmp_path / "plain"), last_step(tmp_path / "distilled")
    assert plain["step"] == distilled["step"] == 3
    for name in ("classification", "bbox_regression", "bbox_ctrness"):
        assert 0 < plain[f"loss_{name}"] < 10 and 0 < distilled[f"loss_{name}"] < 10
    assert distilled["loss_response_cls"] > 0 and distilled["loss_response_reg"] > 0
