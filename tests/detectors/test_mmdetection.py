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
    retinanet_head,
    retinanet_pyramid,
    retinanet_state,
    save,
)
from torch import Tensor
from torchvision.models.detection.image_list import ImageList

from gid_cuda.config import InputConfig, ModelConfig
from gid_cuda.detectors import RetinaNet, build_detector
from gid_cuda.detectors.mmdetection import convert_mmdetection
from gid_cuda.engine.checkpoint import load_detector, save_checkpoint
from gid_cuda.errors import UserError

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
