from __future__ import annotations

import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st
from ops_helpers import INF, NAN, assert_near, each_device, each_dtype, moved

from gid_cuda import reference
from gid_cuda.ops import pairwise_distance


def compare(x: torch.Tensor, counts: torch.Tensor | None = None, device: str = "cpu") -> None:
    """Distances and gradient near those of the reference in float64."""
    ours = moved(x, device).detach().requires_grad_()
    theirs = x.double().detach().requires_grad_()
    distances = pairwise_distance(ours, None if counts is None else moved(counts, device))
    expected = reference.pairwise_distance(theirs, counts)
    assert distances.dtype == torch.float32
    assert_near(distances, expected, torch.float32)
    grad = torch.randn(distances.shape)
    distances.backward(grad.to(device))
    expected.backward(grad.double())
    assert ours.grad.dtype == x.dtype
    assert_near(ours.grad, theirs.grad, x.dtype)


@each_device
@each_dtype
@pytest.mark.parametrize("shape", [(2, 5, 7), (3, 10, 1600), (1, 33, 1025), (2, 1, 9), (1, 2, 3)])
def test_equals_the_reference(device: str, dtype: torch.dtype, shape: tuple[int, ...]):
    compare(torch.randn(shape).to(dtype), device=device)


@each_device
@pytest.mark.parametrize("counts", [[5, 0, 1], [2, 3, 4], [9, -1, 5], [2**32 + 2, 3 - 2**32, 4]])
def test_empty_slots(device: str, counts: list[int]):
    """Counts beyond 0..K, those of 33 bits too, stand for all and none."""
    x, counts = torch.randn(3, 5, 40), torch.tensor(counts)
    compare(x, counts, device)
    x[:, 4] = NAN
    compare(x, counts.clamp(max=4), device)  # what lies in them is not looked at


@each_device
@each_dtype
@settings(deadline=None, max_examples=30)
@given(
    values=st.lists(st.sampled_from([0.0, -0.0, 1.0, 1.0078125, -3.0, 1000.0, 2e-8, 6e4]), min_size=24, max_size=24),
    count=st.integers(0, 4),
)
def test_equals_the_reference_on_awkward_vectors(device: str, dtype: torch.dtype, values: list[float], count: int):
    compare(torch.tensor(values).to(dtype).view(1, 4, 6), torch.tensor([count]), device)


@each_device
def test_long_vectors_keep_their_digits(device: str):
    x = torch.full((1, 2, 60001), 1000.0)
    x[0, 1] += 2.0**-10
    expected = 2.0**-10 * 60001**0.5
    assert pairwise_distance(x.to(device))[0, 0, 1].item() == pytest.approx(expected, rel=1e-6)


@each_device
def test_equal_vectors_have_no_gradient(device: str):
    x = torch.ones(1, 3, 50, device=device, requires_grad=True)
    pairwise_distance(x).sum().backward()
    assert (x.grad == 0).all()


@each_device
@pytest.mark.parametrize("value", [NAN, INF])
def test_what_is_not_finite_shows_but_never_on_the_diagonal(device: str, value: float):
    x = torch.randn(1, 3, 20)
    x[0, 1, 7] = value
    distances = pairwise_distance(x.to(device)).cpu()
    assert torch.equal(distances.isfinite(), reference.pairwise_distance(x).isfinite())
    assert distances[0].isfinite().tolist() == [[True, False, True], [False, True, False], [True, False, True]]
    assert (distances[0].diagonal() == 0).all()


@each_device
@pytest.mark.parametrize("shape", [(0, 3, 4), (2, 0, 4), (2, 3, 0)])
def test_empty(device: str, shape: tuple[int, ...]):
    compare(torch.zeros(shape), device=device)


@each_device
def test_memory_of_any_kind(device: str):
    compare(torch.randn(30, 4, 2).permute(2, 1, 0), torch.tensor([4, 9, 3])[::2], device)
    compare(torch.randn(2, 1, 30).expand(2, 4, 30), device=device)
    x = torch.randn(2, 4, 30, device=device, requires_grad=True)
    pairwise_distance(x).sum().backward()  # an expanded gradient
    expected = torch.autograd.grad(reference.pairwise_distance(x).sum(), x)[0]
    assert_near(x.grad, expected, torch.float32)


@pytest.mark.parametrize("dtype", [torch.float32, torch.bfloat16])
def test_any_number_of_threads_gives_the_same(dtype: torch.dtype):
    x = torch.randn(2, 9, 700).to(dtype)
    grad = torch.randn(2, 9, 9)
    before, results = torch.get_num_threads(), []
    for threads in (1, 2, 3):
        torch.set_num_threads(threads)
        leaf = x.clone().requires_grad_()
        distances = pairwise_distance(leaf)
        results.append((distances, torch.autograd.grad(distances, leaf, grad)[0]))
    torch.set_num_threads(before)
    for distances, gradient in results[1:]:
        assert torch.equal(distances, results[0][0])
        assert torch.equal(gradient, results[0][1])


@each_device
def test_a_second_derivative_is_refused(device: str):
    x = torch.randn(1, 3, 5, device=device, requires_grad=True)
    (grad,) = torch.autograd.grad(pairwise_distance(x).square().sum(), x, create_graph=True)
    with pytest.raises(RuntimeError, match="^pairwise_distance has no second derivative; gid_cuda.reference.pairwise_"):
        grad.sum().backward()


@each_device
def test_opcheck(device: str):
    x = torch.randn(2, 4, 5, device=device, requires_grad=True)
    counts = torch.tensor([4, 2], device=device)
    torch.library.opcheck(torch.ops.gid.pairwise_distance.default, (x, counts))
    torch.library.opcheck(torch.ops.gid.pairwise_distance.default, (x,))
    distances = pairwise_distance(x.detach(), counts)
    arguments = (torch.ones_like(distances), x.detach(), distances, counts)
    torch.library.opcheck(torch.ops.gid.pairwise_distance_backward.default, arguments)


GOOD = dict(x=torch.zeros(2, 5, 3), counts=torch.zeros(2, dtype=torch.int64))
MISTAKES = [
    (dict(x=[1.0]), TypeError, r"x is a list, expected a tensor \(B, K, D\)"),
    (dict(x=torch.zeros(2, 5)), ValueError, r"x has shape \(2, 5\), expected \(B, K, D\)"),
    (
        dict(x=torch.zeros(2, 5, 3, dtype=torch.float64)),
        TypeError,
        "x is torch.float64, .*gid_cuda.reference.pairwise_distance computes in float64",
    ),
    (dict(x=torch.zeros(2, 5, 3, dtype=torch.int32)), TypeError, "x is torch.int32, expected float32"),
    (dict(counts=[2, 2]), TypeError, r"counts is a list, expected a tensor \(B,\)"),
    (dict(counts=torch.zeros(2, 1)), ValueError, r"counts has shape \(2, 1\), expected \(B,\)"),
    (
        dict(counts=torch.zeros(3, dtype=torch.int64)),
        ValueError,
        r"counts has shape \(3,\), expected \(B,\) = \(2,\)",
    ),
    (dict(counts=torch.zeros(2, dtype=torch.int32)), TypeError, "counts is torch.int32, expected torch.int64"),
    (
        dict(counts=torch.zeros(2, dtype=torch.int64, device="meta")),
        ValueError,
        "counts is on meta, expected cpu, where x is",
    ),
]


@pytest.mark.parametrize(("change", "error", "message"), MISTAKES)
def test_mistakes(change: dict, error: type[Exception], message: str):
    pairwise_distance(**GOOD)
    with pytest.raises(error, match=f"^{message}"):
        pairwise_distance(**GOOD | change)


@pytest.mark.parametrize(
    ("change", "message"),
    [
        (dict(x=torch.zeros(2, 5)), r"x must be \(B, K, D\) in float32, float16 or bfloat16"),
        (dict(x=torch.zeros(2, 5, 3, dtype=torch.float64)), r"x must be \(B, K, D\) in float32, float16 or bfloat16"),
        (dict(counts=torch.zeros(2)), "counts must be int64"),
        (dict(counts=torch.zeros(3, dtype=torch.int64)), "counts has another shape"),
    ],
)
def test_mistakes_of_those_who_call_torch_ops(change: dict, message: str):
    with pytest.raises(RuntimeError, match=message):
        torch.ops.gid.pairwise_distance(**GOOD | change)


@pytest.mark.parametrize("grad", [torch.zeros(2, 5, 4), torch.zeros(2, 5, 5).half()])
def test_mistakes_of_those_who_call_the_backward(grad: torch.Tensor):
    x = torch.zeros(2, 5, 3)
    with pytest.raises(RuntimeError, match=r"grad and distances must be \(B, K, K\) float32"):
        torch.ops.gid.pairwise_distance_backward(grad, x, torch.zeros(2, 5, 5), None)
