"""Targets that do not fit are told alike by every adapter over torchvision's models."""

from __future__ import annotations

import re

import pytest
import torch
from detector_helpers import small_input, small_model
from torch import Tensor
from torchvision.models.detection.image_list import ImageList

from gid_cuda.config import ModelConfig
from gid_cuda.detectors import build_detector
from gid_cuda.detectors.outputs import Detector

BOX = [10.0, 10, 50, 60]


@pytest.fixture(scope="module", params=["retinanet", "fcos", "faster_rcnn"])
def detector(request: pytest.FixtureRequest) -> Detector:
    model = small_model(
        detector=request.param,
        backbone="mobilenet_v3_small",
        fpn_channels=32,
        head_depth=4,
        anchor_sizes=ModelConfig().anchor_sizes,
    )
    return build_detector(model, small_input(), ["a", "b", "c"]).eval()


@pytest.mark.parametrize(
    ("boxes", "labels", "message"),
    [
        (torch.tensor([BOX, BOX]), torch.tensor([2]), "targets[1] has boxes (2, 4) and labels (1,)"),
        (torch.tensor([BOX]), torch.tensor([2, 1]), "targets[1] has boxes (1, 4) and labels (2,)"),
        (torch.tensor([]), torch.zeros(0, dtype=torch.int64), "targets[1] has boxes (0,) and labels (0,), not (N, 4)"),
        (torch.tensor([BOX]), torch.tensor([[2]]), "targets[1] has boxes (1, 4) and labels (1, 1)"),
    ],
)
def test_a_label_for_each_box(detector: Detector, boxes: Tensor, labels: Tensor, message: str) -> None:
    batch = ImageList(torch.rand(2, 3, 96, 96), [(96, 96)] * 2)
    with pytest.raises(ValueError, match=re.escape(message)):
        detector(batch, [None, {"boxes": boxes, "labels": labels}])
