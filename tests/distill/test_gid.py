"""The criterion as a whole: against a naive one, and what must hold for any outputs."""

from __future__ import annotations

import copy
from dataclasses import replace

import pytest
import torch
from torch import Tensor
from torch.utils._python_dispatch import TorchDispatchMode

from gid_cuda.detectors.outputs import BoxCoder, DetectorOutputs
from gid_cuda.distill import GID, LOSS_NAMES, check_anchors

from . import naive
from .fakes import FakeDetector, captured, exact_outputs, leaves, random_outputs, random_targets


def double(outputs: DetectorOutputs) -> DetectorOutputs:
    """The same outputs in float64, with leaves of their own."""

    def leaf(x: Tensor) -> Tensor:
        return x.detach().cpu().double().requires_grad_(x.requires_grad)

    result = replace(
        outputs,
        features=[leaf(x) for x in outputs.features],
        logits=leaf(outputs.logits),
        deltas=leaf(outputs.deltas),
        anchors=outputs.anchors.cpu(),
        image_sizes=outputs.image_sizes.cpu(),
    )
    result._boxes = outputs.boxes.cpu()  # decoded in float32, as the contract has it
    return result


def randomise(gid: GID, seed: int) -> None:
    make = torch.Generator().manual_seed(seed)
    with torch.no_grad():
        for parameter in gid.parameters():
            parameter += (0.3 * torch.randn(parameter.shape, generator=make)).to(parameter)


def assert_as_naive(gid: GID, teacher: DetectorOutputs, student: DetectorOutputs, targets: list | None = None) -> None:
    """Values, instances and all gradients."""
    losses, found = gid(teacher, student, FakeDetector(), targets)
    sum(losses.values()).backward()

    their_teacher, their_student = double(teacher), double(student)
    adapt = None if gid.adapt is None else copy.deepcopy(gid.adapt).cpu().double()
    boxes = naive.select(their_teacher, their_student, gid.top_k)
    if isinstance(gid.kinds, tuple):
        boxes = [[b for b in row if naive.kind(b, t) in gid.kinds] for row, t in zip(boxes, targets, strict=True)]
    if gid.kinds == "ground_truth":
        boxes = [[] if t is None else t["boxes"].tolist() for t in targets]
    assert found.counts.tolist() == [len(row) for row in boxes]
    for image, row in enumerate(boxes):
        torch.testing.assert_close(found.boxes[image, : len(row)].cpu(), torch.tensor(row).reshape(-1, 4))

    how = {"bins": gid.output_size, "reduction": gid.reduction, "scope": gid.scope}
    expected = naive.losses(their_teacher, their_student, adapt, boxes, **how)
    sum(expected.values()).backward()
    assert losses.keys() == expected.keys()
    for name, loss in losses.items():
        assert loss.dtype == torch.float32 and loss.shape == ()
        torch.testing.assert_close(loss.cpu().double(), expected[name], rtol=2e-5, atol=1e-6)
    theirs = [*leaves(their_student), *([] if adapt is None else adapt.parameters())]
    for ours, other in zip([*leaves(student), *gid.parameters()], theirs, strict=True):
        gradient = torch.zeros_like(other) if other.grad is None else other.grad
        torch.testing.assert_close(ours.grad.cpu().double(), gradient, rtol=1e-4, atol=1e-5)
    assert all(x.grad is None for x in leaves(teacher))


@pytest.mark.parametrize(
    ("channels", "options"),
    [
        ((4, 4), {}),
        ((4, 4), {"reduction": "pixel", "scope": "batch", "adapt": "3x3"}),
        ((4, 4), {"adapt": "none"}),
        ((3, 5), {"scope": "batch", "top_k": 3}),
        ((5, 3), {"adapt": "3x3", "top_k": 1}),
        ((4, 4), {"kinds": ["negative", "positive"], "top_k": 20}),
        ((4, 4), {"kinds": ["semi-positive"], "scope": "batch", "top_k": 20}),
        ((4, 4), {"kinds": "ground_truth"}),
    ],
)
@pytest.mark.parametrize("seed", [0, 1])
def test_equals_the_naive_one(channels: tuple[int, int], options: dict, seed: int, device: str) -> None:
    teacher = random_outputs(batch=3, channels=channels[1], seed=2 * seed, grad=True, device=device)
    student = random_outputs(batch=3, channels=channels[0], seed=2 * seed + 1, grad=True, device=device)
    gid = GID(*channels, output_size=3, **options)
    randomise(gid, seed)
    assert_as_naive(gid.to(device), teacher, student, random_targets(3, seed=seed, device=device))


def test_an_image_without_instances_among_others(device: str) -> None:
    teacher, student = (random_outputs(batch=3, seed=seed, grad=True, device=device) for seed in (0, 1))
    for outputs in (teacher, student):
        outputs.deltas.data[1] = 0  # no size
    gid = GID(4, 4, output_size=3)
    randomise(gid, 0)
    assert_as_naive(gid.to(device), teacher, student)


@pytest.mark.parametrize("scope", ["image", "batch"])
@pytest.mark.parametrize("adapt", ["1x1", "3x3", "none"])
def test_no_instances_at_all(scope: str, adapt: str, device: str) -> None:
    teacher, student = (random_outputs(seed=seed, grad=True, device=device) for seed in (0, 1))
    for outputs in (teacher, student):
        outputs.deltas.data.zero_()
    gid = GID(4, 4, scope=scope, adapt=adapt).to(device)
    losses, found = gid(teacher, student, FakeDetector())
    assert found.counts.tolist() == [0, 0] and [x.item() for x in losses.values()] == [0] * 4
    sum(losses.values()).backward()
    for x in [*leaves(student), *gid.parameters()]:  # gradients of zero, not none: processes must agree on which exist
        assert x.grad is not None and not x.grad.any()


@pytest.mark.parametrize("reduction", ["instance", "pixel"])
@pytest.mark.parametrize("scope", ["image", "batch"])
@pytest.mark.parametrize("adapt", ["1x1", "3x3", "none"])
@pytest.mark.parametrize("dtype", [torch.float32, torch.bfloat16])
def test_student_equals_teacher(reduction: str, scope: str, adapt: str, dtype: torch.dtype, device: str) -> None:
    teacher = random_outputs(seed=0, dtype=dtype, device=device)
    student = random_outputs(seed=0, dtype=dtype, grad=True, device=device)
    gid = GID(4, 4, reduction=reduction, scope=scope, adapt=adapt).to(device)
    losses, found = gid(teacher, student, FakeDetector())
    assert (found.counts > 1).all() and [x.item() for x in losses.values()] == [0] * 4
    sum(losses.values()).backward()
    for x in [*leaves(student), *gid.parameters()]:
        assert x.grad is not None and not x.grad.any()


@pytest.mark.parametrize(("batch", "count"), [(0, 1), (1, 1), (2, 1), (2, 2)])
def test_one_and_two_instances_an_image(batch: int, count: int) -> None:
    # two instances have one distance, which is its own mean: no relation loss, and no gradient but rounding
    boxes = torch.tensor([[10.0, 10, 60, 60], [100, 100, 160, 160]])

    def outputs() -> DetectorOutputs:
        features = torch.randn(batch, 3, 32, 32, requires_grad=True)
        return exact_outputs(boxes[:count], torch.randn(batch, count, 2), [features])

    student = outputs()
    gid = GID(3, 3)
    losses, found = gid(outputs(), student, FakeDetector())
    assert found.counts.tolist() == [count] * batch and losses["loss_relation"] == 0
    sum(losses.values()).backward()
    assert student.features[0].grad.isfinite().all() and all(p.grad.isfinite().all() for p in gid.parameters())
    if batch:
        assert losses["loss_feature"] > 0 and losses["loss_response_cls"] > 0


def test_images_without_ground_truth_are_distilled_as_any_other() -> None:
    teacher, student = random_outputs(seed=0), random_outputs(seed=1)
    plain, _ = GID(4, 4)(teacher, student, FakeDetector())
    none = [{"boxes": torch.zeros(0, 4)}, None]
    same, _ = GID(4, 4)(teacher, student, FakeDetector(), none)
    assert plain == same
    # their instances are negative, those of unlabelled images of no kind
    _, found = GID(4, 4, kinds=["negative"])(teacher, student, FakeDetector(), none)
    _, all_of_them = GID(4, 4)(teacher, student, FakeDetector())
    assert found.counts.tolist() == [int(all_of_them.counts[0]), 0]
    _, found = GID(4, 4, kinds=["positive", "semi-positive"])(teacher, student, FakeDetector(), none)
    assert found.counts.tolist() == [0, 0]


def test_wider_teacher() -> None:
    teacher, student = random_outputs(channels=256, seed=0), random_outputs(channels=64, seed=1, grad=True)
    gid = GID(64, 256)
    losses, _ = gid(teacher, student, FakeDetector())
    sum(losses.values()).backward()
    assert all(loss > 0 for loss in losses.values())
    assert student.features[0].grad.any() and all(p.grad.any() for p in gid.parameters())


def test_low_precision_outputs_and_autocast_change_nothing_but_rounding(device: str) -> None:
    teacher, student = (random_outputs(seed=seed, grad=True, dtype=torch.bfloat16, device=device) for seed in (0, 1))
    gid = GID(4, 4, output_size=3)
    randomise(gid, 0)
    gid.to(device)
    with torch.autocast(device, dtype=torch.bfloat16):
        losses, found = gid(teacher, student, FakeDetector())
    again, _ = gid(teacher, student, FakeDetector())
    assert {name: x.item() for name, x in losses.items()} == {name: x.item() for name, x in again.items()}
    assert all(loss.dtype == torch.float32 for loss in losses.values())
    # the same numbers in float32: the crops alone are rounded
    wide = [random_outputs(seed=seed, dtype=torch.bfloat16, device=device) for seed in (0, 1)]
    for outputs in wide:
        outputs.features = [x.float() for x in outputs.features]
    exact, same = gid(*wide, FakeDetector())
    assert torch.equal(found.indices, same.indices)
    for name, loss in losses.items():
        torch.testing.assert_close(loss, exact[name], rtol=2e-2, atol=1e-4)
    sum(losses.values()).backward()
    assert all(x.grad.dtype == torch.bfloat16 and x.grad.isfinite().all() for x in leaves(student))


@pytest.mark.parametrize(
    ("off", "names"),
    [
        ({"lambda_feature": 0}, ["loss_feature"]),
        ({"lambda_relation": 0}, ["loss_relation"]),
        ({"lambda_response": 0}, ["loss_response_cls", "loss_response_reg"]),
        ({"top_k": 0}, list(LOSS_NAMES)),
        ({"top_k": 0, "kinds": "ground_truth"}, list(LOSS_NAMES)),
    ],
)
def test_terms_that_are_off(off: dict, names: list[str]) -> None:
    teacher, student = random_outputs(seed=0), random_outputs(seed=1, grad=True)
    whole, _ = GID(4, 4)(teacher, student, FakeDetector())
    losses, _ = GID(4, 4, **off)(teacher, student, FakeDetector())
    assert list(losses) == list(LOSS_NAMES)
    assert {name: x.item() for name, x in losses.items()} == {
        name: 0.0 if name in names else x.item() for name, x in whole.items()
    }
    (student.logits.sum() + sum(losses.values())).backward()  # beside a task loss


def test_response_alone_asks_for_no_features_and_features_for_no_detector() -> None:
    teacher, student = random_outputs(seed=0), random_outputs(seed=1)
    gid = GID(4, 4, lambda_feature=0, lambda_relation=0)
    assert list(gid.parameters()) == []  # nothing whose gradient DistributedDataParallel would wait for
    assert list(GID(4, 4, top_k=0).parameters()) == []
    for outputs in (teacher, student):
        outputs.features = [x.double() for x in outputs.features]  # operators refuse these
    assert gid(teacher, student, FakeDetector())[0]["loss_response_cls"] > 0
    teacher, student = random_outputs(seed=0), random_outputs(seed=1)
    assert GID(4, 4, lambda_response=0)(teacher, student, None)[0]["loss_feature"] > 0


class Forbid(TorchDispatchMode):
    """Fails at operators whose return or whose result's shape hangs on values: a GPU would keep the host waiting."""

    WAITS = ("_local_scalar_dense", "nonzero", "masked_select", "is_nonzero", "equal", "unique", "repeat_interleave")

    def __torch_dispatch__(self, func, types, args=(), kwargs=None):
        name = func.name().split("::")[1].split(".")[0]
        assert name not in self.WAITS, f"{name} waits for the device"
        assert name != "index" or not any(x is not None and x.dtype in (torch.bool, torch.uint8) for x in args[1])
        assert name != "lift_fresh", "a tensor made from Python numbers is copied to the device"
        return func(*args, **(kwargs or {}))


@pytest.mark.parametrize(
    "options",
    [{}, {"scope": "batch", "pre_nms_top_k": 50}, {"kinds": ["positive", "negative"]}, {"kinds": "ground_truth"}],
)
def test_the_host_waits_for_nothing(options: dict) -> None:
    teacher, student = random_outputs(seed=0), random_outputs(seed=1, grad=True)
    targets = random_targets(2, seed=0)
    gid = GID(4, 4, **options)
    with Forbid():
        losses, _ = gid(teacher, student, FakeDetector(), targets)
        sum(losses.values()).backward()
    with pytest.raises(AssertionError, match="waits"), Forbid():
        losses["loss_feature"].item()


@pytest.mark.cuda
@pytest.mark.skipif(not torch.cuda.is_available(), reason="needs a GPU")
def test_forward_and_backward_in_a_cuda_graph() -> None:
    teacher, student = random_outputs(seed=0, device="cuda"), random_outputs(seed=1, grad=True, device="cuda")
    gid, detector = GID(4, 4).cuda(), FakeDetector()
    inputs = [*leaves(student), *gid.parameters()]

    def step() -> list[Tensor]:
        teacher._boxes = student._boxes = None
        losses, found = gid(teacher, student, detector)
        return [*losses.values(), found.boxes, *torch.autograd.grad(sum(losses.values()), inputs)]

    graph, results = captured(step)
    other = random_outputs(seed=2, device="cuda")
    with torch.no_grad():
        for ours, new in zip(leaves(student), leaves(other), strict=True):
            ours.copy_(new)
    graph.replay()
    torch.cuda.synchronize()
    for replayed, expected in zip(results, step(), strict=True):
        torch.testing.assert_close(replayed, expected)


@pytest.mark.parametrize(
    "options",
    [{}, pytest.param({"scope": "batch", "kinds": ["negative"], "pre_nms_top_k": 50}, marks=pytest.mark.slow)],
)
def test_compiles_without_a_break(options: dict) -> None:
    gid, detector, targets = GID(4, 4, output_size=3, **options), FakeDetector(), random_targets(2, seed=0)
    results = []
    for criterion in (gid, torch.compile(gid, fullgraph=True, backend="aot_eager")):
        teacher, student = random_outputs(seed=0), random_outputs(seed=1, grad=True)
        losses, found = criterion(teacher, student, detector, targets)
        gradients = torch.autograd.grad(sum(losses.values()), [*leaves(student), *gid.parameters()])
        results.append([*losses.values(), found.boxes, found.scores, found.indices, found.counts, *gradients])
    for plain, compiled in zip(*results, strict=True):
        torch.testing.assert_close(plain, compiled)


# --- what does not fit is said in words ---


FEATURES = random_outputs(seed=0).features


@pytest.mark.parametrize(
    ("changes", "message"),
    [
        ({"logits": torch.zeros(2, 7, 3)}, r"teacher has 144 predicted boxes an image, the student 7: .* same anchors"),
        ({"logits": torch.zeros(2, 144, 5)}, r"the teacher has 3 classes, the student 5: .* for the same classes"),
        ({"logits": torch.zeros(1, 144, 3)}, r"the teacher has 2 images, the student 1: give both the same batch"),
        ({"coder": BoxCoder("deltas")}, r"the teacher encodes boxes by .*distances.*, the student by .*deltas"),
        ({"strides": [8, 16]}, r"strides \[8, 32\], the student's \[8, 16\]: use the same pyramid levels"),
        ({"features": FEATURES[:1]}, r"the student has 1 feature maps for 2 strides"),
        ({"features": [x[:, :3] for x in FEATURES]}, r"level 0 of the student's features has 3 channels, but the "
         r"criterion was made with student_channels=4: pass student_channels=3"),
        ({"features": [FEATURES[0], FEATURES[1][:, :, 1:]]}, r"level 1 of the teacher's features is \(4, 5\), of the "
         r"student's \(3, 5\) \(height, width\)"),
    ],
)  # fmt: skip
def test_outputs_that_do_not_fit(changes: dict, message: str) -> None:
    with pytest.raises(ValueError, match=message):
        GID(4, 4)(random_outputs(seed=0), replace(random_outputs(seed=0), **changes), FakeDetector())


def test_teachers_channels_are_checked_too() -> None:
    with pytest.raises(ValueError, match="level 0 of the teacher's features has 4 channels, .* teacher_channels=4"):
        GID(4, 8)(random_outputs(seed=0), random_outputs(seed=1), FakeDetector())


def test_anchors_that_differ() -> None:
    check_anchors(random_outputs(seed=0), random_outputs(seed=1))
    with pytest.raises(ValueError, match="the anchors of teacher and student differ: .* same anchor sizes"):
        check_anchors(
            random_outputs(seed=0), replace(random_outputs(seed=0), anchors=2 * random_outputs(seed=0).anchors)
        )
    with pytest.raises(ValueError, match="the anchors of teacher and student differ"):
        check_anchors(random_outputs(seed=0), replace(random_outputs(seed=0), anchors=torch.zeros(1, 4)))


@pytest.mark.parametrize(
    ("options", "message"),
    [
        ({"adapt": "none", "teacher_channels": 8}, "adapt='none' needs equal channels, but the student has 4 and the "
         "teacher 8: use adapt='1x1'"),
        ({"adapt": "5x5"}, "adapt is '5x5', but must be one of 1x1, 3x3, none"),
        ({"reduction": "mean"}, "reduction is 'mean', but must be one of instance, pixel"),
        ({"scope": "world"}, "scope is 'world', but must be one of image, batch"),
        ({"kinds": "positive"}, "kinds is 'positive', but must be 'all', 'ground_truth' or a list of positive, semi-"),
        ({"kinds": []}, r"kinds is \[\], but must be"),
        ({"kinds": ["negative", "all"]}, r"kinds is \['negative', 'all'\], but must be"),
        ({"top_k": -1}, "top_k is -1, but must be at least 0"),
        ({"lambda_relation": float("nan")}, "lambda_relation is nan, but must be at least 0"),
        ({"alpha": -0.1}, "alpha is -0.1, but must be at least 0"),
        ({"teacher_channels": 0}, "teacher_channels is 0, but must be at least 1"),
    ],
)  # fmt: skip
def test_bad_arguments(options: dict, message: str) -> None:
    with pytest.raises(ValueError, match=f"GID: {message}"):
        GID(**({"student_channels": 4, "teacher_channels": 4} | options))


@pytest.mark.parametrize("kinds", ["ground_truth", ["positive"]])
def test_kinds_need_targets(kinds: str | list[str]) -> None:
    with pytest.raises(ValueError, match="needs the ground truth: pass targets, one dict an image"):
        GID(4, 4, kinds=kinds)(random_outputs(seed=0), random_outputs(seed=1), FakeDetector())
    with pytest.raises(ValueError, match="targets has 1 entries, but the batch has 2 images"):
        GID(4, 4, kinds=kinds)(random_outputs(seed=0), random_outputs(seed=1), FakeDetector(), [None])
