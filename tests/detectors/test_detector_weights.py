"""Weights by name (the download is faked) and by file, and what is said where they do not fit."""

from __future__ import annotations

from pathlib import Path
from typing import Any

import pytest
import torch
import torchvision
from detector_helpers import small_input, small_model
from torch import Tensor
from torchvision.models.detection.image_list import ImageList

from gid_cuda.config import InputConfig, ModelConfig
from gid_cuda.detectors import RetinaNet, build_detector
from gid_cuda.errors import UserError

CLASSES = ["cat", "dog", "horse"]


@pytest.fixture
def saved(tmp_path: Path) -> Path:
    """A checkpoint of a small detector."""
    path = tmp_path / "best.pt"
    save(path, build_detector(small_model(), small_input(), CLASSES))
    return path


def save(path: Path, detector: RetinaNet, classes: list[str] | None = None, **model: Any) -> None:
    config = {"model": small_model(**model).model_dump(mode="json"), "input": small_input().model_dump(mode="json")}
    content = {"format": 1, "model": detector.state_dict(), "classes": classes or CLASSES, "config": config, "step": 3}
    torch.save({**content, "metrics": None}, path)


def build(weights: object, classes: list[str] | None = None, **model: Any) -> RetinaNet:
    return build_detector(small_model(weights=str(weights), **model), small_input(), classes or CLASSES)


def same(one: RetinaNet, other: dict[str, Tensor]) -> bool:
    return all(torch.equal(value, other[key]) for key, value in one.state_dict().items())


# -- files ------------------------------------------------------------------------------------------------------------


def test_a_checkpoint_alone_gives_the_same_detector(saved: Path) -> None:
    detector = build(saved)
    assert same(detector, torch.load(saved, weights_only=True)["model"])
    assert detector.weight_notes == [f"weights: {saved}"]


def test_weights_take_the_first_layers_out_of_training(saved: Path) -> None:
    frozen = {name.split(".")[2] for name, p in build(saved).named_parameters() if not p.requires_grad}
    assert frozen == {"conv1", "bn1", "layer1"}
    assert all(p.requires_grad for p in build(saved, trainable_layers=5).parameters())


@pytest.mark.parametrize("made, used", [("frozen", "live"), ("live", "frozen")])
def test_frozen_and_live_norm_load_each_other(tmp_path: Path, made: str, used: str) -> None:
    path = tmp_path / "best.pt"
    save(path, build_detector(small_model(norm=made), small_input(), CLASSES), norm=made)
    images = ImageList(torch.rand(1, 3, 64, 64), [(64, 64)])
    with torch.no_grad():
        one, other = build(path, norm=made).eval()(images), build(path, norm=used).eval()(images)
    torch.testing.assert_close(one.logits, other.logits)


def test_classes_in_another_order_are_brought_into_ours(saved: Path) -> None:
    turned = build(saved, ["horse", "cat", "dog"])
    assert "data set's order" in turned.weight_notes[0]
    images = ImageList(torch.rand(1, 3, 64, 64), [(64, 64)])
    settled = build(saved)
    with torch.no_grad():
        expected, found = settled.eval()(images), turned.eval()(images)
    torch.testing.assert_close(found.logits, expected.logits[..., [2, 0, 1]])
    assert not torch.allclose(found.logits, expected.logits)


def test_a_bare_state_dict_is_accepted(saved: Path, tmp_path: Path) -> None:
    state = torch.load(saved, weights_only=True)["model"]
    torch.save(state, tmp_path / "bare.pth")
    detector = build(tmp_path / "bare.pth")
    assert same(detector, state) and "without class names" in detector.weight_notes[0]


def test_a_missing_file_is_named(tmp_path: Path) -> None:
    with pytest.raises(UserError, match=r"no such file: .*none\.pt: give the best\.pt of a finished run"):
        build(tmp_path / "none.pt")


def test_a_folder_is_named(tmp_path: Path) -> None:
    with pytest.raises(UserError, match=r"is a folder: give a file, such as .*best\.pt"):
        build(tmp_path)


def test_a_truncated_file_is_named(saved: Path) -> None:
    saved.write_bytes(saved.read_bytes()[: saved.stat().st_size // 2])
    with pytest.raises(UserError, match=r"best\.pt cannot be read .* truncated"):
        build(saved)


@pytest.mark.parametrize("content", [b"", b"hello, this is not a checkpoint", b"\x80\x02]q\x00."])
def test_any_other_file_is_named(tmp_path: Path, content: bytes) -> None:
    path = tmp_path / "other.pt"
    path.write_bytes(content)
    with pytest.raises(UserError, match=r"other\.pt cannot be read"):
        build(path)


@pytest.mark.parametrize("content", [{"step": 3}, [1, 2], {"model": {"a": 1}}, {}])
def test_a_file_without_weights_is_named(tmp_path: Path, content: object) -> None:
    torch.save(content, tmp_path / "odd.pt")
    with pytest.raises(UserError, match=r"odd\.pt is neither a checkpoint of this package nor a state dict"):
        build(tmp_path / "odd.pt")


def test_nothing_in_a_file_is_executed(tmp_path: Path) -> None:
    class Trap:
        def __reduce__(self) -> tuple[Any, ...]:
            return (Path.touch, (tmp_path / "sprung",))

    torch.save({"model": Trap()}, tmp_path / "trap.pt")
    with pytest.raises(UserError, match=r"trap\.pt cannot be read"):
        build(tmp_path / "trap.pt")
    assert not (tmp_path / "sprung").exists()


def test_other_classes_are_told_apart(saved: Path) -> None:
    message = "was trained on 3 classes and the data has 4, only the weights have horse, only the data has cow, pig"
    with pytest.raises(UserError, match=message):
        build(saved, ["cat", "cow", "dog", "pig"])


def test_a_bare_state_dict_of_other_classes_is_counted(saved: Path, tmp_path: Path) -> None:
    torch.save(torch.load(saved, weights_only=True)["model"], tmp_path / "bare.pth")
    message = r"bare\.pth has 3 classes and the data has 2: use weights trained on this .*if its first is background"
    with pytest.raises(UserError, match=message):
        build(tmp_path / "bare.pth", ["cat", "dog"])


def test_torchvisions_coco_file_points_to_its_name(tmp_path: Path) -> None:
    state = {"head.classification_head.cls_logits.bias": torch.zeros(9 * 91)}
    torch.save(state, tmp_path / "retinanet.pth")
    with pytest.raises(UserError, match="has 91 classes and the data has 3: .* or weights: coco"):
        build(tmp_path / "retinanet.pth")


@pytest.mark.parametrize("change, message", [
    ({"backbone": "resnet34"}, "made with backbone resnet18, and this config has backbone resnet34: set the config"),
    ({"fpn_channels": 16, "head_depth": 2}, "made with fpn_channels 32, head_depth 1, and this config has fpn_chan"),
    ({"anchor_sizes": [8, 16, 32, 64, 96]}, r"made with anchor_sizes \[16, 32, 64, 96, 128\], and this config"),
])  # fmt: skip
def test_another_architecture_is_told_from_the_checkpoint(saved: Path, change: dict[str, Any], message: str) -> None:
    with pytest.raises(UserError, match=message):
        build(saved, **change)


@pytest.mark.parametrize("change, message", [
    ({"backbone": "resnet34"}, r"does not fit this detector, \d+ tensors missing \(backbone\.body\.layer1\.2\.conv1"),
    ({"fpn_channels": 16}, r"tensors of another shape \(backbone\.fpn\S+ \(32, 128, 1, 1\) not \(16, 128, 1, 1\)"),
    ({"backbone": "mobilenet_v3_small"}, r"tensors missing .*; \d+ tensors unexpected \(backbone\.body\.conv1\.weight"),
])  # fmt: skip
def test_another_architecture_is_told_by_its_tensors(
    saved: Path, tmp_path: Path, change: dict[str, Any], message: str
) -> None:
    torch.save(torch.load(saved, weights_only=True)["model"], tmp_path / "bare.pth")
    with pytest.raises(UserError, match=message):
        build(tmp_path / "bare.pth", **change)


@pytest.mark.parametrize("key, value", [("mean", (0.5, 0.5, 0.5)), ("std", (0.2, 0.2, 0.2))])
def test_weights_of_another_normalisation_are_refused(saved: Path, key: str, value: tuple[float, ...]) -> None:
    with pytest.raises(UserError, match=rf"best\.pt was trained with input\.{key} \[0\.[0-9., ]+\], and this config"):
        build_detector(small_model(weights=str(saved)), small_input(**{key: value}), CLASSES)


# -- torchvision's, by name -------------------------------------------------------------------------------------------


@pytest.mark.parametrize("name", ["resnet18", "mobilenet_v3_small"])
def test_imagenet_weights_are_torchvisions(downloads: dict[str, Any], name: str) -> None:
    network = getattr(torchvision.models, name)()
    downloads[torchvision.models.get_model_weights(name)["IMAGENET1K_V1"].url] = network.state_dict()
    model = small_model(backbone=name, backbone_weights="imagenet", norm="frozen")
    detector = build_detector(model, small_input(), CLASSES)
    source = network.state_dict() if name == "resnet18" else network.features.state_dict()
    body = detector.backbone.body.state_dict()
    assert body and all(torch.equal(value, source[key]) for key, value in body.items())
    assert detector.weight_notes == [f"backbone_weights: imagenet, {name}; pyramid and heads initialised anew"]
    assert not all(p.requires_grad for p in detector.backbone.body.parameters())


def test_a_checkpoint_comes_before_the_backbones_weights(saved: Path) -> None:
    assert build(saved, backbone_weights="imagenet").weight_notes == [f"weights: {saved}"]


@pytest.mark.parametrize("model", [ModelConfig(weights="coco"), ModelConfig(backbone_weights="imagenet")])
def test_torchvisions_weights_need_its_normalisation(model: ModelConfig) -> None:
    with pytest.raises(UserError, match=r"input\.mean \[0\.485, 0\.456, 0\.406\], and this config has \[0\.0, 0\.0"):
        build_detector(model, InputConfig(mean=(0.0, 0.0, 0.0)), ["person"])


@pytest.mark.parametrize("model", [ModelConfig(weights="coco"), ModelConfig(backbone_weights="imagenet")])
def test_without_network_the_place_for_the_file_is_told(model: ModelConfig, monkeypatch: pytest.MonkeyPatch) -> None:
    def fail(url: str, *, weights_only: bool = False, **options: Any) -> None:
        assert weights_only
        raise OSError("<urlopen error no network>")

    monkeypatch.setattr(torchvision.models._api, "load_state_dict_from_url", fail)
    message = r"no network.*: download https://download\.pytorch\.org/\S+ by other means and place it in \S+checkpoints"
    with pytest.raises(UserError, match=message):
        build_detector(model, InputConfig(), ["person"])
