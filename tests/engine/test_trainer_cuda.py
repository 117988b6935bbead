"""Distilled runs on a GPU, in each precision."""

from __future__ import annotations

from pathlib import Path

import pytest
import torch
from engine_helpers import distilled_config

from gid_cuda.engine.checkpoint import load_checkpoint
from gid_cuda.engine.trainer import train

pytestmark = [pytest.mark.cuda, pytest.mark.skipif(not torch.cuda.is_available(), reason="needs a GPU")]


@pytest.mark.parametrize("amp", ["off", "bf16", "fp16"])
def test_a_run_and_its_resume(amp: str, data: Path, teacher: Path, tmp_path: Path) -> None:
    more = ["device=cuda", f"train.amp={amp}", "train.clip_grad_norm=1", "data.workers=1"]
    train(distilled_config(data, tmp_path / "run", teacher, *more))
    assert train(distilled_config(data, tmp_path / "run", teacher, *more, "train.steps=5"), resume=True)["step"] == 5
    content = load_checkpoint(tmp_path / "run" / "last.pt")
    assert all(value.isfinite().all() for value in content["model"].values())
    assert bool(content["resume"]["scaler"]) is (amp == "fp16")
