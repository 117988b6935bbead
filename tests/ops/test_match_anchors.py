from __future__ import annotations

import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st
from ops_helpers import INF, NAN, each_device, moved, random_boxes, torchvision_ops

from gid_cuda import reference
from gid_cuda.ops import match_anchors

SIZES = [1, 16, 255, 256, 257, 4095, 4096, 4097]  # of anchors: around vectors and pieces of work


def compare(boxes, counts, anchors, device="cpu", **options) -> torch.Tensor:
    """Every index equal: both round the overlap alike, and decide by it."""
    tensors = [None if tensor is None else moved(tensor, device) for tensor in (boxes, counts, anchors)]
    matched = match_anchors(*tensors, **options).cpu()
    assert matched.dtype == torch.int64
    assert torch.equal(matched, reference.match_anchors(boxes, counts, anchors, **options))
    return matched


def inputs(images: int, truths: int, count: int) -> tuple[torch.Tensor, torch.Tensor]:
    """Boxes (B, N, 4), and anchors (R, 4) of which some fit one of them well."""
    boxes = random_boxes(images, truths, 100.0, 5.0, 60.0)
    anchors = random_boxes(1, count, 100.0, 5.0, 60.0)[0]
    if images * truths > 0:
        near = boxes.view(-1, 4)[torch.randint(images * truths, (count,))] + torch.randn(count, 4) * 4
        anchors = torch.where(torch.rand(count, 1) < 0.5, anchors, near)
    return boxes, anchors


@each_device
@pytest.mark.parametrize("low_quality", [True, False])
@pytest.mark.parametrize("count", SIZES)
def test_equals_the_reference(device: str, low_quality: bool, count: int):
    boxes, anchors = inputs(5, 20, count)
    matched = compare(boxes, torch.tensor([20, 7, 1, 0, -1]), anchors, device, low_quality=low_quality)
    if count > 4000:
        assert all((matched[0] == value).any() for value in (-2, -1)) and (matched[0] >= 0).any()
    compare(boxes, None, anchors, device, low_quality=low_quality, high=0.7, low=0.3)


# Few coordinates: equal boxes, equal overlaps, overlaps that are a threshold, empty and inverted boxes.
COORDINATES = st.integers(0, 6).map(float) | st.sampled_from([NAN, INF, -INF, 1e30, -0.0])
BOXES = st.lists(st.integers(0, 6).map(float), min_size=4, max_size=4) | st.lists(COORDINATES, min_size=4, max_size=4)


@each_device
@settings(deadline=None, max_examples=60)
@given(
    boxes=st.lists(BOXES, min_size=1, max_size=5),
    anchors=st.lists(BOXES, min_size=1, max_size=20),
    count=st.integers(-1, 6),
    thresholds=st.lists(st.sampled_from([0.0, 0.2, 0.25, 1 / 3, 0.4, 0.5, 0.75, 1.0]), min_size=2, max_size=2),
    low_quality=st.booleans(),
)
def test_equals_the_reference_on_awkward_boxes(device: str, boxes, anchors, count: int, thresholds, low_quality: bool):
    low, high = sorted(thresholds)
    options = dict(high=high, low=low, low_quality=low_quality)
    compare(torch.tensor([boxes]), torch.tensor([count]), torch.tensor(anchors), device, **options)


@each_device
@pytest.mark.parametrize(("high", "low", "low_quality"), [(0.5, 0.4, True), (0.7, 0.3, True), (0.5, 0.4, False)])
def test_equals_torchvisions_matcher_on_retinanets_anchors(device: str, high: float, low: float, low_quality: bool):
    box_iou = torchvision_ops().box_iou
    from torchvision.models.detection._utils import Matcher
    from torchvision.models.detection.anchor_utils import AnchorGenerator
    from torchvision.models.detection.image_list import ImageList

    sizes = tuple((size, int(size * 2 ** (1 / 3)), int(size * 2 ** (2 / 3))) for size in (32, 64, 128))
    generator = AnchorGenerator(sizes, ((0.5, 1.0, 2.0),) * 3)
    maps = [torch.zeros(1, 1, size, size) for size in (20, 10, 5)]
    anchors = generator(ImageList(torch.zeros(1, 3, 160, 160), [(160, 160)]), maps)[0]
    corner = torch.rand(3, 12, 2) * 120
    boxes = torch.cat([corner, corner + 4 + torch.rand(3, 12, 2) * 100], dim=2)  # each overlaps some anchor
    boxes[2, 5:7] = anchors[[700, 701]]  # exactly
    matched = match_anchors(boxes.to(device), None, anchors.to(device), high=high, low=low, low_quality=low_quality)
    matcher = Matcher(high, low, low_quality)
    for image, theirs in zip(boxes, matched.cpu(), strict=True):
        assert torch.equal(matcher(box_iou(image, anchors)), theirs)
    assert (matched >= 0).any()


@each_device
def test_the_first_of_equal_boxes(device: str):
    boxes = torch.tensor([[[0.0, 0, 9, 9], [20, 20, 30, 30], [20, 20, 30, 30], [20, 20, 30, 30]]])
    anchors = torch.tensor([[20.0, 20, 30, 30], [20, 20, 30, 26], [20, 20, 30, 23]])
    assert compare(boxes, None, anchors, device, low_quality=False).tolist() == [[1, 1, -1]]
    # Between the second and the third alone: 50 of 100 with either.
    between = torch.tensor([[20.0, 20, 30, 30], [20.0, 25, 30, 35]])[None]
    assert compare(between, None, torch.tensor([[20.0, 22.5, 30, 32.5]]), device).tolist() == [[0]]


@each_device
def test_a_threshold_that_is_met_exactly(device: str):
    anchors = torch.tensor([[0.0, 0, 10, 10], [0, 0, 10, 5], [0, 0, 10, 4.9], [0, 0, 10, 4], [0, 0, 10, 3.9]])
    box = torch.tensor([[[0.0, 0, 10, 10]]])
    assert compare(box, None, anchors, device).tolist() == [[0, 0, -2, -2, -1]]


@each_device
def test_a_box_takes_its_best_anchors_for_itself_or_for_their_own_best_box(device: str):
    boxes = torch.tensor([[[0.0, 0, 10, 10], [0, 0, 2, 10], [90, 90, 99, 99]]])
    anchors = torch.tensor([[0.0, 0, 10, 4], [0, 6, 10, 10], [0, 0, 10, 1], [50, 50, 60, 60]])
    # Both of 40 % are the first box's best; they are the second's best too, but their own best is the first. The third
    # box overlaps none, which makes none a match.
    assert compare(boxes, None, anchors, device, low=0.3).tolist() == [[0, 0, -1, -1]]
    assert compare(boxes, None, anchors, device, low=0.3, low_quality=False).tolist() == [[-2, -2, -1, -1]]
    # Without the first box they are for the second.
    assert compare(boxes[:, 1:], None, anchors, device).tolist() == [[0, 0, -1, -1]]


@each_device
def test_slots_that_hold_no_box_are_nothing(device: str):
    anchors = torch.tensor([[0.0, 0, 10, 10], [20, 20, 30, 30]])
    for rest in ([20.0, 20, 30, 30], [NAN] * 4, [-INF, -INF, INF, INF]):
        boxes = torch.tensor([[[0.0, 0, 10, 10], rest]]).expand(4, 2, 4)
        matched = compare(boxes, torch.tensor([1, 0, -1, -(2**62)]), anchors, device)
        assert matched.tolist() == [[0, -1], [-1, -1], [-2, -2], [-2, -2]]
        matched = compare(boxes, torch.tensor([2, 3, 2**62, 2]), anchors, device)
        assert (matched == matched[0]).all()


@each_device
def test_boxes_and_anchors_that_are_not_finite_overlap_nothing(device: str):
    strange = torch.tensor([[NAN, 0, 10, 10], [0, 0, INF, 10], [-INF, -INF, INF, INF], [NAN, NAN, NAN, NAN]])
    plain = torch.tensor([[0.0, 0, 10, 10], [5, 5, 5, 5]])
    assert compare(strange[None], None, plain, device).tolist() == [[-1, -1]]
    assert compare(plain[None], None, strange, device).tolist() == [[-1] * 4]
    both = torch.cat([strange, plain])
    assert compare(both[None], None, both, device).tolist() == [[-1] * 4 + [4, -1]]


@each_device
def test_equal_best_overlaps_in_different_pieces_of_work(device: str):
    anchors = torch.tensor([[0.0, 0, 10, 1]]).repeat(9000, 1) + torch.arange(9000.0)[:, None] * 100
    for place in (0, 255, 256, 4095, 4096, 8999):
        anchors[place] = torch.tensor([0.0, 0, 10, 3])
    matched = compare(torch.tensor([[[0.0, 0, 10, 10]]]), None, anchors, device)
    assert (matched[0] == 0).nonzero().flatten().tolist() == [0, 255, 256, 4095, 4096, 8999]


@each_device
@pytest.mark.parametrize(("images", "truths", "count"), [(0, 3, 5), (2, 0, 5), (2, 3, 0), (0, 0, 0)])
def test_empty(device: str, images: int, truths: int, count: int):
    boxes, anchors = inputs(images, truths, count)
    assert compare(boxes, None, anchors, device).shape == (images, count)
    compare(boxes, torch.tensor([-1, 2])[:images], anchors, device)


@each_device
def test_memory_of_any_kind(device: str):
    boxes, anchors = inputs(3, 7, 300)
    compare(boxes.transpose(0, 1).contiguous().transpose(0, 1), torch.tensor([7, 9, 2, 9, 0])[::2], anchors, device)
    compare(boxes.mT.contiguous().mT, None, anchors.mT.contiguous().mT, device)
    compare(boxes[:1, :1].expand(3, 7, 4), torch.tensor([5]).expand(3), anchors[:1].expand(300, 4), device)
    shifted = [torch.cat([torch.zeros(1), a.flatten()])[1:].view(a.shape) for a in (boxes, anchors)]
    compare(shifted[0], torch.tensor([0, 3, -1, 7])[1:], shifted[1], device)


@pytest.mark.parametrize("threads", [1, 2])
def test_any_number_of_threads(threads: int):
    boxes, anchors = inputs(2, 9, 9001)
    before = torch.get_num_threads()
    torch.set_num_threads(threads)
    try:
        compare(boxes, None, anchors)
    finally:
        torch.set_num_threads(before)


@each_device
def test_has_no_gradient(device: str):
    boxes, anchors = (a.to(device).requires_grad_() for a in inputs(2, 3, 9))
    assert not match_anchors(boxes, None, anchors).requires_grad


@each_device
def test_opcheck(device: str):
    boxes, anchors = (a.to(device) for a in inputs(2, 3, 9))
    counts = torch.tensor([3, -1], device=device)
    torch.library.opcheck(torch.ops.gid.match_anchors.default, (boxes, counts, anchors, 0.7, 0.3, False))
    torch.library.opcheck(torch.ops.gid.match_anchors.default, (boxes, None, anchors))


GOOD = dict(boxes=torch.zeros(2, 3, 4), counts=torch.zeros(2, dtype=torch.int64), anchors=torch.zeros(5, 4))
MISTAKES = [
    (dict(boxes=[[1]]), TypeError, r"boxes is a list, expected a tensor \(B, N, 4\)"),
    (dict(boxes=torch.zeros(3, 4)), ValueError, r"boxes has shape \(3, 4\), expected \(B, N, 4\)"),
    (
        dict(boxes=torch.zeros(2, 3, 5)),
        ValueError,
        r"boxes has shape \(2, 3, 5\), expected \(B, N, 4\) = \(2, 3, 4\)",
    ),
    (dict(boxes=torch.zeros(2, 3, 4).half()), TypeError, "boxes is torch.float16, expected torch.float32"),
    (dict(counts=[3, 3]), TypeError, r"counts is a list, expected a tensor \(B,\)"),
    (
        dict(counts=torch.zeros(3, dtype=torch.int64)),
        ValueError,
        r"counts has shape \(3,\), expected \(B,\) = \(2,\)",
    ),
    (dict(counts=torch.zeros(2)), TypeError, "counts is torch.float32, expected torch.int64"),
    (
        dict(counts=torch.zeros(2, dtype=torch.int64, device="meta")),
        ValueError,
        "counts is on meta, expected cpu, where boxes is",
    ),
    (dict(anchors=None), TypeError, r"anchors is a NoneType, expected a tensor \(R, 4\)"),
    (
        dict(anchors=torch.zeros(2, 5, 4)),
        ValueError,
        r"anchors has shape \(2, 5, 4\), expected \(R, 4\)",
    ),
    (dict(anchors=torch.zeros(5, 3)), ValueError, r"anchors has shape \(5, 3\), expected \(R, 4\) = \(5, 4\)"),
    (dict(anchors=torch.zeros(5, 4).double()), TypeError, "anchors is torch.float64, expected torch.float32"),
    (dict(anchors=torch.zeros(5, 4, device="meta")), ValueError, "anchors is on meta, expected cpu, where boxes is"),
    (dict(high=1.5), ValueError, "high is 1.5, expected from 0 to 1"),
    (dict(high=NAN), ValueError, "high is nan, expected from 0 to 1"),
    (dict(high="0.5"), TypeError, "high is a str, expected a number"),
    (dict(low=0.6), ValueError, "low is 0.6, expected from 0 to 0.5"),
    (dict(low=-0.1), ValueError, "low is -0.1, expected from 0 to 0.5"),
    (dict(low=None), TypeError, "low is a NoneType, expected a number"),
]


@pytest.mark.parametrize(("change", "error", "message"), MISTAKES)
def test_mistakes(change: dict, error: type[Exception], message: str):
    match_anchors(**GOOD)
    with pytest.raises(error, match=f"^{message}"):
        match_anchors(**GOOD | change)


@pytest.mark.parametrize(
    ("change", "message"),
    [
        (dict(boxes=torch.zeros(2, 3, 5)), r"boxes must be \(B, N, 4\) float32"),
        (dict(boxes=torch.zeros(2, 3, 4).half()), r"boxes must be \(B, N, 4\) float32"),
        (dict(counts=torch.zeros(3, dtype=torch.int64)), "counts has another shape"),
        (dict(counts=torch.zeros(2)), "counts must be int64"),
        (dict(anchors=torch.zeros(5, 5)), r"anchors must be \(R, 4\) float32"),
        (dict(anchors=torch.zeros(5)), r"anchors must be \(R, 4\) float32"),
        (dict(anchors=torch.zeros(5, 4).half()), r"anchors must be \(R, 4\) float32"),
        (dict(low=0.6), "low and high must be from 0 to 1, low not above high"),
        (dict(high=1.1), "low and high must be from 0 to 1"),
        (dict(high=NAN), "low and high must be from 0 to 1"),
    ],
)
def test_mistakes_of_those_who_call_torch_ops(change: dict, message: str):
    with pytest.raises(RuntimeError, match=message):
        torch.ops.gid.match_anchors(**GOOD | change)
