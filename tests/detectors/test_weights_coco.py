"""torchvision's COCO weights by name (the download is faked): its own model's outputs, with the rows of our classes."""

from __future__ import annotations

from collections.abc import Callable
from typing import Any

import pytest
import torch
from detector_helpers import settle
from faster_rcnn_helpers import settle_rcnn
from torch import Tensor, nn
from torchvision.models.detection import (
    FasterRCNN_ResNet50_FPN_Weights,
    FCOS_ResNet50_FPN_Weights,
    RetinaNet_ResNet50_FPN_Weights,
    fasterrcnn_resnet50_fpn,
    fcos_resnet50_fpn,
    retinanet_resnet50_fpn,
)
from torchvision.models.detection.image_list import ImageList

from gid_cuda.config import InputConfig, ModelConfig
from gid_cuda.detectors import build_detector
from gid_cuda.errors import UserError

CATEGORIES = RetinaNet_ResNet50_FPN_Weights.COCO_V1.meta["categories"]
CLASSES = ["zebra", "no such thing", "Person", "N/A"]
ROWS = [CATEGORIES.index(name) for name in ("zebra", "person")]
NOTES = [
    "weights: coco, 2 of 4 classes taken over by name",
    "weights: coco has no class no such thing, N/A: initialised anew",
]


def coco_state(make: Callable[..., nn.Module], settle: Callable[[nn.Module], None] | None) -> dict[str, Tensor]:
    """As torchvision's file: 91 rows, no counters, and a norm in which eps matters."""
    model = make(weights=None, weights_backbone=None, num_classes=91)
    if settle is not None:
        settle(model)
    model.backbone.body.bn1.running_var *= 1e-5
    with torch.no_grad():
        model.backbone.body.bn1.weight *= 1e-5**0.5
    return {key: value for key, value in model.state_dict().items() if not key.endswith("num_batches_tracked")}


def test_retinanet_is_torchvisions_model_with_rows_by_name(downloads: dict[str, Any]) -> None:
    weights = RetinaNet_ResNet50_FPN_Weights.COCO_V1
    state = coco_state(retinanet_resnet50_fpn, settle)
    for key in [key for key in state if ".conv." in key]:  # the old names in torchvision's file
        head, _, rest = key.partition(".conv.")
        index, _, name = rest.split(".")
        state[f"{head}.conv.{2 * int(index)}.{name}"] = state.pop(key)
    downloads[weights.url] = state
    theirs = retinanet_resnet50_fpn(weights=weights).eval()
    images = ImageList(torch.rand(1, 3, 64, 64), [(64, 64)])
    expected = theirs.head(list(theirs.backbone(images.tensors).values()))
    for norm in ("frozen", "live"):
        ours = build_detector(ModelConfig(weights="coco", norm=norm), InputConfig(), CLASSES).eval()
        found = ours(images)
        torch.testing.assert_close(found.logits[..., [0, 2]], expected["cls_logits"][..., ROWS], rtol=1e-3, atol=1e-3)
        torch.testing.assert_close(found.deltas, expected["bbox_regression"], rtol=1e-3, atol=1e-3)
        assert ours.weight_notes == NOTES
        bias = ours.head.classification_head.cls_logits.bias.unflatten(0, (-1, 4))[:, [1, 3]]
        torch.testing.assert_close(bias.sigmoid(), torch.full_like(bias, 0.01))


def test_fcos_is_torchvisions_model_with_rows_by_name(downloads: dict[str, Any]) -> None:
    weights = FCOS_ResNet50_FPN_Weights.COCO_V1
    downloads[weights.url] = coco_state(fcos_resnet50_fpn, None)
    theirs = fcos_resnet50_fpn(weights=weights).eval()
    images = ImageList(torch.rand(1, 3, 64, 64), [(64, 64)])
    expected = theirs.head(list(theirs.backbone(images.tensors).values()))
    ours = build_detector(ModelConfig(detector="fcos", weights="coco"), InputConfig(), CLASSES).eval()
    found = ours(images)
    torch.testing.assert_close(found.logits[..., [0, 2]], expected["cls_logits"][..., ROWS])
    torch.testing.assert_close(found.deltas, expected["bbox_regression"])
    torch.testing.assert_close(found.centerness, expected["bbox_ctrness"])
    assert expected["cls_logits"][..., ROWS].std() > 1e-3
    assert ours.weight_notes == NOTES


def test_faster_rcnn_is_torchvisions_model_with_rows_by_name(downloads: dict[str, Any]) -> None:
    weights = FasterRCNN_ResNet50_FPN_Weights.COCO_V1
    state = coco_state(fasterrcnn_resnet50_fpn, settle_rcnn)
    for name in ("weight", "bias"):  # the old names in torchvision's file
        state[f"rpn.head.conv.{name}"] = state.pop(f"rpn.head.conv.0.0.{name}")
    downloads[weights.url] = state
    theirs = fasterrcnn_resnet50_fpn(weights=weights).eval()
    images = ImageList(torch.rand(1, 3, 64, 64), [(64, 64)])
    boxes = [torch.tensor([[2.0, 3, 40, 60], [10, 20, 30, 31]])]
    ours = build_detector(ModelConfig(detector="faster_rcnn", weights="coco"), InputConfig(), CLASSES).eval()
    with torch.no_grad():
        objectness, deltas = theirs.rpn.head(list(theirs.backbone(images.tensors).values()))
        found = ours(images)
        expected, given = (second_stage(model, images, boxes) for model in (theirs, ours))
    objectness = torch.cat([level.permute(0, 2, 3, 1).reshape(1, -1, 1) for level in objectness], dim=1)
    deltas = torch.cat([level.permute(0, 2, 3, 1).reshape(1, -1, 4) for level in deltas], dim=1)
    torch.testing.assert_close(found.logits, objectness, rtol=1e-3, atol=1e-3)
    torch.testing.assert_close(found.deltas, deltas, rtol=1e-3, atol=1e-3)
    torch.testing.assert_close(given[0][:, [0, 1, 3]], expected[0][:, [0, *ROWS]], rtol=1e-3, atol=1e-3)
    moves = expected[1].unflatten(1, (91, 4))[:, [0, *ROWS]]
    torch.testing.assert_close(given[1].unflatten(1, (5, 4))[:, [0, 1, 3]], moves, rtol=1e-3, atol=1e-3)
    assert expected[0].std() > 0.1 and ours.weight_notes == NOTES


def second_stage(model: nn.Module, images: ImageList, boxes: list[Tensor]) -> tuple[Tensor, Tensor]:
    heads = model.roi_heads
    crops = heads.box_roi_pool(model.backbone(images.tensors), boxes, images.image_sizes)
    return heads.box_predictor(heads.box_head(crops))


@pytest.mark.parametrize("change, message", [
    ({"backbone": "resnet101"}, "this config has backbone resnet101: .* backbone_weights: imagenet"),
    ({"fpn_channels": 64, "head_depth": 2}, "this config has fpn_channels 64, head_depth 2"),
    ({"anchor_sizes": [16, 32, 64, 128, 256]}, r"this config has anchor_sizes \[16, 32, 64, 128, 256\]"),
    ({"variant": "mmdetection"}, "this config has variant mmdetection"),
    ({"detector": "fcos", "backbone": "resnet18"}, "head_depth 4 alone, and this config has backbone resnet18"),
    ({"detector": "faster_rcnn", "variant": "mmdetection"}, "this config has variant mmdetection"),
])  # fmt: skip
def test_they_exist_for_one_model_a_detector(change: dict[str, Any], message: str) -> None:
    with pytest.raises(UserError, match="weights: coco exists for backbone resnet50, fpn_channels 256.*" + message):
        build_detector(ModelConfig(weights="coco", **change), InputConfig(), ["person"])
