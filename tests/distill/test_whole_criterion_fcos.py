"""The criterion with FCOS's label assignment and losses, beside the task losses of the same outputs."""

from __future__ import annotations

from dataclasses import fields

import pytest
import torch
from torch import Tensor

from gid_cuda.detectors import FCOS
from gid_cuda.detectors.backbones import fpn_backbone
from gid_cuda.detectors.fcos_losses import FCOSOutputs, task_losses
from gid_cuda.distill import GID, LOSS_NAMES

from .fakes import captured, leaves, random_outputs
from .test_gid import Forbid
from .test_whole_criterion import TARGETS


@pytest.fixture(scope="module")
def fcos() -> FCOS:
    return FCOS(fpn_backbone("mobilenet_v3_small", channels=32, norm="live"), 3, head_depth=1)


def dense(seed: int, *, grad: bool = False, device: str = "cpu") -> FCOSOutputs:
    """Random outputs; boxes as the head gives them, no side negative."""
    plain = random_outputs(seed=seed, grad=grad, device=device)
    values = {field.name: getattr(plain, field.name) for field in fields(plain) if field.init}
    values["deltas"] = plain.deltas.detach().relu().requires_grad_(grad)
    centerness = plain.logits.detach()[..., :1].clone().requires_grad_(grad)
    return FCOSOutputs(**values, centerness=centerness)


def with_task(student: FCOSOutputs, device: str = "cpu") -> FCOSOutputs:
    targets = [{key: value.to(device) for key, value in target.items()} for target in TARGETS]
    rows = len(student.anchors)
    student.losses, student.task = task_losses(student, targets, [rows - 60, 60], radius=1.5)
    return student


def total(gid: GID, detector: FCOS, teacher: FCOSOutputs, student: FCOSOutputs) -> list[Tensor]:
    """GID's losses, the task loss that is joined with them, and all gradients; student.losses is left as it was."""
    before = dict(student.losses)
    losses, found = gid(teacher, student, detector)
    joined = {name: student.losses[name] for name, loss in before.items() if student.losses[name] is not loss}
    assert joined.keys() == ({"classification"} if before else set())  # compiled or not
    everything = [*losses.values(), *joined.values()]
    gradients = torch.autograd.grad(torch.stack(everything).sum(), [*leaves(student), *gid.parameters()])
    student.losses = before
    return [*everything, found.boxes, found.indices, *gradients]


def test_the_way_back_is_the_sum_of_both(fcos: FCOS) -> None:
    teacher, gid = dense(0), GID(4, 4, output_size=3)
    student, alone, task = with_task(dense(1, grad=True)), dense(1, grad=True), with_task(dense(1, grad=True))
    together, _ = gid(teacher, student, fcos)
    distilled, _ = gid(teacher, alone, fcos)
    assert all(loss > 0 for loss in (*together.values(), *task.losses.values()))
    assert list(together) == list(LOSS_NAMES)
    torch.testing.assert_close(together, distilled, rtol=0, atol=0)
    (sum(together.values()) + sum(student.losses.values())).backward()
    sum(distilled.values()).backward()
    sum(task.losses.values()).backward()
    for ours, theirs, of_task in zip(leaves(student), leaves(alone), leaves(task), strict=True):
        expected = theirs.grad if of_task.grad is None else theirs.grad + of_task.grad
        torch.testing.assert_close(ours.grad, expected)
    torch.testing.assert_close(student.centerness.grad, task.centerness.grad)


def test_a_student_equal_to_its_teacher_has_no_loss_and_no_gradient(fcos: FCOS) -> None:
    gid, teacher, student = GID(4, 4, output_size=3), dense(0), dense(0, grad=True)
    losses, found = gid(teacher, student, fcos)
    sum(losses.values()).backward()
    assert found.counts.min() > 0 and fcos.assign(found, student).any()
    assert {name: loss.item() for name, loss in losses.items()} == dict.fromkeys(LOSS_NAMES, 0.0)
    assert all(x.grad.count_nonzero() == 0 for x in leaves(student))


def test_the_host_waits_for_nothing(fcos: FCOS) -> None:
    teacher, student, gid = dense(0), with_task(dense(1, grad=True)), GID(4, 4)
    with Forbid():
        total(gid, fcos, teacher, student)


@pytest.mark.parametrize("beside", ["the task losses", "nothing"])
def test_compiles_without_a_break(fcos: FCOS, beside: str) -> None:
    gid, teacher, student = GID(4, 4, output_size=3), dense(0), dense(1, grad=True)
    if beside == "the task losses":
        with_task(student)
    expected = total(gid, fcos, teacher, student)
    compiled = torch.compile(gid, fullgraph=True, backend="aot_eager")
    for ours, plain in zip(total(compiled, fcos, teacher, student), expected, strict=True):
        torch.testing.assert_close(ours, plain)


@pytest.mark.cuda
@pytest.mark.skipif(not torch.cuda.is_available(), reason="needs a GPU")
@pytest.mark.parametrize("beside", ["the task losses", "nothing"])
def test_captured_in_a_cuda_graph_and_replayed(fcos: FCOS, beside: str) -> None:
    """Forward and backward; the replay computes with whatever is in the inputs then."""
    teacher, student = dense(0, device="cuda"), dense(1, grad=True, device="cuda")
    gid, detector = GID(4, 4).cuda(), fcos.cuda()
    if beside == "the task losses":
        with_task(student, "cuda")

    def step() -> list[Tensor]:
        return total(gid, detector, teacher, student)

    graph, results = captured(step)
    with torch.no_grad():
        for ours, new in zip(leaves(student), leaves(dense(2, device="cuda")), strict=True):
            ours.copy_(new)
    graph.replay()
    torch.cuda.synchronize()
    for replayed, expected in zip(results, step(), strict=True):
        torch.testing.assert_close(replayed, expected)
