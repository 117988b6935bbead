"""gid_cuda.reference against the paper's formulas, worked by hand."""

from __future__ import annotations

import importlib
import math

import pytest
import torch

from gid_cuda import reference

LN3 = math.log(3.0)  # sigmoid(ln 3) = 3/4
NAN, INF = float("nan"), float("inf")


def logits(*rows: list[float]) -> torch.Tensor:
    return torch.tensor([rows])


def torchvision(name: str):
    """A module of torchvision's; skips where there is none for this torch."""
    try:
        return importlib.import_module(f"torchvision.{name}")
    except Exception as problem:
        pytest.skip(f"torchvision does not import: {problem}")


def random_boxes(images: int, count: int, extent: float, smallest: float, largest: float) -> torch.Tensor:
    corner = torch.rand(images, count, 2) * extent
    return torch.cat([corner, corner + smallest + torch.rand(images, count, 2) * (largest - smallest)], dim=2)


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


# boxes and their deltas


DOUBLED = (2.0, 2.0, 2.0, 2.0)


def test_deltas_are_shifts_and_logarithms_of_sizes():
    anchors = torch.tensor([[10.0, 20, 30, 60]])  # 20 by 40 around (20, 40)
    boxes = torch.tensor([[[25.0, 20, 35, 140]]])  # 10 by 120 around (30, 80)
    expected = [0.5, 1.0, math.log(0.5), math.log(3.0)]
    torch.testing.assert_close(reference.encode_boxes(boxes, anchors), torch.tensor([[expected]]))
    torch.testing.assert_close(reference.encode_boxes(boxes, anchors, DOUBLED), 2 * torch.tensor([[expected]]))
    torch.testing.assert_close(reference.decode_boxes(torch.tensor([[expected]]), anchors), boxes)
    torch.testing.assert_close(reference.decode_boxes(2 * torch.tensor([[expected]]), anchors, DOUBLED), boxes)


def test_a_size_is_at_most_a_thousand_sixteenths_of_the_anchors():
    box = reference.decode_boxes(torch.tensor([0.0, 0, 900, -900]), torch.tensor([[0.0, 0, 16, 16]]))
    torch.testing.assert_close(box, torch.tensor([[8.0 - 500, 8, 8 + 500, 8]]))


def test_distances_are_in_units_of_the_anchors_size():
    anchors = torch.tensor([[10.0, 20, 30, 60]])
    deltas = torch.tensor([[0.5, 1.0, 2.0, 0.0]])
    expected = torch.tensor([[20.0 - 10, 40 - 40, 20 + 40, 40]])
    assert torch.equal(reference.decode_boxes(deltas, anchors, distances=True), expected)
    assert torch.equal(reference.decode_boxes(2 * deltas, anchors, DOUBLED, True), expected)


@pytest.mark.parametrize("weights", [(1.0, 1.0, 1.0, 1.0), (10.0, 10.0, 5.0, 5.0)])
def test_coders_equal_torchvisions(weights: tuple):
    utils = torchvision("models.detection._utils")
    anchors, boxes = random_boxes(2, 200, 300.0, 5.0, 100.0)
    coder = utils.BoxCoder(weights)
    deltas = coder.encode_single(boxes, anchors)
    torch.testing.assert_close(reference.encode_boxes(boxes, anchors, weights), deltas, rtol=1e-6, atol=1e-5)
    theirs = coder.decode_single(deltas, anchors)
    torch.testing.assert_close(reference.decode_boxes(deltas, anchors, weights), theirs, rtol=1e-6, atol=1e-4)
    distances = torch.rand(200, 4)
    linear = utils.BoxLinearCoder(normalize_by_size=True).decode(distances, anchors)
    torch.testing.assert_close(reference.decode_boxes(distances, anchors, distances=True), linear)


def test_coders_undo_each_other_in_float64():
    anchors, boxes = random_boxes(2, 50, 300.0, 5.0, 100.0).double()
    deltas = reference.encode_boxes(boxes, anchors, (1.0, 2.0, 3.0, 4.0))
    torch.testing.assert_close(reference.decode_boxes(deltas, anchors, (1.0, 2.0, 3.0, 4.0)), boxes)


def test_decoded_gi_score_decodes_the_box_of_the_surer_model():
    anchors = torch.tensor([[0.0, 0, 10, 10], [20, 20, 30, 40]])
    teacher, student = logits([LN3], [0.0]), logits([0.0], [LN3])
    shift = torch.tensor([[[0.5, 0, 0, 0], [0.5, 0, 0, 0]]])
    scores, boxes = reference.decoded_gi_score(teacher, student, shift, -shift, anchors, torch.tensor([[35, 12]]))
    torch.testing.assert_close(scores, torch.tensor([[0.25, 0.25]]))
    assert boxes.tolist() == [[[5, 0, 12, 10], [12, 20, 12, 35]]]


# eq. 7: which anchor is for which box

ANCHORS = [[0, 0, 10, 10], [0, 0, 10, 5], [0, 0, 10, 4.5], [0, 0, 10, 2], [40, 40, 50, 50], [60, 60, 70, 63]]
TRUTH = [[0, 0, 10, 10], [60, 60, 70, 70], [80, 80, 90, 90]]  # the last overlaps no anchor


def match(boxes=TRUTH, counts=None, anchors=ANCHORS, **options) -> list[int]:
    counts = None if counts is None else torch.tensor([counts])
    boxes = torch.tensor([boxes], dtype=torch.float32).view(1, -1, 4)
    return reference.match_anchors(boxes, counts, torch.tensor(anchors, dtype=torch.float32), **options)[0].tolist()


def test_an_anchor_is_for_the_box_that_it_overlaps_enough():
    assert match() == [0, 0, -2, -1, -1, 1]  # IoU 1, 0.5, 0.45, 0.2, 0, and 0.3, which is that box's best
    assert match(low_quality=False) == [0, 0, -2, -1, -1, -1]
    assert match(high=0.2, low=0.0) == [0, 0, 0, 0, -2, 1]


def test_an_anchor_that_is_another_boxs_best_stays_with_its_own():
    boxes, anchors = [[0, 0, 10, 10], [0, 9, 10, 30]], [[0, 0, 10, 10], [0, 5, 10, 12]]
    assert match(boxes, anchors=anchors, low_quality=False) == [0, -2]  # IoU 1 and 5/12 with the first box
    assert match(boxes, anchors=anchors) == [0, 0]  # the other anchor is the second box's best, by 3/25
    # Two anchors tie as the best of a box.
    assert match([[0, 0, 10, 10]], anchors=[[0, 0, 10, 1], [0, 2, 10, 2.5], [0, 9, 10, 10]]) == [0, -1, 0]


def test_images_without_boxes_and_without_labels():
    assert match(counts=0) == match([]) == [-1] * 6
    assert match(counts=-1) == match([], counts=-3) == [-2] * 6
    assert match(counts=1) == match(TRUTH[:1]) == [0, 0, -2, -1, -1, -1]
    assert match([TRUTH[0], [NAN] * 4, [0, 0, INF, 10]]) == match(counts=1)
    assert match(anchors=[[NAN, 0, 10, 10], [0, 0, 10, INF]]) == [-1, -1]


@pytest.mark.parametrize(("high", "low", "low_quality"), [(0.5, 0.4, True), (0.7, 0.3, True), (0.5, 0.4, False)])
def test_matches_equal_torchvisions(high: float, low: float, low_quality: bool):
    utils = torchvision("models.detection._utils")
    anchors, boxes = random_boxes(1, 500, 100.0, 5.0, 60.0)[0], random_boxes(3, 9, 80.0, 5.0, 60.0).clamp(min=0)
    matched = reference.match_anchors(boxes, None, anchors, high, low, low_quality)
    for image, ours in zip(boxes, matched, strict=True):
        theirs = utils.Matcher(high, low, low_quality)(reference.box_iou(image[:, None], anchors))
        assert torch.equal(ours, theirs)


# the losses of both heads: the task's, and eq. 8's


def test_focal_loss_by_hand():
    # p = 3/4 against 1: 1/4 (1/4)^2 ln(4/3); against 0: 3/4 (3/4)^2 ln 4
    as_object, as_background = math.log(4 / 3) / 64, 27 / 64 * math.log(4)
    focal, response = reference.class_losses(
        logits([LN3, LN3], [LN3, LN3], [LN3, LN3], [LN3, LN3]),
        torch.tensor([[1, -1, -2, 0]]),
        torch.tensor([[7, 1, 0]]),  # 7: no class
    )
    torch.testing.assert_close(focal, torch.tensor([as_object + 5 * as_background]))
    assert response.tolist() == [0.0]


def test_rows_beyond_the_ground_truth_are_background():
    values = torch.randn(1, 4, 3)
    background = reference.class_losses(values, torch.full((1, 4), -1), torch.zeros(1, 0, dtype=torch.int64))[0]
    for labels in (torch.zeros(1, 0, dtype=torch.int64), torch.zeros(1, 2, dtype=torch.int64)):
        assert torch.equal(reference.class_losses(values, torch.tensor([[2, 3, -1, 9]]), labels)[0], background)
    boxes, anchors = random_boxes(1, 2, 50.0, 5.0, 40.0), random_boxes(1, 4, 50.0, 5.0, 40.0)[0]
    assert reference.box_losses(torch.randn(1, 4, 4), torch.tensor([[2, 3, -1, 9]]), boxes, anchors)[0].item() == 0.0


def test_focal_loss_equals_torchvisions():
    ops = torchvision("ops")
    values, labels = torch.randn(2, 50, 6, dtype=torch.float64) * 3, torch.randint(0, 6, (2, 4))
    matched = torch.randint(-2, 4, (2, 50))
    targets = torch.zeros_like(values)
    for image, row in (matched >= 0).nonzero().tolist():
        targets[image, row, labels[image, matched[image, row]]] = 1
    theirs = ops.sigmoid_focal_loss(values, targets)
    theirs = theirs.sum(dim=2).masked_fill(matched < -1, 0).sum(dim=1)
    torch.testing.assert_close(reference.class_losses(values, matched, labels)[0], theirs)


@pytest.mark.parametrize("soft_focal", [False, True])
def test_class_response_by_hand(soft_focal: bool):
    # p = 1/4, y = 3/4: BCE = 3/4 ln 4 + 1/4 ln(4/3); the entropy of y = 1/4 ln 4 + 3/4 ln(4/3)
    cross_entropy, entropy = (3 * math.log(4) + math.log(4 / 3)) / 4, (math.log(4) + 3 * math.log(4 / 3)) / 4
    alpha = 0.25 * 0.75 + 0.75 * 0.25
    expected = alpha * 0.5**2 * cross_entropy if soft_focal else cross_entropy - entropy
    student, teacher = logits([-LN3, 0.0], [NAN, NAN]), logits([LN3, 0.0], [NAN, INF])
    mask = torch.tensor([[True, False]])
    focal, response = reference.class_losses(student, None, None, teacher, mask, None, soft_focal)
    torch.testing.assert_close(response, torch.tensor([expected]))
    assert focal.tolist() == [0.0]


def test_box_losses_by_hand():
    anchors = torch.tensor([[10.0, 20, 30, 60]]).repeat(3, 1)
    boxes = torch.tensor([[[0.0, 0, 1, 1], [25, 20, 35, 140]]])  # the second is (0.5, 1, ln 1/2, ln 3) away
    deltas = torch.tensor([[[0.75, 0.0, math.log(0.5), math.log(3.0)], [9.0] * 4, [0.0, 0, 0, 0]]])
    teacher = torch.tensor([[[NAN] * 4, [NAN] * 4, [0.05, -0.3, 0.0, 1.0]]])
    l1, response = reference.box_losses(
        deltas, torch.tensor([[1, -1, -2]]), boxes, anchors, teacher, torch.tensor([[False, False, True]]), 0.1
    )
    torch.testing.assert_close(l1, torch.tensor([0.25 + 1.0]))
    torch.testing.assert_close(response, torch.tensor([0.5 * 0.05**2 / 0.1 + 0.3 - 0.05 + 1.0 - 0.05]))


def class_arguments() -> dict:
    """Two images of five rows; rows that take no part hold NaN."""
    values = torch.randn(2, 5, 3, dtype=torch.float64)
    matched = torch.tensor([[0, -1, -2, 2, 1], [-1, -2, -2, 7, 0]])
    mask = torch.tensor([[True, False, True, False, False], [False, False, True, True, False]])
    values[1, 1] = NAN
    return dict(
        logits=values.requires_grad_(),
        matched=matched,
        labels=torch.tensor([[2, 0, 5], [1, 1, 1]]),
        teacher_logits=torch.randn(2, 5, 3, dtype=torch.float64).masked_fill(~mask[..., None], NAN),
        mask=mask,
    )


def box_arguments() -> dict:
    arguments = class_arguments()
    outside = ~arguments["mask"][..., None]
    values = torch.randn(2, 5, 4, dtype=torch.float64)
    values[1, 1] = NAN
    return dict(
        deltas=values.requires_grad_(),
        matched=arguments["matched"],
        boxes=random_boxes(2, 3, 50.0, 5.0, 40.0).double(),
        anchors=random_boxes(1, 5, 50.0, 5.0, 40.0)[0].double(),
        teacher_deltas=torch.randn(2, 5, 4, dtype=torch.float64).masked_fill(outside, NAN),
        mask=arguments["mask"],
        beta=0.5,
        weights=(10.0, 10.0, 5.0, 5.0),
    )


def check_gradients(function, backward, arguments: dict, gradients: tuple) -> None:
    """By differences, and the one that is written out by autograd; without either loss too."""
    name, values = next(iter(arguments.items()))
    finite = arguments | {name: values.detach().nan_to_num().requires_grad_()}  # gradcheck takes no NaN
    assert torch.autograd.gradcheck(lambda x: function(**finite | {name: x}), [finite[name]])
    losses = function(**arguments)
    assert all(loss.isfinite().all() for loss in losses)
    for given in (gradients, (gradients[0], None), (None, gradients[1])):
        total = sum((loss * grad).sum() for loss, grad in zip(losses, given, strict=True) if grad is not None)
        (expected,) = torch.autograd.grad(total, values, retain_graph=True)
        assert expected.isfinite().all()
        detached = {key: a.detach() if isinstance(a, torch.Tensor) else a for key, a in arguments.items()}
        torch.testing.assert_close(backward(*given, **detached), expected)


@pytest.mark.parametrize("soft_focal", [False, True])
def test_class_losses_gradient(soft_focal: bool):
    arguments = class_arguments() | dict(soft_focal=soft_focal)
    gradients = torch.randn(2, 2, dtype=torch.float64).unbind()
    check_gradients(reference.class_losses, reference.class_losses_backward, arguments, gradients)


def test_box_losses_gradient():
    gradients = torch.randn(2, 2, dtype=torch.float64).unbind()
    check_gradients(reference.box_losses, reference.box_losses_backward, box_arguments(), gradients)


@pytest.mark.parametrize("soft_focal", [False, True])
def test_a_focal_loss_given_keeps_its_gradient(soft_focal: bool):
    arguments = class_arguments() | dict(soft_focal=soft_focal)
    computed = reference.class_losses(**arguments)
    given = reference.class_losses(**arguments, focal=torch.tensor([5.0, -7.0], dtype=torch.float64))
    assert given[0].tolist() == [5.0, -7.0]
    assert torch.equal(given[1], computed[1])
    both = [torch.autograd.grad(sum(losses).sum(), arguments["logits"])[0] for losses in (computed, given)]
    assert torch.equal(*both)


@pytest.mark.parametrize("soft_focal", [False, True])
def test_a_student_that_equals_its_teacher_loses_nothing(soft_focal: bool):
    values = torch.randn(1, 50, 4).requires_grad_()
    mask = torch.ones(1, 50, dtype=torch.bool)
    losses = [
        reference.class_losses(values, teacher_logits=values.detach(), mask=mask, soft_focal=soft_focal)[1],
        reference.box_losses(values, teacher_deltas=values.detach(), mask=mask)[1],
    ]
    for loss in losses:
        (gradient,) = torch.autograd.grad(loss.sum(), values)
        assert loss.item() == 0.0
        assert gradient.abs().max() < 1e-6


def test_float64_in_float64_out():
    x = torch.rand(1, 2, 4, dtype=torch.float64)
    assert reference.gi_score(x, x, x, x)[0].dtype == torch.float64
    assert reference.pairwise_distance(x).dtype == torch.float64
    assert reference.multilevel_roi_align([x[None]], x.float(), strides=[8]).dtype == torch.float64
    anchors = x[0] + torch.tensor([0.0, 0, 2, 2])
    assert reference.decoded_gi_score(x, x, x, x, anchors)[1].dtype == torch.float64
    matched, mask = reference.match_anchors(anchors[None], None, anchors), torch.ones(1, 2, dtype=torch.bool)
    classes = reference.class_losses(x, matched, matched, x, mask)
    regression = reference.box_losses(x, matched, anchors[None], anchors, x, mask)
    assert [loss.dtype for loss in (*classes, *regression)] == [torch.float64] * 4
