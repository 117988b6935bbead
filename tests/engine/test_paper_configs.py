"""The configs of the paper's Tables 1 to 4: what they say, and that each pair of detector and backbones runs."""

from __future__ import annotations

from pathlib import Path
from typing import Any

import pytest
import torch
from engine_helpers import CONFIGS, plain_config

from gid_cuda.config import Config, ModelConfig, config_from_dict, config_to_dict, load_config
from gid_cuda.data import build_dataset
from gid_cuda.detectors import build_detector
from gid_cuda.engine.checkpoint import load_detector, save_checkpoint
from gid_cuda.engine.trainer import train

# config of the distilled student: table, config of its teacher, detector, student's backbone, classes, learning rate
ROWS = {
    "voc/faster_rcnn": (1, "voc/faster_rcnn_teacher", "faster_rcnn", "resnet50", 20, 0.02),
    "voc/retina": (1, "voc/retina_teacher", "retinanet", "resnet50", 20, 0.01),
    "voc/fcos": (1, "voc/fcos_teacher", "fcos", "resnet50", 20, 0.01),
    "retina": (2, "retina_teacher", "retinanet", "resnet50", None, 0.01),
    "fcos": (2, "fcos_teacher", "fcos", "resnet50", None, 0.01),
    "faster_rcnn": (2, "faster_rcnn_teacher", "faster_rcnn", "resnet50", None, 0.02),
    "retina_mobilenet": (3, "retina_teacher", "retinanet", "mobilenet_v2", None, 0.01),
    "person/retina": (4, "person/retina_teacher", "retinanet", "resnet50", 1, 0.01),
}
SCHEDULES = {  # steps and milestones of the student's 2x schedule, then of the teacher's 1x
    "coco": ((180_000, [120_000, 160_000]), (90_000, [60_000, 80_000])),
    "voc": ((18_000, [12_000, 16_000]), (9_000, [6_000, 8_000])),
}


def config(name: str) -> Config:
    return load_config(CONFIGS / f"{name}.yaml")


def test_every_config_belongs_to_a_row() -> None:
    names = {str(path.relative_to(CONFIGS).with_suffix("")) for path in CONFIGS.rglob("*.yaml")}
    known = {part for row, (_, teacher, *_) in ROWS.items() for part in (row, f"{row}_student", teacher)}
    assert {name for name in names if not name.startswith(("base/", "demo", "experiments/"))} == known


@pytest.mark.parametrize("name", ROWS)
def test_a_row_of_the_tables(name: str) -> None:
    table, teacher_name, kind, backbone, classes, lr = ROWS[name]
    distilled, student, teacher = config(name), config(f"{name}_student"), config(teacher_name)
    assert f"Table {table}" in (CONFIGS / f"{name}.yaml").read_text()
    assert distilled.teacher is not None and distilled.distill is not None
    for part in (distilled.model, distilled.teacher, student.model, teacher.model):
        assert part.detector == kind and part.fpn_channels == 256
    assert distilled.model == student.model and student.model.backbone == backbone
    assert distilled.teacher.backbone == teacher.model.backbone == "resnet101"
    assert distilled.teacher.weights == str(teacher.output / "best.pt")
    assert student.distill is None and teacher.distill is None
    assert distilled.data == student.data == teacher.data and distilled.input == teacher.input
    assert distilled.data.format == ("voc" if table == 1 else "coco")
    assert (None if distilled.data.classes is None else len(distilled.data.classes)) == classes
    long, short = SCHEDULES[distilled.data.format]
    assert distilled.train == student.train
    assert (student.train.steps, student.train.milestones) == long
    assert (teacher.train.steps, teacher.train.milestones) == short
    for run in (student.train, teacher.train):
        assert (run.batch_size, run.lr, run.momentum, run.weight_decay, run.warmup_steps) == (16, lr, 0.9, 1e-4, 1000)
    assert len({distilled.output, student.output, teacher.output}) == 3


def test_the_papers_weights() -> None:
    for name in ROWS:
        distill = config(name).distill
        assert distill is not None
        assert (distill.top_k, distill.lambda_feature, distill.lambda_relation, distill.lambda_response) == (
            10, 5e-4, 40.0, 1.0
        )  # fmt: skip
        assert (distill.alpha, distill.beta, distill.nms_iou, distill.warmup_steps) == (0.1, 1.0, 0.3, 0)


def small(name: str, data: Path, output: Path, **teacher: Any) -> Config:
    """The config as it is but for its data, its size, and what it would download."""
    raw = config_to_dict(config(name))
    tiny = config_to_dict(plain_config(data, output))
    raw.update(output=str(output), data=tiny["data"], input=tiny["input"], device="cpu")
    raw["train"].update(steps=3, batch_size=2, log_every=1, eval_every=0, checkpoint_every=0, lr=1e-3)
    size = {"fpn_channels": 32, "norm": "live", "backbone_weights": None}
    raw["model"].update(size)
    if raw["teacher"] is not None:
        raw["teacher"].update(size | teacher)
    return config_from_dict(raw, name=name)


@pytest.mark.slow
@pytest.mark.parametrize("name", ["retina", "fcos", "faster_rcnn", "retina_mobilenet"])
def test_three_steps_of_each_pair(name: str, data: Path, tmp_path: Path) -> None:
    """Teacher's weights at random, with a wider pyramid than the student's."""
    wide = {"fpn_channels": 64}
    weights = tmp_path / "teacher.pt"
    student = small(name, data, tmp_path / "run", weights=str(weights), **wide)
    classes = build_dataset(student.data, "train").classes
    settings = ModelConfig(**config_to_dict(student)["teacher"] | {"weights": None})
    torch.manual_seed(0)
    teacher = build_detector(settings, student.input, classes)
    content = {"model": teacher.state_dict(), "classes": classes, "config": config_to_dict(student)}
    save_checkpoint(weights, content | {"config": content["config"] | {"model": content["config"]["teacher"]}})
    result = train(student)
    assert result["step"] == 3 and result["AP"] is not None
    detector, stored, _ = load_detector(tmp_path / "run" / "best.pt")
    assert stored == student and detector.out_channels == 32
