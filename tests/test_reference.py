"""gid_cuda.reference against the paper's formulas, worked by hand."""

from __future__ import annotations

import math

import pytest
import torch

from gid_cuda import reference

LN3 = math.log(3.0)  # sigmoid(ln 3) = 3/4
NAN, INF = float("nan"), float("inf")


def logits(*rows: list[float]) -> torch.Tensor:
    return torch.tensor([rows])


def numbered_boxes(count: int, offset: float) -> torch.Tensor:
    return torch.arange(4.0 * count).reshape(1, count, 4) + offset


# eqs. 1 and 2


def test_gi_score_is_the_largest_difference_of_probabilities():
    teacher = logits([0.0, LN3], [LN3, -LN3], [1.0, 1.0])
    student = logits([0.0, -LN3], [0.0, -LN3], [1.0, 1.0])
    scores, _ = reference.gi_score(teacher, student, numbered_boxes(3, 0), numbered_boxes(3, 100))
    torch.testing.assert_close(scores, torch.tensor([[0.5, 0.25, 0.0]]))


def test_gi_box_is_that_of_the_surer_model():
    teacher, student = logits([0.0, 2.0], [-1.0, 0.0], [1.0, 0.0]), logits([1.0, 1.0], [-2.0, 3.0], [0.0, 1.0])
    teacher_boxes, student_boxes = numbered_boxes(3, 0), numbered_boxes(3, 100)
    _, boxes = reference.gi_score(teacher, student, teacher_boxes, student_boxes)
    assert torch.equal(boxes[0, 0], teacher_boxes[0, 0])
    assert torch.equal(boxes[0, 1], student_boxes[0, 1])
    assert torch.equal(boxes[0, 2], student_boxes[0, 2])  # equally sure: the student's


def test_gi_box_compares_logits_where_probabilities_are_saturated():
    teacher_boxes = numbered_boxes(1, 0)
    scores, boxes = reference.gi_score(logits([50.0]), logits([40.0]), teacher_boxes, numbered_boxes(1, 100))
    assert scores.item() == 0.0
    assert torch.equal(boxes, teacher_boxes)


def test_gi_boxes_are_clipped_to_height_and_width():
    box = torch.tensor([[[-5.0, -6.0, 70.0, 80.0]]])
    _, boxes = reference.gi_score(logits([1.0]), logits([0.0]), box, box, torch.tensor([[30, 40]]))
    assert boxes.tolist() == [[[0.0, 0.0, 40.0, 30.0]]]


def test_nan_logit_gives_nan_score_and_the_students_box():
    student_boxes = numbered_boxes(2, 100)
    scores, boxes = reference.gi_score(
        logits([NAN, 5.0], [9.0, 5.0]), logits([0.0, 0.0], [0.0, NAN]), numbered_boxes(2, 0), student_boxes
    )
    assert scores.isnan().all()
    assert torch.equal(boxes, student_boxes)


# eq. 3

LADDER = [[0, 0, 10, 10], [0, 0, 10, 6], [0, 0, 10, 3], [50, 50, 60, 60]]  # IoU with the first: 1, 0.6, 0.3, 0


def choose(boxes, scores, k, *arguments, **named):
    groups = named.pop("groups", None)
    indices, counts = reference.topk_nms(
        torch.tensor([boxes], dtype=torch.float32),
        torch.tensor([scores]),
        k,
        *arguments,
        groups=None if groups is None else torch.tensor([groups]),
        **named,
    )
    assert counts.tolist() == [sum(i >= 0 for i in indices[0].tolist())]
    return indices[0].tolist()


def test_nms_suppresses_strictly_above_the_threshold():
    scores = [0.9, 0.8, 0.7, 0.6]
    assert choose(LADDER, scores, 4, 0.3) == [0, 2, 3, -1]  # 30 / 100 is 0.3 and not above it
    assert choose(LADDER, scores, 4, 0.29) == [0, 3, -1, -1]
    assert choose(LADDER, scores, 4, 0.6) == [0, 1, 2, 3]


def test_a_suppressed_box_suppresses_nothing():
    # 1 falls to 0; 2 overlaps 1 by half but 0 by 0.3 only.
    assert choose(LADDER[:3], [0.9, 0.8, 0.7], 3, 0.4) == [0, 2, -1]


def test_nms_stops_after_k_and_goes_by_score():
    assert choose(LADDER, [0.1, 0.9, 0.2, 0.5], 2, 0.4) == [1, 3]
    assert choose(LADDER, [0.1, 0.9, 0.2, 0.5], 0) == []


def test_equal_scores_go_by_index_and_minus_zero_is_zero():
    apart = [[20 * i, 0, 20 * i + 10, 10] for i in range(4)]
    assert choose(apart, [-0.0, 0.0, 0.5, -0.0], 4) == [2, 0, 1, 3]


def test_groups_do_not_suppress_each_other():
    same = [[0, 0, 10, 10]] * 3
    assert choose(same, [0.1, 0.2, 0.3], 3, groups=[7, -1, 7]) == [2, 1, -1]


def test_what_is_never_chosen():
    boxes = [
        [0, 0, NAN, 10], [0, 0, INF, 10], [30, 0, 20, 10], [40, 0, 44, 10], [60, 0, 70, 10], [80, 0, 90, 10],
    ]  # fmt: skip
    assert choose(boxes, [0.9, 0.8, 0.7, 0.6, NAN, INF], 6) == [3, -1, -1, -1, -1, -1]
    assert choose(boxes, [0.9, 0.8, 0.7, 0.6, 0.5, -INF], 6, min_size=4.5) == [4, -1, -1, -1, -1, -1]


def test_boxes_without_area_overlap_nothing():
    assert choose([[5, 5, 5, 5], [5, 5, 5, 5], [0, 0, 10, 10]], [0.3, 0.2, 0.1], 3, 0.0) == [0, 1, 2]


def test_nms_without_boxes():
    indices, counts = reference.topk_nms(torch.zeros(2, 0, 4), torch.zeros(2, 0), 3)
    assert indices.tolist() == [[-1] * 3] * 2
    assert counts.tolist() == [0, 0]


# RoIAlign


@pytest.mark.parametrize(
    ("side", "level"),
    [(10.0, 0), (223.9, 0), (224.0, 1), (447.9, 1), (448.0, 2), (5000.0, 2), (NAN, 0)],
)
def test_level_rule(side: float, level: int):
    boxes = torch.tensor([[0.0, 0.0, side, side]])
    assert reference.roi_levels(boxes, [8, 16, 32], 224.0, 4).tolist() == [level]


def test_level_rule_goes_by_area():
    assert reference.roi_levels(torch.tensor([[0.0, 0.0, 112.0, 448.0]]), [8, 16, 32], 224.0, 4).tolist() == [1]


def test_a_plane_is_sampled_at_its_bins_centres():
    # Value 10 y + x at the centre of each cell, whose pixel is 8 (x + 1/2): bins' centres come out exactly.
    y, x = torch.meshgrid(torch.arange(12.0), torch.arange(16.0), indexing="ij")
    feature = (10 * y + x)[None, None]
    box = torch.tensor([[[16.0, 24.0, 80.0, 56.0]]])  # cells 2 to 10 by 3 to 7
    pooled = reference.multilevel_roi_align([feature], box, strides=[8], output_size=2)
    centres = torch.tensor([[10 * 3.5 + 3.5, 10 * 3.5 + 7.5], [10 * 5.5 + 3.5, 10 * 5.5 + 7.5]])
    torch.testing.assert_close(pooled[0, 0, 0], centres)


def test_samples_outside_the_map_count_as_zero():
    feature = torch.ones(1, 1, 4, 4)
    box = torch.tensor([[[-32.0, 0.0, 32.0, 32.0]]])  # the left half lies outside
    pooled = reference.multilevel_roi_align([feature], box, strides=[8], output_size=2, sampling_ratio=4)
    # Four samples a cell of the left bin, at -4 to -1 cells; none is within one cell of the border but the last, -1.0.
    assert pooled[0, 0, 0].tolist() == [[0.25, 1.0], [0.25, 1.0]]


@pytest.mark.parametrize("box", [[NAN, 0, 8, 8], [0, 0, INF, 8], [-INF, 0, INF, 8], [0, NAN, 8, NAN]])
@pytest.mark.parametrize("ratio", [2, 0])
def test_a_box_that_is_not_finite_gives_zeros(box: list[float], ratio: int):
    pooled = reference.multilevel_roi_align(
        [torch.ones(1, 1, 4, 4)], torch.tensor([[box]]), strides=[8], output_size=2, sampling_ratio=ratio
    )
    assert pooled.tolist() == torch.zeros(1, 1, 1, 2, 2).tolist()


def test_empty_slots_and_wrong_levels_are_not_read():
    fine, coarse = torch.full((2, 1, 8, 8), NAN), torch.ones(2, 1, 4, 4)
    boxes = torch.tensor([[0.0, 0.0, 32.0, 32.0], [0.0, 0.0, 4.0, 4.0]]).expand(2, 2, 4)
    pooled = reference.multilevel_roi_align(
        [fine, coarse], boxes, torch.tensor([1, 0]), strides=[8, 16], output_size=1, canonical_size=16.0
    )
    assert pooled.flatten().tolist() == [1.0, 0.0, 0.0, 0.0]


@pytest.mark.parametrize("ratio", [2, 0])
def test_roi_align_gradient(ratio: int):
    features = [torch.randn(2, 2, 8 // 2**i, 6 // 2**i, dtype=torch.float64, requires_grad=True) for i in range(2)]
    boxes = torch.tensor([[[0.0, 0, 40, 50], [3, 4, 100, 90]], [[-9, 1, 30, 20], [5, 5, 5, 5]]])
    arguments = dict(strides=[8, 16], output_size=2, sampling_ratio=ratio, canonical_size=64.0)
    counts = torch.tensor([2, 1])

    def function(*features: torch.Tensor) -> torch.Tensor:
        return reference.multilevel_roi_align(features, boxes, counts, **arguments)

    assert torch.autograd.gradcheck(function, features)
    output = function(*features)
    grad = torch.randn_like(output)
    expected = torch.autograd.grad(output, features, grad)
    written_out = reference.multilevel_roi_align_backward(
        grad, features, boxes, counts, [8, 16], 2, ratio, 64.0, 4, True
    )
    for actual, gradient in zip(written_out, expected, strict=True):
        torch.testing.assert_close(actual, gradient)


# the distances of eq. 6


def test_distances_of_a_triangle():
    x = torch.tensor([[[0.0, 0.0], [3.0, 0.0], [3.0, 4.0], [9.0, 9.0]]])
    distances = reference.pairwise_distance(x, torch.tensor([3]))
    assert distances[0].tolist() == [[0, 3, 5, 0], [3, 0, 4, 0], [5, 4, 0, 0], [0, 0, 0, 0]]


def test_close_vectors_keep_their_digits():
    x = torch.tensor([[[1000.0], [1000.0 + 2**-10]]])
    assert reference.pairwise_distance(x)[0, 0, 1].item() == 2**-10


def test_distance_gradient():
    x = torch.randn(2, 4, 3, dtype=torch.float64, requires_grad=True)
    counts = torch.tensor([4, 3])
    assert torch.autograd.gradcheck(lambda x: reference.pairwise_distance(x, counts), [x])
    distances = reference.pairwise_distance(x, counts)
    grad = torch.randn_like(distances)
    (expected,) = torch.autograd.grad(distances, x, grad)
    torch.testing.assert_close(
        reference.pairwise_distance_backward(grad, x.detach(), distances.detach(), counts), expected
    )


def test_the_gradient_of_a_zero_distance_is_zero():
    x = torch.ones(1, 3, 2, requires_grad=True)
    reference.pairwise_distance(x).sum().backward()
    assert x.grad.tolist() == torch.zeros(1, 3, 2).tolist()


def test_float64_in_float64_out():
    x = torch.rand(1, 2, 4, dtype=torch.float64)
    assert reference.gi_score(x, x, x, x)[0].dtype == torch.float64
    assert reference.pairwise_distance(x).dtype == torch.float64
    assert reference.multilevel_roi_align([x[None]], x.float(), strides=[8]).dtype == torch.float64
