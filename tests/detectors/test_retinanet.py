from __future__ import annotations

import pytest
import torch
from detector_helpers import settle, small_input, small_model
from torch import Tensor, nn
from torchvision.models.detection._utils import Matcher
from torchvision.models.detection.image_list import ImageList
from torchvision.ops import box_iou

from gid_cuda.detectors import RetinaNet, build_detector
from gid_cuda.detectors.outputs import BoxCoder, DetectorOutputs, GeneralInstances

Targets = list[dict[str, Tensor]]


@pytest.fixture
def detector() -> RetinaNet:
    """With frozen norm: train and eval mode then compute the same."""
    live = build_detector(small_model(), small_input(), ["a", "b", "c"])
    settle(live)
    frozen = build_detector(small_model(norm="frozen"), small_input(), ["a", "b", "c"])
    frozen.load_state_dict(live.state_dict())
    return frozen


def outputs_with(anchors: Tensor, logits: Tensor | None = None) -> DetectorOutputs:
    logits = torch.zeros(1, len(anchors), 1) if logits is None else logits
    deltas, sizes = torch.zeros(*logits.shape[:2], 4), torch.zeros(1, 2)
    return DetectorOutputs([], [], logits, deltas, BoxCoder("deltas"), anchors, sizes)


def instances_of(*boxes: list[list[float]], slots: int) -> GeneralInstances:
    counts = torch.tensor([len(one) for one in boxes])
    padded = torch.zeros(len(boxes), slots, 4)
    for index, one in enumerate(boxes):
        padded[index, : len(one)] = torch.tensor(one).reshape(-1, 4)
    return GeneralInstances(padded, torch.zeros(len(boxes), slots), torch.full((len(boxes), slots), -1), counts)


def test_one_pass_gives_everything(detector: RetinaNet, images: list[Tensor], targets: Targets) -> None:
    batch, moved = detector.transform(images, targets)
    outputs = detector(batch, moved)
    height, width = batch.tensors.shape[-2:]
    assert outputs.strides == [8, 16, 32, 64, 128]
    assert [tuple(f.shape) for f in outputs.features] == [
        (2, 32, -(-height // stride), -(-width // stride)) for stride in outputs.strides
    ]
    boxes = sum(9 * f.shape[-2] * f.shape[-1] for f in outputs.features)
    assert outputs.logits.shape == (2, boxes, 3) and outputs.deltas.shape == (2, boxes, 4)
    assert outputs.anchors.shape == (boxes, 4) and outputs.anchors.dtype == torch.float32
    assert outputs.image_sizes.tolist() == [list(size) for size in batch.image_sizes]
    assert outputs.image_sizes.dtype == torch.int64
    assert outputs.boxes.shape == (2, boxes, 4)
    assert detector.num_classes == 3 and detector.out_channels == 32
    sum(outputs.losses.values()).backward()
    assert all(p.grad is not None and p.grad.count_nonzero() for p in detector.parameters() if p.requires_grad)


def test_losses_exactly_where_targets_are_given(detector: RetinaNet, images: list[Tensor], targets: Targets) -> None:
    batch, moved = detector.eval().transform(images, targets)
    in_eval = detector(batch, moved).losses
    assert detector(batch).losses == {}
    in_training = detector.train()(batch, moved).losses
    torch.testing.assert_close(in_eval, in_training)
    assert detector(batch).losses == {}


def test_unlabelled_images_are_left_out_of_losses_and_normalisers(detector: RetinaNet, targets: Targets) -> None:
    pixels = torch.rand(2, 3, 96, 96)
    both = detector(ImageList(pixels, [(96, 96)] * 2), [None, targets[1]]).losses
    alone = detector(ImageList(pixels[1:], [(96, 96)]), targets[1:]).losses
    torch.testing.assert_close(both, alone)


def test_without_any_label_losses_are_zero_and_reach_every_parameter(detector: RetinaNet) -> None:
    losses = detector(ImageList(torch.rand(2, 3, 96, 96), [(96, 96)] * 2), [None, None]).losses
    assert {key: loss.item() for key, loss in losses.items()} == {"classification": 0.0, "bbox_regression": 0.0}
    sum(losses.values()).backward()
    trained = [p for p in detector.parameters() if p.requires_grad]
    assert all(p.grad is not None and p.grad.count_nonzero() == 0 for p in trained)


def test_an_image_without_boxes_is_background(detector: RetinaNet) -> None:
    empty = {"boxes": torch.zeros(0, 4), "labels": torch.zeros(0, dtype=torch.int64)}
    losses = detector(ImageList(torch.rand(1, 3, 96, 96), [(96, 96)]), [empty]).losses
    assert losses["classification"] > 0 and losses["bbox_regression"] == 0


def test_a_target_too_few_is_named(detector: RetinaNet, targets: Targets) -> None:
    with pytest.raises(ValueError, match="targets has 1 entries for 2 images"):
        detector(ImageList(torch.rand(2, 3, 96, 96), [(96, 96)] * 2), targets[:1])


def test_autocast_leaves_anchors_losses_and_detections_in_float32(
    detector: RetinaNet, images: list[Tensor], targets: Targets
) -> None:
    batch, moved = detector.transform(images, targets)
    exact = detector(batch, moved)
    with torch.autocast("cpu", dtype=torch.bfloat16):
        rough = detector(batch, moved)
        detections = detector.predict(images)
    assert rough.logits.dtype == torch.bfloat16
    assert torch.equal(rough.anchors, exact.anchors) and rough.boxes.dtype == torch.float32
    assert {loss.dtype for loss in rough.losses.values()} == {torch.float32}
    torch.testing.assert_close(rough.losses, exact.losses, rtol=0.1, atol=0.01)
    assert all(len(one["boxes"]) and one["boxes"].dtype == one["scores"].dtype == torch.float32 for one in detections)


@pytest.mark.parametrize("depth", [1, 4, 6])
def test_head_depth(depth: int) -> None:
    detector = build_detector(small_model(head_depth=depth), small_input(), ["a"])
    for branch in (detector.head.classification_head, detector.head.regression_head):
        convolutions = [layer for layer in branch.conv.modules() if isinstance(layer, nn.Conv2d)]
        assert len(convolutions) == depth
        assert all(0.005 < layer.weight.std() < 0.02 and not layer.bias.any() for layer in convolutions)


def test_an_untrained_detector_starts_at_the_focal_prior() -> None:
    detector = build_detector(small_model(), small_input(), ["a", "b"])
    scores = detector(ImageList(torch.rand(1, 3, 96, 96), [(96, 96)])).logits.sigmoid()
    torch.testing.assert_close(scores, torch.full_like(scores, 0.01), rtol=0, atol=0.005)


def test_assign_by_hand(detector: RetinaNet) -> None:
    anchors = torch.tensor(
        [[0.0, 0, 10, 10], [0, 0, 10, 20], [0, 0, 10, 30], [50, 50, 60, 60], [50, 50, 60, 60], [200, 200, 210, 210]]
    )
    # image 0: IoU 1, exactly 1/2, 1/3; image 1: a GI whose best IoU, 1/4, two anchors tie; image 2: no GI
    instances = instances_of([[0.0, 0, 10, 10]], [[50.0, 50, 55, 55], [100, 100, 110, 110]], [], slots=2)
    assert detector.assign(instances, outputs_with(anchors)).tolist() == [
        [True, True, False, False, False, False],
        [False, False, False, True, True, False],
        [False] * 6,
    ]


def test_assign_is_torchvisions_matcher(detector: RetinaNet) -> None:
    outputs = detector(ImageList(torch.rand(2, 3, 96, 96), [(96, 96)] * 2))
    corner = torch.rand(2, 5, 2) * 60
    boxes = torch.cat([corner, corner + 2 + torch.rand(2, 5, 2) * 40], dim=-1)
    instances = GeneralInstances(boxes, torch.zeros(2, 5), torch.zeros(2, 5, dtype=torch.int64), torch.tensor([5, 3]))
    found = detector.assign(instances, outputs)
    matcher = Matcher(0.5, 0.4, allow_low_quality_matches=True)
    for image, count in enumerate([5, 3]):
        expected = matcher(box_iou(boxes[image, :count], outputs.anchors)) >= 0
        assert expected.any() and torch.equal(found[image], expected)


def test_empty_slots_take_no_part_whatever_they_hold(detector: RetinaNet) -> None:
    anchors = torch.tensor([[0.0, 0, 10, 10], [20, 20, 30, 30]])
    instances = instances_of([[0.0, 0, 10, 10], [20, 20, 30, 30]], slots=2)
    instances.counts[0] = 1
    assert detector.assign(instances, outputs_with(anchors)).tolist() == [[True, False]]


def test_no_slots_match_nothing(detector: RetinaNet) -> None:
    instances = instances_of([], slots=0)
    assert detector.assign(instances, outputs_with(torch.tensor([[0.0, 0, 10, 10]]))).tolist() == [[False]]


def test_assign_needs_no_value_on_the_host(detector: RetinaNet) -> None:
    """On the meta device whatever needs one fails."""
    meta = {"device": "meta"}
    instances = GeneralInstances(
        torch.empty(2, 3, 4, **meta),
        torch.empty(2, 3, **meta),
        torch.empty(2, 3, dtype=torch.int64, **meta),
        torch.empty(2, dtype=torch.int64, **meta),
    )
    assert detector.assign(instances, outputs_with(torch.empty(7, 4, **meta))).shape == (2, 7)


def test_response_follows_the_configuration() -> None:
    changed = build_detector(small_model(), small_input(), ["a"], response_cls="focal", response_smooth_l1_beta=0.5)
    default = build_detector(small_model(), small_input(), ["a"])
    anchors, mask = torch.zeros(4, 4), torch.ones(1, 4, dtype=torch.bool)
    student, teacher = outputs_with(anchors, torch.zeros(1, 4, 1)), outputs_with(anchors, torch.ones(1, 4, 1))
    student.deltas = torch.full((1, 4, 4), 0.3)
    cls, reg = default.response_losses(student, teacher, mask)
    focal, wide = changed.response_losses(student, teacher, mask)
    assert cls > focal > 0
    assert reg.item() == pytest.approx(16 * (0.3 - 0.05)) and wide.item() == pytest.approx(16 * 0.3**2 / 1.0)
    assert {x.dtype for x in (cls, reg, focal, wide)} == {torch.float32}
