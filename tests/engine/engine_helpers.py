"""Runs so small that a step takes a few hundredths of a second."""

from __future__ import annotations

from pathlib import Path

from gid_cuda.config import Config, load_config

CONFIGS = Path(__file__).parents[2] / "configs"
TINY = [
    "data.generated.width=96", "data.generated.height=64", "data.generated.train_images=8",
    "data.generated.val_images=4", "data.workers=0", "input.min_size=[48, 64]", "input.max_size=96",
    "model.backbone=mobilenet_v3_small", "model.fpn_channels=16", "model.head_depth=1",
    "train.batch_size=2", "train.steps=3", "train.warmup_steps=2", "train.log_every=1", "device=cpu",
]  # fmt: skip
TINY_TEACHER = ["teacher.backbone=mobilenet_v3_small", "teacher.fpn_channels=24", "teacher.head_depth=1"]


def tiny_overrides(data: Path, output: Path, *more: str) -> list[str]:
    """On top of configs/demo_student.yaml or demo_teacher.yaml."""
    return [*TINY, f"data.root={data}", f"output={output}", *more]


def plain_config(data: Path, output: Path, *more: str) -> Config:
    return load_config(CONFIGS / "demo_student.yaml", tiny_overrides(data, output, *more))


def distilled_config(data: Path, output: Path, teacher: Path, *more: str) -> Config:
    overrides = tiny_overrides(data, output, *TINY_TEACHER, f"teacher.weights={teacher}", *more)
    return load_config(CONFIGS / "demo.yaml", overrides)
