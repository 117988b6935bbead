"""State dicts by mmdetection's published layer names, and what its layers give, by torch.nn.functional alone."""

from __future__ import annotations

import math
from pathlib import Path
from typing import Any

import torch
import torchvision
from torch import Tensor
from torch.nn import functional as F
from torchvision.ops import roi_align

State = dict[str, Tensor]
WIDTHS = {"resnet18": (64, 128, 256, 512), "resnet50": (256, 512, 1024, 2048), "resnet101": (256, 512, 1024, 2048)}
CLASSES = ("cat", "dog", "horse")

CONFIGS = {
    "retinanet": """
default_scope = 'mmdet'
model = dict(
    backbone=dict(depth=50, norm_cfg=dict(requires_grad=True, type='BN'), style='pytorch', type='ResNet'),
    bbox_head=dict(
        anchor_generator=dict(octave_base_scale=4, ratios=[0.5, 1.0, 2.0], scales_per_octave=3,
                              strides=[8, 16, 32, 64, 128], type='AnchorGenerator'),
        bbox_coder=dict(target_means=[.0, .0, .0, .0], target_stds=[1.0, 1.0, 1.0, 1.0], type='DeltaXYWHBBoxCoder'),
        loss_cls=dict(type='FocalLoss', use_sigmoid=True), stacked_convs=4, type='RetinaHead'),
    data_preprocessor=dict(bgr_to_rgb=True, mean=[123.675, 116.28, 103.53], pad_size_divisor=32,
                           std=[58.395, 57.12, 57.375], type='DetDataPreprocessor'),
    neck=dict(add_extra_convs='on_input', num_outs=5, out_channels=256, start_level=1, type='FPN'),
    train_cfg=dict(allowed_border=-1, assigner=dict(pos_iou_thr=0.5)),
    type='RetinaNet')
work_dir = './work_dirs/retinanet'
""",
    "faster_rcnn": """
model = dict(
    backbone=dict(depth=50, style='pytorch', type='mmdet.models.backbones.ResNet'),
    data_preprocessor=dict(bgr_to_rgb=True, mean=[123.675, 116.28, 103.53], std=[58.395, 57.12, 57.375]),
    neck=dict(in_channels=[256, 512, 1024, 2048], num_outs=5, out_channels=256, type='FPN'),
    roi_head=dict(
        bbox_head=dict(bbox_coder=dict(target_stds=[0.1, 0.1, 0.2, 0.2]), reg_class_agnostic=False,
                       type='Shared2FCBBoxHead'),
        bbox_roi_extractor=dict(featmap_strides=[4, 8, 16, 32],
                                roi_layer=dict(output_size=7, sampling_ratio=0, type='RoIAlign')),
        type='StandardRoIHead'),
    rpn_head=dict(anchor_generator=dict(ratios=[0.5, 1.0, 2.0], scales=[8], strides=[4, 8, 16, 32, 64])),
    type='FasterRCNN')
""",
}


def random_layer(state: State, name: str, out: int, *inner: int) -> None:
    """A layer of outputs as large as its inputs, and a bias that shows."""
    state[f"{name}.weight"] = torch.randn(out, *inner) / math.sqrt(math.prod(inner))
    state[f"{name}.bias"] = torch.randn(out) * 0.1


def backbone_state(name: str) -> State:
    """torchvision's names behind "backbone.", random weights and statistics, counters as live batch norm has them."""
    network = getattr(torchvision.models, name)()
    for layer in network.modules():
        if isinstance(layer, torch.nn.BatchNorm2d):
            layer.running_mean.normal_(std=0.1)
            layer.running_var.uniform_(0.5, 1.5)
            torch.nn.init.uniform_(layer.weight, 0.3, 0.7)
            torch.nn.init.normal_(layer.bias, std=0.1)
    return {f"backbone.{key}": value for key, value in network.state_dict().items() if not key.startswith("fc.")}


def neck_state(state: State, inputs: tuple[int, ...], channels: int) -> None:
    for i, width in enumerate(inputs):
        random_layer(state, f"neck.lateral_convs.{i}.conv", channels, width, 1, 1)
        random_layer(state, f"neck.fpn_convs.{i}.conv", channels, channels, 3, 3)


def retinanet_state(backbone: str = "resnet18", channels: int = 32, depth: int = 2) -> State:
    state, widths = backbone_state(backbone), WIDTHS[backbone]
    neck_state(state, widths[1:], channels)
    random_layer(state, "neck.fpn_convs.3.conv", channels, widths[-1], 3, 3)
    random_layer(state, "neck.fpn_convs.4.conv", channels, channels, 3, 3)
    for branch in ("cls", "reg"):
        for i in range(depth):
            random_layer(state, f"bbox_head.{branch}_convs.{i}.conv", channels, channels, 3, 3)
    random_layer(state, "bbox_head.retina_cls", 9 * len(CLASSES), channels, 3, 3)
    random_layer(state, "bbox_head.retina_reg", 9 * 4, channels, 3, 3)
    return state


def faster_rcnn_state(backbone: str = "resnet18", channels: int = 16) -> State:
    state = backbone_state(backbone)
    neck_state(state, WIDTHS[backbone], channels)
    random_layer(state, "rpn_head.rpn_conv", channels, channels, 3, 3)
    random_layer(state, "rpn_head.rpn_cls", 3, channels, 1, 1)
    random_layer(state, "rpn_head.rpn_reg", 12, channels, 1, 1)
    random_layer(state, "roi_head.bbox_head.shared_fcs.0", 1024, channels * 49)
    random_layer(state, "roi_head.bbox_head.shared_fcs.1", 1024, 1024)
    random_layer(state, "roi_head.bbox_head.fc_cls", len(CLASSES) + 1, 1024)
    random_layer(state, "roi_head.bbox_head.fc_reg", 4 * len(CLASSES), 1024)
    return state


def hollow(state: State) -> State:
    """The same names and shapes in a small file: each tensor is one number, seen as the whole."""
    return {key: torch.zeros(()).expand(value.shape) for key, value in state.items()}


def save(path: Path, state: State, detector: str, **meta: Any) -> Path:
    """As mmengine's runner saves it; meta: in place of, or beside, its own entries."""
    known = {"cfg": CONFIGS[detector], "dataset_meta": {"classes": CLASSES, "palette": [(1, 2, 3)]}, "epoch": 12}
    known = {key: value for key, value in {**known, **meta}.items() if value is not None}
    torch.save({"meta": known, "state_dict": state}, path)
    return path


# -- what mmdetection's layers give -----------------------------------------------------------------------------------


def conv(state: State, name: str, x: Tensor, stride: int = 1) -> Tensor:
    weight = state[f"{name}.weight"]
    return F.conv2d(x, weight, state[f"{name}.bias"], stride=stride, padding=weight.shape[-1] // 2)


def stages(state: State, name: str, pixels: Tensor) -> list[Tensor]:
    """C2..C5."""
    network = getattr(torchvision.models, name)().eval()
    own = {key.removeprefix("backbone."): value for key, value in state.items() if key.startswith("backbone.")}
    assert network.load_state_dict(own, strict=False).missing_keys == ["fc.weight", "fc.bias"]
    x = network.maxpool(network.relu(network.bn1(network.conv1(pixels))))
    found = []
    for stage in (network.layer1, network.layer2, network.layer3, network.layer4):
        x = stage(x)
        found.append(x)
    return found


def pyramid(state: State, inputs: list[Tensor]) -> list[Tensor]:
    """One map an input."""
    maps = [conv(state, f"neck.lateral_convs.{i}.conv", x) for i, x in enumerate(inputs)]
    for i in range(len(maps) - 1, 0, -1):
        maps[i - 1] = maps[i - 1] + F.interpolate(maps[i], size=maps[i - 1].shape[-2:], mode="nearest")
    return [conv(state, f"neck.fpn_convs.{i}.conv", x) for i, x in enumerate(maps)]


def retinanet_pyramid(state: State, name: str, pixels: Tensor) -> list[Tensor]:
    """P3..P7: P6 from C5, P7 from P6, no ReLU anywhere."""
    inputs = stages(state, name, pixels)[1:]
    p6 = conv(state, "neck.fpn_convs.3.conv", inputs[-1], stride=2)
    return [*pyramid(state, inputs), p6, conv(state, "neck.fpn_convs.4.conv", p6, stride=2)]


def retinanet_head(state: State, maps: list[Tensor], depth: int = 2) -> tuple[Tensor, Tensor]:
    """Logits (B, R, C) and deltas (B, R, 4)."""
    found = []
    for branch, each in (("cls", len(CLASSES)), ("reg", 4)):
        levels = []
        for x in maps:
            for i in range(depth):
                x = conv(state, f"bbox_head.{branch}_convs.{i}.conv", x).relu()
            x = conv(state, f"bbox_head.retina_{branch}", x)
            levels.append(x.permute(0, 2, 3, 1).reshape(len(x), -1, each))
        found.append(torch.cat(levels, dim=1))
    return found[0], found[1]


def rpn_head(state: State, maps: list[Tensor]) -> tuple[Tensor, Tensor]:
    """Objectness (B, R, 1) and deltas (B, R, 4)."""
    shared = [conv(state, "rpn_head.rpn_conv", x).relu() for x in maps]
    scores = [conv(state, "rpn_head.rpn_cls", x).permute(0, 2, 3, 1).reshape(len(x), -1, 1) for x in shared]
    deltas = [conv(state, "rpn_head.rpn_reg", x).permute(0, 2, 3, 1).reshape(len(x), -1, 4) for x in shared]
    return torch.cat(scores, dim=1), torch.cat(deltas, dim=1)


def anchors(maps: list[Tensor], strides: list[int], scales: list[float]) -> Tensor:
    """One by one: cells row by row, in each ratios (height / width), in each scales; centred on the cells' corners."""
    boxes = []
    for x, stride in zip(maps, strides, strict=True):
        for row in range(x.shape[-2]):
            for column in range(x.shape[-1]):
                for ratio in (0.5, 1.0, 2.0):
                    for scale in scales:
                        width, height = scale * stride / ratio**0.5, scale * stride * ratio**0.5
                        cx, cy = column * stride, row * stride
                        boxes.append([cx - width / 2, cy - height / 2, cx + width / 2, cy + height / 2])
    return torch.tensor(boxes)


def roi_features(maps: list[Tensor], rois: Tensor) -> Tensor:
    """rois (N, 5): image, box. Half-pixel centres, a sample a cell, levels by the finest scale of 56 pixels."""
    size = ((rois[:, 3] - rois[:, 1]) * (rois[:, 4] - rois[:, 2])).sqrt()
    level = (size / 56 + 1e-6).log2().floor().clamp(0, 3).long()
    found = torch.zeros(len(rois), maps[0].shape[1], 7, 7)
    for i, stride in enumerate((4, 8, 16, 32)):
        of_level = level == i
        found[of_level] = roi_align(maps[i], rois[of_level], 7, 1 / stride, sampling_ratio=-1, aligned=True)
    return found


def box_head(state: State, crops: Tensor) -> tuple[Tensor, Tensor]:
    """(N, C + 1) with the background last, (N, 4 * C)."""
    head, x = "roi_head.bbox_head", crops.flatten(1)
    for i in (0, 1):
        x = F.linear(x, state[f"{head}.shared_fcs.{i}.weight"], state[f"{head}.shared_fcs.{i}.bias"]).relu()
    scores = F.linear(x, state[f"{head}.fc_cls.weight"], state[f"{head}.fc_cls.bias"])
    return scores, F.linear(x, state[f"{head}.fc_reg.weight"], state[f"{head}.fc_reg.bias"])
