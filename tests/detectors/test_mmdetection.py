"""mmdetection's checkpoints: every tensor lands, and the detector gives what mmdetection's layers give."""

from __future__ import annotations

from pathlib import Path
from typing import Any

import pytest
import torch
from detector_helpers import small_model
from mmdetection_helpers import (
    CLASSES,
    CONFIGS,
    anchors,
    box_head,
    faster_rcnn_state,
    hollow,
    pyramid,
    retinanet_head,
    retinanet_pyramid,
    retinanet_state,
    roi_features,
    rpn_head,
    save,
    stages,
)
from torch import Tensor
from torchvision.models.detection.image_list import ImageList

from gid_cuda.config import InputConfig, ModelConfig
from gid_cuda.detectors import RetinaNet, build_detector
from gid_cuda.detectors.aligned_rois import AlignedRoIAlign
from gid_cuda.detectors.mmdetection import convert_mmdetection
from gid_cuda.engine.checkpoint import load_detector, save_checkpoint
from gid_cuda.errors import UserError

KINDS = ("weight", "bias")
OCTAVE = [4 * 2 ** (i / 3) for i in range(3)]


@pytest.fixture(scope="session")
def retinanet() -> dict[str, Tensor]:
    torch.manual_seed(1)
    return retinanet_state()


@pytest.fixture
def pixels() -> ImageList:
    """Not a multiple of 128: the coarse maps are larger than the image, where torchvision's anchors lie closer."""
    return ImageList(torch.randn(2, 3, 96, 160), [(96, 160), (90, 130)])


def converted(tmp_path: Path, state: dict[str, Tensor], detector: str, classes: tuple[str, ...] = CLASSES) -> Any:
    """The detector that a config with teacher.weights builds from the converted file, and that file's content."""
    content = convert_mmdetection(save(tmp_path / "theirs.pth", state, detector))
    save_checkpoint(tmp_path / "ours.pt", content)
    model = ModelConfig(**{**content["config"]["model"], "weights": str(tmp_path / "ours.pt")})
    return build_detector(model, InputConfig(), classes).eval(), content


def test_retinanet_gives_what_mmdetections_layers_give(
    tmp_path: Path, retinanet: dict[str, Tensor], pixels: ImageList
) -> None:
    detector, content = converted(tmp_path, retinanet, "retinanet")
    with torch.no_grad():
        found = detector(pixels)
        maps = retinanet_pyramid(retinanet, "resnet18", pixels.tensors)
        logits, deltas = retinanet_head(retinanet, maps)
    for ours, theirs in zip(found.features, maps, strict=True):
        torch.testing.assert_close(ours, theirs, rtol=1e-4, atol=1e-4)
    torch.testing.assert_close(found.logits, logits, rtol=1e-4, atol=1e-4)
    torch.testing.assert_close(found.deltas, deltas, rtol=1e-4, atol=1e-4)
    torch.testing.assert_close(found.anchors, anchors(maps, [8, 16, 32, 64, 128], OCTAVE), rtol=1e-6, atol=1e-4)
    assert content["classes"] == list(CLASSES) and detector.weight_notes == [f"weights: {tmp_path / 'ours.pt'}"]
    assert logits.std() > 0.1 and (maps[3] < 0).float().mean() > 0.2  # a ReLU before P7 would show


def test_torchvisions_variant_gives_other_levels_and_anchors(pixels: ImageList) -> None:
    ours = build_detector(small_model(anchor_sizes=[32, 64, 128, 256, 512]), InputConfig(), CLASSES)
    theirs = build_detector(
        small_model(anchor_sizes=[32, 64, 128, 256, 512], variant="mmdetection"), InputConfig(), CLASSES
    )
    assert ours.backbone.fpn.extra_blocks.p6.in_channels == 32
    assert theirs.backbone.fpn.extra_blocks.p6.in_channels == 512
    with torch.no_grad():
        difference = (ours.eval()(pixels).anchors - theirs.eval()(pixels).anchors).abs()
    assert 1 < difference.max() < 100 and difference[:1000].max() < 1


@pytest.mark.parametrize("name", ["mobilenet_v3_small", "resnet34"])
def test_any_student_can_have_the_variant(name: str, images: list[Tensor], targets: list[dict[str, Tensor]]) -> None:
    model = small_model(backbone=name, variant="mmdetection")
    detector = build_detector(model, InputConfig(min_size=[96], max_size=128), CLASSES)
    batch, targets = detector.transform(images, targets)
    losses = detector(batch, targets).losses
    sum(losses.values()).backward()
    assert all(p.grad is not None for p in detector.parameters() if p.requires_grad)


def test_every_tensor_of_retinanet_lands(tmp_path: Path, retinanet: dict[str, Tensor]) -> None:
    state = convert_mmdetection(save(tmp_path / "theirs.pth", retinanet, "retinanet"))["model"]
    used = [id_of(value) for value in state.values()]
    given = [id_of(value) for key, value in retinanet.items() if not key.endswith("num_batches_tracked")]
    assert sorted(used) == sorted(given)


def id_of(value: Tensor) -> tuple[float, ...]:
    """Random tensors are told apart by their shape and sum."""
    return (*value.shape, value.double().sum().item())


def test_the_converted_file_is_a_whole_checkpoint(tmp_path: Path, retinanet: dict[str, Tensor]) -> None:
    converted(tmp_path, retinanet, "retinanet")
    detector, config, classes = load_detector(tmp_path / "ours.pt")
    assert isinstance(detector, RetinaNet) and classes == list(CLASSES)
    assert config.model.variant == "mmdetection" and config.model.head_depth == 2
    assert [set(found) for found in detector.predict([torch.rand(3, 60, 80)])] == [{"boxes", "scores", "labels"}]


def test_classes_in_another_order_are_gathered(tmp_path: Path, retinanet: dict[str, Tensor], pixels: ImageList) -> None:
    turned, _ = converted(tmp_path, retinanet, "retinanet", ("horse", "cat", "dog"))
    with torch.no_grad():
        logits, _ = retinanet_head(retinanet, retinanet_pyramid(retinanet, "resnet18", pixels.tensors))
        torch.testing.assert_close(turned(pixels).logits, logits[..., [2, 0, 1]], rtol=1e-4, atol=1e-4)


def test_the_variant_must_be_that_of_the_weights(tmp_path: Path, retinanet: dict[str, Tensor]) -> None:
    converted(tmp_path, retinanet, "retinanet")
    model = small_model(weights=str(tmp_path / "ours.pt"), head_depth=2, anchor_sizes=[32, 64, 128, 256, 512])
    with pytest.raises(UserError, match="made with variant mmdetection, and this config has variant torchvision"):
        build_detector(model, InputConfig(), CLASSES)


def test_anchor_sizes_follow_the_config_text(tmp_path: Path, retinanet: dict[str, Tensor]) -> None:
    path = save(tmp_path / "theirs.pth", retinanet, "retinanet", cfg=changed("retinanet", "scale=4", "scale=3"))
    assert convert_mmdetection(path)["config"]["model"]["anchor_sizes"] == [24, 48, 96, 192, 384]


def changed(detector: str, before: str, after: str) -> str:
    assert CONFIGS[detector].count(before) == 1
    return CONFIGS[detector].replace(before, after)


# -- Faster R-CNN -----------------------------------------------------------------------------------------------------


@pytest.fixture(scope="session")
def faster_rcnn() -> dict[str, Tensor]:
    torch.manual_seed(2)
    return faster_rcnn_state()


def rois_of_every_level(count: int = 60) -> list[Tensor]:
    """Per image (N, 4), sides of 4 to 900 pixels, some reaching beyond the image."""
    sides = 4 * 225 ** torch.rand(count, 2)
    corner = torch.rand(count, 2) * torch.tensor([160, 96]) - sides / 3
    boxes = torch.cat([corner, corner + sides], dim=1)
    return [boxes[:25], boxes[25:]]


def test_faster_rcnn_gives_what_mmdetections_layers_give(
    tmp_path: Path, faster_rcnn: dict[str, Tensor], pixels: ImageList
) -> None:
    detector, content = converted(tmp_path, faster_rcnn, "faster_rcnn")
    assert content["config"]["model"]["anchor_sizes"] == [32, 64, 128, 256, 512]
    boxes = rois_of_every_level()
    rois = torch.cat([torch.arange(2).repeat_interleave(torch.tensor([25, 35]))[:, None], torch.cat(boxes)], dim=1)
    with torch.no_grad():
        found = detector(pixels)
        maps = pyramid(faster_rcnn, stages(faster_rcnn, "resnet18", pixels.tensors))
        logits, deltas = rpn_head(faster_rcnn, [*maps, maps[-1][:, :, ::2, ::2]])
        crops = roi_features(maps, rois)
        names = dict(zip(["0", "1", "2", "3"], maps, strict=True))
        scores, moves = detector.roi_heads.box_predictor(
            detector.roi_heads.box_head(detector.roi_heads.box_roi_pool(names, boxes, pixels.image_sizes))
        )
        their_scores, their_moves = box_head(faster_rcnn, crops)
    levels = [*maps, maps[-1][:, :, ::2, ::2]]
    for ours, theirs in zip(found.features, levels, strict=True):
        torch.testing.assert_close(ours, theirs, rtol=1e-4, atol=1e-4)
    torch.testing.assert_close(found.logits, logits, rtol=1e-4, atol=1e-4)
    torch.testing.assert_close(found.deltas, deltas, rtol=1e-4, atol=1e-4)
    torch.testing.assert_close(found.anchors, anchors(levels, [4, 8, 16, 32, 64], [8]), rtol=1e-6, atol=1e-4)
    torch.testing.assert_close(scores, their_scores[:, [3, 0, 1, 2]], rtol=1e-4, atol=1e-4)
    torch.testing.assert_close(moves[:, 4:], their_moves, rtol=1e-4, atol=1e-4)
    assert detector.roi_heads.box_coder.weights == (10.0, 10.0, 5.0, 5.0)  # target_stds 0.1, 0.1, 0.2, 0.2
    assert their_scores.std() > 0.01


def test_the_pool_differs_from_torchvisions_and_passes_gradient(pixels: ImageList) -> None:
    names = dict(zip("0123", [torch.randn(2, 8, 96 // s, 160 // s) for s in (4, 8, 16, 32)], strict=True))
    maps = {key: value.requires_grad_() for key, value in names.items()}
    boxes = rois_of_every_level()
    aligned, plain = (
        build_detector(small_model(detector="faster_rcnn", head_depth=4, variant=variant), InputConfig(), CLASSES)
        for variant in ("mmdetection", "torchvision")
    )
    crops = aligned.roi_heads.box_roi_pool(maps, boxes, pixels.image_sizes)
    assert crops.shape == (60, 8, 7, 7)
    assert (crops - plain.roi_heads.box_roi_pool(maps, boxes, pixels.image_sizes)).abs().max() > 0.1
    rois = torch.cat([torch.arange(2).repeat_interleave(torch.tensor([25, 35]))[:, None], torch.cat(boxes)], dim=1)
    weights = torch.randn_like(crops)
    theirs = torch.autograd.grad((roi_features(list(maps.values()), rois) * weights).sum(), list(maps.values()))
    for ours, expected in zip(torch.autograd.grad((crops * weights).sum(), maps.values()), theirs, strict=True):
        torch.testing.assert_close(ours, expected, rtol=1e-4, atol=1e-4)


def test_a_batch_without_rois_is_pooled_to_nothing() -> None:
    pool = AlignedRoIAlign(["0"], [4])
    assert pool({"0": torch.zeros(2, 8, 4, 4)}, [torch.zeros(0, 4)] * 2).shape == (0, 8, 7, 7)


def test_every_tensor_of_faster_rcnn_lands(tmp_path: Path, faster_rcnn: dict[str, Tensor]) -> None:
    state = convert_mmdetection(save(tmp_path / "theirs.pth", faster_rcnn, "faster_rcnn"))["model"]
    moved = {f"roi_heads.box_predictor.{layer}.{kind}" for layer in ("cls_score", "bbox_pred") for kind in KINDS}
    used = [id_of(value) for key, value in state.items() if key not in moved]
    head = {f"roi_head.bbox_head.{layer}.{kind}" for layer in ("fc_cls", "fc_reg") for kind in KINDS}
    given = [id_of(v) for k, v in faster_rcnn.items() if k not in head and not k.endswith("num_batches_tracked")]
    assert sorted(used) == sorted(given)
    for kind in KINDS:
        scores, boxes = (faster_rcnn[f"roi_head.bbox_head.{layer}.{kind}"] for layer in ("fc_cls", "fc_reg"))
        assert torch.equal(state[f"roi_heads.box_predictor.cls_score.{kind}"][0], scores[-1])
        assert torch.equal(state[f"roi_heads.box_predictor.cls_score.{kind}"][1:], scores[:-1])
        assert torch.equal(state[f"roi_heads.box_predictor.bbox_pred.{kind}"][4:], boxes)
        assert not state[f"roi_heads.box_predictor.bbox_pred.{kind}"][:4].any()


def test_a_converted_faster_rcnn_trains_and_predicts(
    tmp_path: Path, faster_rcnn: dict[str, Tensor], images: list[Tensor], targets: list[dict[str, Tensor]]
) -> None:
    detector, _ = converted(tmp_path, faster_rcnn, "faster_rcnn", ("horse", "cat", "dog"))
    detector.transform.min_size, detector.transform.max_size = (96,), 128
    assert all(len(found["boxes"]) == len(found["labels"]) for found in detector.predict(images))
    batch, targets = detector.transform(images, targets)
    losses = detector.train()(batch, targets).losses
    sum(losses.values()).backward()
    assert all(torch.isfinite(loss) for loss in losses.values())
    assert detector.backbone.fpn.layer_blocks[0][0].weight.grad.abs().sum() > 0


# -- the published sizes ----------------------------------------------------------------------------------------------


@pytest.mark.parametrize("name", ["resnet50", "resnet101"])
@pytest.mark.parametrize("detector", ["retinanet", "faster_rcnn"])
def test_published_sizes_are_recognised_by_names_and_shapes(tmp_path: Path, detector: str, name: str) -> None:
    with torch.device("meta"):
        state = (
            retinanet_state(name, 256, depth=4) if detector == "retinanet" else faster_rcnn_state(name, channels=256)
        )
    path = save(tmp_path / "theirs.pth", hollow(state), detector)
    assert path.stat().st_size < 2**20
    content = convert_mmdetection(path)
    model = content["config"]["model"]
    assert (model["backbone"], model["fpn_channels"], model["head_depth"]) == (name, 256, 4)
    layer = f"backbone.body.layer3.{ {'resnet50': 5, 'resnet101': 22}[name] }.conv3.weight"
    assert content["model"][layer].shape == (1024, 256, 1, 1)


@pytest.mark.slow
@pytest.mark.parametrize("name", ["resnet50", "resnet101"])
def test_a_published_size_gives_what_mmdetections_layers_give(tmp_path: Path, name: str, pixels: ImageList) -> None:
    state = retinanet_state(name, 256, depth=4)
    detector, _ = converted(tmp_path, state, "retinanet")
    with torch.no_grad():
        found = detector(pixels)
        logits, deltas = retinanet_head(state, retinanet_pyramid(state, name, pixels.tensors), depth=4)
    torch.testing.assert_close(found.logits, logits, rtol=1e-3, atol=1e-3)
    torch.testing.assert_close(found.deltas, deltas, rtol=1e-3, atol=1e-3)
