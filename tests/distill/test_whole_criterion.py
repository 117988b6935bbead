"""The criterion with a real detector's label assignment and losses, beside the task losses of the same outputs."""

from __future__ import annotations

import pytest
import torch
from torch import Tensor

from gid_cuda.detectors import RetinaNet
from gid_cuda.detectors.backbones import fpn_backbone
from gid_cuda.detectors.dense_losses import DenseOutputs, task_losses
from gid_cuda.distill import GID, LOSS_NAMES

from .fakes import captured, leaves, random_outputs
from .test_gid import Forbid

TARGETS = [
    {"boxes": torch.tensor([[10.0, 10, 60, 70], [80, 20, 120, 60]]), "labels": torch.tensor([2, 0])},
    {"boxes": torch.zeros(0, 4), "labels": torch.zeros(0, dtype=torch.int64)},
]


@pytest.fixture(scope="module")
def retinanet() -> RetinaNet:
    return RetinaNet(fpn_backbone("mobilenet_v3_small", channels=4, norm="live"), 3, head_depth=1)


def dense(seed: int, *, grad: bool = False, device: str = "cpu") -> DenseOutputs:
    plain = random_outputs(seed=seed, grad=grad, device=device)
    return DenseOutputs(
        plain.features, plain.strides, plain.logits, plain.deltas, plain.coder, plain.anchors, plain.image_sizes
    )


def with_task(student: DenseOutputs, device: str = "cpu") -> DenseOutputs:
    targets = [{key: value.to(device) for key, value in target.items()} for target in TARGETS]
    student.losses, student.task = task_losses(student, targets, high=0.5, low=0.4, low_quality=True)
    return student


def total(gid: GID, detector: RetinaNet, teacher: DenseOutputs, student: DenseOutputs) -> list[Tensor]:
    """All losses and all gradients; student.losses afterwards is what it was before."""
    before = dict(student.losses)
    losses, found = gid(teacher, student, detector)
    assert all(student.losses[name] is not loss for name, loss in before.items())  # compiled or not: joined
    everything = [*losses.values(), *student.losses.values()]
    gradients = torch.autograd.grad(torch.stack(everything).sum(), [*leaves(student), *gid.parameters()])
    student.losses = before
    return [*everything, found.boxes, found.indices, *gradients]


def test_the_way_back_is_the_sum_of_both(retinanet: RetinaNet) -> None:
    teacher, gid = dense(0), GID(4, 4, output_size=3)
    together = total(gid, retinanet, teacher, with_task(dense(1, grad=True)))
    alone, task = dense(1, grad=True), with_task(dense(1, grad=True))
    distilled = total(gid, retinanet, teacher, alone)
    assert all(loss > 0 for loss in distilled[: len(LOSS_NAMES)])
    expected = torch.autograd.grad(sum(task.losses.values()), [task.logits, task.deltas])
    ours = dict(zip(("logits", "deltas"), together[-4:-2], strict=True))
    theirs = dict(zip(("logits", "deltas"), distilled[-4:-2], strict=True))
    for name, of_task in zip(("logits", "deltas"), expected, strict=True):
        torch.testing.assert_close(ours[name], theirs[name] + of_task)
    assert [x.item() for x in together[:4]] == [x.item() for x in distilled[:4]]


def test_the_host_waits_for_nothing(retinanet: RetinaNet) -> None:
    teacher, student, gid = dense(0), with_task(dense(1, grad=True)), GID(4, 4)
    with Forbid():
        total(gid, retinanet, teacher, student)


@pytest.mark.parametrize("beside", ["the task losses", "nothing"])
def test_compiles_without_a_break(retinanet: RetinaNet, beside: str) -> None:
    gid, teacher, student = GID(4, 4, output_size=3), dense(0), dense(1, grad=True)
    if beside == "the task losses":
        with_task(student)
    expected = total(gid, retinanet, teacher, student)
    compiled = torch.compile(gid, fullgraph=True, backend="aot_eager")
    for ours, plain in zip(total(compiled, retinanet, teacher, student), expected, strict=True):
        torch.testing.assert_close(ours, plain)


@pytest.mark.cuda
@pytest.mark.skipif(not torch.cuda.is_available(), reason="needs a GPU")
@pytest.mark.parametrize("beside", ["the task losses", "nothing"])
def test_captured_in_a_cuda_graph_and_replayed(retinanet: RetinaNet, beside: str) -> None:
    """Forward and backward; the replay computes with whatever is in the inputs then."""
    teacher, student = dense(0, device="cuda"), dense(1, grad=True, device="cuda")
    gid, detector = GID(4, 4).cuda(), retinanet.cuda()
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
