from __future__ import annotations

import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st
from ops_helpers import DTYPES, INF, NAN, each_device, each_dtype, on, with_gradient

from gid_cuda import reference
from gid_cuda.ops import class_losses

KINDS = ["bce", "focal"]
# Logits at which an implementation can go wrong: overflow of exp, saturation, the smallest steps, a change of formula.
SPECIAL = st.sampled_from([0.0, -0.0, 1e-30, -1e-4, 1e-4, -2.0, 15, -15.0, 43.0, -43.5, 88.8, -88.8, 110.0, -3e4, 3e4])
LOGITS = st.floats(-12.0, 12.0, width=16) | SPECIAL

each_kind = pytest.mark.parametrize("kind", KINDS)


def inputs(images: int, count: int, classes: int, dtype: torch.dtype = torch.float32, truths: int = 4) -> dict:
    """As detectors have it: most rows background, some left out, some with a ground truth, some that learn."""
    student = torch.randn(images, count, classes) * 3 - 2
    matched = torch.randint(-2, max(truths, 1), (images, count))
    matched[torch.rand(images, count) < 0.7] = -1
    return dict(
        logits=student.to(dtype),
        matched=matched,
        labels=torch.randint(0, classes, (images, truths)),
        teacher_logits=(student + torch.randn_like(student)).to(dtype),
        mask=torch.rand(images, count) < 0.2,
    )


def in_double(arguments: dict) -> dict:
    """The arguments of class_losses as those of its reference, computed with in float64."""
    soft_focal = arguments.get("kind") == "focal"
    rest = {name: value for name, value in arguments.items() if name != "kind"}
    for name in ("logits", "teacher_logits", "focal"):
        if rest.get(name) is not None:
            rest[name] = rest[name].double()
    return rest | dict(soft_focal=soft_focal)


def compare(arguments: dict, device: str = "cpu") -> list[torch.Tensor]:
    """Against float64 arithmetic: sums within 1e-5 of them or 1e-6 a number, gradients within 3e-6 before rounding."""
    logits = arguments["logits"]
    weights = torch.linspace(-1.5, 2.0, 2 * len(logits)).view(2, -1)
    actual = with_gradient(class_losses, "logits", on(device, arguments), weights.to(device))
    expected = with_gradient(reference.class_losses, "logits", in_double(arguments), weights)
    assert [a.dtype for a in actual] == [torch.float32, torch.float32, logits.dtype]
    size = max(float(logits.abs().max()), 1.0) if logits.numel() else 1.0
    for loss, double in zip(actual[:2], expected[:2], strict=True):
        torch.testing.assert_close(
            loss.cpu().double(), double, rtol=1e-5, atol=1e-6 * size * logits[:1].numel(), equal_nan=True
        )
    eps = torch.finfo(logits.dtype).eps
    torch.testing.assert_close(actual[2].cpu().double(), expected[2], rtol=max(eps, 1e-5), atol=3e-6, equal_nan=True)
    return actual


@each_device
@each_dtype
@each_kind
@pytest.mark.parametrize("classes", [1, 3, 7, 16, 80, 91])
def test_equals_the_reference(device: str, dtype: torch.dtype, kind: str, classes: int):
    compare(inputs(3, 301, classes, dtype) | dict(kind=kind), device)


@each_device
@pytest.mark.parametrize("classes", [1, 5])
@pytest.mark.parametrize("count", [255, 256, 257, 4095, 4096, 4097])
def test_equals_the_reference_around_pieces_of_work(device: str, count: int, classes: int):
    compare(inputs(2, count, classes), device)


@each_device
@each_dtype
@settings(deadline=None, max_examples=40)
@given(data=st.data(), classes=st.integers(1, 40), kind=st.sampled_from(KINDS), other=st.sampled_from(DTYPES))
def test_equals_the_reference_on_awkward_logits(device: str, dtype: torch.dtype, data, classes: int, kind, other):
    values = st.lists(LOGITS, min_size=2 * 4 * classes, max_size=2 * 4 * classes)
    both = torch.tensor(data.draw(values)).to(dtype).view(2, 1, 4, classes)
    integers = st.lists(st.integers(-2, 3), min_size=4, max_size=4)
    arguments = dict(
        logits=both[0],
        matched=torch.tensor([data.draw(integers)]),
        labels=torch.tensor([data.draw(st.lists(st.integers(-1, classes), min_size=2, max_size=2))]),
        teacher_logits=both[1].to(other),
        mask=torch.tensor([data.draw(st.lists(st.booleans(), min_size=4, max_size=4))]),
        kind=kind,
    )
    compare(arguments, device)


@each_device
def test_small_losses_of_confident_background_keep_their_digits(device: str):
    for start in torch.linspace(-14.0, 14.0, 29):
        logits = torch.linspace(0.0, 1.0, 500)[:, None] + start
        matched = torch.full((500, 1), -1)
        arguments = dict(logits=logits[:, None], matched=matched, labels=torch.zeros(500, 0, dtype=torch.int64))
        actual = with_gradient(class_losses, "logits", on(device, arguments), torch.ones(2, 500))
        expected = with_gradient(reference.class_losses, "logits", in_double(arguments), torch.ones(2, 500))
        for a, e in zip(actual, expected, strict=True):
            torch.testing.assert_close(a.cpu().double(), e, rtol=2e-5, atol=0)


@each_device
def test_a_ground_truth_without_a_class_and_one_that_is_not_there(device: str):
    arguments = inputs(1, 8, 3)
    arguments["labels"] = torch.tensor([[1, 3, -1, 2**40]])
    background = arguments | dict(matched=torch.full((1, 8), -1))
    expected = compare(background, device)
    for row in ([1, 2, 3, 4, 5, 2**40, 2**62, -1], [4] * 8, [1] * 8):
        actual = compare(arguments | dict(matched=torch.tensor([row])), device)
        torch.testing.assert_close(actual, expected)
    actual = compare(arguments | dict(matched=torch.tensor([[0] * 8])), device)
    assert (actual[0] - expected[0]).abs() > 1e-3


@each_device
@each_kind
@pytest.mark.parametrize("dtype", DTYPES)
@pytest.mark.parametrize("other", DTYPES)
def test_a_student_equal_to_its_teacher_loses_nothing(device: str, kind: str, dtype: torch.dtype, other: torch.dtype):
    logits = torch.cat([torch.randn(500) * 9, torch.tensor([0.0, -0.0, 1e-5, 43.0, -43.5, 120.0, -120.0, 3e4, -3e4])])
    logits = logits.bfloat16().to(torch.float16).view(1, -1, 1).expand(-1, -1, 9)  # a number in any of the types
    mask = torch.ones(logits.shape[:2], dtype=torch.bool)
    arguments = dict(logits=logits.to(dtype), teacher_logits=logits.to(other), mask=mask)
    loss, response, gradient = with_gradient(
        class_losses, "logits", on(device, arguments | dict(kind=kind)), torch.ones(2, 1)
    )
    assert loss.item() == response.item() == 0.0
    assert gradient.count_nonzero() == 0


@each_device
@pytest.mark.parametrize("dtype", DTYPES)
@pytest.mark.parametrize("other", DTYPES)
def test_a_teacher_of_another_type(device: str, dtype: torch.dtype, other: torch.dtype):
    arguments = inputs(2, 40, 9, dtype)
    compare(arguments | dict(teacher_logits=arguments["teacher_logits"].to(other)), device)


@each_device
@each_dtype
@each_kind
def test_rows_that_take_no_part_are_not_read(device: str, dtype: torch.dtype, kind: str):
    arguments = inputs(2, 300, 5, dtype) | dict(kind=kind)
    arguments["matched"][0] = -2
    left_out = (arguments["matched"] < -1) & ~arguments["mask"]
    expected = with_gradient(class_losses, "logits", on(device, arguments), torch.ones(2, 2))
    for value in (NAN, INF):
        poisoned = arguments | dict(
            logits=arguments["logits"].masked_fill(left_out[..., None], value),
            teacher_logits=arguments["teacher_logits"].masked_fill(~arguments["mask"][..., None], value),
        )
        actual = with_gradient(class_losses, "logits", on(device, poisoned), torch.ones(2, 2))
        torch.testing.assert_close(actual, expected, rtol=0, atol=0)
        assert actual[2].cpu()[left_out].count_nonzero() == 0


@each_device
@each_dtype
@each_kind
def test_a_nan_that_counts_shows(device: str, dtype: torch.dtype, kind: str):
    """In the losses and, so that a scaler of gradients skips the step, in the gradient."""
    arguments = inputs(1, 4, 20, dtype) | dict(kind=kind)
    arguments |= dict(matched=torch.tensor([[-1, 0, -2, -2]]), mask=torch.tensor([[False, False, True, False]]))
    for row in range(4):
        for name in ("logits", "teacher_logits"):
            poisoned = arguments[name].clone()
            poisoned[0, row, 17] = NAN
            task, response, gradient = with_gradient(
                class_losses, "logits", on(device, arguments | {name: poisoned}), torch.ones(2, 1)
            )
            assert task.isnan().item() == (name == "logits" and row < 2)
            assert response.isnan().item() == (row == 2)
            poisons = row < 3 if name == "logits" else row == 2
            assert gradient.isnan().nonzero().tolist() == ([[0, row, 17]] if poisons else [])


@each_device
@each_kind
def test_a_focal_loss_computed_before(device: str, kind: str):
    arguments = on(device, inputs(2, 300, 6) | dict(kind=kind))
    weights = torch.tensor([[2.0, -1.0], [0.5, 3.0]], device=device)
    together = with_gradient(class_losses, "logits", arguments, weights)
    before = class_losses(arguments["logits"], matched=arguments["matched"], labels=arguments["labels"])[0]
    # On CUDA masked rows take the longer way, so the last place may differ.
    torch.testing.assert_close(before, together[0], rtol=0 if device == "cpu" else 1e-6, atol=0)
    for value in (before, torch.tensor([NAN, 7.0], device=device)):
        after = with_gradient(class_losses, "logits", arguments | dict(focal=value), weights)
        torch.testing.assert_close(after, [value, *together[1:]], rtol=0, atol=0, equal_nan=True)
        assert after[0].data_ptr() != value.data_ptr()
    # Its rows are not read again.
    poisoned = arguments["logits"].masked_fill(~arguments["mask"][..., None], NAN)
    losses = class_losses(**arguments | dict(logits=poisoned, focal=before))
    torch.testing.assert_close(list(losses), [before, together[1]], rtol=0, atol=0)


@each_device
@each_kind
def test_a_loss_that_is_not_used_has_no_gradient_and_reads_nothing(device: str, kind: str):
    arguments = on(device, inputs(2, 300, 6) | dict(kind=kind))
    mask = arguments["mask"]
    whole = [
        with_gradient(class_losses, "logits", arguments, torch.eye(2)[:, i : i + 1].expand(2, 2))[2] for i in range(2)
    ]
    logits = arguments["logits"].clone().requires_grad_()
    poisoned = arguments["teacher_logits"].masked_fill(mask[..., None], NAN)
    task, _ = class_losses(**arguments | dict(logits=logits, teacher_logits=poisoned))
    (gradient,) = torch.autograd.grad(task.sum(), logits)
    torch.testing.assert_close(gradient, whole[0], rtol=1e-5, atol=1e-6)  # not to the bit: another way may be taken
    logits = arguments["logits"].masked_fill(~mask[..., None], NAN).requires_grad_()
    _, response = class_losses(**arguments | dict(logits=logits))
    (gradient,) = torch.autograd.grad(response.sum(), logits)
    torch.testing.assert_close(gradient, whole[1], rtol=1e-5, atol=1e-6)
    # Each alone, without the other's arguments.
    alone = [dict(teacher_logits=None, mask=None), dict(matched=None, labels=None)]
    for i, without in enumerate(alone):
        losses = with_gradient(class_losses, "logits", arguments | without, torch.ones(2, 2))
        assert losses[1 - i].tolist() == [0.0, 0.0]
        torch.testing.assert_close(losses[2], whole[i], rtol=1e-5, atol=1e-6)


@each_device
@each_dtype
@pytest.mark.parametrize("megabytes", [3, 9, 40])  # of the gradient, in float32
def test_a_large_gradient_is_zero_where_nothing_is_learned(device: str, dtype: torch.dtype, megabytes: int):
    """Its zeros may come from the system rather than from the kernel; its memory has been in use before."""
    rows = megabytes * 2**20 // 4 // 81 + 1
    student = torch.randn(1, rows, 81, dtype=dtype, device=device).requires_grad_()
    mask = torch.zeros(1, rows, dtype=torch.bool, device=device)
    mask[0, [0, 1, rows // 3, rows // 2, rows - 2]] = True
    teacher = torch.randn(1, rows, 81, dtype=dtype, device=device)
    for _ in range(3):
        torch.full_like(student, 7.0)  # freed at once: what is allocated next may get its memory
        _, response = class_losses(student, teacher_logits=teacher, mask=mask)
        (gradient,) = torch.autograd.grad(response.sum(), student)
        assert torch.equal((gradient != 0).any(dim=2), mask)
        torch.full_like(student, 7.0)
        del gradient


@each_device
def test_without_ground_truth_and_teacher_there_is_nothing(device: str):
    losses = with_gradient(
        class_losses, "logits", on(device, dict(logits=torch.full((2, 3, 4), NAN))), torch.ones(2, 2)
    )
    assert [loss.tolist() for loss in losses[:2]] == [[0.0, 0.0]] * 2
    assert losses[2].count_nonzero() == 0


@each_device
@pytest.mark.parametrize(
    ("images", "count", "classes", "truths"), [(0, 5, 3, 2), (2, 0, 3, 2), (2, 5, 0, 2), (2, 5, 3, 0), (0, 0, 0, 0)]
)
def test_empty(device: str, images: int, count: int, classes: int, truths: int):
    arguments = inputs(images, count, max(classes, 1), truths=truths)
    arguments |= {name: arguments[name][..., :classes] for name in ("logits", "teacher_logits")}
    compare(arguments, device)


@each_device
@each_dtype
def test_memory_of_any_kind(device: str, dtype: torch.dtype):
    arguments = inputs(2, 50, 20, dtype)
    lying = dict(
        logits=arguments["logits"].mT.contiguous().mT,
        matched=arguments["matched"].T.contiguous().T,
        labels=arguments["labels"].repeat_interleave(2, 1)[:, ::2],
        teacher_logits=arguments["teacher_logits"].repeat(1, 2, 1)[:, ::2],
        mask=arguments["mask"][:, :1].expand(2, 50),
    )
    assert not any(value.is_contiguous() for value in lying.values())
    logits, result = lying["logits"], compare(lying, device)
    assert result[2].is_contiguous()
    torch.testing.assert_close(result, compare(lying | dict(logits=logits.contiguous()), device), rtol=0, atol=0)


@each_device
@each_dtype
def test_not_aligned_to_vectors(device: str, dtype: torch.dtype):
    arguments = inputs(3, 31, 5, dtype)
    shifted = {name: torch.cat([a.flatten()[:1], a.flatten()])[1:].view(a.shape) for name, a in arguments.items()}
    compare(shifted, device)


def test_the_same_sums_with_any_number_of_threads():
    arguments = inputs(2, 1500, 7)
    before, results = torch.get_num_threads(), []
    try:
        for threads in (1, 2):
            torch.set_num_threads(threads)
            results.append(compare(arguments))
    finally:
        torch.set_num_threads(before)
    torch.testing.assert_close(*results, rtol=0, atol=0)


@each_device
def test_the_same_sums_again(device: str):
    arguments, weights = on(device, inputs(2, 5000, 7)), torch.ones(2, 2)
    results = [with_gradient(class_losses, "logits", arguments, weights) for _ in range(3)]
    assert all(torch.equal(a, b) for other in results[1:] for a, b in zip(results[0], other, strict=True))


@each_device
def test_only_the_students_logits_have_a_gradient(device: str):
    arguments = on(device, inputs(1, 4, 3))
    arguments["teacher_logits"].requires_grad_()
    focal = torch.zeros(1, device=device, requires_grad=True)
    assert not any(loss.requires_grad for loss in class_losses(**arguments, focal=focal))


@each_device
def test_there_is_no_second_derivative(device: str):
    arguments = on(device, inputs(1, 4, 3))
    arguments["logits"].requires_grad_()
    losses = class_losses(**arguments)
    (gradient,) = torch.autograd.grad(losses[0].sum() + losses[1].sum(), arguments["logits"], create_graph=True)
    with pytest.raises(RuntimeError, match="class_losses has no second derivative; gid_cuda.reference.class_losses"):
        torch.autograd.grad(gradient.sum(), arguments["logits"])


@each_device
def test_opcheck(device: str):
    tensors = list(on(device, inputs(2, 7, 3)).values())
    logits, given, grad = tensors[0].requires_grad_(), tensors[1:], torch.rand(2, device=device)
    forward, backward = torch.ops.gid.class_losses.default, torch.ops.gid.class_losses_backward.default
    torch.library.opcheck(forward, (logits, *given, grad, True))
    torch.library.opcheck(backward, (None, grad, logits.detach(), None, None, *given[2:], True))


GOOD = dict(
    logits=torch.zeros(2, 5, 3),
    matched=torch.zeros(2, 5, dtype=torch.int64),
    labels=torch.zeros(2, 4, dtype=torch.int64),
    teacher_logits=torch.zeros(2, 5, 3),
    mask=torch.zeros(2, 5, dtype=torch.bool),
    focal=torch.zeros(2),
)
META = {name: value.to("meta") for name, value in GOOD.items()}
MISTAKES = [
    (dict(logits=[1]), TypeError, r"logits is a list, expected a tensor \(B, R, C\)"),
    (dict(logits=torch.zeros(2, 5)), ValueError, r"logits has shape \(2, 5\), expected \(B, R, C\)"),
    (
        dict(logits=torch.zeros(2, 5, 3).double()),
        TypeError,
        "logits is torch.float64, .*gid_cuda.reference.class_losses computes in float64",
    ),
    (dict(logits=torch.zeros(2, 5, 3).int()), TypeError, "logits is torch.int32, expected float32, float16 or"),
    (dict(matched=None), ValueError, "labels is given but matched is not: matched, labels go together"),
    (dict(labels=None), ValueError, "matched is given but labels is not: matched, labels go together"),
    (dict(matched=7), TypeError, r"matched is a int, expected a tensor \(B, R\)"),
    (
        dict(matched=torch.zeros(2, 4, dtype=torch.int64)),
        ValueError,
        r"matched has shape \(2, 4\), expected \(B, R\) = \(2, 5\)",
    ),
    (dict(matched=torch.zeros(2, 5, dtype=torch.int32)), TypeError, "matched is torch.int32, expected torch.int64"),
    (dict(matched=META["matched"]), ValueError, "matched is on meta, expected cpu, where logits is"),
    (dict(labels=[1, 2]), TypeError, r"labels is a list, expected a tensor \(B, N\)"),
    (dict(labels=torch.zeros(2, dtype=torch.int64)), ValueError, r"labels has shape \(2,\), expected \(B, N\)"),
    (
        dict(labels=torch.zeros(3, 4, dtype=torch.int64)),
        ValueError,
        r"labels has shape \(3, 4\), expected \(B, N\) = \(2, 4\)",
    ),
    (dict(labels=torch.zeros(2, 4)), TypeError, "labels is torch.float32, expected torch.int64"),
    (dict(labels=META["labels"]), ValueError, "labels is on meta, expected cpu, where logits is"),
    (
        dict(teacher_logits=None),
        ValueError,
        "mask is given but teacher_logits is not: teacher_logits, mask go together",
    ),
    (dict(mask=None), ValueError, "teacher_logits is given but mask is not: teacher_logits, mask go together"),
    (dict(teacher_logits=1.0), TypeError, r"teacher_logits is a float, expected a tensor \(B, R, C\)"),
    (
        dict(teacher_logits=torch.zeros(2, 5, 4)),
        ValueError,
        r"teacher_logits has shape \(2, 5, 4\), expected \(B, R, C\) = \(2, 5, 3\)",
    ),
    (
        dict(teacher_logits=torch.zeros(2, 5, 3).double()),
        TypeError,
        "teacher_logits is torch.float64, .*gid_cuda.reference.class_losses computes in float64",
    ),
    (
        dict(teacher_logits=META["teacher_logits"]),
        ValueError,
        "teacher_logits is on meta, expected cpu, where logits is",
    ),
    (dict(mask=[True]), TypeError, r"mask is a list, expected a tensor \(B, R\)"),
    (
        dict(mask=torch.zeros(2, 5, 1, dtype=torch.bool)),
        ValueError,
        r"mask has shape \(2, 5, 1\), expected \(B, R\)",
    ),
    (
        dict(mask=torch.zeros(1, 5, dtype=torch.bool)),
        ValueError,
        r"mask has shape \(1, 5\), expected \(B, R\) = \(2, 5\)",
    ),
    (dict(mask=torch.zeros(2, 5)), TypeError, "mask is torch.float32, expected torch.bool"),
    (dict(mask=META["mask"]), ValueError, "mask is on meta, expected cpu, where logits is"),
    (dict(focal=1.0), TypeError, r"focal is a float, expected a tensor \(B,\)"),
    (dict(focal=torch.zeros(3)), ValueError, r"focal has shape \(3,\), expected \(B,\) = \(2,\)"),
    (dict(focal=torch.zeros(2).half()), TypeError, "focal is torch.float16, expected torch.float32"),
    (dict(focal=META["focal"]), ValueError, "focal is on meta, expected cpu, where logits is"),
    (
        dict(matched=None, labels=None),
        ValueError,
        "focal is given but matched is not: its gradient needs matched and labels",
    ),
    (dict(kind="mse"), ValueError, "kind is 'mse', expected 'bce' or 'focal'"),
    (dict(kind=None), ValueError, "kind is None, expected 'bce' or 'focal'"),
]


@pytest.mark.parametrize(("change", "error", "message"), MISTAKES)
def test_mistakes(change: dict, error: type[Exception], message: str):
    class_losses(**GOOD)
    with pytest.raises(error, match=f"^{message}$" if message.endswith("together") else f"^{message}"):
        class_losses(**GOOD | change)


WRONG = [
    (dict(logits=torch.zeros(2, 5)), r"predictions must be \(B, R, ...\) in float32, float16 or bfloat16"),
    (dict(logits=torch.zeros(2, 5, 3).double()), "predictions must be"),
    (dict(matched=None), "matched goes with the ground truth"),
    (dict(labels=None), "matched goes with the ground truth"),
    (dict(teacher_logits=None), "a teacher goes with a mask"),
    (dict(mask=None), "a teacher goes with a mask"),
    (dict(matched=torch.zeros(2, 4, dtype=torch.int64)), "matched has another shape"),
    (dict(matched=torch.zeros(2, 5)), "matched must be int64"),
    (dict(labels=torch.zeros(2, dtype=torch.int64)), r"labels must be \(B, N\)"),
    (dict(labels=torch.zeros(3, 4, dtype=torch.int64)), "labels has another shape"),
    (dict(labels=torch.zeros(2, 4)), "labels must be int64"),
    (dict(teacher_logits=torch.zeros(2, 5, 4)), "the teacher's tensor has another shape"),
    (dict(teacher_logits=torch.zeros(2, 5, 3).int()), "the teacher's tensor must be float32, float16 or bfloat16"),
    (dict(mask=torch.zeros(2, 4, dtype=torch.bool)), r"mask must be \(B, R\) bool"),
    (dict(mask=torch.zeros(2, 5)), r"mask must be \(B, R\) bool"),
]


@pytest.mark.parametrize(
    ("change", "message"),
    [
        *WRONG,
        (dict(focal=torch.zeros(3)), r"focal must be \(B,\) float32"),
        (dict(focal=torch.zeros(2).half()), r"focal must be \(B,\) float32"),
    ],
)
def test_mistakes_of_those_who_call_torch_ops(change: dict, message: str):
    with pytest.raises(RuntimeError, match=message):
        torch.ops.gid.class_losses(**GOOD | change)


@pytest.mark.parametrize(
    ("change", "message"),
    [
        *WRONG,
        (dict(grad_focal=torch.zeros(3)), r"grad_focal must be \(B,\) float32"),
        (dict(grad_response=torch.zeros(2).half()), r"grad_response must be \(B,\) float32"),
    ],
)
def test_mistakes_of_those_who_call_the_backward(change: dict, message: str):
    arguments = dict(grad_focal=torch.zeros(2), grad_response=torch.zeros(2), **GOOD, soft_focal=False)
    del arguments["focal"]
    torch.ops.gid.class_losses_backward(**arguments)
    with pytest.raises(RuntimeError, match=message):
        torch.ops.gid.class_losses_backward(**arguments | change)
