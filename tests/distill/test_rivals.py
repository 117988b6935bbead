"""What holds for every method that the paper compares itself with."""

from __future__ import annotations

from dataclasses import replace

import pytest
import torch
import torch.distributed as dist
from torch import Tensor

from gid_cuda.detectors.outputs import DetectorOutputs
from gid_cuda.distill import FineGrained, FitNet, Mimicking, build_method
from gid_cuda.distill.rival import Rival

from .fakes import FakeDetector, captured, leaves
from .pyramid import RIVALS, TwoStage, pyramid_outputs, some_targets
from .test_normalisers import pretend

each_rival = pytest.mark.parametrize("name", RIVALS)


def loss_of(rival: Rival, teacher: DetectorOutputs, student: DetectorOutputs, targets: list | None = None) -> Tensor:
    losses, instances = rival(teacher, student, TwoStage(), some_targets() if targets is None else targets)
    assert tuple(losses) == rival.loss_names and instances is None
    (loss,) = losses.values()
    assert loss.shape == () and loss.dtype == torch.float32
    return loss


def part(outputs: DetectorOutputs, images: slice) -> DetectorOutputs:
    return replace(
        outputs,
        features=[x[images] for x in outputs.features],
        logits=outputs.logits[images],
        deltas=outputs.deltas[images],
        image_sizes=outputs.image_sizes[images],
    )


@each_rival
@pytest.mark.parametrize(("channels", "adapt"), [((4, 4), "1x1"), ((4, 6), "3x3"), ((3, 5), "1x1"), ((4, 4), "none")])
def test_equals_a_naive_twin_in_float64(name: str, channels: tuple[int, int], adapt: str) -> None:
    make, naive = RIVALS[name]
    torch.manual_seed(0)
    rival = make(*channels, adapt=adapt, weight=0.7)
    for parameter in rival.parameters():
        torch.nn.init.normal_(parameter, std=0.3)
    student = pyramid_outputs(channels=channels[0], seed=1, grad=True)
    teacher = pyramid_outputs(channels=channels[1], seed=2)
    found, expected = loss_of(rival, teacher, student), naive(rival, teacher, student, some_targets())
    assert expected > 0
    torch.testing.assert_close(found.double(), expected, rtol=1e-5, atol=0)
    leaves = [*student.features, *rival.parameters()]
    gradients = zip(torch.autograd.grad(found, leaves), torch.autograd.grad(expected, leaves), strict=True)
    for ours, theirs in gradients:
        torch.testing.assert_close(ours, theirs, rtol=1e-4, atol=1e-6)


@each_rival
def test_gradients_reach_the_student_and_the_adaptation_alone(name: str) -> None:
    rival = RIVALS[name][0](4, 4)
    teacher, student = pyramid_outputs(seed=1, grad=True), pyramid_outputs(seed=2, grad=True)
    loss_of(rival, teacher, student).backward()
    assert all(p.grad.any() for p in [*rival.parameters(), student.features[0]])
    if name != "mimicking":  # no proposal is so large that it belongs to the second level
        assert student.features[1].grad.any()
    nothing = [*teacher.features, teacher.logits, teacher.deltas, student.logits, student.deltas]
    assert all(x.grad is None for x in nothing)


@each_rival
def test_a_student_that_equals_its_teacher_learns_nothing(name: str) -> None:
    rival = RIVALS[name][0](4, 4)
    student = pyramid_outputs(seed=1, grad=True)
    loss = loss_of(rival, pyramid_outputs(seed=1), student)
    loss.backward()
    assert loss.item() == 0 and not any(x.grad.any() for x in [*student.features, *rival.parameters()])


@each_rival
def test_in_float32_under_autocast(name: str) -> None:
    rival = RIVALS[name][0](4, 4)
    teacher, student = pyramid_outputs(seed=1), pyramid_outputs(seed=2)
    for outputs in (teacher, student):
        outputs.features = [x.bfloat16() for x in outputs.features]
    with torch.autocast("cpu", torch.bfloat16):
        low = loss_of(rival, teacher, student)
    for outputs in (teacher, student):
        outputs.features = [x.float() for x in outputs.features]
    torch.testing.assert_close(low, loss_of(rival, teacher, student), rtol=0.02, atol=0)  # crops are as their maps


@each_rival
def test_a_batch_without_images(name: str) -> None:
    rival = RIVALS[name][0](4, 4)
    student = part(pyramid_outputs(seed=2, grad=True), slice(0, 0))
    assert loss_of(rival, part(pyramid_outputs(seed=1), slice(0, 0)), student, []).item() == 0


@pytest.mark.parametrize("name", ["fine_grained", "mimicking"])
def test_unlabelled_images_add_nothing(name: str) -> None:
    rival = RIVALS[name][0](4, 4)
    teacher, student = pyramid_outputs(seed=1), pyramid_outputs(seed=2, grad=True)
    loss = loss_of(rival, teacher, student, [None] * 3)
    loss.backward()
    assert loss.item() == 0 and not any(x.grad.any() for x in student.features)
    alone = [part(outputs, slice(0, 1)) for outputs in (teacher, student)]
    torch.testing.assert_close(
        loss_of(rival, teacher, student, [some_targets()[0], None, None]), loss_of(rival, *alone, some_targets()[:1])
    )


@pytest.mark.parametrize("name", ["fine_grained", "mimicking"])
def test_the_order_of_the_ground_truth_is_without_effect(name: str) -> None:
    rival = RIVALS[name][0](4, 4)
    teacher, student = pyramid_outputs(seed=1), pyramid_outputs(seed=2)
    turned = some_targets()
    turned[0] = {"boxes": turned[0]["boxes"].flip(0)}
    assert torch.equal(loss_of(rival, teacher, student), loss_of(rival, teacher, student, turned))


@pytest.mark.parametrize("name", ["fine_grained", "mimicking"])
def test_two_halves_are_the_whole(name: str, monkeypatch: pytest.MonkeyPatch) -> None:
    """On two processes, the second of which has no ground truth."""
    rival = RIVALS[name][0](4, 4)
    outputs = [pyramid_outputs(batch=4, seed=seed) for seed in (1, 2)]
    targets = [*some_targets(), {"boxes": torch.zeros(0, 4)}]
    whole = loss_of(rival, *outputs, targets)
    halves = [([part(x, images) for x in outputs], targets[images]) for images in (slice(0, 1), slice(1, 4))]
    seen: list[Tensor] = []
    pretend(monkeypatch, lambda counts: seen.append(counts.clone()))
    for both, labels in halves:
        loss_of(rival, *both, labels)
    assert len(seen) == 2 and not torch.equal(*seen)
    pretend(monkeypatch, lambda counts: counts.copy_(seen[0] + seen[1]))
    losses = [loss_of(rival, *both, labels) for both, labels in halves]
    torch.testing.assert_close(sum(losses) / dist.get_world_size(), whole)


@pytest.mark.parametrize("name", ["fitnet", "fine_grained"])
def test_compiles_into_one_graph(name: str) -> None:
    rival = RIVALS[name][0](4, 6)
    student, teacher = pyramid_outputs(seed=1), pyramid_outputs(channels=6, seed=2)

    def step(theirs: list[Tensor], ours: list[Tensor], boxes: Tensor) -> dict[str, Tensor]:
        targets = [{"boxes": boxes}, None, {"boxes": boxes[:0]}]
        return rival(replace(teacher, features=theirs), replace(student, features=ours), TwoStage(), targets)[0]

    inputs = teacher.features, student.features, some_targets()[0]["boxes"]
    compiled = torch.compile(step, fullgraph=True, backend="aot_eager")(*inputs)
    torch.testing.assert_close(compiled, step(*inputs))


@pytest.mark.cuda
@pytest.mark.skipif(not torch.cuda.is_available(), reason="needs a GPU")
@each_rival
def test_forward_and_backward_in_a_cuda_graph(name: str) -> None:
    rival = RIVALS[name][0](4, 4).cuda()
    teacher, student = pyramid_outputs(seed=1, device="cuda"), pyramid_outputs(seed=2, grad=True, device="cuda")
    targets, inputs = some_targets("cuda"), [*student.features, *rival.parameters()]

    def step() -> list[Tensor]:
        teacher._boxes = student._boxes = None
        loss = loss_of(rival, teacher, student, targets)
        return [loss, *torch.autograd.grad(loss, inputs)]

    graph, results = captured(step)
    other = pyramid_outputs(seed=3, device="cuda")
    with torch.no_grad():
        for ours, new in zip(leaves(student), leaves(other), strict=True):
            ours.copy_(new)
    graph.replay()
    torch.cuda.synchronize()
    for replayed, expected in zip(results, step(), strict=True):
        torch.testing.assert_close(replayed, expected)


@each_rival
def test_wrong_channels_and_missing_targets(name: str) -> None:
    rival = RIVALS[name][0](4, 4)
    good, other = pyramid_outputs(seed=1), pyramid_outputs(channels=6, seed=1)
    with pytest.raises(ValueError, match="level 0 of the teacher's features has 6 channels.*pass teacher_channels=6"):
        rival(other, good, TwoStage(), some_targets())
    if name != "fitnet":
        with pytest.raises(ValueError, match="needs the ground truth: pass targets"):
            rival(good, good, TwoStage())
        with pytest.raises(ValueError, match="targets has 2 entries, but the batch has 3 images"):
            rival(good, good, TwoStage(), some_targets()[:2])


def test_detectors_that_a_method_is_not_for() -> None:
    class Dense(FakeDetector):
        family = "anchor-based"

    good = pyramid_outputs(seed=1)
    for rival, detector, message in (
        (
            FineGrained(4, 4),
            FakeDetector(),
            "FineGrained is for detectors with anchors alone.*FakeDetector is anchor-f",
        ),
        (Mimicking(4, 4), FakeDetector(), "Mimicking is for detectors with a region proposal network alone"),
        (Mimicking(4, 4), Dense(), "Dense is anchor-based, .*use method gid or fitnet"),
    ):
        with pytest.raises(ValueError, match=message):
            rival(good, good, detector, some_targets())
    FineGrained(4, 4).check_detector(Dense())
    FitNet(4, 4).check_detector(FakeDetector())


def test_building_by_name() -> None:
    detector = TwoStage()
    detector.out_channels = 4
    for name, kind in (("fitnet", FitNet), ("fine_grained", FineGrained), ("mimicking", Mimicking)):
        built = build_method(name, detector, detector, weight=2.0)
        assert type(built) is kind and built.weight == 2
    point = FakeDetector()
    point.out_channels = 4
    with pytest.raises(ValueError, match="FakeDetector is anchor-free"):
        build_method("mimicking", point, detector)
    with pytest.raises(ValueError, match="method is 'hints', but must be one of gid, fitnet"):
        build_method("hints", detector, detector)


@pytest.mark.parametrize(
    ("make", "message"),
    [
        (lambda: FitNet(0, 4), "student_channels is 0, but must be at least 1"),
        (lambda: FitNet(4, 4, weight=0), "weight is 0, but must be above 0"),
        (lambda: FitNet(4, 4, adapt="5x5"), "adapt is '5x5', but must be one of"),
        (lambda: FitNet(4, 6, adapt="none"), "adapt='none' needs equal channels, but the student has 4"),
        (lambda: FineGrained(4, 4, psi=1), "psi is 1, but must be at least 0 and below 1"),
        (lambda: Mimicking(4, 4, samples=11, proposals=10), r"samples is 11, but must be from 1 to proposals \(10\)"),
        (lambda: Mimicking(4, 4, positive_iou=1.5), "positive_iou is 1.5, but must be from 0 to 1"),
        (lambda: Mimicking(4, 4, output_size=0), "output_size is 0, but must be at least 1"),
    ],
)
def test_arguments_out_of_range(make, message: str) -> None:
    with pytest.raises(ValueError, match=message):
        make()
