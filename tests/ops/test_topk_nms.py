from __future__ import annotations

import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st
from ops_helpers import INF, NAN, each_device, each_dtype, moved, random_boxes, torchvision_ops

from gid_cuda import reference
from gid_cuda.ops import topk_nms

# Few values, so that boxes coincide, touch and tie; and what must never be chosen.
COORDINATES = st.sampled_from([0.0, 1.0, 2.0, 3.0, 4.0, 4.5, 7.0, 10.0, -0.0, -2.0])
STRANGE = st.sampled_from([NAN, INF, -INF, 3e38, -3e38, 1e-40])
SCORES = st.sampled_from([0.0, -0.0, 0.25, 0.5, 0.5000001, 1.0, -1.0, NAN, INF, -INF, 1e-45])


def compare(boxes, scores, k, iou_threshold=0.3, groups=None, min_size=0.0, device="cpu") -> torch.Tensor:
    """Indices and counts equal to the reference's; returns the counts."""
    expected = reference.topk_nms(boxes, scores, k, iou_threshold, groups=groups, min_size=min_size)
    of_groups = None if groups is None else moved(groups, device)
    arguments = (moved(boxes, device), moved(scores, device), k, iou_threshold)
    actual = topk_nms(*arguments, groups=of_groups, min_size=min_size)
    for output, value in zip(actual, expected, strict=True):
        assert output.dtype == torch.int64
        assert torch.equal(output.cpu(), value)
    return expected[1]


@each_device
@each_dtype
@pytest.mark.parametrize("k", [0, 1, 10, 3000])
@pytest.mark.parametrize("grouped", [False, True])
def test_equals_the_reference(device: str, dtype: torch.dtype, k: int, grouped: bool):
    boxes = random_boxes(2, 1001, 300.0, -2.0, 60.0).to(dtype)
    scores = torch.rand(2, 1001).to(dtype)  # many ties in 16 bits
    groups = torch.randint(-3, 3, (2, 1001)) if grouped else None
    compare(boxes, scores, k, 0.4, groups, min_size=10.0, device=device)


@each_device
@settings(deadline=None, max_examples=100)
@given(
    boxes=st.lists(st.tuples(*[COORDINATES | STRANGE] * 4) | st.tuples(*[COORDINATES] * 4), max_size=24),
    data=st.data(),
    k=st.integers(0, 26),
    iou_threshold=st.sampled_from([0.0, 0.3, 1 / 3, 0.5, 1.0]),
    min_size=st.sampled_from([0.0, 1.0, 4.5]),
)
def test_equals_the_reference_on_awkward_boxes(device: str, boxes, data, k: int, iou_threshold: float, min_size: float):
    count = len(boxes)
    scores = data.draw(st.lists(SCORES, min_size=count, max_size=count))
    groups = data.draw(st.none() | st.lists(st.sampled_from([0, 1, -5]), min_size=count, max_size=count))
    compare(
        torch.tensor([boxes], dtype=torch.float32).view(1, count, 4),
        torch.tensor([scores], dtype=torch.float32),
        k,
        iou_threshold,
        None if groups is None else torch.tensor([groups], dtype=torch.int64).view(1, count),
        min_size,
        device,
    )


@each_device
def test_goes_down_all_boxes_when_the_best_ones_overlap(device: str):
    # 20,000 copies of one box above a single other one: only the last of the order survives beside the first.
    boxes = torch.tensor([0.0, 0.0, 10.0, 10.0]).repeat(2, 20001, 1)
    boxes[:, 12345] = torch.tensor([50.0, 50.0, 60.0, 60.0])
    scores = torch.rand(2, 20001) + 1
    scores[:, 12345] = 0.5
    counts = compare(boxes, scores, 5, device=device)
    assert counts.tolist() == [2, 2]


@each_device
@pytest.mark.parametrize("k", [10, 300])
def test_many_boxes(device: str, k: int):
    compare(random_boxes(2, 30000, 1000.0, 0.0, 200.0), torch.randn(2, 30000), k, 0.3, min_size=10.0, device=device)


@each_device
@pytest.mark.parametrize("count", [5000, 20000])  # the second: more than the CUDA kernels list at once
def test_all_scores_equal(device: str, count: int):
    boxes = random_boxes(1, count, 1000.0, 5.0, 100.0)
    compare(boxes, torch.full((1, count), 0.5), 20, device=device)
    zeros = torch.zeros(1, count)
    zeros[:, ::2] = -0.0
    compare(boxes, zeros, 20, device=device)


@each_device
def test_iou_is_rounded_as_the_contract_says(device: str):
    """Pairs of boxes at a threshold that is their very IoU, and at the next float32 below it."""
    boxes = random_boxes(1, 200, 1.0, 0.2, 1.0)[0]
    ious = reference.box_iou(boxes[:1], boxes[1:])
    scores = torch.tensor([[1.0, 0.5]], device=device)
    overlapping = [(iou, box) for iou, box in zip(ious, boxes[1:], strict=True) if iou > 0]
    assert overlapping
    for iou, box in overlapping:
        pair = torch.stack([boxes[0], box])[None].to(device)
        below = torch.nextafter(iou, torch.tensor(0.0))
        assert topk_nms(pair, scores, 2, iou.item())[1].item() == 2
        assert topk_nms(pair, scores, 2, below.item())[1].item() == 1


@each_device
@pytest.mark.parametrize(("images", "count"), [(0, 5), (2, 0), (0, 0)])
def test_empty(device: str, images: int, count: int):
    compare(torch.zeros(images, count, 4), torch.zeros(images, count), 3, device=device)


@each_device
def test_memory_of_any_kind(device: str):
    boxes = random_boxes(2, 100, 100.0, 0.0, 50.0).permute(2, 0, 1).contiguous().permute(1, 2, 0)
    scores = torch.rand(100, 2).t()
    compare(boxes, scores, 100, groups=torch.randint(0, 2, (2, 200))[:, ::2], device=device)
    compare(boxes, scores[:, :1].expand(-1, 100), 100, device=device)


@each_device
@pytest.mark.parametrize("threshold", [0.3, 0.7])
def test_equals_torchvision_nms(device: str, threshold: float):
    ops = torchvision_ops()
    boxes, scores = random_boxes(2, 2000, 300.0, 1.0, 60.0), torch.rand(2, 2000)
    scores = torch.argsort(scores).float()  # no ties
    indices, counts = topk_nms(boxes.to(device), scores.to(device), 2000, threshold)
    for b in range(2):
        expected = ops.nms(boxes[b], scores[b], threshold)
        assert indices[b, : counts[b]].tolist() == expected.tolist()
        assert (indices[b, counts[b] :] == -1).all()


@each_device
def test_equals_torchvision_batched_nms(device: str):
    ops = torchvision_ops()
    boxes, groups = random_boxes(1, 1000, 100.0, 1.0, 60.0), torch.randint(0, 5, (1, 1000))
    scores = torch.randperm(1000).float()[None]
    indices, counts = topk_nms(boxes.to(device), scores.to(device), 1000, 0.5, groups=groups.to(device))
    one_group_after_another = [(groups[0] == g).nonzero()[:, 0] for g in range(5)]
    kept = torch.cat([of[ops.nms(boxes[0, of], scores[0, of], 0.5)] for of in one_group_after_another])
    assert indices[0, : counts[0]].tolist() == kept[scores[0, kept].argsort(descending=True)].tolist()
    # batched_nms itself may move boxes apart instead, which rounds: the same but for a box or two.
    theirs = set(ops.batched_nms(boxes[0], scores[0], groups[0], 0.5).tolist())
    assert len(theirs ^ set(kept.tolist())) <= 2


@each_device
def test_has_no_gradient(device: str):
    boxes = random_boxes(1, 9, 20.0, 1.0, 9.0).to(device).requires_grad_()
    scores = torch.rand(1, 9, device=device, requires_grad=True)
    assert not any(output.requires_grad for output in topk_nms(boxes, scores, 3))


@each_device
def test_opcheck(device: str):
    boxes, scores = random_boxes(2, 9, 20.0, 1.0, 9.0).to(device), torch.rand(2, 9, device=device)
    groups = torch.zeros(2, 9, dtype=torch.int64, device=device)
    torch.library.opcheck(torch.ops.gid.topk_nms.default, (boxes, scores, 3))
    torch.library.opcheck(torch.ops.gid.topk_nms.default, (boxes, scores, 3, 0.5, groups, 2.0))


GOOD = dict(boxes=torch.zeros(2, 5, 4), scores=torch.zeros(2, 5), k=3, groups=torch.zeros(2, 5, dtype=torch.int64))
MISTAKES = [
    (dict(scores=[1.0]), TypeError, r"scores is a list, expected a tensor \(B, R\)"),
    (dict(scores=torch.zeros(5)), ValueError, r"scores has shape \(5,\), expected \(B, R\)"),
    (
        dict(scores=torch.zeros(2, 5, dtype=torch.float64)),
        TypeError,
        "scores is torch.float64, .*gid_cuda.reference.topk_nms computes in float64",
    ),
    (dict(scores=torch.zeros(2, 5, dtype=torch.int64)), TypeError, "scores is torch.int64, expected float32"),
    (dict(boxes=None), TypeError, r"boxes is a NoneType, expected a tensor \(B, R, 4\)"),
    (dict(boxes=torch.zeros(2, 4)), ValueError, r"boxes has shape \(2, 4\), expected \(B, R, 4\)"),
    (dict(boxes=torch.zeros(2, 5, 5)), ValueError, r"boxes has shape \(2, 5, 5\), expected .* = \(2, 5, 4\)"),
    (dict(boxes=torch.zeros(2, 5, 4, dtype=torch.float64)), TypeError, "boxes is torch.float64, expected float32"),
    (dict(boxes=torch.zeros(2, 5, 4, device="meta")), ValueError, "boxes is on meta, expected cpu, where scores is"),
    (dict(k=-1), ValueError, "k is -1, expected at least 0"),
    (dict(k=2.5), TypeError, "k is a float, expected an int"),
    (dict(k=True), TypeError, "k is a bool, expected an int"),
    (dict(iou_threshold=-0.1), ValueError, "iou_threshold is -0.1, expected from 0 to 1"),
    (dict(iou_threshold=1.1), ValueError, "iou_threshold is 1.1, expected from 0 to 1"),
    (dict(iou_threshold=NAN), ValueError, "iou_threshold is nan, expected from 0 to 1"),
    (dict(iou_threshold="0.3"), TypeError, "iou_threshold is a str, expected a number"),
    (dict(min_size=-1.0), ValueError, "min_size is -1.0, expected at least 0"),
    (dict(min_size=None), TypeError, "min_size is a NoneType, expected a number"),
    (dict(groups=[0]), TypeError, r"groups is a list, expected a tensor \(B, R\)"),
    (
        dict(groups=torch.zeros(2, 4, dtype=torch.int64)),
        ValueError,
        r"groups has shape \(2, 4\), expected \(B, R\) = \(2, 5\)",
    ),
    (dict(groups=torch.zeros(2, 5)), TypeError, "groups is torch.float32, expected torch.int64"),
    (
        dict(groups=torch.zeros(2, 5, dtype=torch.int64, device="meta")),
        ValueError,
        "groups is on meta, expected cpu, where scores is",
    ),
]


@pytest.mark.parametrize(("change", "error", "message"), MISTAKES)
def test_mistakes(change: dict, error: type[Exception], message: str):
    topk_nms(**GOOD)
    with pytest.raises(error, match=f"^{message}"):
        topk_nms(**GOOD | change)


@pytest.mark.parametrize(
    ("change", "message"),
    [
        (dict(scores=torch.zeros(2, 5).half()), r"scores must be \(B, R\) float32"),
        (dict(boxes=torch.zeros(2, 4, 4)), r"boxes must be \(2, 5, 4\)"),
        (dict(boxes=torch.zeros(2, 5, 4).half()), "boxes must be float32"),
        (dict(groups=torch.zeros(2, 5)), "groups must be int64"),
        (dict(k=-1), "k must be at least 0"),
        (dict(iou_threshold=2.0), "iou_threshold must be from 0 to 1"),
        (dict(min_size=-2.0), "min_size must be at least 0"),
    ],
)
def test_mistakes_of_those_who_call_torch_ops(change: dict, message: str):
    with pytest.raises(RuntimeError, match=message):
        torch.ops.gid.topk_nms(**GOOD | change)
