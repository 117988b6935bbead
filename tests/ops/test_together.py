"""What holds for all operators: compiled in one graph, under autocast, captured, without the CUDA library."""

from __future__ import annotations

import pytest
import torch
from ops_helpers import each_device, random_boxes

from gid_cuda import _library, ops, reference
from gid_cuda.ops import _fallback, gi_score, multilevel_roi_align, pairwise_distance, topk_nms

OPERATORS = [
    "gi_score",
    "topk_nms",
    "multilevel_roi_align",
    "multilevel_roi_align_backward",
    "pairwise_distance",
    "pairwise_distance_backward",
]


def inputs(device: str, count: int = 50) -> tuple[torch.Tensor, ...]:
    """Logits of teacher and student, their boxes, two feature maps."""
    logits = [torch.randn(2, count, 5, device=device) for _ in range(2)]
    boxes = [random_boxes(2, count, 64.0, 5.0, 60.0).to(device) for _ in range(2)]
    features = [torch.randn(2, 3, size, size, device=device, requires_grad=True) for size in (8, 4)]
    return *logits, *boxes, *features


def chain(teacher, student, teacher_boxes, student_boxes, fine, coarse, module=ops) -> torch.Tensor:
    """All four, as distillation strings them together."""
    sizes = torch.tensor([[64, 60], [50, 64]], device=teacher.device)
    scores, boxes = module.gi_score(teacher, student, teacher_boxes, student_boxes, sizes)
    indices, counts = module.topk_nms(boxes, scores, 6, 0.5, min_size=4.0)
    chosen = boxes.gather(1, indices.clamp(min=0)[..., None].expand(-1, -1, 4))
    pooled = module.multilevel_roi_align([fine, coarse], chosen, counts, strides=[8, 16], canonical_size=56.0)
    return module.pairwise_distance(pooled.flatten(2), counts)


def gradients(function, *arguments) -> tuple[torch.Tensor, ...]:
    distances = function(*arguments)
    return distances, *torch.autograd.grad(distances.square().sum(), arguments[-2:])


def assert_same(actual, expected, rtol: float = 1e-4, atol: float = 1e-3) -> None:
    for a, e in zip(actual, expected, strict=True):
        torch.testing.assert_close(a.cpu(), e.cpu(), rtol=rtol, atol=atol)


@each_device
def test_the_chain_equals_the_references(device: str):
    arguments = inputs(device)
    expected = gradients(lambda *a: chain(*a, module=reference), *arguments)
    assert (expected[0] > 0).any()
    assert_same(gradients(chain, *arguments), expected)


@each_device
def test_fullgraph(device: str):
    arguments = inputs(device)
    compiled = torch.compile(chain, fullgraph=True, backend="aot_eager")
    assert_same(gradients(compiled, *arguments), gradients(chain, *arguments))


@each_device
def test_fullgraph_with_dynamic_shapes(device: str):
    compiled = torch.compile(chain, fullgraph=True, backend="aot_eager", dynamic=True)
    for count in (50, 31):
        arguments = inputs(device, count)
        assert_same(gradients(compiled, *arguments), gradients(chain, *arguments))


@pytest.mark.slow
@each_device
def test_fullgraph_with_inductor(device: str):
    arguments = inputs(device)
    compiled = torch.compile(chain, fullgraph=True)
    assert_same(gradients(compiled, *arguments), gradients(chain, *arguments))


@each_device
def test_a_mistake_is_reported_from_compiled_code_too(device: str):
    compiled = torch.compile(lambda x: pairwise_distance(x), backend="aot_eager")
    with pytest.raises(Exception, match=r"x has shape \(3, 4\), expected \(B, K, D\)"):
        compiled(torch.zeros(3, 4, device=device))


@each_device
def test_autocast_leaves_types_alone(device: str):
    teacher, student, teacher_boxes, student_boxes, fine, coarse = inputs(device)
    with torch.autocast(device, dtype=torch.bfloat16):
        scores, boxes = gi_score(teacher.bfloat16(), student.bfloat16(), teacher_boxes, student_boxes)
        indices, _ = topk_nms(boxes, scores, 4)
        pooled = multilevel_roi_align([fine.bfloat16(), coarse.bfloat16()], boxes[:, :4], strides=[8, 16])
        distances = pairwise_distance(pooled.flatten(2))
        assert multilevel_roi_align([fine, coarse], boxes[:, :4], strides=[8, 16]).dtype == torch.float32
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
    grad, x = torch.randn(2, 30, 3, 10, 10), torch.randn(2, 5, 7)
    distances, slots = pairwise_distance(x), torch.tensor([5, 3])
    rows = dict(
        gi_score=(torch.randn(2, 30, 4), torch.randn(2, 30, 4), boxes, boxes + 1),
        topk_nms=(boxes, scores, 7),
        multilevel_roi_align=(features, boxes, counts, [8, 16]),
        multilevel_roi_align_backward=(grad, features, boxes, counts, [8, 16], 10, 2, 40.0, 4, True),
        pairwise_distance=(x, slots),
        pairwise_distance_backward=(torch.randn(2, 5, 5), x, distances, None),
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
def test_captured_in_a_cuda_graph_without_synchronisation():
    arguments = inputs("cuda")
    sizes = torch.tensor([[64, 60], [50, 64]], device="cuda")

    def forward_and_backward():
        teacher, student, teacher_boxes, student_boxes, fine, coarse = arguments
        scores, boxes = gi_score(teacher, student, teacher_boxes, student_boxes, sizes)
        indices, counts = topk_nms(boxes, scores, 6, 0.5, min_size=4.0)
        chosen = boxes.gather(1, indices.clamp(min=0)[..., None].expand(-1, -1, 4))
        pooled = multilevel_roi_align([fine, coarse], chosen, counts, strides=[8, 16], canonical_size=56.0)
        distances = pairwise_distance(pooled.flatten(2), counts)
        return distances, *torch.autograd.grad(distances.square().sum(), (fine, coarse))

    side = torch.cuda.Stream()
    side.wait_stream(torch.cuda.current_stream())
    with torch.cuda.stream(side):
        forward_and_backward()
    torch.cuda.current_stream().wait_stream(side)
    torch.cuda.set_sync_debug_mode("error")
    try:
        graph = torch.cuda.CUDAGraph()
        with torch.cuda.graph(graph):
            captured = forward_and_backward()
    finally:
        torch.cuda.set_sync_debug_mode("default")
    with torch.no_grad():
        for old, new in zip(arguments, inputs("cuda"), strict=True):
            old.copy_(new)
    graph.replay()
    assert_same(captured, forward_and_backward())
