from __future__ import annotations

import subprocess
import sys

import pytest
import torch
from torchvision.models.detection import _utils as torchvision_coders

from gid_cuda.detectors.outputs import BoxCoder, DetectorOutputs, GeneralInstances


def random_anchors(count: int) -> torch.Tensor:
    corner = torch.rand(count, 2) * 100
    return torch.cat([corner, corner + 5 + torch.rand(count, 2) * 60], dim=1)


@pytest.mark.parametrize("weights", [(1.0, 1.0, 1.0, 1.0), (10.0, 10.0, 5.0, 5.0)])
def test_deltas_decode_as_torchvision(weights: tuple[float, float, float, float]) -> None:
    anchors, deltas = random_anchors(50), torch.randn(2, 50, 4) * 3
    deltas[0, 0, 2] = 1000.0  # clamped, not infinite
    found = BoxCoder("deltas", weights).decode(deltas, anchors)
    coder = torchvision_coders.BoxCoder(weights)
    expected = torch.stack([coder.decode_single(one, anchors) for one in deltas])
    assert found.isfinite().all()
    torch.testing.assert_close(found, expected, rtol=0, atol=0)


def test_distances_decode_as_torchvision() -> None:
    anchors, deltas = random_anchors(50), torch.rand(2, 50, 4)
    expected = torchvision_coders.BoxLinearCoder(normalize_by_size=True).decode(deltas, anchors)
    torch.testing.assert_close(BoxCoder("distances").decode(deltas, anchors), expected)


def test_boxes_are_float32_detached_and_decoded_once() -> None:
    deltas = torch.randn(1, 6, 4, dtype=torch.bfloat16, requires_grad=True)
    logits, sizes = torch.zeros(1, 6, 2), torch.zeros(1, 2)
    outputs = DetectorOutputs([], [], logits, deltas, BoxCoder("deltas"), random_anchors(6), sizes)
    boxes = outputs.boxes
    assert boxes.dtype == torch.float32 and not boxes.requires_grad and outputs.boxes is boxes


def test_valid_slots_are_the_first_ones() -> None:
    instances = GeneralInstances(
        torch.zeros(3, 2, 4), torch.zeros(3, 2), torch.full((3, 2), -1), torch.tensor([0, 1, 2])
    )
    assert instances.valid.tolist() == [[False, False], [True, False], [True, True]]


def test_the_shared_types_need_no_torchvision() -> None:
    program = (
        "import sys; sys.modules['torchvision'] = None; sys.modules['pydantic'] = None; "
        "import gid_cuda.detectors, gid_cuda.detectors.outputs, gid_cuda.detectors.dense_losses"
    )
    subprocess.run([sys.executable, "-c", program], check=True)


def test_an_unknown_name_of_the_package_is_an_attribute_error() -> None:
    import gid_cuda.detectors

    with pytest.raises(AttributeError, match="no attribute 'Yolo'"):
        _ = gid_cuda.detectors.Yolo
