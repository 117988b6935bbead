"""Teacher and student of different backbones and widths; and pairs whose boxes do not correspond."""

from __future__ import annotations

from dataclasses import replace

import pytest
import torch
from detector_helpers import small_input, small_model
from torch import Tensor
from torchvision.models.detection.image_list import ImageList

from gid_cuda.detectors import build_detector
from gid_cuda.detectors.outputs import DetectorOutputs
from gid_cuda.distill import GID, LOSS_NAMES, check_anchors

CLASSES = ["a", "b"]


def batch() -> ImageList:
    generator = torch.Generator().manual_seed(0)
    return ImageList(torch.randn(2, 3, 64, 96, generator=generator), [(64, 96), (60, 90)])


def targets() -> list[dict[str, Tensor]]:
    boxes = torch.tensor([[4.0, 8.0, 40.0, 50.0]])
    return [{"boxes": boxes, "labels": torch.tensor([1])}, {"boxes": boxes + 5, "labels": torch.tensor([0])}]


def outputs_of(**model: object) -> DetectorOutputs:
    with torch.no_grad():
        return build_detector(small_model(**model), small_input(), CLASSES).eval()(batch())


@pytest.mark.parametrize("backbone, width", [("mobilenet_v2", 64), ("resnet18", 128), ("mobilenet_v2", 256)])
def test_every_width_learns_from_every_other(backbone: str, width: int) -> None:
    """All four losses are finite, and reach the first layer of the student and the adaptation layer."""
    torch.manual_seed(0)
    student = build_detector(small_model(backbone=backbone, fpn_channels=width), small_input(), CLASSES).train()
    gid = GID(width, 256)
    assert gid.adapt is not None and gid.adapt.weight.shape == (256, width, 1, 1)
    losses, instances = gid(outputs_of(backbone="resnet34", fpn_channels=256), student(batch(), targets()), student)
    assert instances.counts.min() > 0
    assert set(losses) == set(LOSS_NAMES) and all(torch.isfinite(value) and value >= 0 for value in losses.values())
    torch.stack(list(losses.values())).sum().backward()
    first = next(student.backbone.parameters())
    for weight in (first, gid.adapt.weight):
        assert weight.grad is not None and torch.isfinite(weight.grad).all() and weight.grad.abs().sum() > 0


def test_other_levels_are_refused() -> None:
    teacher, student = outputs_of(), outputs_of()
    detector = build_detector(small_model(), small_input(), CLASSES)
    fewer = replace(teacher, features=teacher.features[1:], strides=teacher.strides[1:])
    with pytest.raises(ValueError, match=r"strides \[16, 32, 64, 128\], the student's \[8, 16, .* same pyramid levels"):
        GID(32, 32)(fewer, student, detector)


def test_other_anchors_are_refused() -> None:
    with pytest.raises(ValueError, match="the anchors of teacher and student differ: .* same anchor sizes"):
        check_anchors(outputs_of(anchor_sizes=[16, 32, 64, 128, 256]), outputs_of())
