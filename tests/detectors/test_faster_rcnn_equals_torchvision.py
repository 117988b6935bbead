"""Same weights, same images, same random numbers: losses, gradients and detections are torchvision's own."""

from __future__ import annotations

from typing import Any

import pytest
import torch
from faster_rcnn_helpers import settle_rcnn
from torch import Tensor, nn
from torchvision.models.detection import FasterRCNN as TorchvisionFasterRCNN
from torchvision.models.detection import fasterrcnn_resnet50_fpn
from torchvision.models.detection.backbone_utils import resnet_fpn_backbone

from gid_cuda.config import InputConfig, ModelConfig
from gid_cuda.detectors import FasterRCNN, build_detector

SIZES = {"min_size": 64, "max_size": 96}
OPTIONS = {"score_thresh": 0.3, "nms_thresh": 0.4, "detections_per_img": 40}
LOSSES = {"loss_objectness", "loss_rpn_box_reg", "loss_classifier", "loss_box_reg"}


def torchvision_model(name: str) -> TorchvisionFasterRCNN:
    options: dict[str, Any] = {**SIZES, **{f"box_{key}": value for key, value in OPTIONS.items()}}
    if name == "resnet50":
        return fasterrcnn_resnet50_fpn(weights=None, weights_backbone=None, num_classes=4, **options)
    backbone = resnet_fpn_backbone(backbone_name=name, weights=None, norm_layer=nn.BatchNorm2d, trainable_layers=5)
    return TorchvisionFasterRCNN(backbone, 4, **options)


def pair(name: str, images: list[Tensor]) -> tuple[TorchvisionFasterRCNN, FasterRCNN]:
    theirs = torchvision_model(name)
    settle_rcnn(theirs, theirs.transform(images)[0].tensors)
    model = ModelConfig(detector="faster_rcnn", backbone=name, norm="live", **OPTIONS)
    ours = build_detector(model, InputConfig(min_size=[64], max_size=96), ["a", "b", "c"])
    assert list(ours.state_dict()) == list(theirs.state_dict())
    ours.load_state_dict(theirs.state_dict())
    return theirs, ours


@pytest.mark.parametrize("name", ["resnet18", pytest.param("resnet50", marks=pytest.mark.slow)])
def test_equal(name: str, images: list[Tensor], targets: list[dict[str, Tensor]]) -> None:
    images.append(torch.rand(3, 64, 80))
    targets.append({"boxes": torch.zeros(0, 4), "labels": torch.zeros(0, dtype=torch.int64)})
    theirs, ours = pair(name, images)
    with torch.no_grad():
        expected = theirs.eval()(images)
    found = ours.eval().predict(images)
    assert all(len(detections["boxes"]) >= 10 for detections in expected)
    assert {label for detections in found for label in detections["labels"].tolist()} == {0, 1, 2}
    for ours_one, theirs_one in zip(found, expected, strict=True):
        assert set(ours_one) == set(theirs_one) == {"boxes", "scores", "labels"}
        assert torch.equal(ours_one["labels"] + 1, theirs_one["labels"])
        torch.testing.assert_close(ours_one["scores"], theirs_one["scores"])
        torch.testing.assert_close(ours_one["boxes"], theirs_one["boxes"], rtol=1e-5, atol=1e-3)

    torch.manual_seed(1)
    expected_losses = theirs.train()(images, [{**one, "labels": one["labels"] + 1} for one in targets])
    torch.manual_seed(1)
    batch, moved = ours.train().transform(images, targets)
    losses = ours(batch, moved).losses
    assert set(losses) == set(expected_losses) == LOSSES
    for key in losses:
        assert losses[key] > 0
        torch.testing.assert_close(losses[key], expected_losses[key])
    sum(expected_losses.values()).backward()
    sum(losses.values()).backward()
    gradients = dict(theirs.named_parameters())
    for key, parameter in ours.named_parameters():
        expected = gradients[key].grad
        assert expected.count_nonzero()
        assert (parameter.grad - expected).norm() <= 1e-5 * expected.norm() + 1e-6, key


def test_a_first_batch_of_small_images_spoils_nothing(images: list[Tensor]) -> None:
    """torchvision's RoI pool would guess its scales from 20 pixels that are padded to 32, once and for all."""
    theirs, ours = pair("resnet18", images)
    expected = theirs.eval()(images)
    ours.eval().transform.min_size = (20,)
    ours.predict([torch.rand(3, 20, 20)])
    ours.transform.min_size = (64,)
    for found, right in zip(ours.predict(images), expected, strict=True):
        torch.testing.assert_close(found["scores"], right["scores"])
