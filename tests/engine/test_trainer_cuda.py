"""Distilled runs on a GPU, in each precision."""

from __future__ import annotations

from pathlib import Path

import pytest
import torch
from engine_helpers import distilled_config, plain_config

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


SIZES = "anchor_sizes=[32, 64, 128, 256, 512]"  # the default, which the demo's config changes
KINDS = {  # what the tiny configs set otherwise: (the student's, the teacher's)
    "retinanet": (["fpn_channels=16"], ["fpn_channels=24"]),
    "fcos": ([SIZES, "fpn_channels=32"], [SIZES, "fpn_channels=64"]),  # group norm in 32 groups
    "faster_rcnn": (["head_depth=4"], ["head_depth=4", "fpn_channels=24"]),
}


@pytest.mark.parametrize("detector", KINDS)
@pytest.mark.parametrize("amp", ["off", "bf16", "fp16"])
def test_deterministic_runs_end_with_the_same_bits(detector: str, amp: str, data: Path, tmp_path: Path) -> None:
    """A distilled student; its teacher is trained deterministically, too, in three parts of which two are resumed."""
    more = [
        "device=cuda",
        f"train.amp={amp}",
        "deterministic=true",
        "train.schedule=constant",
        "train.clip_grad_norm=1",
    ]
    of_student, of_teacher = ([f"detector={detector}", *settings] for settings in KINDS[detector])
    student, teacher = [f"model.{x}" for x in of_student], [f"teacher.{x}" for x in of_teacher]
    teachers = []
    for name, parts in {"straight": [6], "parts": [2, 4, 6]}.items():
        for steps in parts:
            plain = [*more, *(f"model.{x}" for x in of_teacher), "train.eval_every=2", f"train.steps={steps}"]
            train(plain_config(data, tmp_path / name, *plain), resume=steps > 2 and len(parts) > 1)
        teachers.append(load_checkpoint(tmp_path / name / "last.pt")["model"])
    weights = str(tmp_path / "straight" / "last.pt")
    students = []
    for name in ("a", "b"):
        train(distilled_config(data, tmp_path / name, Path(weights), *more, *student, *teacher))
        students.append(load_checkpoint(tmp_path / name / "last.pt")["model"])
    for one, other in (teachers, students):
        assert [key for key in one if not torch.equal(one[key], other[key])] == []
