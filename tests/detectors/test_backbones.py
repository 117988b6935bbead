from __future__ import annotations

import pytest
import torch
from detector_helpers import small_input, small_model
from torch import nn
from torchvision.ops.misc import FrozenBatchNorm2d

from gid_cuda.detectors import build_detector
from gid_cuda.detectors.backbones import PYRAMID_STRIDES, Pyramid, fpn_backbone
from gid_cuda.errors import UserError

NAMES = ["resnet18", "resnet34", "resnet50", "resnet101", "mobilenet_v2", "mobilenet_v3_small"]


@pytest.mark.parametrize("name, pyramid", [
    *((name, "P3-P7") for name in NAMES), ("resnet18", "P2-P6"), ("resnet50", "P2-P6"), ("mobilenet_v2", "P2-P6"),
])  # fmt: skip
def test_levels_have_the_nominal_strides(name: str, pyramid: Pyramid) -> None:
    backbone = fpn_backbone(name, channels=16, norm="live", pyramid=pyramid).eval()
    with torch.no_grad():
        levels = list(backbone(torch.zeros(1, 3, 128, 256)).values())
    assert [tuple(level.shape) for level in levels] == [(1, 16, 128 // s, 256 // s) for s in PYRAMID_STRIDES[pyramid]]
    assert backbone.out_channels == 16


@pytest.mark.parametrize("name", ["mobilenet_v2", "mobilenet_v3_small"])
def test_mobilenet_gives_the_last_block_of_each_stride(name: str) -> None:
    """Not the first, where torchvision's extractor would take it: that one has seen the least."""
    backbone = fpn_backbone(name, channels=8, norm="live", pyramid="P2-P6")
    seen = {}
    for layer_name, layer in backbone.body.named_children():
        layer.register_forward_hook(lambda _, __, out, name=int(layer_name): seen.update({name: 128 // out.shape[-1]}))
    backbone.eval()(torch.zeros(1, 3, 128, 128))
    last = {stride: max(index for index in seen if seen[index] == stride) for stride in (4, 8, 16, 32)}
    assert {int(index) for index in backbone.body.return_layers} == set(last.values())


@pytest.mark.parametrize("name", ["resnet18", "mobilenet_v2", "mobilenet_v3_small"])
@pytest.mark.parametrize("norm, kind, other", [
    ("frozen", FrozenBatchNorm2d, nn.BatchNorm2d), ("live", nn.BatchNorm2d, FrozenBatchNorm2d),
])  # fmt: skip
def test_norm(name: str, norm: str, kind: type, other: type) -> None:
    layers = list(fpn_backbone(name, channels=8, norm=norm).modules())
    norms = [layer for layer in layers if isinstance(layer, kind)]
    assert norms and not any(isinstance(layer, other) for layer in layers)
    assert {layer.eps for layer in norms} == {1e-3 if name == "mobilenet_v3_small" else 1e-5}


@pytest.mark.parametrize("trainable, trained", [
    (0, set()),
    (1, {"layer4"}),
    (3, {"layer2", "layer3", "layer4"}),
    (5, {"conv1", "bn1", "layer1", "layer2", "layer3", "layer4"}),
    (None, {"conv1", "bn1", "layer1", "layer2", "layer3", "layer4"}),
])  # fmt: skip
def test_trainable_layers_of_resnet(trainable: int | None, trained: set[str]) -> None:
    backbone = fpn_backbone("resnet18", channels=8, norm="live", trainable_layers=trainable)
    assert {name.split(".")[0] for name, p in backbone.body.named_parameters() if p.requires_grad} == trained
    assert all(p.requires_grad for p in backbone.fpn.parameters())


@pytest.mark.parametrize("name, firsts, count", [
    ("mobilenet_v2", [18, 14, 7, 4, 2, 0], 18), ("mobilenet_v3_small", [13, 12, 9, 4, 2, 1, 0], 13),
])  # fmt: skip
def test_trainable_layers_of_mobilenet(name: str, firsts: list[int], count: int) -> None:
    for trainable, first in enumerate(firsts):
        body = fpn_backbone(name, channels=8, norm="live", trainable_layers=trainable).body
        trained = {int(layer.split(".")[0]) for layer, p in body.named_parameters() if p.requires_grad}
        assert trained == set(range(first, count))


def test_too_many_trainable_layers_are_named() -> None:
    with pytest.raises(UserError, match="trainable_layers is 6, but resnet18 has 5 layers: give 0 to 5"):
        build_detector(small_model(trainable_layers=6), small_input(), ["a"])
    build_detector(small_model(backbone="mobilenet_v3_small", trainable_layers=6), small_input(), ["a"])


def test_an_anchor_size_too_few_is_named() -> None:
    with pytest.raises(UserError, match="anchor_sizes has 2 entries, but the detector has 5 levels"):
        build_detector(small_model(anchor_sizes=[32, 64]), small_input(), ["a"])


def test_no_classes_are_named() -> None:
    with pytest.raises(UserError, match="the data set has no classes"):
        build_detector(small_model(), small_input(), [])


def test_frozen_norm_from_scratch_is_noted() -> None:
    assert "norm: live" in build_detector(small_model(norm="frozen"), small_input(), ["a"]).weight_notes[0]
    assert build_detector(small_model(), small_input(), ["a"]).weight_notes == ()
