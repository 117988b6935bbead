"""Eqs. 10-11 worked by hand."""

from __future__ import annotations

import pytest
import torch

from gid_cuda.detectors.outputs import GeneralInstances
from gid_cuda.distill import EMPTY, NEGATIVE, POSITIVE, SEMI_POSITIVE, UNCOUNTED, instance_kinds, kind_counts, overlaps
from gid_cuda.distill.kinds import MAX_GROUND_TRUTH, ground_truth_instances


def instances(rows: list[list[list[float]]], slots: int, device: str = "cpu") -> GeneralInstances:
    boxes = torch.zeros(len(rows), slots, 4)
    for image, row in enumerate(rows):
        if row:
            boxes[image, : len(row)] = torch.tensor(row)
    counts = torch.tensor([len(row) for row in rows])
    zeros = torch.zeros(boxes.shape[:2])
    return GeneralInstances(boxes.to(device), zeros.to(device), zeros.long().to(device), counts.to(device))


def target(*boxes: list[float], device: str = "cpu") -> dict[str, torch.Tensor]:
    return {"boxes": torch.tensor(boxes).reshape(-1, 4).to(device), "labels": torch.zeros(len(boxes)).long().to(device)}


# One ground-truth box of 100 x 100 at the origin, area 10 000. Each GI: its IoU, its IoP, its kind.
CASES = [
    ([0.0, 0, 60, 100], POSITIVE),  # inside: 6000 / 10000 = 0.6, IoP 1
    ([0.0, 0, 50, 100], SEMI_POSITIVE),  # IoU exactly 0.5, IoP 1
    ([0.0, 0, 10, 10], SEMI_POSITIVE),  # 100 / 10000 = 0.01, IoP 1
    ([90.0, 0, 110, 100], UNCOUNTED),  # inter 1000 of 2000: IoU 1/11, IoP 0.5
    ([90.0, 0, 190, 100], NEGATIVE),  # inter 1000 of 10000: IoU 1/19, IoP 0.1
    ([200.0, 0, 220, 20], NEGATIVE),  # apart: 0, 0
    ([93.0, 0, 103, 100], UNCOUNTED),  # inter 700 of 1000: IoP exactly 0.7, which is not above it
    ([97.0, 0, 107, 100], UNCOUNTED),  # inter 300 of 1000: IoP exactly 0.3, which is not below it
    ([0.0, 0, 100, 190], POSITIVE),  # the other way round: 10000 / 19000 = 0.526, IoP 0.526
]


@pytest.mark.parametrize(("box", "kind"), CASES)
def test_kinds(box: list[float], kind: int, device: str) -> None:
    found = instance_kinds(instances([[box]], 2, device), [target([0.0, 0, 100, 100], device=device)])
    assert found.tolist() == [[kind, EMPTY]]


def test_both_maxima_go_over_all_ground_truth() -> None:
    # GI 40 x 40 at the origin. IoU 0.5 or less with each: the first covers it whole (IoP 1, IoU 0.16), the second has
    # the better IoU, 800 / 2400 = 1/3, with IoP 0.5.
    gi = instances([[[0.0, 0, 40, 40]]], 1)
    assert instance_kinds(gi, [target([0.0, 0, 100, 100], [20.0, 0, 60, 40])]).tolist() == [[SEMI_POSITIVE]]
    assert instance_kinds(gi, [target([20.0, 0, 60, 40])]).tolist() == [[UNCOUNTED]]
    # a third one makes it positive: 1600 / 2000 = 0.8
    third = target([0.0, 0, 100, 100], [20.0, 0, 60, 40], [0.0, 0, 50, 40])
    assert instance_kinds(gi, [third]).tolist() == [[POSITIVE]]


def test_images_without_ground_truth_and_unlabelled_ones(device: str) -> None:
    gi = instances([[[0.0, 0, 40, 40]]] * 3 + [[]], 1, device)
    same, tiny = target([0.0, 0, 40, 40], device=device), target([0.0, 0, 9, 9], device=device)
    targets = [target(device=device), None, same, tiny]
    assert instance_kinds(gi, targets).tolist() == [[NEGATIVE], [UNCOUNTED], [POSITIVE], [EMPTY]]
    assert instance_kinds(gi, [None] * 4).tolist() == [[UNCOUNTED], [UNCOUNTED], [UNCOUNTED], [EMPTY]]


def test_counts_of_kinds() -> None:
    found = instance_kinds(instances([[box for box, _ in CASES]], 12), [target([0.0, 0, 100, 100])])
    assert [int((found == kind).sum()) for kind in (POSITIVE, SEMI_POSITIVE, NEGATIVE)] == [2, 2, 2]


def test_counts_are_means_over_labelled_images(device: str) -> None:
    truth = target([0.0, 0, 100, 100], device=device)
    boxes = [box for box, _ in CASES]
    gi = instances([boxes, boxes[:1], boxes, []], 12, device)
    found = kind_counts(gi, [truth, target(device=device), None, truth])  # the third is not counted, the fourth empty
    assert all(value.shape == () and str(value.device).startswith(device) for value in found.values())
    assert {name: value.item() for name, value in found.items()} == pytest.approx(
        {"gi_positive": 2 / 3, "gi_semi_positive": 2 / 3, "gi_negative": 3 / 3, "gi_uncounted": 3 / 3}
    )
    assert [value.item() for value in kind_counts(gi, [None] * 4).values()] == [0, 0, 0, 0]
    assert [value.item() for value in kind_counts(instances([], 3, device), []).values()] == [0, 0, 0, 0]


def test_overlaps(device: str) -> None:
    """Each maximum for itself: IoP 1 with the first box, IoU 1/3 with the second (see above)."""
    gi = instances([[[0.0, 0, 40, 40], [0.0, 0, 100, 100]], [[0.0, 0, 40, 40]], [[5.0, 5, 5, 5]]], 2, device)
    two = target([0.0, 0, 100, 100], [20.0, 0, 60, 40], device=device)
    iou, iop = overlaps(gi, [two, None, two])
    assert iou.tolist() == [pytest.approx([1 / 3, 1]), [0, 0], [0, 0]]
    assert iop.tolist() == [pytest.approx([1, 1]), [0, 0], [0, 0]]


def test_no_images() -> None:
    assert instance_kinds(instances([], 3), []).shape == (0, 3)
    assert ground_truth_instances([], torch.device("cpu")).boxes.shape == (0, 1, 4)


def test_ground_truth_in_place_of_instances(device: str) -> None:
    two = target([0.0, 0, 30, 40], [5.0, 5, 60, 80], device=device)
    one, none = target([1.0, 2, 3, 4], device=device), target(device=device)
    found = ground_truth_instances([two, None, none, one], two["boxes"].device)
    assert found.counts.tolist() == [2, 0, 0, 1] and found.boxes.shape == (4, 2, 4)
    assert torch.equal(found.boxes[0], two["boxes"]) and found.boxes[3].tolist() == [[1, 2, 3, 4], [0, 0, 0, 0]]
    assert found.scores.tolist() == [[1, 1], [0, 0], [0, 0], [1, 0]] and (found.indices == -1).all()
    assert found.valid.tolist() == [[True, True], [False, False], [False, False], [True, False]]


def test_no_more_ground_truth_than_the_limit() -> None:
    many = torch.rand(MAX_GROUND_TRUTH + 7, 4)
    found = ground_truth_instances([{"boxes": many}], torch.device("cpu"))
    assert found.counts.tolist() == [MAX_GROUND_TRUTH] and torch.equal(found.boxes[0], many[:MAX_GROUND_TRUTH])


def test_no_ground_truth_at_all_keeps_one_empty_slot() -> None:
    found = ground_truth_instances([None, target()], torch.device("cpu"))
    assert found.boxes.shape == (2, 1, 4) and not found.valid.any() and not found.scores.any()


@pytest.mark.parametrize(
    ("targets", "message"),
    [
        ([], r"targets has 0 entries, but the batch has 1 images"),
        ([{"labels": torch.zeros(0)}], r"targets\[0\] has no 'boxes'"),
        ([{"boxes": torch.zeros(4)}], r"targets\[0\]\['boxes'\] is \(4,\), but must be \(N, 4\)"),
    ],
)
def test_bad_targets(targets: list, message: str) -> None:
    with pytest.raises(ValueError, match=message):
        instance_kinds(instances([[[0.0, 0, 40, 40]]], 1), targets)
