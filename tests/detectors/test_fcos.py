from __future__ import annotations

import re
from pathlib import Path

import pytest
import torch
from detector_helpers import settle, small_input, small_model
from torch import Tensor, nn
from torchvision.models.detection.image_list import ImageList

from gid_cuda.config import ModelConfig
from gid_cuda.detectors import FCOS, build_detector
from gid_cuda.detectors.outputs import BoxCoder, DetectorOutputs, GeneralInstances
from gid_cuda.errors import UserError

Targets = list[dict[str, Tensor]]
LOSSES = {"classification", "bbox_regression", "bbox_ctrness"}


def fcos_model(**changes: object) -> ModelConfig:
    sizes = ModelConfig().anchor_sizes
    return small_model(**{"detector": "fcos", "backbone": "mobilenet_v3_small", "anchor_sizes": sizes, **changes})


@pytest.fixture(scope="module")
def detector() -> FCOS:
    """With frozen norm: train and eval mode then compute the same."""
    torch.manual_seed(0)
    live = build_detector(fcos_model(), small_input(), ["a", "b", "c"])
    settle(live)
    nn.init.constant_(live.head.regression_head.bbox_reg.bias, 1.0)
    frozen = build_detector(fcos_model(norm="frozen"), small_input(), ["a", "b", "c"])
    frozen.load_state_dict(live.state_dict())
    return frozen


def instances_of(*boxes: list[list[float]], slots: int) -> GeneralInstances:
    padded = torch.zeros(len(boxes), slots, 4)
    for index, one in enumerate(boxes):
        padded[index, : len(one)] = torch.tensor(one).reshape(-1, 4)
    counts = torch.tensor([len(one) for one in boxes])
    return GeneralInstances(padded, torch.zeros(len(boxes), slots), torch.full((len(boxes), slots), -1), counts)


def points(*centers: tuple[float, float], stride: float = 8.0) -> DetectorOutputs:
    """Outputs whose locations are `centers`."""
    center = torch.tensor(centers).reshape(-1, 2)
    anchors = torch.cat([center - stride / 2, center + stride / 2], dim=1)
    deltas = torch.ones(1, len(anchors), 4)
    return DetectorOutputs([], [], torch.zeros(1, len(anchors), 1), deltas, BoxCoder("distances"), anchors, deltas)


def test_one_pass_gives_everything(detector: FCOS, images: list[Tensor], targets: Targets) -> None:
    batch, moved = detector.transform(images, targets)
    outputs = detector(batch, moved)
    height, width = batch.tensors.shape[-2:]
    assert outputs.strides == [8, 16, 32, 64, 128]
    assert [tuple(f.shape) for f in outputs.features] == [
        (2, 32, -(-height // stride), -(-width // stride)) for stride in outputs.strides
    ]
    boxes = sum(f.shape[-2] * f.shape[-1] for f in outputs.features)
    assert outputs.logits.shape == (2, boxes, 3) and outputs.deltas.shape == outputs.boxes.shape == (2, boxes, 4)
    assert outputs.centerness.shape == (2, boxes, 1)
    assert outputs.anchors.shape == (boxes, 4) and outputs.anchors.dtype == torch.float32
    assert (outputs.anchors[:, 2:] - outputs.anchors[:, :2]).unique().tolist() == [8, 16, 32, 64, 128]
    assert outputs.image_sizes.tolist() == [list(size) for size in batch.image_sizes]
    assert detector.num_classes == 3 and detector.out_channels == 32
    detector.zero_grad()
    sum(outputs.losses.values()).backward()
    assert all(p.grad is not None and p.grad.count_nonzero() for p in detector.parameters() if p.requires_grad)


def test_losses_exactly_where_targets_are_given(detector: FCOS, images: list[Tensor], targets: Targets) -> None:
    batch, moved = detector.eval().transform(images, targets)
    in_eval = detector(batch, moved).losses
    assert detector(batch).losses == {}
    torch.testing.assert_close(in_eval, detector.train()(batch, moved).losses)
    assert detector(batch).losses == {} and set(in_eval) == LOSSES


@pytest.mark.parametrize("fused", [True, False])
def test_unlabelled_images_are_left_out_of_losses_and_normalisers(
    detector: FCOS, targets: Targets, fused: bool, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(detector, "fused_losses", fused)
    pixels = torch.rand(3, 3, 96, 96)
    some = detector(ImageList(pixels, [(96, 96)] * 3), [None, *targets]).losses
    alone = detector(ImageList(pixels[1:], [(96, 96)] * 2), targets).losses
    torch.testing.assert_close(some, alone)
    assert all(loss > 0 for loss in alone.values())


@pytest.mark.parametrize("fused", [True, False])
def test_without_any_label_losses_are_zero_and_reach_every_parameter(
    detector: FCOS, fused: bool, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(detector, "fused_losses", fused)
    losses = detector(ImageList(torch.rand(2, 3, 96, 96), [(96, 96)] * 2), [None, None]).losses
    assert {key: loss.item() for key, loss in losses.items()} == dict.fromkeys(LOSSES, 0.0)
    detector.zero_grad()
    sum(losses.values()).backward()
    trained = [p for p in detector.parameters() if p.requires_grad]
    assert all(p.grad is not None and p.grad.count_nonzero() == 0 for p in trained)


def test_what_does_not_fit_is_named(detector: FCOS, targets: Targets) -> None:
    batch = ImageList(torch.rand(2, 3, 96, 96), [(96, 96)] * 2)
    with pytest.raises(ValueError, match="targets has 1 entries for 2 images"):
        detector(batch, targets[:1])
    wrong = {**targets[1], "labels": torch.tensor([3])}
    with pytest.raises(ValueError, match="hold the label 3, but labels must be 0 to 2"):
        detector(batch, [targets[0], wrong])


def test_autocast_leaves_anchors_losses_and_detections_in_float32(
    detector: FCOS, images: list[Tensor], targets: Targets
) -> None:
    batch, moved = detector.transform(images, targets)
    exact = detector(batch, moved)
    with torch.autocast("cpu", dtype=torch.bfloat16):
        rough = detector(batch, moved)
        response = detector.response_losses(rough, exact, torch.ones(rough.logits.shape[:2], dtype=torch.bool))
        detections = detector.predict(images)
    assert rough.logits.dtype == rough.deltas.dtype == torch.bfloat16
    assert torch.equal(rough.anchors, exact.anchors) and rough.boxes.dtype == torch.float32
    assert {loss.dtype for loss in (*rough.losses.values(), *response)} == {torch.float32}
    assert all(loss.isfinite() and loss > 0 for loss in response)
    torch.testing.assert_close(rough.losses, exact.losses, rtol=0.1, atol=0.01)
    assert all(len(one["boxes"]) and one["boxes"].dtype == one["scores"].dtype == torch.float32 for one in detections)


def test_one_image_of_one_cell_at_the_coarsest_level(detector: FCOS) -> None:
    """torch's group norm refuses a batch of groups of one number; two images are more than one, and known to work."""
    image = torch.rand(3, 64, 64)
    alone, pair = (detector(ImageList(torch.stack([image] * n), [(64, 64)] * n)) for n in (1, 2))
    assert alone.features[-1].shape == (1, 32, 1, 1)
    for name in ("logits", "deltas", "centerness"):
        torch.testing.assert_close(getattr(alone, name)[0], getattr(pair, name)[0], rtol=1e-4, atol=1e-4)
    assert len(detector.predict([image])[0]["boxes"])


@pytest.mark.parametrize("depth", [1, 4])
def test_head_depth(depth: int) -> None:
    detector = build_detector(fcos_model(head_depth=depth), small_input(), ["a"])
    for branch in (detector.head.classification_head, detector.head.regression_head):
        assert sum(isinstance(layer, nn.Conv2d) for layer in branch.conv) == depth


@pytest.mark.parametrize(
    ("changes", "message"),
    [
        ({"fpn_channels": 48}, "fpn_channels is 48, but FCOS's heads have group norm of 32 groups: give a multiple"),
        ({"anchor_sizes": [16, 32, 64, 96, 128]}, "FCOS has no anchors: leave model.anchor_sizes out"),
    ],
)
def test_settings_that_fcos_does_not_have_are_named(changes: dict[str, object], message: str) -> None:
    with pytest.raises(UserError, match=re.escape(message)):
        build_detector(fcos_model(**changes), small_input(), ["a"])


def test_response_follows_the_configuration() -> None:
    with pytest.raises(UserError, match="no beta: leave distill.response_smooth_l1_beta out"):
        build_detector(fcos_model(), small_input(), ["a"], response_smooth_l1_beta=0.1)
    default = build_detector(fcos_model(), small_input(), ["a"])
    changed = build_detector(fcos_model(), small_input(), ["a"], response_cls="focal", fused_losses=False)
    student, teacher, mask = points((8, 8)), points((8, 8)), torch.ones(1, 1, dtype=torch.bool)
    teacher.logits = teacher.logits + 1
    assert default.response_losses(student, teacher, mask)[0] > changed.response_losses(student, teacher, mask)[0] > 0
    assert default.fused_losses and not changed.fused_losses


def test_options_reach_the_model() -> None:
    options = {"score_thresh": 0.3, "nms_thresh": 0.4, "detections_per_img": 7}
    detector = build_detector(fcos_model(**options), small_input(), ["a"])
    assert {name: getattr(detector, name) for name in options} == options


def test_weights_of_another_order_of_classes(tmp_path: Path) -> None:
    theirs = build_detector(fcos_model(), small_input(), ["a", "b", "c"]).eval()
    settle(theirs)
    config = {"model": fcos_model().model_dump(mode="json")}
    torch.save({"model": theirs.state_dict(), "classes": ["a", "b", "c"], "config": config}, tmp_path / "x.pt")
    ours = build_detector(fcos_model(weights=str(tmp_path / "x.pt")), small_input(), ["c", "a", "b"]).eval()
    batch = ImageList(torch.rand(2, 3, 96, 96), [(96, 96)] * 2)
    torch.testing.assert_close(ours(batch).logits, theirs(batch).logits[..., [2, 0, 1]])


def test_assign_by_hand(detector: FCOS) -> None:
    """Strictly within, far from the centre too and whatever the size, and that of any level."""
    outputs = points((10.0, 10.0), (10.5, 10.5), (29.5, 10.5), (30.0, 20.0), (20.0, 20.0), (400.0, 300.0))
    instances = instances_of([[10.0, 10, 30, 30]], [[0.0, 0, 800, 800], [9, 9, 11, 11]], [], slots=2)
    assert detector.assign(instances, outputs).tolist() == [
        [False, True, True, False, True, False],
        [True] * 6,
        [False] * 6,
    ]


def test_assign_takes_every_level(detector: FCOS) -> None:
    outputs = detector(ImageList(torch.rand(2, 3, 128, 128), [(128, 128)] * 2))
    found = detector.assign(instances_of([[-1.0, -1, 129, 129]], [[60.0, 60, 70, 70]], slots=1), outputs)
    assert found[0].all()
    center = outputs.anchors[found[1]].view(-1, 2, 2).mean(dim=1)
    assert center.tolist() == [[64.0, 64.0]] * 4  # strides 8 to 64; of 128 there is one at 0


def test_empty_slots_take_no_part_whatever_they_hold(detector: FCOS) -> None:
    instances = instances_of([[0.0, 0, 10, 10], [20, 20, 30, 30]], slots=2)
    instances.counts[0] = 1
    assert detector.assign(instances, points((5, 5), (25, 25))).tolist() == [[True, False]]
    assert detector.assign(instances_of([], slots=0), points((5, 5))).tolist() == [[False]]
