"""Eqs. 4-9 worked by hand."""

from __future__ import annotations

from math import log, sqrt

import pytest
import torch
from torch import Tensor

from gid_cuda.detectors.outputs import DetectorOutputs, GeneralInstances
from gid_cuda.distill import GID
from gid_cuda.distill.relation import join_batch, normalised_distances, relation_sum

from .fakes import FakeDetector, exact_outputs, quarters


def only(**weight: float) -> dict[str, float]:
    """Weights that leave one term of the loss, with factors of 1."""
    return {"lambda_feature": 0.0, "lambda_relation": 0.0, "lambda_response": 0.0, "alpha": 1.0, "beta": 1.0} | weight


def present(*counts: int) -> Tensor:
    """(B, 4): how many of the four boxes of each image can be chosen."""
    return torch.arange(4) < torch.tensor(counts)[:, None]


# --- eq. 4 and eq. 5 ---


def feature_loss(teacher: Tensor, student: Tensor, counts: Tensor, **options: object) -> float:
    gid = GID(student.shape[2], teacher.shape[2], **only(lambda_feature=1.0), **options)
    losses, _ = gid(quarters(teacher, present=counts), quarters(student, present=counts), FakeDetector())
    return losses["loss_feature"].item()


def test_feature_loss_is_the_mean_over_the_instances_of_the_batch(device: str) -> None:
    # 2 channels, 10 x 10 bins. Image 0, one instance: t - s = 2, squared norm 4 * 200 = 800. Image 1, three: 1 -> 200.
    # Mean over 4 instances: (800 + 3 * 200) / 4 = 350. (The mean of the two images' means would be 500.)
    teacher = torch.full((2, 4, 2), 5.0, device=device)
    student = torch.stack([torch.full((4, 2), 3.0), torch.full((4, 2), 4.0)]).to(device)
    counts = present(1, 3).to(device)
    gid = GID(2, 2, **only(lambda_feature=1.0)).to(device)
    losses, found = gid(quarters(teacher, present=counts), quarters(student, present=counts), FakeDetector())
    assert found.counts.tolist() == [1, 3]
    assert losses["loss_feature"].item() == pytest.approx(350)


def test_feature_loss_by_pixel_and_by_output_size() -> None:
    teacher, student, counts = torch.full((1, 4, 3), 2.0), torch.zeros(1, 4, 3), present(2)
    # 3 channels of difference 2: 12 a bin. 100 bins: 1200; reduction "pixel" divides by the bins again.
    assert feature_loss(teacher, student, counts) == pytest.approx(1200)
    assert feature_loss(teacher, student, counts, reduction="pixel") == pytest.approx(12)
    assert feature_loss(teacher, student, counts, output_size=4) == pytest.approx(192)
    assert feature_loss(teacher, student, counts, output_size=4, reduction="pixel") == pytest.approx(12)


def test_features_come_from_the_level_of_the_boxs_size() -> None:
    # Levels of stride 8 and 16; box 0 of 40 x 40 belongs to the first; box 1 of 224 x 224 to the second.
    boxes = torch.tensor([[20.0, 20, 60, 60], [10, 10, 234, 234]])

    def outputs(fine: float, coarse: float) -> DetectorOutputs:
        result = exact_outputs(boxes, torch.zeros(1, 2, 1))
        result.features = [torch.full((1, 1, 32, 32), fine), torch.full((1, 1, 16, 16), coarse)]
        result.strides = [8, 16]
        return result

    # differences 1 (fine) and 3 (coarse): (1 + 9) / 2 instances
    for options, expected in (({}, 5), ({"canonical_size": 40.0}, 9), ({"canonical_size": 300.0}, 1)):
        gid = GID(1, 1, **only(lambda_feature=1.0), reduction="pixel", **options)
        losses, _ = gid(outputs(1.0, 3.0), outputs(0.0, 0.0), FakeDetector())
        assert losses["loss_feature"].item() == pytest.approx(expected)


def test_adaptation_maps_the_students_channels_to_the_teachers() -> None:
    # s = (1, 2); W = [[1, 1], [0, 1], [2, 0]], b = (0.5, 0, 0): f(s) = (3.5, 2, 2); t = (4, 2, 0): 0.25 + 0 + 4 a bin.
    gid = GID(2, 3, **only(lambda_feature=1.0), reduction="pixel")
    with torch.no_grad():
        gid.adapt.weight.copy_(torch.tensor([[1.0, 1], [0, 1], [2, 0]])[:, :, None, None])
        gid.adapt.bias.copy_(torch.tensor([0.5, 0, 0]))
    teacher, student = torch.tensor([4.0, 2, 0]).expand(1, 4, 3), torch.tensor([1.0, 2]).expand(1, 4, 2)
    # the fourth slot is empty, and what the bias makes of it is not counted
    losses, _ = gid(quarters(teacher, present=present(3)), quarters(student, present=present(3)), FakeDetector())
    assert losses["loss_feature"].item() == pytest.approx(4.25)


@pytest.mark.parametrize("adapt", ["1x1", "3x3"])
def test_adaptation_is_one_linear_layer_that_starts_as_the_identity(adapt: str) -> None:
    gid = GID(3, 3, adapt=adapt)
    crops = torch.randn(5, 3, 10, 10)
    assert torch.equal(gid.adapt(crops), crops)
    with torch.no_grad():
        gid.adapt.weight.normal_()
        gid.adapt.bias.normal_()
    padding = int(adapt[0]) // 2
    expected = torch.nn.functional.conv2d(crops, gid.adapt.weight, gid.adapt.bias, padding=padding)
    torch.testing.assert_close(gid.adapt(crops), expected, rtol=1e-5, atol=1e-5)
    assert {name: tuple(p.shape) for name, p in gid.named_parameters()} == {
        "adapt.weight": (3, 3, 2 * padding + 1, 2 * padding + 1),
        "adapt.bias": (3,),
    }
    assert gid.state_dict().keys() == {"adapt.weight", "adapt.bias"}


def test_adaptation_between_other_channel_counts_starts_at_random() -> None:
    gid = GID(64, 256)
    assert gid.adapt.weight.shape == (256, 64, 1, 1) and gid.adapt.weight.std() > 0


# --- eq. 6 ---

# Three points of the plane: distances 3, 4, 5, mean 4 -> 3/4, 1, 5/4 for the pairs 01, 02, 12.
CORNER = [[0.0, 0.0], [3.0, 0.0], [0.0, 4.0]]
# Three on a line: distances 1, 2, 1, mean 4/3 -> 3/4, 3/2, 3/4 for the same pairs.
LINE = [[0.0, 0.0], [1.0, 0.0], [2.0, 0.0]]
# Differences 0, 1/2, 1/2; smooth L1 0, 1/8, 1/8; mean of the three pairs (each twice) 1/12.
CORNER_LINE = 1 / 12
# One of four apart from the rest: its three pairs 1, the others 0, mean 1/2 -> 2 and 0. With point 3 apart in one and
# point 0 in the other, pair 03 agrees and 01, 02, 13, 23 differ by 2: smooth L1 3/2 each; 12 agrees. 4 * 3/2 / 6 = 1.
FOUR_LAST, FOUR_FIRST, FOUR = [[0.0]] * 3 + [[1.0]], [[1.0]] + [[0.0]] * 3, 1.0


def vectors(points: list[list[float]], slots: int = 4) -> Tensor:
    return torch.nn.functional.pad(torch.tensor(points), (0, 0, 0, slots - len(points)))[None]


def test_normalised_distances(device: str) -> None:
    found = normalised_distances(vectors(CORNER).to(device), torch.tensor([3], device=device))
    expected = torch.tensor([[0, 0.75, 1, 0], [0.75, 0, 1.25, 0], [1, 1.25, 0, 0], [0, 0, 0, 0]])
    torch.testing.assert_close(found[0].cpu(), expected)


@pytest.mark.parametrize(
    ("teacher", "student", "expected"),
    [
        (CORNER, LINE, CORNER_LINE),
        (LINE, CORNER, CORNER_LINE),
        (CORNER, [[10 * x + 7, 10 * y] for x, y in CORNER], 0.0),  # the same but for size and place
        (FOUR_LAST, FOUR_FIRST, FOUR),
        (CORNER[:2], LINE[:2], 0.0),  # two instances: each distance is its own mean
        # all of the student's alike, phi(s) = 0: zeros against 3/4, 1, 5/4: (9/32 + 1/2 + 3/4) / 3
        (CORNER, [[1.0, 1.0]] * 3, (9 / 32 + 1 / 2 + 3 / 4) / 3),
        # all of the teacher's alike, against 3/4, 3/2, 3/4: (9/32 + 1 + 9/32) / 3
        ([[1.0, 1.0]] * 3, LINE, (9 / 32 + 1 + 9 / 32) / 3),
        (CORNER[:2], [[1.0, 1.0]] * 2, 0.5),  # 1 against 0
        ([[1.0, 1.0]] * 2, [[2.0, 2.0]] * 2, 0.0),
        (CORNER[:1], LINE[:1], 0.0),
    ],
)
def test_relation_of_one_image(teacher: list, student: list, expected: float) -> None:
    x = vectors(student).requires_grad_()
    loss = relation_sum(vectors(teacher), x, torch.tensor([len(teacher)]))
    assert loss.item() == pytest.approx(expected, abs=1e-7)
    loss.backward()
    assert x.grad.isfinite().all()
    if expected == 0 or len({tuple(p) for p in student}) == 1:  # agreed, or no direction to go to
        assert x.grad.abs().max() < 1e-7


def test_the_students_mean_carries_gradient() -> None:
    # phi(s) makes the loss blind to the student's scale: its derivative along s itself is 0, as it is not if phi(s)
    # were a constant.
    x = vectors(LINE).requires_grad_()
    relation_sum(vectors(CORNER), x, torch.tensor([3])).backward()
    assert (x.grad * x.detach()).sum().abs() < 1e-6 and x.grad.abs().max() > 0.01


def relation_loss(teacher: Tensor, student: Tensor, counts: Tensor, **options: object) -> float:
    gid = GID(student.shape[2], teacher.shape[2], **only(lambda_relation=1.0), **options)
    losses, _ = gid(quarters(teacher, present=counts), quarters(student, present=counts), FakeDetector())
    return losses["loss_relation"].item()


def test_relation_is_the_mean_over_images_with_two_instances_or_more() -> None:
    # image 0: corner against line, 1/12; image 1: two instances, 0; image 2: one instance; image 3: none.
    teacher, student = vectors(CORNER).repeat(4, 1, 1), vectors(LINE).repeat(4, 1, 1)
    assert relation_loss(teacher, student, present(3, 2, 1, 0)) == pytest.approx(CORNER_LINE / 2, rel=1e-5)
    assert relation_loss(teacher, student, present(3, 0, 1, 0)) == pytest.approx(CORNER_LINE, rel=1e-5)
    assert relation_loss(teacher, student, present(0, 0, 1, 0)) == 0


def test_relation_over_the_batch_takes_pairs_across_images() -> None:
    # The three points in three images, one instance each: nothing within an image, 1/12 over the batch.
    def spread(points: list[list[float]]) -> Tensor:
        return torch.tensor(points)[:, None].expand(-1, 4, -1)

    counts = present(1, 1, 1)
    assert relation_loss(spread(CORNER), spread(LINE), counts) == 0
    assert relation_loss(spread(CORNER), spread(LINE), counts, scope="batch") == pytest.approx(CORNER_LINE, rel=1e-5)


def test_joined_batch_has_the_valid_slots_first() -> None:
    x = torch.arange(6.0).reshape(2, 3, 1)
    valid = torch.tensor([[True, False, False], [True, True, False]])
    assert join_batch(x, valid).flatten().tolist() == [0, 3, 4, 1, 2, 5]


def test_relation_uses_the_adapted_features() -> None:
    # the student has the corner's points with x and y exchanged and x three times as long; W undoes it
    teacher, student = vectors(CORNER), torch.stack([vectors(CORNER)[..., 1] * 3, vectors(CORNER)[..., 0]], dim=-1)
    gid = GID(2, 2, **only(lambda_relation=1.0))

    def loss() -> float:
        outputs = (quarters(x, present=present(3)) for x in (teacher, student))
        return gid(*outputs, FakeDetector())[0]["loss_relation"].item()

    # distances 3, 12, sqrt(153), whose mean is not that of 3, 4, 5
    mean = (3 + 12 + sqrt(153)) / 3
    differences = [3 / mean - 3 / 4, 12 / mean - 1, sqrt(153) / mean - 5 / 4]
    assert loss() == pytest.approx(sum(d * d / 2 for d in differences) / 3, rel=1e-5)
    with torch.no_grad():
        gid.adapt.weight.copy_(torch.tensor([[0.0, 1], [1 / 3, 0]])[:, :, None, None])
    assert loss() == pytest.approx(0, abs=1e-10)


# --- eqs. 7 and 8 ---


class ByHand(FakeDetector):
    """Losses that can be added up in the head: squared difference of logits, absolute difference of deltas."""

    def response_losses(
        self, student: DetectorOutputs, teacher: DetectorOutputs, mask: Tensor
    ) -> tuple[Tensor, Tensor]:
        cls, reg = (student.logits - teacher.logits).square(), (student.deltas - teacher.deltas).abs()
        return (cls * mask[..., None]).sum(), (reg * mask[..., None]).sum()


def test_response_loss_is_divided_by_the_masked_boxes_of_the_batch(device: str) -> None:
    # Masked: one box of image 0, three of image 1, so N_m = 4. Logits differ by 2 in all of image 0 and by 1 in all of
    # image 1: cls (4 + 3 * 1) / 4 = 1.75. The four deltas of each box of image 0 differ by 0.25: reg 4 * 0.25 / 4.
    values, counts = torch.zeros(2, 4, 1, device=device), present(1, 3).to(device)
    logits = torch.tensor([2.0, 1.0], device=device)[:, None, None].expand(2, 4, 1)
    teacher = quarters(values, logits, counts)
    student = quarters(values, torch.zeros_like(logits), counts)
    teacher.deltas[0] += 0.25
    losses, _ = GID(1, 1, **only(lambda_response=1.0), top_k=3)(teacher, student, GivenMask(counts))
    assert losses["loss_response_cls"].item() == pytest.approx(1.75)
    assert losses["loss_response_reg"].item() == pytest.approx(0.25)


class GivenMask(ByHand):
    """As `ByHand`, with the mask given."""

    def __init__(self, mask: Tensor) -> None:
        super().__init__()
        self.mask = mask

    def assign(self, instances: GeneralInstances, outputs: DetectorOutputs) -> Tensor:
        return self.mask


def test_mask_is_the_assignment_of_the_instances() -> None:
    # Anchors: one of 40 x 40; one moved by 8 (IoU 32 / 48 = 2/3 with it); one moved by 20 (20 / 60 = 1/3); one far off.
    # The first is the instance: it and the second are masked.
    boxes = torch.tensor([[0.0, 0, 40, 40], [8, 0, 48, 40], [20, 0, 60, 40], [200, 200, 240, 240]])
    logits = torch.tensor([3.0, 2.0, 1.0, 0.5])[None, :, None]
    teacher, student = exact_outputs(boxes, logits), exact_outputs(boxes, torch.zeros_like(logits))
    losses, found = GID(1, 1, **only(lambda_response=1.0), top_k=1)(teacher, student, ByHand())
    assert found.indices.tolist() == [[0]]
    assert losses["loss_response_cls"].item() == pytest.approx((9 + 4) / 2)  # N_m = 2
    assert losses["loss_response_reg"].item() == 0


def test_cross_entropy_less_entropy_of_one_box() -> None:
    # target 1/2, student sigmoid(ln 3) = 3/4: -ln(3/4)/2 - ln(1/4)/2 - ln 2 = ln(2 / sqrt 3)
    boxes = torch.tensor([[0.0, 0, 40, 40]])
    teacher, student = (exact_outputs(boxes, torch.tensor([[[x]]])) for x in (0.0, log(3)))
    losses, _ = GID(1, 1, **only(lambda_response=1.0))(teacher, student, FakeDetector())
    assert losses["loss_response_cls"].item() == pytest.approx(log(2 / sqrt(3)), rel=1e-5)


@pytest.mark.parametrize(
    ("assigned", "message"),
    [
        (torch.zeros(1, 3, dtype=torch.bool), r"GivenMask.assign returned \(1, 3\) torch.bool: .*\(1, 4\) torch.bool"),
        (torch.zeros(1, 4), r"GivenMask.assign returned \(1, 4\) torch.float32"),
    ],
)
def test_an_adapters_wrong_mask_is_named(assigned: Tensor, message: str) -> None:
    outputs = quarters(torch.zeros(1, 4, 1))
    with pytest.raises(ValueError, match=message):
        GID(1, 1)(outputs, outputs, GivenMask(assigned))


def test_an_adapters_wrong_loss_is_named() -> None:
    class PerBox(FakeDetector):
        def response_losses(
            self, student: DetectorOutputs, teacher: DetectorOutputs, mask: Tensor
        ) -> tuple[Tensor, Tensor]:
            return torch.zeros(()), torch.zeros(1, 4)

    outputs = quarters(torch.zeros(1, 4, 1))
    with pytest.raises(ValueError, match=r"second value of PerBox.response_losses is \(1, 4\) torch.float32"):
        GID(1, 1)(outputs, outputs, PerBox())


# --- eq. 9 ---


def test_weights(device: str) -> None:
    teacher = quarters(vectors(CORNER).to(device), torch.randn(1, 4, 1, device=device))
    student = quarters(vectors(LINE).to(device), torch.randn(1, 4, 1, device=device))
    student.deltas[:] += 0.01
    one = dict.fromkeys(["lambda_feature", "lambda_relation", "lambda_response", "alpha", "beta"], 1.0)
    raw, _ = GID(2, 2, **one).to(device)(teacher, student, FakeDetector())
    paper, _ = GID(2, 2).to(device)(teacher, student, FakeDetector())
    factors = {"loss_feature": 5e-4, "loss_relation": 40.0, "loss_response_cls": 0.1, "loss_response_reg": 1.0}
    assert list(paper) == list(factors)
    for name, factor in factors.items():
        assert raw[name] > 0
        torch.testing.assert_close(paper[name], raw[name] * factor)
    double, _ = GID(2, 2, lambda_response=2.0, beta=3.0).to(device)(teacher, student, FakeDetector())
    torch.testing.assert_close(double["loss_response_cls"], 2 * 0.1 * raw["loss_response_cls"])
    torch.testing.assert_close(double["loss_response_reg"], 2 * 3.0 * raw["loss_response_reg"])
