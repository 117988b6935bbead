"""Backbones with a feature pyramid: ResNet and MobileNet (V2, V3-small) over torchvision's models."""

from __future__ import annotations

from collections.abc import Callable
from functools import partial
from typing import Literal

import torchvision
from torch import Tensor, nn
from torchvision.models.detection.backbone_utils import BackboneWithFPN
from torchvision.ops.feature_pyramid_network import ExtraFPNBlock, LastLevelMaxPool, LastLevelP6P7
from torchvision.ops.misc import FrozenBatchNorm2d

from gid_cuda.detectors.weights import imagenet_state
from gid_cuda.errors import UserError

Pyramid = Literal["P3-P7", "P2-P6"]
"""P3..P7 with P6 and P7 by convolutions from P5 (RetinaNet, FCOS), or P2..P6 with P6 pooled from P5 (Faster R-CNN)."""

PYRAMID_STRIDES: dict[Pyramid, list[int]] = {"P3-P7": [8, 16, 32, 64, 128], "P2-P6": [4, 8, 16, 32, 64]}  # nominal

# Of each MobileNet's features: where its stages begin, the last block at strides 4, 8, 16 and 32, and the eps that
# torchvision's weights were trained with (V3's momentum of 0.01 is for runs of many epochs).
_MOBILENETS = {
    "mobilenet_v2": ([0, 2, 4, 7, 14], [3, 6, 13, 17], 1e-5),
    "mobilenet_v3_small": ([0, 1, 2, 4, 9, 12], [1, 3, 8, 12], 1e-3),
}


def fpn_backbone(
    name: str,
    *,
    channels: int,
    norm: Literal["frozen", "live"],
    pyramid: Pyramid = "P3-P7",
    extra_from: Literal["p5", "c5"] = "p5",
    relu_before_p7: bool = True,
    trainable_layers: int | None = None,
    imagenet: bool = False,
) -> BackboneWithFPN:
    """The named network with a feature pyramid, as torchvision's detectors have it.

    State-dict keys are torchvision's own. channels: width of every level. norm: batch norm with frozen statistics or a
    live one. extra_from, relu_before_p7: what P6 is computed from, and whether a ReLU stands between P6 and P7; of the
    pyramid P3-P7 alone. trainable_layers: how many stages, counted from the last, are trained (ResNet and MobileNetV2
    have 5, MobileNetV3 has 6); none: all. imagenet: start from torchvision's classification weights.
    """
    network = getattr(torchvision.models, name)(weights=None, norm_layer=_norm_layer(norm, name))
    if imagenet:
        network.load_state_dict(imagenet_state(name))
    if name in _MOBILENETS:
        starts, ends, _ = _MOBILENETS[name]
        body = network.features
        stages = [body[start:end] for start, end in zip(starts, [*starts[1:], None], strict=True)]
        outputs = {str(index): body[index].out_channels for index in ends}
    else:
        body = network
        stages = [nn.ModuleList([body.conv1, body.bn1]), body.layer1, body.layer2, body.layer3, body.layer4]
        outputs = {f"layer{stage}": body.inplanes >> (4 - stage) for stage in (1, 2, 3, 4)}
    _freeze(stages, trainable_layers, name)
    extra: ExtraFPNBlock = LastLevelMaxPool()
    if pyramid == "P3-P7":
        outputs.pop(next(iter(outputs)))
        first = channels if extra_from == "p5" else list(outputs.values())[-1]
        extra = _P6P7(first, channels, from_c5=extra_from == "c5", relu=relu_before_p7)
    return BackboneWithFPN(
        body,
        return_layers={layer: str(level) for level, layer in enumerate(outputs)},
        in_channels_list=list(outputs.values()),
        out_channels=channels,
        extra_blocks=extra,
    )


class _P6P7(LastLevelP6P7):
    """torchvision's, which goes by the widths alone whether P6 comes from C5 or P5, and always has the ReLU."""

    def __init__(self, in_channels: int, out_channels: int, *, from_c5: bool, relu: bool) -> None:
        super().__init__(in_channels, out_channels)
        self.use_P5 = not from_c5
        self.relu = relu

    def forward(self, p: list[Tensor], c: list[Tensor], names: list[str]) -> tuple[list[Tensor], list[str]]:
        """p: P3..P5, c: C3..C5, finest first."""
        if self.relu:
            return super().forward(p, c, names)
        p6 = self.p6(p[-1] if self.use_P5 else c[-1])
        return [*p, p6, self.p7(p6)], [*names, "p6", "p7"]


def _norm_layer(norm: Literal["frozen", "live"], name: str) -> Callable[..., nn.Module]:
    layer = FrozenBatchNorm2d if norm == "frozen" else nn.BatchNorm2d
    return partial(layer, eps=_MOBILENETS[name][2]) if name in _MOBILENETS else layer


def _freeze(stages: list[nn.Module], trainable: int | None, name: str) -> None:
    """Take the first stages out of training; the last `trainable` ones stay."""
    if trainable is None:
        return
    if trainable > len(stages):
        count = len(stages)
        raise UserError(f"trainable_layers is {trainable}, but {name} has {count} layers: give 0 to {count}")
    for stage in stages[: len(stages) - trainable]:
        stage.requires_grad_(False)
