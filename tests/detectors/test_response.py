from __future__ import annotations

import math

import pytest
import torch
from torch import Tensor
from torchvision.ops import sigmoid_focal_loss

from gid_cuda.detectors.response import classification_sum, smooth_l1_sum

KINDS = ["bce", "focal"]


def everywhere(x: Tensor) -> Tensor:
    return torch.ones(x.shape[:2], dtype=torch.bool)


def test_bce_by_hand() -> None:
    """y = 3/4 against p = 1/2: the divergence of two coins; the second box is outside the mask."""
    student = torch.tensor([[[0.0], [5.0]]], requires_grad=True)
    teacher = torch.tensor([[[math.log(3.0)], [-5.0]]])
    loss = classification_sum(student, teacher, torch.tensor([[True, False]]))
    assert loss.item() == pytest.approx(0.75 * math.log(1.5) + 0.25 * math.log(0.5), abs=1e-6)
    loss.backward()
    torch.testing.assert_close(student.grad, torch.tensor([[[0.5 - 0.75], [0.0]]]))


def test_focal_by_hand() -> None:
    student, teacher = torch.tensor([[[0.0]]]), torch.tensor([[[math.log(3.0)]]])
    alpha = 0.25 * 0.75 + 0.75 * 0.25
    loss = classification_sum(student, teacher, everywhere(student), "focal")
    assert loss.item() == pytest.approx(alpha * 0.25**2 * math.log(2.0), abs=1e-6)


def test_focal_at_hard_targets_is_the_task_loss() -> None:
    student, hard = torch.randn(2, 7, 3), torch.rand(2, 7, 3) > 0.5
    loss = classification_sum(student, torch.where(hard, 100.0, -100.0), everywhere(student), "focal")
    torch.testing.assert_close(loss, sigmoid_focal_loss(student, hard.float(), reduction="sum"))


def test_smooth_l1_by_hand() -> None:
    student = torch.tensor([[[0.05, 0.0, -0.3, 0.0], [9.0, 9.0, 9.0, 9.0]]], requires_grad=True)
    loss = smooth_l1_sum(student, torch.zeros(1, 2, 4), torch.tensor([[True, False]]), beta=0.1)
    assert loss.item() == pytest.approx(0.05**2 / 0.2 + (0.3 - 0.05), abs=1e-6)
    loss.backward()
    torch.testing.assert_close(student.grad, torch.tensor([[[0.5, 0.0, -1.0, 0.0], [0.0] * 4]]))


@pytest.mark.parametrize("kind", KINDS)
@pytest.mark.parametrize("dtype", [torch.float32, torch.bfloat16])
def test_agreement_is_zero_with_zero_gradient(kind: str, dtype: torch.dtype) -> None:
    student = (torch.randn(2, 33, 5) * 20).to(dtype)
    student[0, 0, 0], student[0, 0, 1] = 1000.0, -1000.0
    student.requires_grad_()
    loss = classification_sum(student, student.detach().clone(), everywhere(student), kind)
    loss.backward()
    assert loss.dtype == torch.float32 and loss.item() == 0.0
    assert student.grad.count_nonzero() == 0


def test_bce_of_large_logits_is_their_distance() -> None:
    student = torch.tensor([[[1e4, -1e4]]], requires_grad=True)
    loss = classification_sum(student, -student.detach(), everywhere(student))
    loss.backward()
    assert loss.item() == 2e4
    assert student.grad.tolist() == [[[1.0, -1.0]]]


@pytest.mark.parametrize("kind", KINDS)
@pytest.mark.parametrize("bad", [math.inf, -math.inf, math.nan])
def test_values_outside_the_mask_do_not_leak(kind: str, bad: float) -> None:
    student, teacher = torch.randn(1, 3, 4), torch.randn(1, 3, 4)
    mask = torch.tensor([[True, False, True]])
    kept = classification_sum(student[:, ::2], teacher[:, ::2], mask[:, ::2], kind)
    kept_reg = smooth_l1_sum(student[:, ::2], teacher[:, ::2], mask[:, ::2], 0.1)
    student[0, 1], teacher[0, 1] = bad, -bad
    student.requires_grad_()
    loss, reg = classification_sum(student, teacher, mask, kind), smooth_l1_sum(student, teacher, mask, 0.1)
    torch.testing.assert_close((loss, reg), (kept, kept_reg))
    (loss + reg).backward()
    assert student.grad[0, 1].tolist() == [0.0] * 4
    assert student.grad.isfinite().all() and student.grad[0, 0].count_nonzero() == 4


@pytest.mark.parametrize("kind", KINDS)
def test_empty_mask_is_zero(kind: str) -> None:
    student = torch.randn(2, 3, 4, requires_grad=True)
    mask = torch.zeros(2, 3, dtype=torch.bool)
    loss = classification_sum(student, torch.randn(2, 3, 4), mask, kind) + smooth_l1_sum(
        student, torch.randn(2, 3, 4), mask, 0.1
    )
    loss.backward()
    assert loss.item() == 0.0 and student.grad.count_nonzero() == 0


@pytest.mark.parametrize("kind", KINDS)
def test_no_gradient_to_the_teacher(kind: str) -> None:
    student, teacher = torch.randn(1, 3, 4, requires_grad=True), torch.randn(1, 3, 4, requires_grad=True)
    mask = everywhere(student)
    (classification_sum(student, teacher, mask, kind) + smooth_l1_sum(student, teacher, mask, 0.1)).backward()
    assert teacher.grad is None and student.grad.count_nonzero() == 12


@pytest.mark.parametrize("kind", KINDS)
def test_nothing_depends_on_values_for_its_shape(kind: str) -> None:
    """On the meta device whatever needs a value on the host fails."""
    student, mask = torch.empty(2, 5, 4, device="meta"), torch.empty(2, 5, dtype=torch.bool, device="meta")
    assert classification_sum(student, student, mask, kind).shape == ()
    assert smooth_l1_sum(student, student, mask, 0.1).shape == ()


def test_shapes_that_differ_are_named() -> None:
    student, mask = torch.zeros(1, 6, 3), torch.zeros(1, 6, dtype=torch.bool)
    with pytest.raises(ValueError, match=r"\(1, 6, 3\), \(1, 6, 2\) and \(1, 6\): both detectors need the same"):
        classification_sum(student, torch.zeros(1, 6, 2), mask)
    with pytest.raises(ValueError, match=r"deltas must have one shape .*\(1, 5\)"):
        smooth_l1_sum(student, student, mask[:, :5], 0.1)
