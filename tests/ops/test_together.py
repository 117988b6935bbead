"""What holds for all operators: compiled in one graph, under autocast, captured, without the CUDA library."""

from __future__ import annotations

from collections.abc import Callable
from typing import NamedTuple

import pytest
import torch
from ops_helpers import each_device, random_boxes

from gid_cuda import _library, ops, reference
from gid_cuda.ops import (
    _fallback,
    box_losses,
    class_losses,
    decoded_gi_score,
    gi_score,
    match_anchors,
    multilevel_roi_align,
    pairwise_distance,
    topk_nms,
)

OPERATORS = [
    "gi_score",
    "decoded_gi_score",
    "topk_nms",
    "multilevel_roi_align",
    "multilevel_roi_align_backward",
    "pairwise_distance",
    "pairwise_distance_backward",
    "match_anchors",
    "class_losses",
    "class_losses_backward",
    "box_losses",
    "box_losses_backward",
]


def feature_inputs(device: str, count: int = 50) -> tuple[torch.Tensor, ...]:
    """Logits of teacher and student, their boxes, two feature maps."""
    logits = [torch.randn(2, count, 5, device=device) for _ in range(2)]
    boxes = [random_boxes(2, count, 64.0, 5.0, 60.0).to(device) for _ in range(2)]
    features = [torch.randn(2, 3, size, size, device=device, requires_grad=True) for size in (8, 4)]
    sizes = torch.tensor([[64, 60], [50, 64]], device=device)
    return *logits, *boxes, sizes, *features


def feature_chain(teacher, student, teacher_boxes, student_boxes, sizes, fine, coarse, module=ops) -> torch.Tensor:
    """Boxes that are chosen, and the distances of their features, as distillation strings them together."""
    scores, boxes = module.gi_score(teacher, student, teacher_boxes, student_boxes, sizes)
    indices, counts = module.topk_nms(boxes, scores, 6, 0.5, min_size=4.0)
    chosen = boxes.gather(1, indices.clamp(min=0)[..., None].expand(-1, -1, 4))
    pooled = module.multilevel_roi_align([fine, coarse], chosen, counts, strides=[8, 16], canonical_size=56.0)
    return module.pairwise_distance(pooled.flatten(2), counts)


def head_inputs(device: str, count: int = 50) -> tuple[torch.Tensor, ...]:
    """Logits and deltas of teacher and student, anchors, ground truth."""
    logits = [torch.randn(2, count, 5, device=device) for _ in range(2)]
    deltas = [torch.randn(2, count, 4, device=device) * 0.3 for _ in range(2)]
    anchors = random_boxes(1, count, 64.0, 5.0, 60.0)[0].to(device)
    truth, labels = random_boxes(2, 3, 64.0, 5.0, 60.0).to(device), torch.randint(0, 5, (2, 3), device=device)
    counts = torch.tensor([3, 1], device=device)
    return logits[0], deltas[0], anchors, truth, labels, counts, *[a.requires_grad_() for a in (logits[1], deltas[1])]


def head_chain(
    teacher_logits, teacher_deltas, anchors, truth, labels, counts, logits, deltas, module=ops
) -> torch.Tensor:
    """The losses of both heads, the task's and the distillation's, for boxes that are chosen; (4, B)."""
    matched = module.match_anchors(truth, counts, anchors)
    focal, _ = module.class_losses(logits.detach(), matched=matched, labels=labels)
    scores, boxes = module.decoded_gi_score(teacher_logits, logits, teacher_deltas, deltas, anchors)
    indices, found = module.topk_nms(boxes, scores, 6, 0.5, min_size=4.0)
    chosen = boxes.gather(1, indices.clamp(min=0)[..., None].expand(-1, -1, 4))
    mask = module.match_anchors(chosen.detach(), found, anchors, high=0.7, low=0.7) >= 0
    taught, task = dict(mask=mask), dict(matched=matched)
    classes = module.class_losses(logits, labels=labels, teacher_logits=teacher_logits, focal=focal, **taught, **task)
    regression = module.box_losses(
        deltas, boxes=truth, anchors=anchors, teacher_deltas=teacher_deltas, **taught, **task
    )
    return torch.stack([*classes, *regression])


class Chain(NamedTuple):
    run: Callable[..., torch.Tensor]
    inputs: Callable[..., tuple[torch.Tensor, ...]]


each_chain = pytest.mark.parametrize(
    "chain", [Chain(feature_chain, feature_inputs), Chain(head_chain, head_inputs)], ids=["features", "heads"]
)


def gradients(function, *arguments) -> tuple[torch.Tensor, ...]:
    output = function(*arguments)
    return output, *torch.autograd.grad(output.square().sum(), [a for a in arguments if a.requires_grad])


def assert_same(actual, expected, rtol: float = 1e-4, atol: float = 1e-3) -> None:
    for a, e in zip(actual, expected, strict=True):
        torch.testing.assert_close(a.cpu(), e.cpu(), rtol=rtol, atol=atol)


@each_device
@each_chain
def test_the_chain_equals_the_references(device: str, chain: Chain):
    arguments = chain.inputs(device)
    expected = gradients(lambda *a: chain.run(*a, module=reference), *arguments)
    assert (expected[0] > 0).any()
    assert_same(gradients(chain.run, *arguments), expected)


@each_device
@each_chain
def test_fullgraph(device: str, chain: Chain):
    arguments = chain.inputs(device)
    compiled = torch.compile(chain.run, fullgraph=True, backend="aot_eager")
    assert_same(gradients(compiled, *arguments), gradients(chain.run, *arguments))


@each_device
@each_chain
def test_fullgraph_with_dynamic_shapes(device: str, chain: Chain):
    compiled = torch.compile(chain.run, fullgraph=True, backend="aot_eager", dynamic=True)
    for count in (50, 31):
        arguments = chain.inputs(device, count)
        assert_same(gradients(compiled, *arguments), gradients(chain.run, *arguments))


@pytest.mark.slow
@each_device
@each_chain
def test_fullgraph_with_inductor(device: str, chain: Chain):
    arguments = chain.inputs(device)
    compiled = torch.compile(chain.run, fullgraph=True)
    assert_same(gradients(compiled, *arguments), gradients(chain.run, *arguments))


@each_device
def test_fullgraph_of_one_loss_of_two(device: str):
    """The gradient of the other is then not given at all, also where a compiler made the backward."""
    teacher_logits, _, anchors, truth, labels, counts, logits, _ = head_inputs(device)

    def task(logits: torch.Tensor) -> torch.Tensor:
        matched = match_anchors(truth, counts, anchors)
        return class_losses(logits, matched=matched, labels=labels, teacher_logits=teacher_logits, mask=matched >= 0)[0]

    compiled = torch.compile(task, fullgraph=True, backend="aot_eager")
    assert_same(gradients(compiled, logits), gradients(task, logits))


@each_device
def test_a_mistake_is_reported_from_compiled_code_too(device: str):
    compiled = torch.compile(lambda x: pairwise_distance(x), backend="aot_eager")
    with pytest.raises(Exception, match=r"x has shape \(3, 4\), expected \(B, K, D\)"):
        compiled(torch.zeros(3, 4, device=device))


@each_device
def test_autocast_leaves_types_alone(device: str):
    teacher, student, teacher_boxes, student_boxes, _, fine, coarse = feature_inputs(device)
    teacher_logits, teacher_deltas, anchors, truth, labels, counts, logits, deltas = head_inputs(device)
    with torch.autocast(device, dtype=torch.bfloat16):
        scores, boxes = gi_score(teacher.bfloat16(), student.bfloat16(), teacher_boxes, student_boxes)
        indices, _ = topk_nms(boxes, scores, 4)
        pooled = multilevel_roi_align([fine.bfloat16(), coarse.bfloat16()], boxes[:, :4], strides=[8, 16])
        distances = pairwise_distance(pooled.flatten(2))
        assert multilevel_roi_align([fine, coarse], boxes[:, :4], strides=[8, 16]).dtype == torch.float32
        both = decoded_gi_score(teacher_logits.half(), logits.half(), teacher_deltas, deltas.bfloat16(), anchors)
        matched = match_anchors(truth, counts, anchors)
        taught, task = dict(mask=matched >= 0), dict(matched=matched)
        both += class_losses(logits.bfloat16(), labels=labels, teacher_logits=teacher_logits, **taught, **task)
        both += box_losses(deltas, boxes=truth, anchors=anchors, teacher_deltas=teacher_deltas.half(), **taught, **task)
        sum(result.sum() for result in both).backward()
    assert logits.grad.dtype == deltas.grad.dtype == torch.float32
    assert [result.dtype for result in both] == [torch.float32] * 6
    assert scores.dtype == boxes.dtype == distances.dtype == torch.float32
    assert indices.dtype == torch.int64
    assert pooled.dtype == torch.bfloat16


@pytest.mark.parametrize("name", OPERATORS)
def test_every_operator_has_an_implementation_for_each_device(name: str):
    """Also where no CUDA kernels were built or loaded: then it is plain PyTorch."""
    for key in ("CPU", "CUDA"):
        assert torch._C._dispatch_has_kernel_for_dispatch_key(f"gid::{name}", key)


def test_plain_pytorch_in_place_of_kernels_gives_the_same():
    """What runs for CUDA tensors without the CUDA library, called with what the dispatcher would hand over."""
    scores = torch.rand(2, 30)
    boxes = random_boxes(2, 30, 64.0, 5.0, 60.0)
    counts = torch.tensor([20, 30])
    features = [torch.randn(2, 3, size, size) for size in (8, 4)]
    grad, x = torch.randn(2, 30, 3, 10, 10), torch.randn(2, 7, 5).mT  # what is not contiguous gives what is
    distances, slots = pairwise_distance(x), torch.tensor([5, 3])
    teacher, student, deltas, taught = (torch.randn(2, 30, 4) for _ in range(4))
    student, deltas = student.mT.contiguous().mT, deltas.mT.contiguous().mT
    matched, labels, mask = torch.randint(-2, 5, (2, 30)), torch.randint(0, 4, (2, 5)), torch.rand(2, 30) < 0.5
    classes = (student, matched, labels, teacher, mask)
    regression = (deltas, matched, boxes[:, :5], boxes[0], taught, mask)
    weights, of_focal, of_response = [2.0, 2.0, 1.0, 1.0], torch.rand(2), torch.rand(2)
    rows = dict(
        gi_score=(teacher, student, boxes, boxes + 1),
        decoded_gi_score=(teacher, student, deltas, taught, boxes[0], None, weights),
        topk_nms=(boxes, scores, 7),
        multilevel_roi_align=(features, boxes, counts, [8, 16]),
        multilevel_roi_align_backward=(grad, features, boxes, counts, [8, 16], 10, 2, 40.0, 4, True),
        pairwise_distance=(x, slots),
        pairwise_distance_backward=(torch.randn(2, 5, 5), x, distances, None),
        match_anchors=(boxes, counts, boxes[0].mT.contiguous().mT),
        class_losses=(*classes, None, True),
        class_losses_backward=(of_focal, of_response, *classes, False),
        box_losses=regression,
        box_losses_backward=(of_focal, of_response, *regression, 0.1, weights),
    )
    assert list(rows) == OPERATORS
    for name, arguments in rows.items():
        actual = _fallback.IMPLEMENTATIONS[name](*arguments)
        expected = getattr(torch.ops.gid, name)(*arguments)
        as_lists = [list(r) if isinstance(r, (tuple, list)) else [r] for r in (actual, expected)]
        assert_same(*as_lists)
        assert [a.stride() for a in as_lists[0]] == [e.stride() for e in as_lists[1]]


def test_plain_pytorch_in_place_of_kernels_is_announced_once(monkeypatch: pytest.MonkeyPatch):
    monkeypatch.setattr(_fallback, "_warned", False)
    call = _fallback._warning_once(lambda x: x + 1, "the reason; `the command`")
    with pytest.warns(UserWarning) as caught:
        assert [call(1), call(2)] == [2, 3]
    assert [str(warning.message) for warning in caught] == [
        "gid_cuda's operators run as plain PyTorch on the GPU, not as CUDA kernels: the reason; `the command`"
    ]


@pytest.mark.cuda
@pytest.mark.skipif(not torch.cuda.is_available(), reason="needs a GPU")
def test_the_cuda_kernels_are_what_runs():
    assert _library.cuda_missing_reason() is None


@pytest.mark.cuda
@pytest.mark.skipif(not torch.cuda.is_available(), reason="needs a GPU")
@each_chain
def test_captured_in_a_cuda_graph_without_synchronisation(chain: Chain):
    arguments = chain.inputs("cuda")
    side = torch.cuda.Stream()
    side.wait_stream(torch.cuda.current_stream())
    with torch.cuda.stream(side):
        gradients(chain.run, *arguments)
    torch.cuda.current_stream().wait_stream(side)
    torch.cuda.set_sync_debug_mode("error")
    try:
        graph = torch.cuda.CUDAGraph()
        with torch.cuda.graph(graph):
            captured = gradients(chain.run, *arguments)
    finally:
        torch.cuda.set_sync_debug_mode("default")
    with torch.no_grad():
        for old, new in zip(arguments, chain.inputs("cuda"), strict=True):
            old.copy_(new)
    graph.replay()
    assert_same(captured, gradients(chain.run, *arguments))
