"""Checkpoints of mmdetection, RetinaNet and Faster R-CNN, as checkpoints of this package.

The tensors are the same under other names, but for the background's place in Faster R-CNN. What no tensor shows
(anchors, P6 and P7, RoIAlign) is `model.variant: mmdetection`.
"""

from __future__ import annotations

import re
from collections.abc import Sequence
from pathlib import Path
from typing import Any

import torch
from torch import Tensor

from gid_cuda.config import Config, DataConfig, InputConfig, ModelConfig, TrainConfig, config_to_dict
from gid_cuda.detectors.build import build_detector
from gid_cuda.detectors.mmdetection_file import MMDetectionFile, read_mmdetection
from gid_cuda.detectors.mmdetection_settings import anchor_sizes, check_settings, check_style, detector_of
from gid_cuda.detectors.weights import listed
from gid_cuda.errors import UserError

_CLS, _REG = "roi_heads.box_predictor.cls_score", "roi_heads.box_predictor.bbox_pred"
# Our name of a tensor -> mmdetection's. The first pattern that fits a whole name counts.
_NAMES = {
    r"backbone\.body\.(.+)": r"backbone.\1",
    r"backbone\.fpn\.inner_blocks\.(\d+)\.0\.(\w+)": r"neck.lateral_convs.\1.conv.\2",
    r"backbone\.fpn\.layer_blocks\.(\d+)\.0\.(\w+)": r"neck.fpn_convs.\1.conv.\2",
    r"backbone\.fpn\.extra_blocks\.p6\.(\w+)": r"neck.fpn_convs.3.conv.\1",
    r"backbone\.fpn\.extra_blocks\.p7\.(\w+)": r"neck.fpn_convs.4.conv.\1",
    r"head\.classification_head\.conv\.(\d+)\.0\.(\w+)": r"bbox_head.cls_convs.\1.conv.\2",
    r"head\.regression_head\.conv\.(\d+)\.0\.(\w+)": r"bbox_head.reg_convs.\1.conv.\2",
    r"head\.classification_head\.cls_logits\.(\w+)": r"bbox_head.retina_cls.\1",
    r"head\.regression_head\.bbox_reg\.(\w+)": r"bbox_head.retina_reg.\1",
    r"rpn\.head\.conv\.0\.0\.(\w+)": r"rpn_head.rpn_conv.\1",
    r"rpn\.head\.cls_logits\.(\w+)": r"rpn_head.rpn_cls.\1",
    r"rpn\.head\.bbox_pred\.(\w+)": r"rpn_head.rpn_reg.\1",
    r"roi_heads\.box_head\.fc6\.(\w+)": r"roi_head.bbox_head.shared_fcs.0.\1",
    r"roi_heads\.box_head\.fc7\.(\w+)": r"roi_head.bbox_head.shared_fcs.1.\1",
    rf"{re.escape(_CLS)}\.(\w+)": r"roi_head.bbox_head.fc_cls.\1",
    rf"{re.escape(_REG)}\.(\w+)": r"roi_head.bbox_head.fc_reg.\1",
}
# blocks of the four stages, and the convolutions of a block
_RESNETS = {
    ((2, 2, 2, 2), 2): "resnet18",
    ((3, 4, 6, 3), 2): "resnet34",
    ((3, 4, 6, 3), 3): "resnet50",
    ((3, 4, 23, 3), 3): "resnet101",
}


def convert_mmdetection(
    path: Path, *, style: str | None = None, classes: Sequence[str] | None = None
) -> dict[str, Any]:
    """What `engine.checkpoint.save_checkpoint` writes, from a checkpoint of mmdetection 2.x or 3.x.

    style: "pytorch" is asked for where the file has no config text. classes: names in the head's order; None: those of
    the file. Raises UserError: unreadable, another detector, other settings, classes that do not fit, tensors missing
    or left over.
    """
    file = read_mmdetection(path)
    detector = detector_of(file)
    check_style(file, style)
    check_settings(file, detector)
    names = _class_names(file, detector, classes)
    model = _model_config(file, detector)
    state = _convert_state(file, model, names)
    # A checkpoint's config is whole, or scripts/predict.py refuses it; data and train stand for no run.
    config = Config(
        output=Path("."), data=DataConfig(format="coco", root=Path(".")), model=model, train=TrainConfig(steps=1)
    )
    return {"model": state, "classes": names, "config": config_to_dict(config), "step": 0, "metrics": None}


def _class_names(file: MMDetectionFile, detector: str, given: Sequence[str] | None) -> list[str]:
    if detector == "retinanet":
        count = _rows(file, "bbox_head.retina_cls.weight") // 9
    else:
        count = _rows(file, "roi_head.bbox_head.fc_cls.weight") - 1
    names = file.classes if given is None else list(given)
    if names is None:
        raise UserError(
            f"{file.path} names no classes: give --classes FILE with its {count} names, one a line, in order"
        )
    if len(names) != count:
        raise UserError(
            f"{file.path} has a head of {count} classes, and {len(names)} names are given ({listed(names, most=4)}): "
            f"give --classes FILE with {count} names, one a line, in order"
        )
    if double := sorted({name for name in names if names.count(name) > 1}):
        where = "the file of --classes names" if given is not None else f"{file.path} names"
        raise UserError(f"{where} the class {listed(double)} more than once: give --classes FILE with each class once")
    return names


def _model_config(file: MMDetectionFile, detector: str) -> ModelConfig:
    depth = {}
    if detector == "retinanet":
        convolutions = [key for key in file.state if re.fullmatch(r"bbox_head\.cls_convs\.\d+\.conv\.weight", key)]
        depth["head_depth"] = max(1, len(convolutions))  # none at all is told as missing
    return ModelConfig(
        detector=detector,
        variant="mmdetection",
        backbone=_backbone(file),
        fpn_channels=_rows(file, "neck.lateral_convs.0.conv.weight"),
        anchor_sizes=anchor_sizes(file, detector),
        **depth,
    )


def _rows(file: MMDetectionFile, key: str) -> int:
    if key not in file.state or not len(file.state[key].shape):
        raise UserError(
            f"{file.path} has no tensor {key} with rows: the models that can be converted have it, with an FPN"
        )
    return file.state[key].shape[0]


def _backbone(file: MMDetectionFile) -> str:
    keys = list(file.state)
    blocks = [
        {match[1] for key in keys if (match := re.match(rf"backbone\.layer{i}\.(\d+)\.", key))} for i in (1, 2, 3, 4)
    ]
    convolutions = len([key for key in keys if re.fullmatch(r"backbone\.layer1\.0\.conv\d\.weight", key)])
    counts = tuple(len(stage) for stage in blocks)
    if (counts, convolutions) not in _RESNETS:
        raise UserError(
            f"{file.path} has a backbone of {counts} blocks of {convolutions} convolutions, and what can be converted "
            f"is {', '.join(_RESNETS.values())}"
        )
    return _RESNETS[counts, convolutions]


def _convert_state(file: MMDetectionFile, model: ModelConfig, classes: list[str]) -> dict[str, Tensor]:
    """Every tensor of the detector that `model` describes, from the file's, each of which must be used."""
    with torch.device("meta"):  # names and shapes alone
        expected = build_detector(model, InputConfig(), classes).state_dict()
    sources = {key: _their_name(key) for key in expected}
    missing = [source for source in sources.values() if source not in file.state]
    left = sorted(set(file.state) - set(sources.values()))
    state = {key: _convert_tensor(key, file.state[source]) for key, source in sources.items() if source in file.state}
    shapes = [
        f"{sources[key]} {tuple(file.state[sources[key]].shape)}"
        for key, value in state.items()
        if value.shape != expected[key].shape
    ]
    kinds = {"missing": missing, "left over": left, "of another shape": shapes}
    if told := [f"{len(keys)} tensors {kind} ({listed(keys, most=3)})" for kind, keys in kinds.items() if keys]:
        raise UserError(
            f"{file.path} is not what mmdetection's {model.detector} with {model.backbone} has, {'; '.join(told)}: "
            "it has other parts than the models that can be converted"
        )
    return state


def _their_name(key: str) -> str:
    for ours, theirs in _NAMES.items():
        if match := re.fullmatch(ours, key):
            return match.expand(theirs)
    raise KeyError(key)  # a new layer of our own detectors


def _convert_tensor(key: str, value: Tensor) -> Tensor:
    """mmdetection has the background's scores last and no boxes of it; torchvision has both first."""
    layer = key.rpartition(".")[0]
    if layer == _CLS:
        return value.roll(1, dims=0)
    if layer == _REG:
        return torch.cat([value.new_zeros(4, *value.shape[1:]), value])
    return value
