from __future__ import annotations

import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st
from ops_helpers import INF, NAN, assert_near, each_device, each_dtype, moved, random_boxes, torchvision_ops

from gid_cuda import reference
from gid_cuda.ops import multilevel_roi_align

STRIDES = [4, 8, 16]
PYRAMID = dict(strides=STRIDES, canonical_size=56.0)  # levels change at sides of 28 and 56 pixels
each_format = pytest.mark.parametrize("channels_last", [False, True], ids=["contiguous", "channels_last"])


def pyramid(images: int, channels: int, extent: int = 96, channels_last: bool = False) -> list[torch.Tensor]:
    memory = torch.channels_last if channels_last else torch.contiguous_format
    shapes = [(images, channels, extent // s, extent // s + 3) for s in STRIDES]
    return [torch.randn(shape).contiguous(memory_format=memory) for shape in shapes]


def compare(features, boxes, counts=None, device="cpu", **options):
    """Output and gradients near those of the reference in float64, and gradients as the features lie in memory."""
    dtype = features[0].dtype
    options = PYRAMID | dict(output_size=3) | options
    places = None if counts is None else moved(counts, device)
    ours = [moved(f, device).detach().requires_grad_() for f in features]
    theirs = [f.double().detach().requires_grad_() for f in features]
    output = multilevel_roi_align(ours, moved(boxes, device), places, **options)
    expected = reference.multilevel_roi_align(theirs, boxes, counts, **options)
    assert output.dtype == dtype
    assert_near(output, expected, dtype)
    grad = torch.randn(expected.shape).to(dtype)
    gradients = torch.autograd.grad(output, ours, grad.to(device))
    for feature, actual, gradient in zip(
        ours, gradients, torch.autograd.grad(expected, theirs, grad.double()), strict=True
    ):
        assert actual.dtype == dtype
        assert actual.stride() == torch.empty_like(feature).stride()
        assert_near(actual, gradient, dtype, scale=4.0)


@each_device
@each_dtype
@each_format
@pytest.mark.parametrize("ratio", [2, 0, 1])
@pytest.mark.parametrize("aligned", [True, False])
def test_equals_the_reference(device: str, dtype: torch.dtype, channels_last: bool, ratio: int, aligned: bool):
    features = [f.to(dtype) for f in pyramid(2, 5, channels_last=channels_last)]
    boxes = random_boxes(2, 9, 96.0, -3.0, 90.0)
    compare(features, boxes, torch.tensor([7, 9]), device, sampling_ratio=ratio, aligned=aligned)


@each_device
@each_format
@pytest.mark.parametrize(("channels", "bins"), [(1, 1), (67, 10), (33, 7)])
def test_sizes(device: str, channels_last: bool, channels: int, bins: int):
    features, boxes = pyramid(2, channels, channels_last=channels_last), random_boxes(2, 3, 96.0, 5.0, 90.0)
    compare(features, boxes, device=device, output_size=bins)


@each_device
@settings(deadline=None, max_examples=60)
@given(
    corners=st.lists(
        st.sampled_from([0.0, -4.0, -4.000001, 2.0, 17.3, 28.0, 56.0, 95.9, 96.0, 98.0, 400.0, 1e9, -1e9, 3e38, -3e38])
        | st.sampled_from([NAN, INF, -INF]),
        min_size=12,
        max_size=12,
    ),
    channels_last=st.booleans(),
    aligned=st.booleans(),
    count=st.integers(0, 3),
)
def test_equals_the_reference_on_awkward_boxes(device: str, corners, channels_last: bool, aligned: bool, count: int):
    boxes = torch.tensor(corners).view(1, 3, 4)
    compare(pyramid(1, 2, channels_last=channels_last), boxes, torch.tensor([count]), device, aligned=aligned)


@each_device
def test_an_absurd_box_with_adaptive_sampling_ends(device: str):
    boxes = torch.tensor([[[-1e30, 0, 1e30, 90], [-1e6, -1e6, 1e6, 1e6], [NAN, 0, 1e30, 9]]])
    compare(pyramid(1, 2), boxes, device=device, sampling_ratio=0, output_size=1)


@each_device
@pytest.mark.parametrize("counts", [[0, 3], [-1, 4]])  # beyond 0..K: none, all
def test_empty_slots_are_zero_and_take_no_gradient(device: str, counts: list[int]):
    features = [f.requires_grad_() for f in pyramid(2, 3)]
    boxes = torch.tensor([[1.0, 2.0, 30.0, 40.0], [5.0, 60.0, 25.0, 70.0], [0.0, 0.0, 90.0, 90.0]]).repeat(2, 1, 1)
    boxes[0] = NAN  # what lies in empty slots is not looked at
    ours = [f.to(device) for f in features]
    output = multilevel_roi_align(ours, boxes.to(device), torch.tensor(counts, device=device), **PYRAMID)
    assert (output[0] == 0).all()
    assert (output[1] != 0).all()
    output.sum().backward()
    assert all((f.grad[0] == 0).all() for f in features)
    assert any((f.grad[1] != 0).any() for f in features)


@each_device
def test_each_box_reads_its_own_level(device: str):
    features = [torch.full((1, 2, 96 // s, 96 // s), float(s), device=device) for s in STRIDES]
    sides = torch.tensor([10.0, 27.99, 28.0, 55.9, 56.0, 80.0])
    boxes = torch.stack([sides * 0, sides * 0, sides, sides], dim=1)[None].to(device)
    pooled = multilevel_roi_align(features, boxes, **PYRAMID)
    levels = torch.tensor([[4.0, 4.0, 8.0, 8.0, 16.0, 16.0]])
    # The weights of a bin's samples, rounded, need not come to exactly 1.
    torch.testing.assert_close(pooled.amax(dim=(2, 3, 4)).cpu(), levels, rtol=1e-6, atol=0)


@each_device
@pytest.mark.parametrize("ratio", [2, 0])
@pytest.mark.parametrize("aligned", [True, False])
def test_equals_torchvision_given_the_level(device: str, ratio: int, aligned: bool):
    ops = torchvision_ops()
    feature = torch.randn(2, 4, 20, 30)
    boxes = random_boxes(2, 20, 230.0, -5.0, 150.0)
    rois = torch.cat([torch.arange(2.0).repeat_interleave(20)[:, None], boxes.view(40, 4)], dim=1)
    expected = ops.roi_align(feature, rois, 7, 1 / 8, ratio, aligned).view(2, 20, 4, 7, 7)
    options = dict(strides=[8], output_size=7, sampling_ratio=ratio, aligned=aligned)
    assert_near(multilevel_roi_align([feature.to(device)], boxes.to(device), **options), expected, torch.float32)


@each_device
@pytest.mark.parametrize(("images", "slots", "channels"), [(0, 3, 2), (2, 0, 2), (2, 3, 0)])
def test_empty(device: str, images: int, slots: int, channels: int):
    compare(pyramid(images, channels), random_boxes(images, slots, 96.0, 5.0, 90.0), device=device)


@each_device
def test_memory_of_any_kind(device: str):
    boxes = random_boxes(2, 6, 96.0, 5.0, 90.0)
    wide = pyramid(2, 8, extent=192)
    strided = [f[:, ::2, : f.shape[2] // 2, 1::2] for f in wide]
    compare(strided, boxes[:, ::2], torch.tensor([2, 9, 3])[::2], device)
    transposed = [f.transpose(2, 3) for f in pyramid(2, 4)]
    compare(transposed, boxes.transpose(0, 1).contiguous().transpose(0, 1), device=device)
    mixed = [f if i else f.contiguous(memory_format=torch.channels_last) for i, f in enumerate(pyramid(2, 4))]
    compare(mixed, boxes, device=device)
    compare([f[:1].expand(2, -1, -1, -1) for f in pyramid(2, 4)], boxes, device=device)


@each_device
def test_a_gradient_that_is_not_contiguous(device: str):
    features = [f.to(device).requires_grad_() for f in pyramid(1, 3)]
    boxes = random_boxes(1, 4, 96.0, 5.0, 90.0).to(device)
    gradients = torch.autograd.grad(multilevel_roi_align(features, boxes, **PYRAMID).sum(), features)
    expected = torch.autograd.grad(reference.multilevel_roi_align(features, boxes, **PYRAMID).sum(), features)
    for actual, gradient in zip(gradients, expected, strict=True):
        assert_near(actual, gradient, torch.float32, scale=10.0)


@each_device
def test_features_that_need_no_gradient_get_none(device: str):
    fine, middle, coarse = (f.to(device) for f in pyramid(1, 3))
    output = multilevel_roi_align(
        [fine, middle.requires_grad_(), coarse], torch.rand(1, 4, 4, device=device), **PYRAMID
    )
    output.sum().backward()
    assert fine.grad is None and coarse.grad is None
    assert middle.grad is not None


@each_device
@each_format
def test_backward_is_bit_reproducible_when_torch_is_told_so(device: str, channels_last: bool):
    features = [f.to(device).requires_grad_() for f in pyramid(2, 5, channels_last=channels_last)]
    boxes = random_boxes(2, 1, 60.0, 20.0, 60.0).repeat(1, 40, 1).to(device)  # all add to the same cells
    grad = torch.randn(2, 40, 5, 10, 10, device=device)
    torch.use_deterministic_algorithms(True)
    try:
        first, *others = (
            torch.autograd.grad(multilevel_roi_align(features, boxes, **PYRAMID), features, grad) for _ in range(4)
        )
    finally:
        torch.use_deterministic_algorithms(False)
    for other in others:
        assert all(torch.equal(a, b) for a, b in zip(first, other, strict=True))


@each_device
@each_dtype
@each_format
def test_both_forms_of_the_backward_agree(device: str, dtype: torch.dtype, channels_last: bool):
    """The deterministic one, which autograd takes, and on CUDA the one with atomic additions."""
    features = [f.to(device, dtype) for f in pyramid(2, 37, channels_last=channels_last)]
    features[1] = features[1][..., ::2]
    boxes, counts = random_boxes(2, 20, 90.0, 10.0, 80.0), torch.tensor([20, 13])
    grad = torch.randn(2, 20, 37, 3, 3).to(dtype)
    options = (STRIDES, 3, 2, 56.0, 4, True)
    exact = reference.multilevel_roi_align_backward(
        grad.double(), [f.cpu().double() for f in features], boxes, counts, *options
    )
    arguments = (grad.to(device), features, boxes.to(device), counts.to(device), *options)
    for deterministic in (True, False):
        gradients = torch.ops.gid.multilevel_roi_align_backward(*arguments, deterministic=deterministic)
        for feature, gradient, expected in zip(features, gradients, exact, strict=True):
            assert gradient.stride() == torch.empty_like(feature).stride()
            assert_near(gradient, expected, dtype, scale=4.0)


@each_dtype
@each_format
def test_any_number_of_threads_gives_the_same(dtype: torch.dtype, channels_last: bool):
    features = [f.to(dtype).requires_grad_() for f in pyramid(2, 40, channels_last=channels_last)]
    boxes, grad = random_boxes(2, 20, 90.0, 10.0, 80.0), torch.randn(2, 20, 40, 3, 3).to(dtype)
    before, results = torch.get_num_threads(), []
    for threads in (1, 2, 3):
        torch.set_num_threads(threads)
        output = multilevel_roi_align(features, boxes, output_size=3, **PYRAMID)
        results.append([output, *torch.autograd.grad(output, features, grad)])
    torch.set_num_threads(before)
    for result in results[1:]:
        assert all(torch.equal(a, b) for a, b in zip(result, results[0], strict=True))


@each_device
def test_a_second_derivative_is_refused(device: str):
    features = [f.to(device).requires_grad_() for f in pyramid(1, 3)]
    output = multilevel_roi_align(features, random_boxes(1, 4, 96.0, 5.0, 90.0).to(device), **PYRAMID)
    grads = torch.autograd.grad(output.square().sum(), features, create_graph=True)
    with pytest.raises(RuntimeError, match="^multilevel_roi_align has no second derivative; gid_cuda.reference.multi"):
        grads[0].sum().backward()


@each_device
def test_opcheck(device: str):
    features = [f.to(device).requires_grad_() for f in pyramid(2, 3, extent=48)]
    boxes = random_boxes(2, 3, 48.0, 5.0, 40.0).to(device)
    counts = torch.tensor([3, 1], device=device)
    operator = torch.ops.gid.multilevel_roi_align.default
    torch.library.opcheck(operator, (features, boxes, counts, STRIDES, 2, 2, 56.0, 4, True))
    torch.library.opcheck(operator, (features, boxes, None, STRIDES))
    plain = [f.detach() for f in features]
    grad = torch.randn(2, 3, 3, 2, 2, device=device)
    arguments = (grad, plain, boxes, counts, STRIDES, 2, 2, 56.0, 4, True)
    torch.library.opcheck(torch.ops.gid.multilevel_roi_align_backward.default, arguments)
    # Without AOT's check, which wants the same bits from two calls.
    torch.library.opcheck(
        torch.ops.gid.multilevel_roi_align_backward.default,
        (*arguments, False),
        test_utils=("test_schema", "test_autograd_registration", "test_faketensor"),
    )


GOOD = dict(
    features=[torch.zeros(2, 3, 8, 8), torch.zeros(2, 3, 4, 4)],
    boxes=torch.zeros(2, 5, 4),
    counts=torch.zeros(2, dtype=torch.int64),
    strides=[8, 16],
)
FINE, COARSE = GOOD["features"]
MISTAKES = [
    (dict(features=FINE), TypeError, r"features is a Tensor, expected a list of tensors \(B, Ch, H, W\)"),
    (dict(features=[]), ValueError, "features has 0 levels, expected 1 to 8"),
    (dict(features=[FINE] * 9), ValueError, "features has 9 levels, expected 1 to 8"),
    (dict(features=[FINE, None]), TypeError, r"features\[1\] is a NoneType, expected a tensor \(B, Ch, H, W\)"),
    (
        dict(features=[FINE[0], COARSE]),
        ValueError,
        r"features\[0\] has shape \(3, 8, 8\), expected \(B, Ch, H, W\)",
    ),
    (
        dict(features=[FINE, COARSE[:, :2]]),
        ValueError,
        r"features\[1\] has shape \(2, 2, 4, 4\), expected \(2, 3, H, W\) with H, W at least 1",
    ),
    (
        dict(features=[FINE, COARSE[..., :0]]),
        ValueError,
        r"features\[1\] has shape \(2, 3, 4, 0\), expected \(2, 3, H, W\) with H, W at least 1",
    ),
    (
        dict(features=[FINE.double(), COARSE.double()]),
        TypeError,
        r"features\[0\] is torch.float64, .*gid_cuda.reference.multilevel_roi_align computes in float64",
    ),
    (dict(features=[FINE, COARSE.half()]), TypeError, r"features\[1\] is torch.float16, expected torch.float32"),
    (
        dict(features=[FINE, COARSE.to("meta")]),
        ValueError,
        r"features\[1\] is on meta, expected cpu, where features\[0\] is",
    ),
    (dict(strides=None), TypeError, "strides is None, expected a list of ints"),
    (dict(strides=[8.0, 16.0]), TypeError, r"strides is \[8.0, 16.0\], expected a list of ints"),
    (dict(strides=[8]), ValueError, "strides has 1 entries, expected one for each of the 2 levels"),
    (dict(strides=[8, 12]), ValueError, r"strides is \[8, 12\], expected ascending powers of two"),
    (dict(strides=[16, 8]), ValueError, r"strides is \[16, 8\], expected ascending powers of two"),
    (dict(strides=[0, 8]), ValueError, r"strides is \[0, 8\], expected ascending powers of two"),
    (dict(boxes=[[0.0]]), TypeError, r"boxes is a list, expected a tensor \(B, K, 4\)"),
    (dict(boxes=torch.zeros(5, 4)), ValueError, r"boxes has shape \(5, 4\), expected \(B, K, 4\)"),
    (dict(boxes=torch.zeros(1, 5, 4)), ValueError, r"boxes has shape \(1, 5, 4\), expected .* = \(2, 5, 4\)"),
    (dict(boxes=torch.zeros(2, 5, 4).half()), TypeError, "boxes is torch.float16, expected torch.float32"),
    (
        dict(boxes=torch.zeros(2, 5, 4, device="meta")),
        ValueError,
        r"boxes is on meta, expected cpu, where features\[0\] is",
    ),
    (dict(counts=5), TypeError, r"counts is a int, expected a tensor \(B,\)"),
    (
        dict(counts=torch.zeros(5, dtype=torch.int64)),
        ValueError,
        r"counts has shape \(5,\), expected \(B,\) = \(2,\)",
    ),
    (dict(counts=torch.zeros(2)), TypeError, "counts is torch.float32, expected torch.int64"),
    (
        dict(counts=torch.zeros(2, dtype=torch.int64, device="meta")),
        ValueError,
        "counts is on meta, expected cpu, where boxes is",
    ),
    (dict(output_size=0), ValueError, "output_size is 0, expected at least 1"),
    (dict(output_size=(7, 7)), TypeError, "output_size is a tuple, expected an int"),
    (dict(sampling_ratio=1.5), TypeError, "sampling_ratio is a float, expected an int"),
    (dict(canonical_size=-224.0), ValueError, "canonical_size is -224.0, expected at least 0"),
    (dict(canonical_level=4.0), TypeError, "canonical_level is a float, expected an int"),
    (dict(aligned="no"), TypeError, "aligned is a str, expected a bool"),
]


@pytest.mark.parametrize(("change", "error", "message"), MISTAKES)
def test_mistakes(change: dict, error: type[Exception], message: str):
    multilevel_roi_align(**GOOD)
    with pytest.raises(error, match=f"^{message}"):
        multilevel_roi_align(**GOOD | change)


@pytest.mark.parametrize(
    ("change", "message"),
    [
        (dict(features=[]), "features must be 1 to 8 tensors"),
        (dict(features=[FINE[0], COARSE]), r"features must be \(B, Ch, H, W\)"),
        (dict(features=[FINE, COARSE[:, :2]]), "features must agree in B and Ch"),
        (dict(features=[FINE.double(), COARSE.double()]), "features must be float32, float16 or bfloat16"),
        (dict(features=[FINE, COARSE.half()]), "features must agree in dtype and device"),
        (dict(strides=[8]), "strides must have one entry for each of features"),
        (dict(strides=[8, 12]), "strides must be ascending powers of two"),
        (dict(boxes=torch.zeros(5, 4)), r"boxes must be \(B, K, 4\)"),
        (dict(boxes=torch.zeros(2, 5, 4).half()), "boxes must be float32"),
        (dict(counts=torch.zeros(2)), "counts must be int64"),
        (dict(output_size=0), "output_size must be at least 1"),
    ],
)
def test_mistakes_of_those_who_call_torch_ops(change: dict, message: str):
    with pytest.raises(RuntimeError, match=message):
        torch.ops.gid.multilevel_roi_align(**GOOD | change)


@pytest.mark.parametrize(
    ("grad", "message"),
    [
        (torch.zeros(2, 5, 3, 2, 1), "grad must have the output's shape"),
        (torch.zeros(2, 5, 3, 2, 2).half(), "grad must have the features' dtype and device"),
    ],
)
def test_mistakes_of_those_who_call_the_backward(grad: torch.Tensor, message: str):
    with pytest.raises(RuntimeError, match=message):
        torch.ops.gid.multilevel_roi_align_backward(
            grad, GOOD["features"], GOOD["boxes"], None, [8, 16], 2, 2, 224.0, 4, True
        )
