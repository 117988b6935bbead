from __future__ import annotations

import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st
from ops_helpers import DTYPES, INF, NAN, each_device, each_dtype, on, random_boxes, with_gradient

from gid_cuda import reference
from gid_cuda.ops import box_losses

WEIGHTS = (10.0, 10.0, 5.0, 5.0)


def inputs(images: int, count: int, dtype: torch.dtype = torch.float32, truths: int = 4) -> dict:
    """As detectors have it: most rows without a ground truth, few that learn."""
    student = torch.randn(images, count, 4)
    matched = torch.randint(-2, max(truths, 1), (images, count))
    matched[torch.rand(images, count) < 0.7] = -1
    return dict(
        deltas=student.to(dtype),
        matched=matched,
        boxes=random_boxes(images, truths, 100.0, 5.0, 60.0),
        anchors=random_boxes(1, count, 100.0, 5.0, 60.0)[0],
        teacher_deltas=(student + torch.randn_like(student) * 0.2).to(dtype),
        mask=torch.rand(images, count) < 0.3,
    )


def in_double(arguments: dict) -> dict:
    """The arguments of the reference that let it compute in float64."""
    return {
        name: value.double() if isinstance(value, torch.Tensor) and value.is_floating_point() else value
        for name, value in arguments.items()
    }


def l1_sign(arguments: dict) -> torch.Tensor:
    """(B, R, 4): the sign of deltas that lie so near to what they should be that float32 may see the other; else 0."""
    deltas, matched = arguments["deltas"], arguments.get("matched")
    if matched is None or arguments["boxes"].shape[1] == 0:
        return torch.zeros_like(deltas)
    weights = arguments.get("weights", (1.0, 1.0, 1.0, 1.0))
    errors = reference._box_errors(deltas, matched, arguments["boxes"], arguments["anchors"], weights)
    return torch.where(errors.abs() < 1e-5, errors.sign(), 0.0)


def compare(arguments: dict, device: str = "cpu") -> list[torch.Tensor]:
    """Against float64 arithmetic: sums within 1e-5 of them or 2e-6 a number, gradients to the last places."""
    deltas = arguments["deltas"]
    weights = torch.linspace(-1.5, 2.0, 2 * len(deltas)).view(2, -1)
    actual = with_gradient(box_losses, "deltas", on(device, arguments), weights.to(device))
    expected = with_gradient(reference.box_losses, "deltas", in_double(arguments), weights)
    assert [a.dtype for a in actual] == [torch.float32, torch.float32, deltas.dtype]
    for loss, double in zip(actual[:2], expected[:2], strict=True):
        torch.testing.assert_close(loss.cpu().double(), double, rtol=1e-5, atol=2e-6 * max(deltas[:1].numel(), 1))
    # A last place over beta is more than one in the gradient's; and where a last place may turn the sign of L1, either
    # sign will do, but nothing else.
    tolerance = max(torch.finfo(deltas.dtype).eps, 1e-5)
    ours, theirs = actual[2].cpu().double(), expected[2]
    sign = l1_sign(in_double(arguments))
    other_sign = theirs - 2 * sign * weights[0].double()[:, None, None]
    turned = (sign != 0) & ((ours - other_sign).abs() < (ours - theirs).abs())
    torch.testing.assert_close(ours, torch.where(turned, other_sign, theirs), rtol=tolerance, atol=tolerance)
    return actual


@each_device
@each_dtype
@pytest.mark.parametrize("weights", [(1.0, 1.0, 1.0, 1.0), WEIGHTS, (1, 2, 3, 4)])
@pytest.mark.parametrize("beta", [0.1, 1.0 / 9, 2])
def test_equals_the_reference(device: str, dtype: torch.dtype, weights: tuple, beta: float):
    compare(inputs(3, 301, dtype) | dict(weights=weights, beta=beta), device)


@each_device
@pytest.mark.parametrize("count", [1, 255, 256, 257, 4095, 4096, 4097, 8191, 8193])
def test_equals_the_reference_around_pieces_of_work(device: str, count: int):
    compare(inputs(2, count), device)


DELTAS = st.floats(-4.0, 4.0, width=16) | st.sampled_from([0.0, -0.0, 0.1, -0.1, 0.125, 1e-30, 1e4, -1e4])
CORNERS = st.lists(st.integers(0, 60), min_size=4, max_size=4)


@each_device
@each_dtype
@settings(deadline=None, max_examples=40)
@given(
    deltas=st.lists(DELTAS, min_size=2 * 3 * 4, max_size=2 * 3 * 4),
    corners=st.lists(CORNERS, min_size=5, max_size=5),
    matched=st.lists(st.integers(-2, 3), min_size=3, max_size=3),
    mask=st.lists(st.booleans(), min_size=3, max_size=3),
    beta=st.sampled_from([0.125, 0.1, 4.0]),
    other=st.sampled_from(DTYPES),
)
def test_equals_the_reference_on_awkward_deltas(
    device: str, dtype: torch.dtype, deltas, corners, matched, mask, beta: float, other: torch.dtype
):
    """Not where an L1 is 0 but for rounding: there its gradient may have any sign."""
    both = torch.tensor(deltas).to(dtype).view(2, 1, 3, 4)
    around = torch.tensor(corners).float()
    around = torch.cat([around[:, :2], around[:, :2] + around[:, 2:] + 1], dim=1)
    truth, anchors = around[None, :2], around[2:]
    errors = [both[0] - reference.encode_boxes(box, anchors) for box in truth[0]]
    near = torch.stack(errors).abs().amin(dim=(0, 3)) < 1e-5
    arguments = dict(
        deltas=both[0],
        matched=torch.tensor([matched]).masked_fill(near, -1),
        boxes=truth,
        anchors=anchors,
        teacher_deltas=both[1].to(other),
        mask=torch.tensor([mask]),
        beta=beta,
    )
    compare(arguments, device)


@each_device
@each_dtype
def test_a_perfect_box_loses_nothing_and_has_no_gradient(device: str, dtype: torch.dtype):
    anchors = torch.tensor([[0.0, 0, 8, 16], [8, 8, 24, 16]])
    boxes = torch.tensor([[[4.0, 8, 12, 24], [8, 8, 24, 16]]])  # by half of its size from the first; the second
    arguments = dict(
        deltas=torch.tensor([[[0.5, 0.5, 0, 0], [0, -0.0, 0, 0]]]).to(dtype),
        matched=torch.tensor([[0, 1]]),
        boxes=boxes,
        anchors=anchors,
    )
    l1, _, gradient = with_gradient(box_losses, "deltas", on(device, arguments), torch.ones(2, 1, device=device))
    assert l1.item() == 0.0
    assert gradient.count_nonzero() == 0
    arguments["deltas"] = arguments["deltas"] + torch.tensor([[[0, 0.25, 0, -1], [0, 0, 0, 0]]]).to(dtype)
    l1, _, gradient = with_gradient(box_losses, "deltas", on(device, arguments), torch.ones(2, 1, device=device))
    assert l1.item() == 1.25
    assert gradient.tolist() == [[[0, 1, 0, -1], [0, 0, 0, 0]]]


@each_device
def test_rows_without_a_ground_truth(device: str):
    arguments = inputs(1, 8)
    expected = compare(arguments | dict(matched=torch.full((1, 8), -1)), device)
    assert expected[0].item() == 0.0
    for row in ([4, 5, 2**40, 2**62, -1, -2, -3, -(2**62)], [4] * 8):
        actual = compare(arguments | dict(matched=torch.tensor([row])), device)
        torch.testing.assert_close(actual, expected, rtol=0, atol=0)


@each_device
@pytest.mark.parametrize("dtype", DTYPES)
@pytest.mark.parametrize("other", DTYPES)
def test_a_teacher_of_another_type(device: str, dtype: torch.dtype, other: torch.dtype):
    arguments = inputs(2, 40, dtype)
    compare(arguments | dict(teacher_deltas=arguments["teacher_deltas"].to(other)), device)
    deltas = arguments["deltas"].bfloat16().half()  # numbers that all three types have, subnormal ones of float16 apart
    deltas = deltas.where(deltas.abs() > 1e-3, 0)
    same = arguments | dict(deltas=deltas.to(dtype), teacher_deltas=deltas.to(other), matched=None)
    same |= dict(boxes=None, anchors=None)
    l1, response, gradient = with_gradient(box_losses, "deltas", on(device, same), torch.ones(2, 2, device=device))
    assert l1.tolist() == response.tolist() == [0.0, 0.0]
    assert gradient.count_nonzero() == 0


@each_device
def test_where_the_parabola_ends(device: str):
    arguments = dict(
        deltas=torch.tensor([[[0.25, -0.25, 0.5, -0.5], [1.0, -3.0, 0.0, 0.0]]]),
        teacher_deltas=torch.zeros(1, 2, 4),
        mask=torch.ones(1, 2, dtype=torch.bool),
    )
    _, response, gradient = with_gradient(
        box_losses, "deltas", on(device, arguments | dict(beta=0.5)), torch.ones(2, 1, device=device)
    )
    assert response.item() == 2 * 0.0625 + 2 * 0.25 + 0.75 + 2.75
    assert gradient.tolist() == [[[0.5, -0.5, 1, -1], [1, -1, 0, 0]]]


@each_device
@each_dtype
def test_rows_that_take_no_part_are_not_read(device: str, dtype: torch.dtype):
    arguments = inputs(2, 300, dtype)
    unmatched, unmasked = arguments["matched"] < 0, ~arguments["mask"]
    out = unmatched & unmasked
    weights = torch.ones(2, 2, device=device)
    expected = with_gradient(box_losses, "deltas", on(device, arguments), weights)
    for value in (NAN, INF):
        poisoned = arguments | dict(
            deltas=arguments["deltas"].masked_fill(out[..., None], value),
            teacher_deltas=arguments["teacher_deltas"].masked_fill(unmasked[..., None], value),
            anchors=arguments["anchors"].masked_fill(unmatched.all(dim=0)[:, None], value),
        )
        actual = with_gradient(box_losses, "deltas", on(device, poisoned), weights)
        torch.testing.assert_close(actual, expected, rtol=0, atol=0)
        assert actual[2].cpu()[out].count_nonzero() == 0


@each_device
@each_dtype
def test_a_nan_that_counts_shows(device: str, dtype: torch.dtype):
    arguments = inputs(1, 4, dtype)
    arguments |= dict(matched=torch.tensor([[-1, 0, -2, -2]]), mask=torch.tensor([[False, False, True, False]]))
    for row in range(4):
        for name in ("deltas", "teacher_deltas"):
            poisoned = arguments[name].clone()
            poisoned[0, row, 3] = NAN
            l1, response, gradient = with_gradient(
                box_losses, "deltas", on(device, arguments | {name: poisoned}), torch.ones(2, 1, device=device)
            )
            assert l1.isnan().item() == (name == "deltas" and row == 1)
            assert response.isnan().item() == (row == 2)
            # As torch has it: of smooth L1 also the gradient, of L1 not.
            assert gradient.isnan().nonzero().tolist() == ([[0, row, 3]] if row == 2 else [])


@each_device
def test_a_loss_that_is_not_used_has_no_gradient_and_reads_nothing(device: str):
    arguments = on(device, inputs(2, 300))
    select = torch.eye(2, device=device)
    whole = [with_gradient(box_losses, "deltas", arguments, select[:, i : i + 1].expand(2, 2))[2] for i in range(2)]
    deltas = arguments["deltas"].clone().requires_grad_()
    poisoned = arguments["teacher_deltas"].masked_fill(arguments["mask"][..., None], NAN)
    l1, _ = box_losses(**arguments | dict(deltas=deltas, teacher_deltas=poisoned))
    assert torch.equal(torch.autograd.grad(l1.sum(), deltas)[0], whole[0])
    deltas = arguments["deltas"].masked_fill(~arguments["mask"][..., None], NAN).requires_grad_()
    _, response = box_losses(**arguments | dict(deltas=deltas))
    assert torch.equal(torch.autograd.grad(response.sum(), deltas)[0], whole[1])
    # Each alone, without the other's arguments.
    alone = [dict(teacher_deltas=None, mask=None), dict(matched=None, boxes=None, anchors=None)]
    for i, without in enumerate(alone):
        losses = with_gradient(box_losses, "deltas", arguments | without, torch.ones(2, 2, device=device))
        assert losses[1 - i].tolist() == [0.0, 0.0]
        assert torch.equal(losses[2], whole[i])


@each_device
def test_without_ground_truth_and_teacher_there_is_nothing(device: str):
    deltas = dict(deltas=torch.full((2, 3, 4), NAN, device=device))
    losses = with_gradient(box_losses, "deltas", deltas, torch.ones(2, 2, device=device))
    assert [loss.tolist() for loss in losses[:2]] == [[0.0, 0.0]] * 2
    assert losses[2].count_nonzero() == 0


@each_device
@pytest.mark.parametrize(("images", "count", "truths"), [(0, 5, 2), (2, 0, 2), (2, 5, 0), (0, 0, 0)])
def test_empty(device: str, images: int, count: int, truths: int):
    compare(inputs(images, count, truths=truths), device)


@each_device
@each_dtype
def test_memory_of_any_kind(device: str, dtype: torch.dtype):
    arguments = inputs(2, 50, dtype)
    lying = dict(
        deltas=arguments["deltas"].mT.contiguous().mT,
        matched=arguments["matched"].T.contiguous().T,
        boxes=arguments["boxes"].repeat_interleave(2, 1)[:, ::2],
        anchors=arguments["anchors"][:1].expand(50, 4),
        teacher_deltas=torch.cat([arguments["teacher_deltas"]] * 2, 2)[..., 2:6],
        mask=arguments["mask"][:, :1].expand(2, 50),
    )
    assert not any(value.is_contiguous() for value in lying.values())
    result = compare(lying, device)
    assert result[2].is_contiguous()


@each_device
@each_dtype
def test_not_aligned_to_vectors(device: str, dtype: torch.dtype):
    arguments = inputs(3, 31, dtype)
    shifted = {name: torch.cat([a.flatten()[:1], a.flatten()])[1:].view(a.shape) for name, a in arguments.items()}
    compare(shifted, device)


def test_the_same_sums_with_any_number_of_threads():
    arguments = inputs(2, 9000)
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
    arguments, weights = on(device, inputs(2, 5000)), torch.ones(2, 2, device=device)
    results = [with_gradient(box_losses, "deltas", arguments, weights) for _ in range(3)]
    assert all(torch.equal(a, b) for other in results[1:] for a, b in zip(results[0], other, strict=True))


@each_device
def test_only_the_students_deltas_have_a_gradient(device: str):
    arguments = on(device, inputs(1, 4))
    for name in ("teacher_deltas", "boxes", "anchors"):
        arguments[name].requires_grad_()
    assert not any(loss.requires_grad for loss in box_losses(**arguments))


@each_device
def test_there_is_no_second_derivative(device: str):
    arguments = on(device, inputs(1, 4))
    arguments["deltas"].requires_grad_()
    losses = box_losses(**arguments)
    (gradient,) = torch.autograd.grad(losses[0].sum() + losses[1].sum(), arguments["deltas"], create_graph=True)
    with pytest.raises(RuntimeError, match="box_losses has no second derivative; gid_cuda.reference.box_losses has"):
        torch.autograd.grad(gradient.sum(), arguments["deltas"])


@each_device
def test_opcheck(device: str):
    tensors = list(on(device, inputs(2, 7)).values())
    deltas, given, grad = tensors[0].requires_grad_(), tensors[1:], torch.rand(2, device=device)
    forward, backward = torch.ops.gid.box_losses.default, torch.ops.gid.box_losses_backward.default
    torch.library.opcheck(forward, (deltas, *given, 0.3, list(WEIGHTS)))
    torch.library.opcheck(backward, (grad, None, deltas.detach(), *given[:3], None, None, 0.1, list(WEIGHTS)))


GOOD = dict(
    deltas=torch.zeros(2, 5, 4),
    matched=torch.zeros(2, 5, dtype=torch.int64),
    boxes=torch.zeros(2, 3, 4),
    anchors=torch.zeros(5, 4),
    teacher_deltas=torch.zeros(2, 5, 4),
    mask=torch.zeros(2, 5, dtype=torch.bool),
    beta=0.1,
    weights=(1.0, 1.0, 1.0, 1.0),
)
META = {name: value.to("meta") for name, value in GOOD.items() if isinstance(value, torch.Tensor)}
ON_META = "is on meta, expected cpu, where deltas is"
MISTAKES = [
    (dict(deltas=[1]), TypeError, r"deltas is a list, expected a tensor \(B, R, 4\)"),
    (dict(deltas=torch.zeros(2, 5)), ValueError, r"deltas has shape \(2, 5\), expected \(B, R, 4\)"),
    (
        dict(deltas=torch.zeros(2, 5, 3)),
        ValueError,
        r"deltas has shape \(2, 5, 3\), expected \(B, R, 4\) = \(2, 5, 4\)",
    ),
    (
        dict(deltas=torch.zeros(2, 5, 4).double()),
        TypeError,
        "deltas is torch.float64, .*gid_cuda.reference.box_losses computes in float64",
    ),
    (dict(deltas=torch.zeros(2, 5, 4).long()), TypeError, "deltas is torch.int64, expected float32, float16 or"),
    (
        dict(matched=None),
        ValueError,
        "boxes is given but matched is not: matched, boxes, anchors go together",
    ),
    (
        dict(boxes=None),
        ValueError,
        "matched is given but boxes is not: matched, boxes, anchors go together",
    ),
    (
        dict(anchors=None, boxes=None),
        ValueError,
        "matched is given but boxes is not: matched, boxes, anchors go together",
    ),
    (dict(anchors=None), ValueError, "matched is given but anchors is not"),
    (dict(matched=[1]), TypeError, r"matched is a list, expected a tensor \(B, R\)"),
    (
        dict(matched=torch.zeros(1, 5, dtype=torch.int64)),
        ValueError,
        r"matched has shape \(1, 5\), expected \(B, R\) = \(2, 5\)",
    ),
    (dict(matched=torch.zeros(2, 5)), TypeError, "matched is torch.float32, expected torch.int64"),
    (dict(matched=META["matched"]), ValueError, f"matched {ON_META}"),
    (dict(boxes=torch.zeros(3, 4)), ValueError, r"boxes has shape \(3, 4\), expected \(B, N, 4\)"),
    (
        dict(boxes=torch.zeros(3, 3, 4)),
        ValueError,
        r"boxes has shape \(3, 3, 4\), expected \(B, N, 4\) = \(2, 3, 4\)",
    ),
    (dict(boxes=torch.zeros(2, 3, 4).half()), TypeError, "boxes is torch.float16, expected torch.float32"),
    (dict(boxes=META["boxes"]), ValueError, f"boxes {ON_META}"),
    (dict(anchors=torch.zeros(2, 5, 4)), ValueError, r"anchors has shape \(2, 5, 4\), expected \(R, 4\)"),
    (dict(anchors=torch.zeros(4, 4)), ValueError, r"anchors has shape \(4, 4\), expected \(R, 4\) = \(5, 4\)"),
    (dict(anchors=torch.zeros(5, 4).bfloat16()), TypeError, "anchors is torch.bfloat16, expected torch.float32"),
    (dict(anchors=META["anchors"]), ValueError, f"anchors {ON_META}"),
    (dict(mask=None), ValueError, "teacher_deltas is given but mask is not: teacher_deltas, mask go together"),
    (dict(teacher_deltas=None), ValueError, "mask is given but teacher_deltas is not"),
    (dict(teacher_deltas="no"), TypeError, r"teacher_deltas is a str, expected a tensor \(B, R, 4\)"),
    (
        dict(teacher_deltas=torch.zeros(2, 6, 4)),
        ValueError,
        r"teacher_deltas has shape \(2, 6, 4\), expected \(B, R, 4\) = \(2, 5, 4\)",
    ),
    (dict(teacher_deltas=torch.zeros(2, 5, 4).int()), TypeError, "teacher_deltas is torch.int32, expected float32"),
    (dict(teacher_deltas=META["teacher_deltas"]), ValueError, f"teacher_deltas {ON_META}"),
    (dict(mask=torch.zeros(5, dtype=torch.bool)), ValueError, r"mask has shape \(5,\), expected \(B, R\)"),
    (
        dict(mask=torch.zeros(2, 4, dtype=torch.bool)),
        ValueError,
        r"mask has shape \(2, 4\), expected \(B, R\) = \(2, 5\)",
    ),
    (dict(mask=torch.zeros(2, 5).byte()), TypeError, "mask is torch.uint8, expected torch.bool"),
    (dict(mask=META["mask"]), ValueError, f"mask {ON_META}"),
    (dict(beta=0), ValueError, "beta is 0, expected more"),
    (dict(beta=-0.1), ValueError, "beta is -0.1, expected at least 0"),
    (dict(beta=NAN), ValueError, "beta is nan, expected at least 0"),
    (dict(beta="x"), TypeError, "beta is a str, expected a number"),
    (dict(weights=1.0), TypeError, "weights is 1.0, expected four numbers"),
    (dict(weights=("1", 1, 1, 1)), TypeError, "weights is .*, expected four numbers"),
    (dict(weights=(1.0, 1.0)), ValueError, r"weights is \[1.0, 1.0\], expected four numbers above 0"),
    (dict(weights=(1, 1, 0, 1)), ValueError, r"weights is \[1, 1, 0, 1\], expected four numbers above 0"),
    (dict(weights=[1, 1, NAN, 1]), ValueError, "weights is .*, expected four numbers above 0"),
]


@pytest.mark.parametrize(("change", "error", "message"), MISTAKES)
def test_mistakes(change: dict, error: type[Exception], message: str):
    box_losses(**GOOD)
    with pytest.raises(error, match=f"^{message}"):
        box_losses(**GOOD | change)


WRONG = [
    (dict(deltas=torch.zeros(2, 5, 3), teacher_deltas=torch.zeros(2, 5, 3)), r"deltas must be \(B, R, 4\)"),
    (dict(deltas=torch.zeros(2, 5, 4).double()), "predictions must be"),
    (dict(matched=None), "matched goes with the ground truth"),
    (dict(boxes=None), "."),
    (dict(anchors=None), "."),
    (dict(teacher_deltas=None), "a teacher goes with a mask"),
    (dict(mask=None), "a teacher goes with a mask"),
    (dict(matched=torch.zeros(2, 4, dtype=torch.int64)), "matched has another shape"),
    (dict(matched=torch.zeros(2, 5)), "matched must be int64"),
    (dict(boxes=torch.zeros(3, 4)), r"boxes must be \(B, N, 4\)"),
    (dict(boxes=torch.zeros(3, 3, 4)), r"boxes must be \(2, 3, 4\)"),
    (dict(boxes=torch.zeros(2, 3, 4).half()), "boxes must be float32"),
    (dict(anchors=torch.zeros(5, 3)), r"anchors must be \(R, 4\) float32"),
    (dict(anchors=torch.zeros(4, 4)), "anchors must be one for each"),
    (dict(teacher_deltas=torch.zeros(2, 6, 4)), "the teacher's tensor has another shape"),
    (dict(teacher_deltas=torch.zeros(2, 5, 4).int()), "the teacher's tensor must be float32, float16 or bfloat16"),
    (dict(mask=torch.zeros(2, 4, dtype=torch.bool)), r"mask must be \(B, R\) bool"),
    (dict(mask=torch.zeros(2, 5)), r"mask must be \(B, R\) bool"),
    (dict(beta=0.0), "beta must be above 0"),
    (dict(beta=NAN), "beta must be above 0"),
    (dict(weights=[1.0]), "weights must be four numbers"),
]


@pytest.mark.parametrize(("change", "message"), WRONG)
def test_mistakes_of_those_who_call_torch_ops(change: dict, message: str):
    with pytest.raises(RuntimeError, match=message):
        torch.ops.gid.box_losses(**GOOD | change)


@pytest.mark.parametrize(
    ("change", "message"),
    [
        *WRONG,
        (dict(grad_l1=torch.zeros(3)), r"grad_l1 must be \(B,\) float32"),
        (dict(grad_response=torch.zeros(2).half()), r"grad_response must be \(B,\) float32"),
    ],
)
def test_mistakes_of_those_who_call_the_backward(change: dict, message: str):
    arguments = dict(grad_l1=torch.zeros(2), grad_response=torch.zeros(2)) | GOOD
    torch.ops.gid.box_losses_backward(**arguments)
    with pytest.raises(RuntimeError, match=message):
        torch.ops.gid.box_losses_backward(**arguments | change)
