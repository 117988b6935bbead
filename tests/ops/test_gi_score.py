from __future__ import annotations

import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st
from ops_helpers import INF, NAN, each_device, each_dtype, moved, random_boxes

from gid_cuda import reference
from gid_cuda.ops import gi_score

# Logits at which an implementation can go wrong: overflow of exp, saturation, the smallest steps, none at all.
SPECIALS = [0.0, -0.0, 1e-30, -1e-4, 1e-4, 15.0, -15.0, -21.0, 43.0, 88.8, -88.8, 110.0, -110.0, -3e4, 3e4, INF, -INF]
SPECIAL = st.sampled_from(SPECIALS)
LOGITS = st.floats(-12.0, 12.0, width=16) | SPECIAL


def compare(teacher, student, teacher_boxes, student_boxes, image_sizes=None, device="cpu"):
    """Scores within 2e-6 of float64 arithmetic, boxes equal."""
    arguments = (teacher_boxes, student_boxes, image_sizes)
    scores, boxes = gi_score(*(None if a is None else moved(a, device) for a in (teacher, student, *arguments)))
    assert scores.dtype == boxes.dtype == torch.float32
    expected_scores, expected_boxes = reference.gi_score(teacher.double(), student.double(), *arguments)
    torch.testing.assert_close(scores.cpu().double(), expected_scores, rtol=0, atol=2e-6, equal_nan=True)
    torch.testing.assert_close(boxes.cpu(), expected_boxes, rtol=0, atol=0, equal_nan=True)


def inputs(images: int, count: int, classes: int, dtype: torch.dtype = torch.float32):
    teacher = torch.randn(images, count, classes) * 3 - 2
    student = teacher + torch.randn(images, count, classes)
    boxes = [random_boxes(images, count, 100.0, 0.0, 50.0) for _ in range(2)]
    return teacher.to(dtype), student.to(dtype), *boxes


@each_device
@each_dtype
@pytest.mark.parametrize("classes", [1, 3, 16, 37, 80])
def test_equals_the_reference(device: str, dtype: torch.dtype, classes: int):
    compare(*inputs(2, 301, classes, dtype), torch.tensor([[60, 90], [90, 40]]), device=device)


@each_device
@each_dtype
@settings(deadline=None, max_examples=30)
@given(data=st.data(), classes=st.integers(1, 40))
def test_equals_the_reference_on_awkward_logits(device: str, dtype: torch.dtype, data, classes: int):
    values = st.lists(LOGITS | st.just(NAN), min_size=2 * 3 * classes, max_size=2 * 3 * classes)
    both = torch.tensor(data.draw(values)).to(dtype).view(2, 1, 3, classes)
    compare(both[0], both[1], random_boxes(1, 3, 9.0, 0.0, 9.0), random_boxes(1, 3, 9.0, 0.0, 9.0), device=device)


@each_device
@each_dtype
@pytest.mark.parametrize("classes", [1, 3, 16, 37, 80])
@pytest.mark.parametrize("others", ["alike", "ordinary"])
def test_every_pair_of_awkward_logits(device: str, dtype: torch.dtype, classes: int, others: str):
    """In all classes of a row, where it is the result, or in one, where it must not spoil the others."""
    pairs = torch.tensor(SPECIALS)
    teacher, student = (x.reshape(1, -1, 1).repeat(1, 1, classes) for x in torch.meshgrid(pairs, pairs, indexing="ij"))
    if others == "ordinary":
        teacher[..., 1:], student[..., 1:] = -1.0, -1.5
    boxes = torch.zeros(1, len(pairs) ** 2, 4)
    compare(teacher.to(dtype), student.to(dtype), boxes, boxes + 1, device=device)


@each_device
@pytest.mark.parametrize("classes", [1, 16, 80])
def test_accurate_everywhere(device: str, classes: int):
    grid = torch.linspace(-12.0, 12.0, 4001)
    for other in torch.linspace(-10.0, 10.0, 41).tolist():
        teacher = grid.view(1, -1, 1).repeat(1, 1, classes)
        boxes = torch.zeros(1, len(grid), 4)
        compare(teacher, torch.full_like(teacher, other), boxes, boxes + 1, device=device)


@each_device
@each_dtype
@pytest.mark.parametrize("place", [0, 5, 16, 17])
@pytest.mark.parametrize("model", [0, 1])
def test_one_nan_makes_the_row_nan(device: str, dtype: torch.dtype, place: int, model: int):
    models = [torch.randn(1, 3, 18).to(dtype) + 9 * (1 - m) for m in range(2)]  # the teacher is the surer one
    models[model][0, 1, place] = NAN
    teacher_boxes, student_boxes = torch.zeros(1, 3, 4), torch.ones(1, 3, 4)
    compare(*models, teacher_boxes, student_boxes, device=device)
    scores, boxes = gi_score(*(a.to(device) for a in (*models, teacher_boxes, student_boxes)))
    assert scores.isnan().tolist() == [[False, True, False]]
    assert boxes[0, :, 0].tolist() == [0.0, 1.0, 0.0]


@each_device
@pytest.mark.parametrize("bits", [0x7FFFFFFF, -1, 0x7F800001, 0x7FC00001])  # the first is what GPUs write
@pytest.mark.parametrize("place", [5, 17])
def test_a_nan_with_any_bits_is_one(device: str, bits: int, place: int):
    teacher, student = torch.ones(1, 1, 18), torch.zeros(1, 1, 18)
    teacher.view(torch.int32)[0, 0, place] = bits
    assert teacher.isnan().any()
    compare(teacher, student, torch.zeros(1, 1, 4), torch.ones(1, 1, 4), device=device)
    compare(student, teacher, torch.zeros(1, 1, 4), torch.ones(1, 1, 4), device=device)


@each_device
def test_boxes_that_are_not_finite_are_clipped_or_stay_nan(device: str):
    teacher, student, *_ = inputs(1, 2, 3)
    box = torch.tensor([[[-INF, NAN, INF, 5.0], [NAN, -0.0, 1e38, INF]]])
    compare(teacher, student, box, box, torch.tensor([[30, 40]]), device=device)
    compare(teacher, student, box, box, torch.tensor([[0, 0]]), device=device)


@each_device
@pytest.mark.parametrize(("images", "count"), [(0, 5), (2, 0), (0, 0)])
def test_empty(device: str, images: int, count: int):
    compare(*inputs(images, count, 3), torch.zeros(images, 2, dtype=torch.int64), device=device)


@each_device
@each_dtype
def test_memory_of_any_kind(device: str, dtype: torch.dtype):
    teacher, student, teacher_boxes, student_boxes = inputs(2, 50, 20, dtype)
    sizes = torch.tensor([[50, 9, 60], [70, 9, 80]])[:, ::2]
    compare(
        teacher.transpose(1, 2).contiguous().transpose(1, 2),
        student.repeat(1, 2, 1)[:, ::2],
        torch.cat([teacher_boxes, teacher_boxes], 2)[:, :, 2:6],
        student_boxes[:, :1].expand(-1, 50, -1),
        sizes,
        device=device,
    )


@each_device
def test_not_aligned_to_vectors(device: str):
    teacher, student, teacher_boxes, student_boxes = inputs(1, 9, 5)
    shifted = [torch.cat([torch.zeros(1), a.flatten()])[1:].view(a.shape) for a in (teacher, student)]
    boxes = [torch.cat([torch.zeros(1), a.flatten()])[1:].view(a.shape) for a in (teacher_boxes, student_boxes)]
    compare(*shifted, *boxes, device=device)


@each_device
def test_has_no_gradient(device: str):
    arguments = [a.to(device).requires_grad_() for a in inputs(1, 4, 3)]
    assert not any(output.requires_grad for output in gi_score(*arguments))


@pytest.mark.parametrize("threads", [1, 2])
def test_any_number_of_threads(threads: int):
    arguments = inputs(2, 1500, 5)
    before = torch.get_num_threads()
    torch.set_num_threads(threads)
    try:
        compare(*arguments)
    finally:
        torch.set_num_threads(before)


@each_device
def test_opcheck(device: str):
    arguments = [a.to(device) for a in inputs(2, 7, 3)]
    sizes = torch.tensor([[60, 90], [90, 40]], device=device)
    torch.library.opcheck(torch.ops.gid.gi_score.default, (*arguments, sizes))
    torch.library.opcheck(torch.ops.gid.gi_score.default, tuple(arguments))


GOOD = dict(
    teacher_logits=torch.zeros(2, 5, 3),
    student_logits=torch.zeros(2, 5, 3),
    teacher_boxes=torch.zeros(2, 5, 4),
    student_boxes=torch.zeros(2, 5, 4),
    image_sizes=torch.zeros(2, 2, dtype=torch.int64),
)
MISTAKES = [
    (dict(teacher_logits=[1]), TypeError, r"teacher_logits is a list, expected a tensor \(B, R, C\)"),
    (
        dict(teacher_logits=torch.zeros(2, 5)),
        ValueError,
        r"teacher_logits has shape \(2, 5\), expected \(B, R, C\)",
    ),
    (
        dict(teacher_logits=torch.zeros(2, 5, 0), student_logits=torch.zeros(2, 5, 0)),
        ValueError,
        r"teacher_logits has shape \(2, 5, 0\), expected \(B, R, C\) with C at least 1",
    ),
    (
        dict(teacher_logits=torch.zeros(2, 5, 3, dtype=torch.float64)),
        TypeError,
        "teacher_logits is torch.float64, .*gid_cuda.reference.gi_score computes in float64",
    ),
    (
        dict(teacher_logits=torch.zeros(2, 5, 3, dtype=torch.int32)),
        TypeError,
        "teacher_logits is torch.int32, expected float32, float16 or bfloat16",
    ),
    (dict(student_logits=None), TypeError, "student_logits is a NoneType, expected a tensor"),
    (
        dict(student_logits=torch.zeros(2, 5, 4)),
        ValueError,
        r"student_logits has shape \(2, 5, 4\), expected \(B, R, C\) = \(2, 5, 3\)",
    ),
    (
        dict(student_logits=torch.zeros(2, 5, 3, dtype=torch.float16)),
        TypeError,
        "student_logits is torch.float16, expected torch.float32",
    ),
    (
        dict(student_logits=torch.zeros(2, 5, 3, device="meta")),
        ValueError,
        "student_logits is on meta, expected cpu, where teacher_logits is",
    ),
    (
        dict(teacher_boxes=torch.zeros(2, 4, 4)),
        ValueError,
        r"teacher_boxes has shape \(2, 4, 4\), expected \(B, R, 4\) = \(2, 5, 4\)",
    ),
    (
        dict(teacher_boxes=torch.zeros(2, 5, 4, dtype=torch.bfloat16)),
        TypeError,
        "teacher_boxes is torch.bfloat16, expected torch.float32",
    ),
    (
        dict(student_boxes=torch.zeros(10, 4)),
        ValueError,
        r"student_boxes has shape \(10, 4\), expected \(B, R, 4\)",
    ),
    (
        dict(student_boxes=torch.zeros(2, 5, 4, device="meta")),
        ValueError,
        "student_boxes is on meta, expected cpu, where teacher_logits is",
    ),
    (dict(image_sizes=[(3, 4)]), TypeError, r"image_sizes is a list, expected a tensor \(B, 2\)"),
    (
        dict(image_sizes=torch.zeros(3, 2, dtype=torch.int64)),
        ValueError,
        r"image_sizes has shape \(3, 2\), expected \(B, 2\) = \(2, 2\)",
    ),
    (dict(image_sizes=torch.zeros(2, 2)), TypeError, "image_sizes is torch.float32, expected torch.int64"),
    (
        dict(image_sizes=torch.zeros(2, 2, dtype=torch.int64, device="meta")),
        ValueError,
        "image_sizes is on meta, expected cpu, where teacher_logits is",
    ),
]


@pytest.mark.parametrize(("change", "error", "message"), MISTAKES)
def test_mistakes(change: dict, error: type[Exception], message: str):
    gi_score(**GOOD)
    with pytest.raises(error, match=f"^{message}"):
        gi_score(**GOOD | change)


@pytest.mark.parametrize(
    ("change", "message"),
    [
        (dict(teacher_logits=torch.zeros(2, 5)), r"teacher_logits must be \(B, R, C\), C >= 1"),
        (dict(student_logits=torch.zeros(2, 5, 4)), "student_logits must have teacher_logits' shape"),
        (dict(teacher_logits=torch.zeros(2, 5, 3, dtype=torch.float64)), "teacher_logits must be float32"),
        (dict(student_logits=torch.zeros(2, 5, 3).half()), "student_logits must have teacher_logits' dtype"),
        (dict(teacher_boxes=torch.zeros(2, 5, 5)), r"teacher_boxes must be \(2, 5, 4\)"),
        (dict(student_boxes=torch.zeros(2, 5, 4).half()), "student_boxes must be float32"),
        (dict(image_sizes=torch.zeros(2, 2)), "image_sizes must be int64"),
        (dict(image_sizes=torch.zeros(2, 3, dtype=torch.int64)), "image_sizes has another shape"),
    ],
)
def test_mistakes_of_those_who_call_torch_ops(change: dict, message: str):
    with pytest.raises(RuntimeError, match=message):
        torch.ops.gid.gi_score(**GOOD | change)
