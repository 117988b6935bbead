from __future__ import annotations

import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st
from ops_helpers import DTYPES, INF, NAN, each_device, each_dtype, moved, random_boxes

from gid_cuda import reference
from gid_cuda.detectors.outputs import BoxCoder
from gid_cuda.ops import decoded_gi_score, gi_score

ONES, RCNN = (1.0, 1.0, 1.0, 1.0), (10.0, 10.0, 5.0, 5.0)
SIZES = torch.tensor([[60, 90], [90, 40]])


def compare(logits, deltas, anchors, image_sizes=None, weights=ONES, distances=False, device="cpu") -> torch.Tensor:
    """The scores of gi_score; its boxes too, but for the last place of an exponential."""
    heads = [moved(a, device) for a in (*logits, *deltas, anchors)]
    sizes = None if image_sizes is None else moved(image_sizes, device)
    scores, boxes = decoded_gi_score(*heads, sizes, weights=weights, distances=distances)
    assert scores.dtype == boxes.dtype == torch.float32
    coder = BoxCoder("distances" if distances else "deltas", weights)
    decoded = [coder.decode(d, heads[4]) for d in heads[2:4]]
    expected_scores, expected_boxes = gi_score(*heads[:2], *decoded, sizes)
    torch.testing.assert_close(scores, expected_scores, rtol=0, atol=0, equal_nan=True)
    finite = torch.cat(decoded).nan_to_num(0, 0, 0).abs()
    extent = float(finite.max()) if finite.numel() else 0.0
    near = dict(rtol=0, atol=0) if distances and device == "cpu" else dict(rtol=1e-6, atol=1e-6 * extent)
    torch.testing.assert_close(boxes, expected_boxes, **near, equal_nan=True)
    for actual, plain in zip(
        (scores, boxes),
        reference.decoded_gi_score(*logits, *deltas, anchors, image_sizes, weights, distances),
        strict=True,
    ):
        torch.testing.assert_close(actual.cpu(), plain, rtol=1e-6, atol=max(1e-6 * extent, 2e-6), equal_nan=True)
    return boxes.cpu()


def inputs(images: int, count: int, classes: int, dtype: torch.dtype = torch.float32):
    """Logits and deltas of both models, and anchors."""
    teacher = torch.randn(images, count, classes) * 3 - 2
    logits = [teacher.to(dtype), (teacher + torch.randn_like(teacher)).to(dtype)]
    deltas = [(torch.randn(images, count, 4) * 0.7).to(dtype) for _ in range(2)]
    return logits, deltas, random_boxes(1, count, 100.0, 4.0, 50.0)[0]


@each_device
@each_dtype
@pytest.mark.parametrize("weights", [ONES, RCNN, (1, 3, 0.5, 7)])
@pytest.mark.parametrize("distances", [False, True])
def test_equals_decoding_and_gi_score(device: str, dtype: torch.dtype, weights: tuple, distances: bool):
    logits, deltas, anchors = inputs(2, 301, 7, dtype)
    scaled = [d * torch.tensor(weights).to(dtype) for d in deltas]
    compare(logits, scaled, anchors, SIZES, weights, distances, device=device)
    compare(logits, scaled, anchors, None, weights, distances, device=device)


@each_device
@pytest.mark.parametrize("classes", [1, 3, 16, 80, 91])
@pytest.mark.parametrize("count", [255, 256, 257])
def test_around_pieces_of_work(device: str, classes: int, count: int):
    compare(*inputs(2, count, classes), SIZES, device=device)


@each_device
@pytest.mark.parametrize("dtype", DTYPES)
@pytest.mark.parametrize("teacher", DTYPES)
@pytest.mark.parametrize("student", DTYPES)
def test_deltas_of_other_types(device: str, dtype: torch.dtype, teacher: torch.dtype, student: torch.dtype):
    logits, deltas, anchors = inputs(1, 40, 3, dtype)
    compare(logits, [deltas[0].to(teacher), deltas[1].to(student)], anchors, device=device)


DELTAS = st.floats(-8.0, 8.0, width=16) | st.sampled_from([NAN, INF, -INF, -0.0, 1e-30, 4.135, 4.136, 300.0, -300.0])
CORNERS = st.integers(-20, 60).map(float) | st.sampled_from([NAN, INF, -0.0, 1e6])


@each_device
@each_dtype
@settings(deadline=None, max_examples=40)
@given(
    deltas=st.lists(DELTAS, min_size=24, max_size=24),
    corners=st.lists(CORNERS, min_size=12, max_size=12),
    distances=st.booleans(),
    sizes=st.sampled_from([None, [[30, 40]], [[0, 0]]]),
)
def test_awkward_deltas_and_anchors(device: str, dtype: torch.dtype, deltas, corners, distances: bool, sizes):
    logits = torch.tensor([[[2.0], [-1.0], [0.0]]]), torch.tensor([[[1.0], [0.0], [0.0]]])
    both = torch.tensor(deltas).to(dtype).view(2, 1, 3, 4)
    sizes = None if sizes is None else torch.tensor(sizes)
    compare(logits, both, torch.tensor(corners).view(3, 4), sizes, distances=distances, device=device)


@each_device
@each_dtype
@pytest.mark.parametrize("distances", [False, True])
def test_only_the_chosen_models_deltas_are_read(device: str, dtype: torch.dtype, distances: bool):
    (teacher, student), deltas, anchors = inputs(2, 300, 5, dtype)
    teacher[0, 7, 2] = student[0, 8, 4] = NAN  # then the student's
    surer = teacher.float().amax(dim=2) > student.float().amax(dim=2)
    assert surer.any() and not surer.all() and not surer[0, 7:9].any()
    expected = compare((teacher, student), deltas, anchors, SIZES, distances=distances, device=device)
    for value in (NAN, INF):
        poisoned = [
            deltas[0].masked_fill(~surer[..., None], value),
            deltas[1].masked_fill(surer[..., None], value),
        ]
        boxes = compare((teacher, student), poisoned, anchors, SIZES, distances=distances, device=device)
        assert boxes.isfinite().all()
        assert torch.equal(boxes, expected)


@each_device
@pytest.mark.parametrize("distances", [False, True])
def test_deltas_that_are_not_finite(device: str, distances: bool):
    logits = [torch.ones(1, 5, 1), torch.zeros(1, 5, 1)]
    deltas = torch.zeros(1, 5, 4)
    deltas[0, 0, 0], deltas[0, 1, 2], deltas[0, 2, 3] = NAN, NAN, INF
    deltas[0, 3] = torch.tensor([-INF, INF, -INF, 0])
    anchors = torch.tensor([[0.0, 0, 10, 20]]).repeat(5, 1)
    boxes = compare(logits, [deltas, deltas], anchors, torch.tensor([[30, 40]]), distances=distances, device=device)
    touched = [[0], [2]] if distances else [[0, 2], [0, 2]]
    assert [boxes[0, row].isnan().nonzero().flatten().tolist() for row in (0, 1)] == touched
    assert boxes[0, 2].tolist()[1::2] == ([10.0, 30.0] if distances else [0.0, 30.0])


@each_device
def test_a_logarithm_of_a_side_is_bounded(device: str):
    deltas = torch.tensor([[[0.0, 0, 900.0, 4.0]]])
    anchors = torch.tensor([[0.0, 0, 16, 16]])
    boxes = compare([torch.zeros(1, 1, 1)] * 2, [deltas, deltas], anchors, device=device)
    torch.testing.assert_close(boxes[0, 0, 2] - boxes[0, 0, 0], torch.tensor(1000.0))
    torch.testing.assert_close(boxes[0, 0, 3] - boxes[0, 0, 1], 16 * torch.tensor(4.0).exp())


@each_device
@pytest.mark.parametrize(("images", "count"), [(0, 5), (2, 0), (0, 0)])
def test_empty(device: str, images: int, count: int):
    compare(*inputs(images, count, 3), SIZES[:images], device=device)


@each_device
@each_dtype
def test_memory_of_any_kind(device: str, dtype: torch.dtype):
    (teacher, student), deltas, anchors = inputs(2, 50, 20, dtype)
    logits = [teacher.mT.contiguous().mT, student.repeat(1, 2, 1)[:, ::2]]
    lying = [torch.cat([deltas[0]] * 2, 2)[:, :, 2:6], deltas[1][:, :1].expand(-1, 50, -1)]
    compare(logits, lying, anchors.T.contiguous().T, SIZES.T.contiguous().T, device=device)
    shifted = [[torch.cat([a.flatten()[:1], a.flatten()])[1:].view(a.shape) for a in pair] for pair in (logits, deltas)]
    compare(*shifted, torch.cat([torch.zeros(1), anchors.flatten()])[1:].view(50, 4), device=device)


@each_device
def test_has_no_gradient(device: str):
    logits, deltas, anchors = inputs(1, 4, 3)
    arguments = [a.to(device).requires_grad_() for a in (*logits, *deltas, anchors)]
    assert not any(output.requires_grad for output in decoded_gi_score(*arguments))


@each_device
def test_opcheck(device: str):
    logits, deltas, anchors = inputs(2, 7, 3)
    arguments = [a.to(device) for a in (*logits, deltas[0].half(), deltas[1], anchors, SIZES)]
    operator = torch.ops.gid.decoded_gi_score.default
    torch.library.opcheck(operator, (*arguments, list(RCNN), True))
    torch.library.opcheck(operator, tuple(arguments[:5]))


GOOD = dict(
    teacher_logits=torch.zeros(2, 5, 3),
    student_logits=torch.zeros(2, 5, 3),
    teacher_deltas=torch.zeros(2, 5, 4),
    student_deltas=torch.zeros(2, 5, 4),
    anchors=torch.zeros(5, 4),
    image_sizes=torch.zeros(2, 2, dtype=torch.int64),
    weights=(1.0, 1.0, 1.0, 1.0),
)
ON_META = "is on meta, expected cpu, where teacher_logits is"
MISTAKES = [
    (dict(teacher_logits=[1]), TypeError, r"teacher_logits is a list, expected a tensor \(B, R, C\)"),
    (
        dict(teacher_logits=torch.zeros(2, 5, 0), student_logits=torch.zeros(2, 5, 0)),
        ValueError,
        r"teacher_logits has shape \(2, 5, 0\), expected \(B, R, C\) with C at least 1",
    ),
    (
        dict(student_logits=torch.zeros(2, 5, 4)),
        ValueError,
        r"student_logits has shape \(2, 5, 4\), expected \(B, R, C\) = \(2, 5, 3\)",
    ),
    (
        dict(student_logits=torch.zeros(2, 5, 3).half()),
        TypeError,
        "student_logits is torch.float16, expected torch.float32",
    ),
    (dict(teacher_deltas=3), TypeError, r"teacher_deltas is a int, expected a tensor \(B, R, 4\)"),
    (
        dict(teacher_deltas=torch.zeros(2, 4, 4)),
        ValueError,
        r"teacher_deltas has shape \(2, 4, 4\), expected \(B, R, 4\) = \(2, 5, 4\)",
    ),
    (
        dict(teacher_deltas=torch.zeros(2, 5, 4).double()),
        TypeError,
        "teacher_deltas is torch.float64, .*gid_cuda.reference.decoded_gi_score computes in float64",
    ),
    (dict(teacher_deltas=torch.zeros(2, 5, 4, device="meta")), ValueError, f"teacher_deltas {ON_META}"),
    (
        dict(student_deltas=torch.zeros(10, 4)),
        ValueError,
        r"student_deltas has shape \(10, 4\), expected \(B, R, 4\)",
    ),
    (
        dict(student_deltas=torch.zeros(2, 5, 4).int()),
        TypeError,
        "student_deltas is torch.int32, expected float32, float16 or bfloat16",
    ),
    (dict(anchors=[1]), TypeError, r"anchors is a list, expected a tensor \(R, 4\)"),
    (dict(anchors=torch.zeros(2, 5, 4)), ValueError, r"anchors has shape \(2, 5, 4\), expected \(R, 4\)"),
    (dict(anchors=torch.zeros(6, 4)), ValueError, r"anchors has shape \(6, 4\), expected \(R, 4\) = \(5, 4\)"),
    (dict(anchors=torch.zeros(5, 4).half()), TypeError, "anchors is torch.float16, expected torch.float32"),
    (dict(anchors=torch.zeros(5, 4, device="meta")), ValueError, f"anchors {ON_META}"),
    (dict(image_sizes=torch.zeros(2, 2)), TypeError, "image_sizes is torch.float32, expected torch.int64"),
    (
        dict(image_sizes=torch.zeros(2, dtype=torch.int64)),
        ValueError,
        r"image_sizes has shape \(2,\), expected \(B, 2\)",
    ),
    (dict(weights=2.0), TypeError, "weights is 2.0, expected four numbers"),
    (dict(weights=(1.0, 1.0, 1.0)), ValueError, r"weights is \[1.0, 1.0, 1.0\], expected four numbers above 0"),
    (dict(weights=(1, 1, -1, 1)), ValueError, r"weights is \[1, 1, -1, 1\], expected four numbers above 0"),
]


@pytest.mark.parametrize(("change", "error", "message"), MISTAKES)
def test_mistakes(change: dict, error: type[Exception], message: str):
    decoded_gi_score(**GOOD)
    with pytest.raises(error, match=f"^{message}"):
        decoded_gi_score(**GOOD | change)


@pytest.mark.parametrize(
    ("change", "message"),
    [
        (dict(teacher_logits=torch.zeros(2, 5)), r"teacher_logits must be \(B, R, C\), C >= 1"),
        (dict(student_logits=torch.zeros(2, 5, 3).half()), "student_logits must have teacher_logits' dtype"),
        (dict(teacher_deltas=torch.zeros(2, 5, 5)), "teacher_deltas has another shape"),
        (dict(student_deltas=torch.zeros(2, 5, 4).double()), "student_deltas must be float32, float16 or bfloat16"),
        (dict(anchors=torch.zeros(5, 5)), r"anchors must be \(R, 4\) float32"),
        (dict(anchors=torch.zeros(6, 4)), "anchors must be one for each of the R boxes"),
        (dict(image_sizes=torch.zeros(2, 3, dtype=torch.int64)), "image_sizes has another shape"),
        (dict(weights=[1.0] * 5), "weights must be four numbers"),
    ],
)
def test_mistakes_of_those_who_call_torch_ops(change: dict, message: str):
    with pytest.raises(RuntimeError, match=message):
        torch.ops.gid.decoded_gi_score(**GOOD | change)
