"""The criterion with a real detector's label assignment and losses, beside the task losses of the same outputs."""

from __future__ import annotations

import pytest
import torch
from torch import Tensor

from gid_cuda.distill import GID, LOSS_NAMES

from .fakes import captured, leaves
from .test_gid import Forbid
from .whole_cases import Case, fcos_case, retinanet_case


@pytest.fixture(scope="module", params=[retinanet_case, fcos_case], ids=["retinanet", "fcos"])
def case(request: pytest.FixtureRequest) -> Case:
    return request.param()


def test_the_way_back_is_the_sum_of_both(case: Case) -> None:
    teacher, gid = case.dense(0), GID(4, 4, output_size=3)
    student, alone, task = (case.dense(1, grad=True) for _ in range(3))
    case.with_task(student)
    case.with_task(task)
    together, _ = gid(teacher, student, case.detector)
    distilled, _ = gid(teacher, alone, case.detector)
    assert all(loss > 0 for loss in (*together.values(), *task.losses.values()))
    assert list(together) == list(LOSS_NAMES)
    torch.testing.assert_close(together, distilled, rtol=0, atol=0)
    (sum(together.values()) + sum(student.losses.values())).backward()
    sum(distilled.values()).backward()
    sum(task.losses.values()).backward()
    for ours, theirs, of_task in zip(leaves(student), leaves(alone), leaves(task), strict=True):
        expected = theirs.grad if of_task.grad is None else theirs.grad + of_task.grad
        torch.testing.assert_close(ours.grad, expected)
    if hasattr(student, "centerness"):
        torch.testing.assert_close(student.centerness.grad, task.centerness.grad)


def test_a_student_equal_to_its_teacher_has_no_loss_and_no_gradient(case: Case) -> None:
    gid, teacher, student = GID(4, 4, output_size=3), case.dense(0), case.dense(0, grad=True)
    losses, found = gid(teacher, student, case.detector)
    sum(losses.values()).backward()
    assert found.counts.min() > 0 and case.detector.assign(found, student).any()
    assert {name: loss.item() for name, loss in losses.items()} == dict.fromkeys(LOSS_NAMES, 0.0)
    assert all(x.grad.count_nonzero() == 0 for x in leaves(student))


def test_the_host_waits_for_nothing(case: Case) -> None:
    teacher, student, gid = case.dense(0), case.with_task(case.dense(1, grad=True)), GID(4, 4)
    with Forbid():
        case.total(gid, teacher, student)


@pytest.mark.parametrize("beside", ["the task losses", "nothing"])
def test_compiles_without_a_break(case: Case, beside: str) -> None:
    gid, teacher, student = GID(4, 4, output_size=3), case.dense(0), case.dense(1, grad=True)
    if beside == "the task losses":
        case.with_task(student)
    expected = case.total(gid, teacher, student)
    compiled = torch.compile(gid, fullgraph=True, backend="aot_eager")
    for ours, plain in zip(case.total(compiled, teacher, student), expected, strict=True):
        torch.testing.assert_close(ours, plain)


@pytest.mark.cuda
@pytest.mark.skipif(not torch.cuda.is_available(), reason="needs a GPU")
@pytest.mark.parametrize("beside", ["the task losses", "nothing"])
def test_captured_in_a_cuda_graph_and_replayed(case: Case, beside: str) -> None:
    """Forward and backward; the replay computes with whatever is in the inputs then."""
    teacher, student = case.dense(0, device="cuda"), case.dense(1, grad=True, device="cuda")
    gid = GID(4, 4).cuda()
    case.detector.cuda()
    if beside == "the task losses":
        # While these losses live, so do autograd's nodes at the leaves, with the stream that they were made on. The
        # default stream may not wait for one that is captured.
        side = torch.cuda.Stream()
        side.wait_stream(torch.cuda.current_stream())
        with torch.cuda.stream(side):
            case.with_task(student, "cuda")
        side.synchronize()

    def step() -> list[Tensor]:
        return case.total(gid, teacher, student)

    graph, results = captured(step)
    with torch.no_grad():
        for ours, new in zip(leaves(student), leaves(case.dense(2, device="cuda")), strict=True):
            ours.copy_(new)
    graph.replay()
    torch.cuda.synchronize()
    for replayed, expected in zip(results, step(), strict=True):
        torch.testing.assert_close(replayed, expected)
