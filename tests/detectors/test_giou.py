from __future__ import annotations

import pytest
import torch
from torch import Tensor
from torchvision.ops import generalized_box_iou_loss

from gid_cuda.detectors.giou import giou_loss


def random_boxes(count: int, seed: int) -> Tensor:
    make = torch.Generator().manual_seed(seed)
    corner = torch.rand(count, 2, generator=make) * 60
    return torch.cat([corner, corner + torch.rand(count, 2, generator=make) * 40], dim=1)


@pytest.mark.parametrize(
    ("box", "expected"),
    [
        ([0.0, 0, 10, 10], 0.0),
        ([0.0, 0, 10, 20], 0.5),  # half of the union, which is its own hull
        ([5.0, 5, 15, 15], 1 - 25 / 175 + (225 - 175) / 225),
        ([20.0, 0, 30, 10], 1 + 1 / 3),  # apart: a third of the hull is empty
        ([10.0, 0, 20, 10], 1.0),  # side by side
        ([5.0, 5, 5, 5], 1.0),  # a point within
    ],
)
def test_by_hand(box: list[float], expected: float) -> None:
    assert giou_loss(torch.tensor(box), torch.tensor([0.0, 0, 10, 10])).item() == pytest.approx(expected, abs=1e-6)


def test_equal_to_torchvisions_in_value_and_gradient() -> None:
    first, second = random_boxes(500, 0), random_boxes(500, 1)
    second[:100, :2], second[100:200, 2] = first[:100, :2], first[100:200, 2]  # sides that coincide
    second[200:210] = first[200:210]
    second[210:220, 2:] = second[210:220, :2]
    found, expected = ([x.clone().requires_grad_() for x in (first, second)] for _ in range(2))
    ours, theirs = giou_loss(*found), generalized_box_iou_loss(*expected)
    torch.testing.assert_close(ours, theirs)
    ours.sum().backward()
    theirs.sum().backward()
    for one, other in zip(found, expected, strict=True):
        torch.testing.assert_close(one.grad, other.grad)


def test_gradient_in_float64() -> None:
    first, second = (random_boxes(40, seed).double().requires_grad_() for seed in (2, 3))
    assert torch.autograd.gradcheck(giou_loss, (first, second))


def test_boxes_without_area_are_finite() -> None:
    point, line, box = [5.0, 5, 5, 5], [0.0, 5, 9, 5], [0.0, 0, 10, 10]
    first = torch.tensor([point, point, line, line, box]).requires_grad_()
    loss = giou_loss(first, torch.tensor([point, box, point, line, point]))
    loss.sum().backward()
    assert loss.isfinite().all() and first.grad.isfinite().all()
