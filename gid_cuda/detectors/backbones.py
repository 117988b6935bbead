"""Backbones with a feature pyramid: ResNet and MobileNetV3-small over torchvision's models."""

from __future__ import annotations

from collections.abc import Callable
from functools import partial
from typing import Literal

import torchvision
from torch import nn
from torchvision.models.detection.backbone_utils import BackboneWithFPN
from torchvision.ops.feature_pyramid_network import LastLevelP6P7
from torchvision.ops.misc import FrozenBatchNorm2d

from gid_cuda.detectors.weights import imagenet_state
from gid_cuda.errors import UserError

PYRAMID_STRIDES = [8, 16, 32, 64, 128]  # P3..P7, nominal

_MOBILENET_EPS = 1e-3  # what torchvision's weights were trained with; its momentum 0.01 is for runs of many epochs
# Features of MobileNetV3-small: where each stride begins, and the last block at stride 8, 16, 32.
_MOBILENET_STAGES = [0, 1, 2, 4, 9, 12]
_MOBILENET_OUTPUTS = [3, 8, 12]


def fpn_backbone(
    name: str,
    *,
    channels: int,
    norm: Literal["frozen", "live"],
    trainable_layers: int | None = None,
    imagenet: bool = False,
) -> BackboneWithFPN:
    """The named network with levels P3..P7 (strides 8 to 128), P6 and P7 from P5, as torchvision's RetinaNet has them.

    State-dict keys are torchvision's own. channels: width of every level. norm: batch norm with frozen statistics or a
    live one. trainable_layers: how many stages, counted from the last, are trained (ResNet has 5, MobileNetV3 6); none:
    all. imagenet: start from torchvision's classification weights.
    """
    mobilenet = name.startswith("mobilenet")
    network = getattr(torchvision.models, name)(weights=None, norm_layer=_norm_layer(norm, mobilenet))
    if imagenet:
        network.load_state_dict(imagenet_state(name))
    if mobilenet:
        body = network.features
        stages = [body[start:end] for start, end in zip(_MOBILENET_STAGES, _MOBILENET_STAGES[1:] + [None], strict=True)]
        outputs = {str(index): body[index].out_channels for index in _MOBILENET_OUTPUTS}
    else:
        body = network
        stages = [nn.ModuleList([body.conv1, body.bn1]), body.layer1, body.layer2, body.layer3, body.layer4]
        outputs = {"layer2": body.inplanes // 4, "layer3": body.inplanes // 2, "layer4": body.inplanes}
    _freeze(stages, trainable_layers, name)
    return BackboneWithFPN(
        body,
        return_layers={layer: str(level) for level, layer in enumerate(outputs)},
        in_channels_list=list(outputs.values()),
        out_channels=channels,
        extra_blocks=LastLevelP6P7(channels, channels),
    )


def _norm_layer(norm: Literal["frozen", "live"], mobilenet: bool) -> Callable[..., nn.Module]:
    layer = FrozenBatchNorm2d if norm == "frozen" else nn.BatchNorm2d
    return partial(layer, eps=_MOBILENET_EPS) if mobilenet else layer


def _freeze(stages: list[nn.Module], trainable: int | None, name: str) -> None:
    """Take the first stages out of training; the last `trainable` ones stay."""
    if trainable is None:
        return
    if trainable > len(stages):
        count = len(stages)
        raise UserError(f"trainable_layers is {trainable}, but {name} has {count} layers: give 0 to {count}")
    for stage in stages[: len(stages) - trainable]:
        stage.requires_grad_(False)
