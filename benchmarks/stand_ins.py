"""What a benchmark needs no real one of: random weights and drawn images in place of a config's missing files."""

from __future__ import annotations

from pathlib import Path

import torch
from torch import nn
from torchvision.models.resnet import BasicBlock, Bottleneck

from gid_cuda.config import Config, DataConfig, GeneratedConfig, ModelConfig, SplitConfig
from gid_cuda.data.generated import generate
from gid_cuda.data.scenes import CLASSES

COCO_CLASSES = 80
_FILE_WIDTH = 640  # of COCO's photographs
_LEAST_IMAGES = 8


def with_stand_ins(config: Config, folder: Path) -> tuple[Config, list[str]]:
    """The config with what is there, and a sentence for everything that is not. Drawn images are to lie in `folder`."""
    changes, notes = {}, []
    changes["model"], note = _model(config.model, "the student")
    notes += note
    if config.distill is not None and config.teacher is not None:
        changes["teacher"], note = _model(config.teacher, "the teacher")
        notes += note
    data, images = config.data, max(_LEAST_IMAGES, 2 * config.train.batch_size)
    if data.format == "generated":
        counts = {"train_images": min(images, data.generated.train_images), "val_images": 1}
        fewer = data.generated.model_copy(update=counts)
        changes["data"] = data.model_copy(update={"root": folder, "generated": fewer})
    elif not data.root.is_dir():
        height = round(_FILE_WIDTH * config.input.min_size[-1] / config.input.max_size)
        notes.append(f"{data.root} is not there: drawn images of {_FILE_WIDTH}x{height} pixels instead")
        drawn = GeneratedConfig(train_images=images, val_images=1, width=_FILE_WIDTH, height=height)
        changes["data"] = DataConfig(
            format="generated", root=folder, workers=data.workers, hflip=data.hflip, generated=drawn
        )
    return config.model_copy(update=changes), notes


def both_orientations(config: Config, folder: Path, classes: int) -> Config:
    """The config with drawn images in place of its own, half of them wide and half of them tall. classes: at most so
    many of those that are drawn have boxes."""
    data, images = config.data, max(_LEAST_IMAGES, 8 * config.train.batch_size)
    long = max(data.generated.width, data.generated.height) if data.format == "generated" else _FILE_WIDTH
    short = round(long * config.input.min_size[-1] / config.input.max_size)
    sets = []
    for width, height in ((long, short), (short, long)):
        drawn = GeneratedConfig(train_images=images // 2, val_images=1, width=width, height=height)
        sets.append(SplitConfig(root=generate(drawn, folder), annotations=Path("train.json"), images=Path("train")))
    changes = {"format": "coco", "root": folder, "train": sets, "val": sets[0], "classes": list(CLASSES)[:classes]}
    whole = {"labeled_fraction": 1.0, "unlabeled": None}
    return config.model_copy(update={"data": data.model_copy(update=changes | whole)})


def class_names(config: Config, replaced: Config, own: list[str]) -> list[str]:
    """The data set's `own`; where images stand in for a larger set's, filled up to as many as that has.

    replaced: `with_stand_ins` of the config."""
    if config.data.format == "generated" or replaced.data == config.data:
        return own
    wanted = COCO_CLASSES if config.data.classes is None else len(config.data.classes)
    return own + [f"class {number}" for number in range(len(own), wanted)]


def tame(detector: nn.Module) -> None:
    """Random ResNets with frozen norms double the variance of their features in each block, which overflows: let the
    blocks add less."""
    with torch.no_grad():
        for block in detector.modules():
            if isinstance(block, BasicBlock | Bottleneck):
                (block.bn3 if isinstance(block, Bottleneck) else block.bn2).weight.mul_(0.2)


def _model(model: ModelConfig, whose: str) -> tuple[ModelConfig, list[str]]:
    """Weights from a file that is there are kept; others, and those that would be downloaded, become random."""
    if model.weights is not None and Path(model.weights).is_file():
        return model, []
    if model.weights is None and model.backbone_weights is None:
        return model, []
    # As many layers are trained as with the weights: `build_detector`'s rule.
    layers = 3 if model.trainable_layers is None else model.trainable_layers
    changes = {"weights": None, "backbone_weights": None, "trainable_layers": layers}
    missing = model.weights or f"{model.backbone_weights} weights"
    return model.model_copy(update=changes), [f"{whose} has random weights in place of {missing}"]
