"""Eqs. 1-3 worked by hand."""

from __future__ import annotations

from dataclasses import fields
from math import log

import pytest
import torch
from torch import Tensor

from gid_cuda.detectors.outputs import BoxCoder, DetectorOutputs
from gid_cuda.distill import select_instances
from gid_cuda.distill.selection import front_order, keep_instances

from .fakes import exact_outputs, leaves, random_outputs

LN3, LN9 = log(3), log(9)  # sigmoid(0) = 1/2, sigmoid(ln 3) = 3/4, sigmoid(ln 9) = 9/10


def apart(count: int) -> torch.Tensor:
    """`count` boxes of 20 x 20 pixels that do not touch."""
    left = torch.arange(count) * 40.0
    return torch.stack([left, torch.zeros(count), left + 20, torch.full((count,), 20.0)], dim=1)


def scored(scores: list[float]) -> tuple[torch.Tensor, torch.Tensor]:
    """Teacher's and student's logits (1, R, 1) whose GI scores are these: the student is at 1/2, the teacher above."""
    teacher = (0.5 + torch.tensor(scores, dtype=torch.float64)).logit().float()[None, :, None]
    return teacher, torch.zeros_like(teacher)


def test_gi_score_is_the_largest_difference_over_classes(device: str) -> None:
    # box 0: |3/4 - 1/2| = 0.25 and |1/2 - 9/10| = 0.4 -> 0.4          box 1: |1/2 - 3/4| = 0.25 and 0 -> 0.25
    # box 2: both alike -> 0
    teacher = torch.tensor([[[LN3, 0.0], [0.0, LN9], [LN9, -3.0]]], device=device)
    student = torch.tensor([[[0.0, LN9], [LN3, LN9], [LN9, -3.0]]], device=device)
    boxes = apart(3).to(device)
    found = select_instances(exact_outputs(boxes, teacher), exact_outputs(boxes, student), top_k=4)
    torch.testing.assert_close(found.scores.cpu(), torch.tensor([[0.4, 0.25, 0.0, 0.0]]))
    assert found.indices.tolist() == [[0, 1, 2, -1]] and found.counts.tolist() == [3]
    assert found.boxes.tolist() == [[*apart(3).tolist(), [0, 0, 0, 0]]]
    assert found.valid.tolist() == [[True, True, True, False]]


def decoded(outputs: DetectorOutputs) -> DetectorOutputs:
    """With boxes of its own: those yet to be decoded have the student's anchors, which are the teacher's too."""
    assert outputs.boxes is outputs._boxes
    return outputs


def test_gi_box_is_that_of_the_surer_model_and_the_students_at_a_tie(device: str) -> None:
    # best logits: box 0 teacher ln 9 > student ln 3; box 1 student above; box 2 both 0: the student's
    # (the models differ in box 2 by its other class, so it has a score of 1/2 - 1/4 = 1/4)
    teacher = torch.tensor([[[LN9, 0.0], [0.0, 0.0], [0.0, 0.0]]], device=device)
    student = torch.tensor([[[LN3, 0.0], [LN3, 0.0], [0.0, -LN3]]], device=device)
    here, there = apart(3).to(device), (apart(3) + torch.tensor([0.0, 50.0, 0.0, 50.0])).to(device)
    found = select_instances(decoded(exact_outputs(here, teacher)), decoded(exact_outputs(there, student)), top_k=3)
    by_index = dict(zip(found.indices[0].tolist(), found.boxes[0].tolist(), strict=True))
    assert by_index == {0: here[0].tolist(), 1: there[1].tolist(), 2: there[2].tolist()}


def test_saturated_logits_still_say_who_is_surer() -> None:
    # sigmoid(30) and sigmoid(40) are both 1 in float32
    teacher, student = torch.tensor([[[40.0]]]), torch.tensor([[[30.0]]])
    both = decoded(exact_outputs(apart(1), teacher)), decoded(exact_outputs(apart(1) + 50, student))
    found = select_instances(*both, top_k=1)
    assert found.boxes[0].tolist() == apart(1).tolist()


@pytest.mark.parametrize("kind", ["deltas", "distances"])
@pytest.mark.parametrize("dtype", [torch.float32, torch.bfloat16])
def test_decoding_on_the_way_changes_nothing(kind: str, dtype: torch.dtype, device: str) -> None:
    teacher, student = (random_outputs(seed=seed, dtype=dtype, device=device) for seed in (0, 1))
    for outputs in (teacher, student):
        outputs.coder = BoxCoder(kind, (10.0, 10.0, 5.0, 5.0) if kind == "deltas" else (1.0, 1.0, 1.0, 1.0))
    found = select_instances(teacher, student)
    assert teacher._boxes is None and student._boxes is None
    again = select_instances(decoded(teacher), decoded(student))
    assert (found.counts > 2).all() and torch.equal(found.indices, again.indices)
    torch.testing.assert_close(found.boxes, again.boxes)
    torch.testing.assert_close(found.scores, again.scores, rtol=0, atol=0)


def test_a_coder_of_ones_own_is_asked() -> None:
    class Shifted(BoxCoder):
        def decode(self, deltas: Tensor, anchors: Tensor) -> Tensor:
            return super().decode(deltas, anchors) + 1000

    teacher, student = random_outputs(seed=0), random_outputs(seed=1)
    teacher.coder = student.coder = Shifted("deltas")
    student.image_sizes = student.image_sizes + 2000
    assert (select_instances(teacher, student).boxes[:, 0] > 500).all()


def test_boxes_of_ones_own_are_asked_for() -> None:
    class Shifted(DetectorOutputs):
        @property
        def boxes(self) -> Tensor:
            return apart(3)[None] + 7

    def shifted(plain: DetectorOutputs) -> DetectorOutputs:
        return Shifted(*(getattr(plain, field.name) for field in fields(plain) if field.init))

    teacher, student = scored([0.3, 0.2, 0.1])
    both = [shifted(exact_outputs(apart(3), logits)) for logits in (teacher, student)]
    assert torch.equal(select_instances(*both, top_k=3).boxes, apart(3)[None] + 7)


def test_suppression_across_classes() -> None:
    # 20 x 20 boxes moved by 10: inter 200, union 600, IoU 1/3 > 0.3: suppressed; by 12: 160 / 640 = 1/4: kept.
    # The classes that made the scores differ, which does not matter.
    boxes = torch.tensor([[0.0, 0, 20, 20], [10, 0, 30, 20], [12, 0, 32, 20]])
    teacher = torch.tensor([[[LN9, 0.0], [0.0, LN3], [0.0, LN3 / 2]]])
    student = torch.zeros_like(teacher)
    found = select_instances(exact_outputs(boxes, teacher), exact_outputs(boxes, student), top_k=3)
    assert found.indices.tolist() == [[0, 2, -1]]
    found = select_instances(exact_outputs(boxes, teacher), exact_outputs(boxes, student), top_k=3, nms_iou=0.4)
    assert found.indices.tolist() == [[0, 1, -1]]  # box 2 now falls to box 1: 18 * 20 / 440 = 0.82


def test_only_the_best_k_and_equal_scores_by_index() -> None:
    teacher, student = scored([0.1, 0.3, 0.2, 0.3])
    found = select_instances(exact_outputs(apart(4), teacher), exact_outputs(apart(4), student), top_k=2)
    assert found.indices.tolist() == [[1, 3]]


def test_boxes_are_clipped_then_small_ones_skipped() -> None:
    # image 100 high, 60 wide. Box 0: 10 wide, kept; 1: 9.5 wide; 2: 9 wide once clipped; 3: clipped to 55..60 x 60..100
    # but 5 wide; 4: clipped, 20 x 20 left.
    boxes = torch.tensor([[0.0, 0, 10, 20], [12, 0, 21.5, 20], [51, 0, 80, 20], [55, 60, 90, 120], [-15, 80, 20, 130]])
    teacher, student = scored([0.1, 0.2, 0.3, 0.25, 0.4])
    outputs = [exact_outputs(boxes, logits, size=(100, 60)) for logits in (teacher, student)]
    found = select_instances(*outputs, top_k=5)
    assert found.indices.tolist() == [[4, 0, -1, -1, -1]]
    assert found.boxes[0, 0].tolist() == [0, 80, 20, 100]
    assert select_instances(*outputs, top_k=5, min_size=5.0).indices.tolist() == [[4, 2, 3, 1, 0]]


def test_pre_nms_top_k_leaves_the_best_scores_alone() -> None:
    # boxes 0 and 1 overlap; the two best are these, so only box 0 is left of them. A NaN takes no place.
    boxes = torch.tensor([[0.0, 0, 20, 20], [5, 0, 25, 20], [100, 0, 120, 20], [150, 0, 170, 20]])
    teacher, student = scored([0.4, 0.3, 0.2, float("nan")])
    outputs = exact_outputs(boxes, teacher), exact_outputs(boxes, student)
    assert select_instances(*outputs, top_k=3, pre_nms_top_k=2).indices.tolist() == [[0, -1, -1]]
    assert select_instances(*outputs, top_k=3, pre_nms_top_k=3).indices.tolist() == [[0, 2, -1]]
    assert select_instances(*outputs, top_k=3).indices.tolist() == [[0, 2, -1]]


def test_pre_nms_top_k_of_everything_changes_nothing() -> None:
    teacher, student = random_outputs(seed=0), random_outputs(seed=1)
    every = select_instances(teacher, student, top_k=10)
    for n in (len(teacher.anchors), len(teacher.anchors) + 5):
        same = select_instances(teacher, student, top_k=10, pre_nms_top_k=n)
        assert torch.equal(every.indices, same.indices) and torch.equal(every.boxes, same.boxes)


@pytest.mark.parametrize("top_k", [0, 5])
def test_nothing_to_choose_from(top_k: int) -> None:
    nothing = exact_outputs(torch.zeros(0, 4), torch.zeros(2, 0, 3))
    found = select_instances(nothing, nothing, top_k=top_k)
    assert found.boxes.shape == (2, top_k, 4) and found.counts.tolist() == [0, 0] and not found.valid.any()
    assert (found.indices == -1).all()


def test_instances_are_detached() -> None:
    teacher, student = random_outputs(seed=0), random_outputs(seed=1, grad=True)
    found = select_instances(teacher, student)
    assert all(x.requires_grad for x in leaves(student))
    assert not found.boxes.requires_grad and not found.scores.requires_grad


def test_mixed_precision_of_the_two_models() -> None:
    teacher, student = random_outputs(seed=0, dtype=torch.bfloat16), random_outputs(seed=1)
    found = select_instances(teacher, student)
    teacher.logits = teacher.logits.float()
    same = select_instances(teacher, student)
    assert torch.equal(found.indices, same.indices) and torch.equal(found.scores, same.scores)


def test_keep_moves_to_the_front_in_order(device: str) -> None:
    teacher, student = (random_outputs(seed=seed, device=device) for seed in (0, 1))
    found = select_instances(teacher, student, top_k=6)
    keep = torch.tensor([[True, False, True, False, True, False], [False] * 6], device=device)
    kept = keep_instances(found, keep)
    assert kept.counts.tolist() == [3, 0]
    assert kept.indices.tolist() == [[*found.indices[0, [0, 2, 4]].tolist(), -1, -1, -1], [-1] * 6]
    assert torch.equal(kept.boxes[0, :3], found.boxes[0, [0, 2, 4]]) and not kept.boxes[~kept.valid].any()
    assert torch.equal(kept.scores[0, :3], found.scores[0, [0, 2, 4]]) and not kept.scores[~kept.valid].any()


def test_empty_slots_are_not_kept() -> None:
    teacher, student = random_outputs(seed=0), random_outputs(seed=1)
    found = select_instances(teacher, student, top_k=100)
    assert (found.counts < 100).all()
    assert torch.equal(keep_instances(found, torch.ones_like(found.valid)).counts, found.counts)


def test_front_order_is_stable() -> None:
    assert front_order(torch.tensor([False, True, False, True, True])).tolist() == [1, 3, 4, 0, 2]
