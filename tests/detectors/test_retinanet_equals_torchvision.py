"""Same weights, same images: losses and detections are torchvision's own."""

from __future__ import annotations

import pytest
import torch
from detector_helpers import settle, small_input, small_model
from torch import Tensor, nn
from torchvision.models.detection import RetinaNet as TorchvisionRetinaNet
from torchvision.models.detection import retinanet_resnet50_fpn
from torchvision.models.detection.backbone_utils import resnet_fpn_backbone
from torchvision.ops.feature_pyramid_network import LastLevelP6P7

from gid_cuda.config import ModelConfig
from gid_cuda.detectors import RetinaNet, build_detector

SIZES = {"min_size": 64, "max_size": 96}
INPUT = {"min_size": [64], "max_size": 96}
OPTIONS = {"score_thresh": 0.6, "nms_thresh": 0.4, "detections_per_img": 40}


def torchvision_model(name: str) -> TorchvisionRetinaNet:
    if name == "resnet50":
        return retinanet_resnet50_fpn(weights=None, weights_backbone=None, num_classes=3, **SIZES, **OPTIONS)
    backbone = resnet_fpn_backbone(
        backbone_name=name,
        weights=None,
        norm_layer=nn.BatchNorm2d,
        trainable_layers=5,
        returned_layers=[2, 3, 4],
        extra_blocks=LastLevelP6P7(256, 256),
    )
    return TorchvisionRetinaNet(backbone, 3, **SIZES, **OPTIONS)


def pair(name: str, images: list[Tensor]) -> tuple[TorchvisionRetinaNet, RetinaNet]:
    theirs = torchvision_model(name)
    settle(theirs, theirs.transform(images)[0].tensors)
    ours = build_detector(ModelConfig(backbone=name, norm="live", **OPTIONS), small_input(**INPUT), ["a", "b", "c"])
    assert list(ours.state_dict()) == list(theirs.state_dict())
    ours.load_state_dict(theirs.state_dict())
    return theirs, ours


@pytest.mark.parametrize(("name", "fused"), [("resnet18", True), ("resnet18", False), ("resnet50", True)])
def test_equal(name: str, fused: bool, images: list[Tensor], targets: list[dict[str, Tensor]]) -> None:
    theirs, ours = pair(name, images)
    ours.fused_losses = fused
    theirs.eval()
    ours.eval()
    with torch.no_grad():
        expected = theirs(images)
    found = ours.predict(images)
    assert all(len(detections["boxes"]) >= 10 for detections in expected)
    for ours_one, theirs_one in zip(found, expected, strict=True):
        assert set(ours_one) == set(theirs_one) == {"boxes", "scores", "labels"}
        assert torch.equal(ours_one["labels"], theirs_one["labels"])
        torch.testing.assert_close(ours_one["scores"], theirs_one["scores"])
        torch.testing.assert_close(ours_one["boxes"], theirs_one["boxes"], rtol=1e-5, atol=1e-3)

    theirs.train()
    ours.train()
    expected_losses = theirs(images, targets)
    batch, moved = ours.transform(images, targets)
    outputs = ours(batch, moved)
    losses = outputs.losses
    assert (outputs.task is not None) == fused
    assert set(losses) == set(expected_losses) == {"classification", "bbox_regression"}
    for key in losses:
        assert losses[key] > 0
        torch.testing.assert_close(losses[key], expected_losses[key])
    sum(expected_losses.values()).backward()
    sum(losses.values()).backward()
    gradients = dict(theirs.named_parameters())
    for key, parameter in ours.named_parameters():
        expected = gradients[key].grad
        assert (parameter.grad - expected).norm() <= (1e-3 if fused else 1e-5) * expected.norm() + 1e-6


def test_predict_does_not_depend_on_the_mode(images: list[Tensor]) -> None:
    detector = build_detector(small_model(score_thresh=0.6), small_input(min_size=[64, 96]), ["a", "b", "c"])
    settle(detector, detector.transform(images)[0].tensors)
    expected = detector.eval().predict(images)
    detector.train()
    detector.backbone.body.eval()  # a user keeps it as it is
    found = detector.predict(images)
    assert detector.training and detector.backbone.training
    assert not any(module.training for module in detector.backbone.body.modules())
    assert sum(len(detections["boxes"]) for detections in expected) > 0
    for one, other in zip(found, expected, strict=True):
        assert torch.equal(one["boxes"], other["boxes"])


def test_predict_of_nothing_is_nothing() -> None:
    assert build_detector(small_model(), small_input(), ["a"]).predict([]) == []


def test_transform_draws_a_size_in_training_and_takes_the_last_in_evaluation() -> None:
    detector = build_detector(small_model(), small_input(min_size=[32, 64]), ["a"])
    image = [torch.rand(3, 50, 50)]
    drawn = {detector.train().transform(image)[0].image_sizes[0] for _ in range(40)}
    assert drawn == {(32, 32), (64, 64)}
    assert {detector.eval().transform(image)[0].image_sizes[0] for _ in range(5)} == {(64, 64)}
