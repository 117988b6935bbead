"""FCOS's response loss, and its task losses beside it."""

from __future__ import annotations

import math

import pytest
import torch
from torch import Tensor
from torchvision.ops import generalized_box_iou_loss

from gid_cuda.detectors.dense_losses import join_targets
from gid_cuda.detectors.fcos_losses import FCOSOutputs, match_locations, response_losses, task_losses
from gid_cuda.detectors.outputs import BoxCoder

ROWS = 60
LEVELS = [40, 20]
TARGETS = [
    {"boxes": torch.tensor([[10.0, 10, 42, 40], [50, 50, 80, 90]]), "labels": torch.tensor([2, 0])},
    None,
    {"boxes": torch.zeros(0, 4), "labels": torch.zeros(0, dtype=torch.int64)},
]


def outputs(seed: int, *, grad: bool = False, dtype: torch.dtype = torch.float32) -> FCOSOutputs:
    """3 images; 40 locations of stride 8 and 20 of stride 16, the same for all seeds."""
    make, same = torch.Generator().manual_seed(seed), torch.Generator().manual_seed(0)
    center = torch.rand(ROWS, 2, generator=same) * 100
    half = torch.tensor([4.0] * LEVELS[0] + [8.0] * LEVELS[1])[:, None]
    return FCOSOutputs(
        features=[],
        strides=[8, 16],
        logits=torch.randn(3, ROWS, 4, generator=make).to(dtype).requires_grad_(grad),
        deltas=(torch.randn(3, ROWS, 4, generator=make) + 1).relu().to(dtype).requires_grad_(grad),
        centerness=torch.randn(3, ROWS, 1, generator=make).to(dtype).requires_grad_(grad),
        coder=BoxCoder("distances"),
        anchors=torch.cat([center - half, center + half], dim=1),
        image_sizes=torch.full((3, 2), 110),
    )


def some_rows(seed: int = 5) -> Tensor:
    return torch.rand(3, ROWS, generator=torch.Generator().manual_seed(seed)) < 0.4


def with_task(student: FCOSOutputs) -> FCOSOutputs:
    student.losses, student.task = task_losses(student, TARGETS, LEVELS, radius=1.5)
    assert all(loss > 0 for loss in student.losses.values())
    return student


def one_box(deltas: list[float]) -> FCOSOutputs:
    """One location, at (20, 20), of stride 8."""
    size = torch.ones(1, 2)
    anchors = torch.tensor([[16.0, 16, 24, 24]])
    values = torch.tensor([[deltas]]).requires_grad_()
    return FCOSOutputs(
        [], [], torch.zeros(1, 1, 1), values, BoxCoder("distances"), anchors, size, centerness=torch.zeros(1, 1, 1)
    )


def test_giou_by_hand() -> None:
    """Teacher 16 x 16, student 8 x 16 within it: GIoU 1/2."""
    student, teacher = one_box([1.0, 1, 0, 1]), one_box([1.0, 1, 1, 1])
    _, reg = response_losses(student, teacher, torch.ones(1, 1, dtype=torch.bool))
    reg.backward()
    assert reg.item() == pytest.approx(0.5, abs=1e-6)
    # A unit is the stride, 8 pixels; each adds the height, 16, to the intersection; union and hull stay the teacher's.
    assert student.deltas.grad[0, 0, 2].item() == pytest.approx(-8 * 16 / 256, abs=1e-6)
    assert teacher.deltas.grad is None


def test_giou_is_torchvisions_over_the_mask() -> None:
    student, teacher, mask = outputs(0, grad=True), outputs(1), some_rows()
    _, reg = response_losses(student, teacher, mask)
    reg.backward()
    other = outputs(0, grad=True)
    ours, theirs = (x.coder.decode(x.deltas, x.anchors)[mask] for x in (other, teacher))
    solid = (theirs[:, 2:] > theirs[:, :2]).all(dim=1)
    expected = generalized_box_iou_loss(ours[solid], theirs[solid], reduction="sum")
    expected.backward()
    torch.testing.assert_close(reg, expected)
    torch.testing.assert_close(student.deltas.grad, other.deltas.grad)


@pytest.mark.parametrize("kind", ["bce", "focal"])
@pytest.mark.parametrize("dtype", [torch.float32, torch.bfloat16])
def test_agreement_is_zero_with_zero_gradient(kind: str, dtype: torch.dtype) -> None:
    student, teacher = outputs(0, grad=True, dtype=dtype), outputs(0, dtype=dtype)
    cls, reg = response_losses(student, teacher, torch.ones(3, ROWS, dtype=torch.bool), kind=kind)
    (cls + reg).backward()
    assert cls.item() == reg.item() == 0.0 and cls.dtype == reg.dtype == torch.float32
    assert student.logits.grad.count_nonzero() == student.deltas.grad.count_nonzero() == 0


def test_teachers_boxes_without_area_are_skipped() -> None:
    student, mask = one_box([1.0, 1, 1, 1]), torch.ones(1, 1, dtype=torch.bool)
    for flat in ([0.0, 0, 0, 0], [0.0, 1, 0, 1], [1.0, 0, 1, 0]):
        _, reg = response_losses(student, one_box(flat), mask)
        assert reg.item() == 0.0
    student = one_box([0.0, 1, 0, 1])  # the student's without area are not
    _, reg = response_losses(student, one_box([1.0, 1, 1, 1]), mask)
    reg.backward()
    assert reg.item() == 1.0 and student.deltas.grad.isfinite().all() and student.deltas.grad.count_nonzero()


@pytest.mark.parametrize("bad", [math.inf, -math.inf, math.nan])
def test_values_outside_the_mask_do_not_leak(bad: float) -> None:
    student, teacher, mask = outputs(0), outputs(1), some_rows()
    expected = response_losses(student, teacher, mask)
    for one in (student, teacher):
        one.logits[~mask], one.deltas[~mask] = bad, bad
    student.logits.requires_grad_(), student.deltas.requires_grad_()
    found = response_losses(student, teacher, mask)
    torch.testing.assert_close(found, expected, rtol=0, atol=0)
    sum(found).backward()
    for gradient in (student.logits.grad, student.deltas.grad):
        assert gradient.isfinite().all() and gradient[~mask].count_nonzero() == 0 < gradient.count_nonzero()


@pytest.mark.parametrize("bad", [math.inf, math.nan])
def test_what_is_not_foreground_does_not_leak_into_boxes_and_centerness(bad: float) -> None:
    student = outputs(0)
    expected = with_task(student).losses
    background = student.task.matched < 0
    student.deltas[background], student.centerness[background] = bad, bad
    student.logits[1] = bad  # of the unlabelled image
    for x in (student.logits, student.deltas, student.centerness):
        x.requires_grad_()
    found = with_task(student).losses
    torch.testing.assert_close(found, expected, rtol=0, atol=0)
    sum(found.values()).backward()
    assert all(x.grad.isfinite().all() for x in (student.logits, student.deltas, student.centerness))


def test_empty_mask_is_zero() -> None:
    student = outputs(0, grad=True)
    cls, reg = response_losses(student, outputs(1), torch.zeros(3, ROWS, dtype=torch.bool))
    (cls + reg).backward()
    assert cls.item() == reg.item() == 0.0
    assert student.logits.grad.count_nonzero() == student.deltas.grad.count_nonzero() == 0


@pytest.mark.parametrize("kind", ["bce", "focal"])
@pytest.mark.parametrize("order", ["task losses after", "task losses before"])
def test_task_and_response_together_are_their_sum(kind: str, order: str) -> None:
    teacher, mask = outputs(1), some_rows()
    student, alone, apart = with_task(outputs(0, grad=True)), with_task(outputs(0, grad=True)), outputs(0, grad=True)
    before = dict(student.losses)
    cls, reg = response_losses(student, teacher, mask, kind=kind)
    assert student.losses["classification"] is not before["classification"]
    task = before if order == "task losses before" else student.losses
    (3 * sum(task.values()) + 0.5 * cls + 0.25 * reg).backward()

    their_cls, their_reg = response_losses(apart, teacher, mask, kind=kind)
    (3 * sum(alone.losses.values())).backward()
    (0.5 * their_cls + 0.25 * their_reg).backward()
    torch.testing.assert_close(task, alone.losses, rtol=0, atol=0)
    torch.testing.assert_close((cls, reg), (their_cls, their_reg), rtol=0, atol=0)
    torch.testing.assert_close(student.logits.grad, alone.logits.grad + apart.logits.grad)
    torch.testing.assert_close(student.deltas.grad, alone.deltas.grad + apart.deltas.grad)
    torch.testing.assert_close(student.centerness.grad, alone.centerness.grad)


def test_one_gradient_of_the_logits_for_both_losses() -> None:
    student = with_task(outputs(0, grad=True))
    with torch.profiler.profile() as profile:
        response = response_losses(student, outputs(1), some_rows())
        (sum(student.losses.values()) + sum(response)).backward()
    counts = {event.key: event.count for event in profile.key_averages()}
    assert counts["gid::class_losses_backward"] == 1


def test_a_weighted_task_loss_is_not_replaced() -> None:
    student, alone = with_task(outputs(0, grad=True)), with_task(outputs(0, grad=True))
    student.losses["classification"] = 2 * student.losses["classification"]
    response_losses(student, outputs(1), some_rows())
    student.losses["classification"].backward()
    (2 * alone.losses["classification"]).backward()
    torch.testing.assert_close(student.logits.grad, alone.logits.grad)


def test_shapes_that_differ_are_named() -> None:
    with pytest.raises(ValueError, match=r"logits must have one shape .*\(3, 59\)"):
        response_losses(outputs(0), outputs(1), some_rows()[:, :59])


def test_nothing_depends_on_values_for_its_shape() -> None:
    """On the meta device whatever needs a value on the host fails."""
    student, mask = outputs(0), torch.empty(3, ROWS, dtype=torch.bool, device="meta")
    truth = join_targets(TARGETS, torch.device("cpu"))
    for name in ("logits", "deltas", "anchors", "centerness"):
        setattr(student, name, getattr(student, name).to("meta"))
    assert [x.shape for x in response_losses(student, student, mask)] == [(), ()]
    truth.boxes, truth.counts = truth.boxes.to("meta"), truth.counts.to("meta")
    assert match_locations(truth, student.anchors, LEVELS, radius=1.5).shape == (3, ROWS)
