from __future__ import annotations

from pathlib import Path
from typing import Any

import pytest
import torch
from detector_helpers import small_input
from faster_rcnn_helpers import rcnn_model, settled_rcnn
from torch import Tensor
from torchvision.models.detection._utils import Matcher
from torchvision.models.detection.image_list import ImageList
from torchvision.ops import box_iou

from gid_cuda.detectors import FasterRCNN, build_detector
from gid_cuda.detectors.outputs import BoxCoder, DetectorOutputs, GeneralInstances
from gid_cuda.distill import GID, LOSS_NAMES
from gid_cuda.errors import UserError

Targets = list[dict[str, Tensor]]
LOSSES = {"loss_objectness", "loss_rpn_box_reg", "loss_classifier", "loss_box_reg"}
NOTHING = {"boxes": torch.zeros(0, 4), "labels": torch.zeros(0, dtype=torch.int64)}


@pytest.fixture
def detector() -> FasterRCNN:
    return settled_rcnn()


def batch_of(count: int) -> ImageList:
    return ImageList(torch.rand(count, 3, 96, 96), [(96, 96)] * count)


def seeded_losses(detector: FasterRCNN, images: ImageList, targets: list[Any]) -> dict[str, Tensor]:
    torch.manual_seed(3)
    return detector(images, targets).losses


def trained(detector: FasterRCNN) -> list[Tensor]:
    return [p for p in detector.parameters() if p.requires_grad]


def outputs_with(anchors: Tensor) -> DetectorOutputs:
    logits, deltas = torch.zeros(1, len(anchors), 1), torch.zeros(1, len(anchors), 4)
    return DetectorOutputs([], [], logits, deltas, BoxCoder("deltas"), anchors, torch.zeros(1, 2))


def instances_of(*boxes: list[list[float]], slots: int) -> GeneralInstances:
    counts = torch.tensor([len(one) for one in boxes])
    padded = torch.zeros(len(boxes), slots, 4)
    for index, one in enumerate(boxes):
        padded[index, : len(one)] = torch.tensor(one).reshape(-1, 4)
    return GeneralInstances(padded, torch.zeros(len(boxes), slots), torch.full((len(boxes), slots), -1), counts)


# -- outputs and losses -----------------------------------------------------------------------------------------------


def test_one_pass_gives_the_rpns_outputs_and_all_losses(
    detector: FasterRCNN, images: list[Tensor], targets: Targets
) -> None:
    batch, moved = detector.transform(images, targets)
    outputs = detector(batch, moved)
    height, width = batch.tensors.shape[-2:]
    assert outputs.strides == [4, 8, 16, 32, 64]
    assert [tuple(f.shape) for f in outputs.features] == [
        (2, 16, -(-height // stride), -(-width // stride)) for stride in outputs.strides
    ]
    boxes = sum(3 * f.shape[-2] * f.shape[-1] for f in outputs.features)
    assert outputs.logits.shape == (2, boxes, 1) and outputs.deltas.shape == (2, boxes, 4)
    assert outputs.anchors.shape == (boxes, 4) and outputs.anchors.dtype == torch.float32
    assert outputs.coder == BoxCoder("deltas", (1.0, 1.0, 1.0, 1.0))
    assert outputs.image_sizes.tolist() == [list(size) for size in batch.image_sizes]
    assert detector.num_classes == 3 and detector.out_channels == 16
    assert set(outputs.losses) == LOSSES
    sum(outputs.losses.values()).backward()
    assert all(p.grad is not None and p.grad.count_nonzero() for p in trained(detector))


def test_outputs_are_torchvisions_proposals_before_any_is_dropped(
    detector: FasterRCNN, monkeypatch: pytest.MonkeyPatch
) -> None:
    seen: list[Any] = []
    monkeypatch.setattr(detector.rpn, "filter_proposals", lambda *args: seen.extend(args) or ([], []))
    images = batch_of(2)
    outputs = detector.eval()(images)
    assert seen == []
    detector.rpn(images, detector.backbone(images.tensors))
    torch.testing.assert_close(outputs.boxes, seen[0])
    torch.testing.assert_close(outputs.logits, seen[1].view(2, -1, 1))


def test_losses_exactly_where_targets_are_given(detector: FasterRCNN, targets: Targets) -> None:
    """In eval mode, too, with as many proposals as training has."""
    detector.rpn._post_nms_top_n = {"training": 200, "testing": 3}
    images = batch_of(2)
    in_training = seeded_losses(detector.train(), images, targets)
    modes = {name: module.training for name, module in detector.eval().named_modules()}
    in_eval = seeded_losses(detector, images, targets)
    torch.testing.assert_close(in_eval, in_training, rtol=0, atol=0)
    assert {name: module.training for name, module in detector.named_modules()} == modes
    assert detector(images).losses == {} and detector.train()(images).losses == {}


def test_detections_come_from_the_proposals_of_testing_and_losses_from_those_of_training(
    detector: FasterRCNN, targets: Targets
) -> None:
    detector.rpn._post_nms_top_n = {"training": 60, "testing": 7}
    counts = []
    detector.roi_heads.box_roi_pool.register_forward_hook(lambda _, inputs, __: counts.append(len(inputs[1][0])))
    detector.eval()
    images = batch_of(2)
    detector(images)
    assert counts == []  # a teacher needs no RoI heads
    detector(images, targets)
    detector.predict([torch.rand(3, 96, 96)])
    assert counts == [62, 7]  # two ground-truth boxes are proposals, too


def test_unlabelled_images_are_left_out_of_losses_and_normalisers(detector: FasterRCNN, targets: Targets) -> None:
    """They draw no random number either: losses are those of the labelled images alone."""
    images = batch_of(3)
    images.tensors.requires_grad_()
    some = seeded_losses(detector, images, [targets[0], None, targets[1]])
    alone = ImageList(images.tensors.detach()[[0, 2]], images.image_sizes[:2])
    torch.testing.assert_close(some, seeded_losses(detector, alone, targets))
    assert all(loss > 0 for loss in some.values())
    sum(some.values()).backward()
    assert [bool(one.count_nonzero()) for one in images.tensors.grad] == [True, False, True]


def test_without_any_label_losses_are_zero_and_reach_every_parameter(detector: FasterRCNN) -> None:
    losses = detector(batch_of(2), [None, None]).losses
    assert {key: loss.item() for key, loss in losses.items()} == dict.fromkeys(LOSSES, 0.0)
    sum(losses.values()).backward()
    assert all(p.grad is not None and p.grad.count_nonzero() == 0 for p in trained(detector))


def test_an_image_without_boxes_is_background(detector: FasterRCNN) -> None:
    losses = detector(batch_of(1), [NOTHING]).losses
    assert losses["loss_objectness"] > 0 and losses["loss_classifier"] > 0
    assert losses["loss_rpn_box_reg"] == 0 and losses["loss_box_reg"] == 0


def test_nothing_to_sample_is_zero_not_nan(detector: FasterRCNN) -> None:
    detector.rpn.min_size = 1000.0  # no proposal is left
    losses = detector(batch_of(1), [NOTHING]).losses
    assert losses["loss_objectness"] > 0 and losses["loss_classifier"] == 0 and losses["loss_box_reg"] == 0


def test_ground_truth_without_area_is_left_out(detector: FasterRCNN, targets: Targets) -> None:
    flat = {
        "boxes": torch.cat([targets[0]["boxes"], torch.tensor([[20.0, 30, 20, 60], [5, 9, 40, 9]])]),
        "labels": torch.tensor([2, 0, 1, 1]),
    }
    images = batch_of(1)
    losses = seeded_losses(detector, images, [flat])
    torch.testing.assert_close(losses, seeded_losses(detector, images, targets[:1]), rtol=0, atol=0)


@pytest.mark.parametrize("label", [-1, 3])
def test_a_label_of_no_class_is_named(detector: FasterRCNN, label: int) -> None:
    """-1 would else be background without a word."""
    wrong = {"boxes": torch.tensor([[5.0, 5, 50, 50]]), "labels": torch.tensor([label])}
    with pytest.raises(ValueError, match=f"hold the label {label}, but labels must be 0 to 2"):
        detector(batch_of(1), [wrong])


def test_a_target_too_few_is_named(detector: FasterRCNN, targets: Targets) -> None:
    with pytest.raises(ValueError, match="targets has 1 entries for 2 images"):
        detector(batch_of(2), targets[:1])


def test_autocast_leaves_anchors_losses_and_detections_in_float32(
    detector: FasterRCNN, images: list[Tensor], targets: Targets
) -> None:
    batch, moved = detector.transform(images, targets)
    exact = detector(batch, moved)
    with torch.autocast("cpu", dtype=torch.bfloat16):
        rough = detector(batch, moved)
        detections = detector.predict(images)
    assert rough.logits.dtype == torch.bfloat16
    assert torch.equal(rough.anchors, exact.anchors) and rough.boxes.dtype == torch.float32
    assert {loss.dtype for loss in rough.losses.values()} == {torch.float32}
    assert all(loss.isfinite() and loss > 0 for loss in rough.losses.values())
    assert all(len(one["boxes"]) and one["boxes"].dtype == one["scores"].dtype == torch.float32 for one in detections)
    sum(rough.losses.values()).backward()
    assert all(p.grad is not None and p.grad.isfinite().all() for p in trained(detector))


# -- distillation -----------------------------------------------------------------------------------------------------


def test_assign_by_hand(detector: FasterRCNN) -> None:
    anchors = torch.tensor(
        [[0.0, 0, 10, 10], [0, 0, 10, 7], [0, 0, 10, 6.9], [50, 50, 60, 60], [50, 50, 60, 60], [200, 200, 210, 210]]
    )
    # image 0: IoU 1, exactly 0.7, 0.69; image 1: a GI whose best IoU, 1/4, two anchors tie, and one that meets no
    # anchor; image 2: no GI
    instances = instances_of([[0.0, 0, 10, 10]], [[50.0, 50, 55, 55], [100, 100, 110, 110]], [], slots=2)
    assert detector.assign(instances, outputs_with(anchors)).tolist() == [
        [True, True, False, False, False, False],
        [False, False, False, True, True, False],
        [False] * 6,
    ]


def test_assign_is_the_rpns_matcher(detector: FasterRCNN) -> None:
    outputs = detector(batch_of(2))
    corner = torch.rand(2, 5, 2) * 60
    boxes = torch.cat([corner, corner + 2 + torch.rand(2, 5, 2) * 40], dim=-1)
    instances = GeneralInstances(boxes, torch.zeros(2, 5), torch.zeros(2, 5, dtype=torch.int64), torch.tensor([5, 3]))
    found = detector.assign(instances, outputs)
    assert isinstance(detector.rpn.proposal_matcher, Matcher)
    for image, count in enumerate([5, 3]):
        expected = detector.rpn.proposal_matcher(box_iou(boxes[image, :count], outputs.anchors)) >= 0
        assert expected.any() and torch.equal(found[image], expected)


def test_response_is_zero_where_student_is_teacher_and_follows_the_configuration() -> None:
    changed = build_detector(rcnn_model(), small_input(), ["a"], response_cls="focal", response_smooth_l1_beta=0.5)
    default = build_detector(rcnn_model(), small_input(), ["a"])
    mask = torch.tensor([[True, True, False]])
    student, teacher = outputs_with(torch.zeros(3, 4)), outputs_with(torch.zeros(3, 4))
    student.logits.requires_grad_()
    same = default.response_losses(student, teacher, mask)
    sum(same).backward()
    assert [loss.item() for loss in same] == [0.0, 0.0] and not student.logits.grad.any()
    teacher.logits, student.deltas = torch.ones(1, 3, 1), torch.full((1, 3, 4), 0.3)
    cls, reg = default.response_losses(student, teacher, mask)
    focal, wide = changed.response_losses(student, teacher, mask)
    assert cls > focal > 0
    assert reg.item() == pytest.approx(8 * (0.3 - 1 / 18)) and wide.item() == pytest.approx(8 * 0.3**2)


def test_gid_over_teacher_and_student(targets: Targets) -> None:
    teacher, student = settled_rcnn(fpn_channels=24).eval(), settled_rcnn()
    gid, images = GID(16, 24, reduction="pixel", min_size=2.0), batch_of(2)
    with torch.no_grad():
        teacher_outputs = teacher(images)
    outputs = student(images, [targets[0], None])
    losses, instances = gid(teacher_outputs, outputs, student, [targets[0], None])
    assert instances.counts.tolist() == [10, 10]
    assert set(losses) == set(LOSS_NAMES) and all(loss > 0 and loss.isfinite() for loss in losses.values())
    assert set(outputs.losses) == LOSSES
    sum(losses.values()).backward()
    reached = {name: p.grad is not None and bool(p.grad.any()) for name, p in student.named_parameters()}
    assert all(reached[name] for name in reached if name.startswith("rpn"))
    assert not any(reached[name] for name in reached if name.startswith("roi_heads"))
    assert all(p.grad.any() for p in gid.parameters())


# -- predictions, weights, configuration ------------------------------------------------------------------------------


def test_predict_does_not_depend_on_the_mode_and_leaves_it(detector: FasterRCNN, images: list[Tensor]) -> None:
    expected = detector.eval().predict(images)
    detector.train()
    detector.rpn.eval()  # a user keeps it as it is
    found = detector.predict(images)
    assert detector.training and detector.roi_heads.training
    assert not any(module.training for module in detector.rpn.modules())
    assert all(len(one["boxes"]) for one in expected)
    for one, other in zip(found, expected, strict=True):
        assert torch.equal(one["boxes"], other["boxes"]) and torch.equal(one["labels"], other["labels"])


def test_classes_of_a_checkpoint_are_brought_into_our_order(
    detector: FasterRCNN, images: list[Tensor], tmp_path: Path
) -> None:
    config = {
        "model": rcnn_model(norm="frozen").model_dump(mode="json"),
        "input": small_input().model_dump(mode="json"),
    }
    torch.save({"model": detector.state_dict(), "classes": ["a", "b", "c"], "config": config}, tmp_path / "best.pt")
    model = rcnn_model(norm="frozen", weights=str(tmp_path / "best.pt"), score_thresh=0.2)
    same = build_detector(model, small_input(), ["a", "b", "c"]).predict(images)
    turned = build_detector(model, small_input(), ["c", "a", "b"])
    assert "data set's order" in turned.weight_notes[0]
    theirs, ours = detector.roi_heads.box_predictor, turned.roi_heads.box_predictor
    assert torch.equal(ours.cls_score.weight, theirs.cls_score.weight[[0, 3, 1, 2]])
    for one, other in zip(turned.predict(images), same, strict=True):
        assert len(one["labels"]) > 3
        assert torch.equal(one["labels"], (other["labels"] + 1) % 3)
        torch.testing.assert_close(one["scores"], other["scores"])
        torch.testing.assert_close(one["boxes"], other["boxes"], rtol=1e-5, atol=1e-3)


def test_compile_takes_backbone_and_heads_in_place(detector: FasterRCNN, monkeypatch: pytest.MonkeyPatch) -> None:
    compiled: list[Any] = []
    monkeypatch.setattr(torch, "compile", lambda function, **_: compiled.append(function.__self__) or function)
    keys = list(detector.state_dict())
    detector.compile()
    assert compiled == [detector.backbone, detector.rpn.head, detector.roi_heads.box_head]
    assert list(detector.state_dict()) == keys


@pytest.mark.slow
def test_compiled_losses_are_the_same(detector: FasterRCNN, targets: Targets) -> None:
    """Also where the RoI heads see another number of boxes, and none."""
    images = batch_of(2)
    wanted = [targets, [targets[0], None], [None, None]]
    expected = [seeded_losses(detector, images, one) for one in wanted]
    detector.compile(backend="aot_eager")
    for one, right in zip(wanted, expected, strict=True):
        torch.testing.assert_close(seeded_losses(detector, images, one), right)


def test_thresholds_of_the_config_are_the_box_heads() -> None:
    model = rcnn_model(score_thresh=0.11, nms_thresh=0.22, detections_per_img=33)
    heads = build_detector(model, small_input(), ["a"]).roi_heads
    assert (heads.score_thresh, heads.nms_thresh, heads.detections_per_img) == (0.11, 0.22, 33)
    heads = build_detector(rcnn_model(), small_input(), ["a"]).roi_heads
    assert (heads.score_thresh, heads.nms_thresh, heads.detections_per_img) == (0.05, 0.5, 100)


@pytest.mark.parametrize("change, message", [
    ({"head_depth": 2}, "head_depth is 2, but the RPN of Faster R-CNN always has one layer: leave head_depth out"),
    ({"anchor_sizes": [16, 32]}, r"anchor_sizes has 2 entries, .* 5 levels \(strides 4, 8, 16, 32, 64\)"),
])  # fmt: skip
def test_what_does_not_fit_is_named(change: dict[str, Any], message: str) -> None:
    with pytest.raises(UserError, match=message):
        build_detector(rcnn_model(**change), small_input(), ["a"])
