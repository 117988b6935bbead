from __future__ import annotations

import math
from dataclasses import replace

import pytest
import torch
from torch import Tensor
from torchvision.ops import sigmoid_focal_loss

from gid_cuda.detectors.dense_losses import DenseOutputs, join_targets, response_losses, task_losses
from gid_cuda.detectors.outputs import BoxCoder
from gid_cuda.ops import box_losses, class_losses, match_anchors

KINDS = ["bce", "focal"]


def classification_sum(student: Tensor, teacher: Tensor, mask: Tensor, kind: str = "bce") -> Tensor:
    return class_losses(student, teacher_logits=teacher, mask=mask, kind=kind)[1].sum()


def smooth_l1_sum(student: Tensor, teacher: Tensor, mask: Tensor, beta: float) -> Tensor:
    return box_losses(student, teacher_deltas=teacher, mask=mask, beta=beta)[1].sum()


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


def outputs(seed: int, *, grad: bool = False, rows: int = 60, classes: int = 4, labels: bool = True) -> DenseOutputs:
    make = torch.Generator().manual_seed(seed)
    corner = torch.rand(rows, 2, generator=torch.Generator().manual_seed(0)) * 80  # the same for all seeds
    return DenseOutputs(
        features=[],
        strides=[],
        logits=torch.randn(3, rows, classes, generator=make).requires_grad_(grad),
        deltas=torch.randn(3, rows, 4, generator=make).requires_grad_(grad),
        coder=BoxCoder("deltas"),
        anchors=torch.cat([corner, corner + 30], dim=1),
        image_sizes=torch.full((3, 2), 110),
    )


TARGETS = [
    {"boxes": torch.tensor([[10.0, 10, 42, 40], [50, 50, 80, 90]]), "labels": torch.tensor([2, 0])},
    None,
    {"boxes": torch.zeros(0, 4), "labels": torch.zeros(0, dtype=torch.int64)},
]
MATCHING = {"high": 0.5, "low": 0.4, "low_quality": True}


def test_targets_side_by_side() -> None:
    truth = join_targets(TARGETS, torch.device("cpu"))
    assert truth.boxes.shape == (3, 2, 4) and truth.labels.tolist() == [[2, 0], [0, 0], [0, 0]]
    assert truth.counts.tolist() == [2, -1, 0] and truth.labelled == 2


@pytest.mark.parametrize("label", [4, -1])
def test_a_label_that_is_no_class(label: int) -> None:
    targets = [{"boxes": torch.tensor([[10.0, 10, 42, 40]]), "labels": torch.tensor([label])}, None, None]
    with pytest.raises(ValueError, match=f"hold the label {label}, but labels must be 0 to 3, without background"):
        task_losses(outputs(0), targets, **MATCHING)


def test_unlabelled_images_alone_give_zeros_that_reach_the_heads() -> None:
    student = outputs(0, grad=True)
    losses, _ = task_losses(student, [None] * 3, **MATCHING)
    sum(losses.values()).backward()
    assert [loss.item() for loss in losses.values()] == [0.0, 0.0]
    assert student.logits.grad.count_nonzero() == 0 and student.deltas.grad.count_nonzero() == 0


@pytest.mark.parametrize("kind", KINDS)
@pytest.mark.parametrize("order", ["task losses after", "task losses before"])
def test_task_and_response_together_are_their_sum(kind: str, order: str) -> None:
    """Whether the total takes the task losses from before or after the response loss: the same numbers."""
    teacher, student, alone, apart = outputs(1), outputs(0, grad=True), outputs(0, grad=True), outputs(0, grad=True)
    found = match_anchors(torch.tensor([[[12.0, 12, 40, 40]]]).expand(3, -1, -1), None, student.anchors)
    mask = found >= 0
    assert mask.any()
    student.losses, student.task = task_losses(student, TARGETS, **MATCHING)
    before = dict(student.losses)
    cls, reg = response_losses(student, teacher, mask, kind=kind, beta=0.1)
    task = before if order == "task losses before" else student.losses
    (3 * sum(task.values()) + 0.5 * cls + 0.25 * reg).backward()

    their_task, _ = task_losses(alone, TARGETS, **MATCHING)
    their_cls, their_reg = response_losses(apart, teacher, mask, kind=kind, beta=0.1)
    (3 * sum(their_task.values())).backward()
    (0.5 * their_cls + 0.25 * their_reg).backward()
    assert {name: loss.item() for name, loss in task.items()} == {n: loss.item() for n, loss in their_task.items()}
    torch.testing.assert_close((cls, reg), (their_cls, their_reg), rtol=0, atol=0)
    torch.testing.assert_close(student.logits.grad, alone.logits.grad + apart.logits.grad)
    torch.testing.assert_close(student.deltas.grad, alone.deltas.grad + apart.deltas.grad)


def test_one_gradient_of_the_logits_for_both_losses() -> None:
    """What the joint way back is for: the task loss's own node is left out."""
    student = outputs(0, grad=True)
    student.losses, student.task = task_losses(student, TARGETS, **MATCHING)
    calls = []
    student.logits.register_hook(lambda gradient: calls.append(gradient.data_ptr()))
    mask = torch.zeros(3, 60, dtype=torch.bool)
    mask[:, 3] = True
    with torch.profiler.profile() as profile:
        response = response_losses(student, outputs(1), mask)
        (sum(student.losses.values()) + sum(response)).backward()
    counts = {event.key: event.count for event in profile.key_averages()}
    assert counts["gid::class_losses_backward"] == 1 and counts["gid::box_losses_backward"] == 1 and len(calls) == 1


@pytest.mark.parametrize("what", ["watched only", "weighted", "copied with other logits", "distilled twice"])
def test_task_losses_that_are_not_to_be_replaced(what: str) -> None:
    """Whatever was done to the outputs before: the gradient of what is in student.losses is its own."""
    student, teacher, alone = outputs(0, grad=True), outputs(1), outputs(0, grad=True)
    mask = torch.rand(3, 60, generator=torch.Generator().manual_seed(2)) < 0.3
    student.losses, student.task = task_losses(student, TARGETS, **MATCHING)
    weight = 1.0
    if what == "watched only":
        with torch.no_grad():
            response_losses(student, teacher, mask)
    elif what == "weighted":
        weight = 2.0
        student.losses = {name: weight * loss for name, loss in student.losses.items()}
        response_losses(student, teacher, mask)
    elif what == "copied with other logits":
        response_losses(replace(student, logits=student.logits / 4), teacher, mask)
        response_losses(replace(student, deltas=student.deltas.detach()), teacher, mask)
    else:
        response_losses(student, teacher, mask)
        response_losses(student, teacher, ~mask)
    sum(student.losses.values()).backward()
    (weight * sum(task_losses(alone, TARGETS, **MATCHING)[0].values())).backward()
    torch.testing.assert_close(student.logits.grad, alone.logits.grad)
    torch.testing.assert_close(student.deltas.grad, alone.deltas.grad)


def test_shapes_that_differ_are_named() -> None:
    student, mask = outputs(0), torch.zeros(3, 60, dtype=torch.bool)
    with pytest.raises(ValueError, match=r"\(3, 60, 4\), \(3, 60, 2\) and \(3, 60\): both detectors need the same"):
        response_losses(student, outputs(1, classes=2), mask)
    with pytest.raises(ValueError, match=r"logits must have one shape .*\(3, 59\)"):
        response_losses(student, outputs(1), mask[:, :59])
