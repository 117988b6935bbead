"""What cannot be converted from mmdetection is told in one sentence, and nothing in a file is run."""

from __future__ import annotations

import os
import runpy
import sys
from pathlib import Path
from typing import Any

import pytest
import torch
import yaml
from detector_helpers import small_model
from mmdetection_helpers import CLASSES, CONFIGS, faster_rcnn_state, hollow, retinanet_state, save
from torch import Tensor

from gid_cuda.config import InputConfig, ModelConfig, config_from_dict
from gid_cuda.detectors import RetinaNet, build_detector
from gid_cuda.detectors.mmdetection import convert_mmdetection
from gid_cuda.errors import UserError

SCRIPT = Path(__file__).parents[2] / "scripts" / "convert_checkpoint.py"


@pytest.fixture(scope="module")
def retinanet() -> dict[str, Tensor]:
    return hollow(retinanet_state(channels=16, depth=1))


@pytest.fixture(scope="module")
def faster_rcnn() -> dict[str, Tensor]:
    return hollow(faster_rcnn_state())


@pytest.fixture
def file(tmp_path: Path, retinanet: dict[str, Tensor]) -> Path:
    return save(tmp_path / "theirs.pth", retinanet, "retinanet")


def told(path: Path, **options: Any) -> str:
    with pytest.raises(UserError) as caught:
        convert_mmdetection(path, **options)
    assert "\n" not in str(caught.value)
    return str(caught.value)


@pytest.mark.parametrize("before, after, expected", [
    ("style='pytorch'", "style='caffe'", "backbone.style caffe, and what can be converted is pytorch style"),
    ("std=[58.395, 57.12, 57.375]", "std=[1.0, 1.0, 1.0]", r"'std': \[1.0, 1.0, 1.0\], .* pytorch style"),
    ("bgr_to_rgb=True", "bgr_to_rgb=False", "'bgr_to_rgb': False"),
    ("bgr_to_rgb=True, ", "", "'bgr_to_rgb': None"),
    ("mean=[123.675, 116.28, 103.53], ", "", "'mean': None"),
    ("'on_input'", "'on_output'", "model.neck.add_extra_convs on_output, .* has on_input or True"),
    ("start_level=1", "start_level=1, relu_before_extra_convs=True", "relu_before_extra_convs True, .* has False"),
    ("type='RetinaNet'", "type='mmdet.models.ATSS'", "model.type ATSS, and what can be converted has RetinaNet"),
    ("type='ResNet'", "type='ResNeXt'", "model.backbone.type ResNeXt"),
    ("type='RetinaHead'", "type='FreeAnchorRetinaHead'", "model.bbox_head.type FreeAnchorRetinaHead"),
    ("octave_base_scale=4", "octave_base_scale=4.1", "other anchors, .* whole pixels"),
    ("strides=[8, 16, 32, 64, 128]", "strides=[8, 16, 32, 64, 100]", "anchor_generator.strides"),
    ("octave_base_scale=4", "scales=[8]", r"anchor_generator.scales \[8\], .* has none"),
    ("octave_base_scale=4", "octave_base_scale=4, scale_major=False", "anchor_generator.scale_major False"),
    ("octave_base_scale=4", "octave_base_scale=4, base_sizes=[4, 8, 16, 32, 64]", "anchor_generator.base_sizes"),
    ("stacked_convs=4", "anchor_strides=[8, 16, 32, 64, 128]", "bbox_head.anchor_strides .* has none"),  # 1.x
    ("type='BN'", "type='BN', eps=0.001", "backbone.norm_cfg.eps 0.001"),
    ("depth=50,", "depth=50, conv_cfg=dict(type='ConvWS'),", "backbone.conv_cfg.type ConvWS"),
    ("start_level=1", "start_level=1, act_cfg=dict(type='ReLU')", "neck.act_cfg.type ReLU, .* has none"),
])  # fmt: skip
def test_other_settings_are_named(
    tmp_path: Path, retinanet: dict[str, Tensor], before: str, after: str, expected: str
) -> None:
    assert CONFIGS["retinanet"].count(before) == 1
    text = CONFIGS["retinanet"].replace(before, after)
    path = save(tmp_path / "theirs.pth", retinanet, "retinanet", cfg=text)
    with pytest.raises(UserError, match=expected):
        convert_mmdetection(path, style="pytorch")  # the text is believed before the user


@pytest.mark.parametrize("before, after, expected", [
    ("scales=[8]", "scales=[4, 8]", "other anchors, .* one scale a level"),
    ("sampling_ratio=0", "sampling_ratio=2", "roi_layer.sampling_ratio 2, .* has 0"),
    ("sampling_ratio=0", "sampling_ratio=0, pool_mode='max'", "roi_layer.pool_mode max"),
    ("target_stds=[0.1, 0.1, 0.2, 0.2]", "target_stds=[.05, .05, .1, .1]", "bbox_head.bbox_coder.target_stds"),
    ("type='FasterRCNN'", "type='MaskRCNN'", "model.type MaskRCNN"),
])  # fmt: skip
def test_other_settings_of_faster_rcnn_are_named(
    tmp_path: Path, faster_rcnn: dict[str, Tensor], before: str, after: str, expected: str
) -> None:
    assert CONFIGS["faster_rcnn"].count(before) == 1
    text = CONFIGS["faster_rcnn"].replace(before, after)
    with pytest.raises(UserError, match=expected):
        convert_mmdetection(save(tmp_path / "theirs.pth", faster_rcnn, "faster_rcnn", cfg=text))


@pytest.mark.parametrize(
    "text", [None, "", "_base_ = './retinanet_r50_fpn.py'", "model = dict(", "model = 3", "m = " + 1500 * "-" + "1"]
)
def test_without_config_text_the_style_must_be_said(
    tmp_path: Path, retinanet: dict[str, Tensor], text: str | None
) -> None:
    path = save(tmp_path / "theirs.pth", retinanet, "retinanet", cfg=text)
    assert "has no config text that tells its style and mean: give --style pytorch" in told(path)
    assert convert_mmdetection(path, style="pytorch")["config"]["model"]["anchor_sizes"] == [32, 64, 128, 256, 512]


def test_a_text_silent_about_pixels_is_not_taken_for_pytorch_style(
    tmp_path: Path, retinanet: dict[str, Tensor]
) -> None:
    text = "model = dict(type='RetinaNet', backbone=dict(type='ResNet', depth=50, style='pytorch'))"
    path = save(tmp_path / "theirs.pth", retinanet, "retinanet", cfg=text)
    assert "give --style pytorch" in told(path)
    assert convert_mmdetection(path, style="pytorch")["classes"] == list(CLASSES)
    beside = "data_preprocessor = dict(mean=[103.53, 116.28, 123.675], std=[1.0, 1.0, 1.0], bgr_to_rgb=False)\n"
    assert "'bgr_to_rgb': False" in told(save(path, retinanet, "retinanet", cfg=beside + text), style="pytorch")


def test_other_anchors_show_in_the_tensors(tmp_path: Path, retinanet: dict[str, Tensor]) -> None:
    """3 anchors a cell and 3 classes would else be told as a head of 1 class."""
    heads = {"retina_cls": 3 * len(CLASSES), "retina_reg": 3 * 4}
    fewer = {f"bbox_head.{layer}.weight": torch.zeros(rows, 16, 3, 3) for layer, rows in heads.items()}
    path = save(tmp_path / "theirs.pth", {**retinanet, **fewer}, "retinanet", cfg=None)
    assert "so not the 9 anchors a cell that can be converted" in told(path, style="pytorch")


def test_a_config_of_version_2_is_read(tmp_path: Path, retinanet: dict[str, Tensor]) -> None:
    text = "norm = dict(mean={0}, std=[58.395, 57.12, 57.375], to_rgb=True)\nimg_norm_cfg = norm\n"
    text += "model = dict(type='RetinaNet', backbone=dict(type='ResNet', depth=50))"
    meta = {"cfg": None, "dataset_meta": None, "CLASSES": CLASSES, "mmdet_version": "2.25.0"}
    good = text.replace("{0}", "[123.675, 116.28, 103.53]")
    path = save(tmp_path / "theirs.pth", retinanet, "retinanet", config=good, **meta)
    assert convert_mmdetection(path)["classes"] == list(CLASSES)
    caffe = text.replace("{0}", "[103.53, 116.28, 123.675]")
    assert "pytorch style" in told(save(path, retinanet, "retinanet", config=caffe, **meta))


def test_a_config_text_is_never_run(tmp_path: Path, retinanet: dict[str, Tensor]) -> None:
    trap = f"open({str(tmp_path / 'sprung')!r}, 'w')\nmodel = dict(type=open({str(tmp_path / 'sprung')!r}, 'w'))"
    convert_mmdetection(save(tmp_path / "theirs.pth", retinanet, "retinanet", cfg=trap), style="pytorch")
    assert not (tmp_path / "sprung").exists()


def test_fcos_is_refused(tmp_path: Path, retinanet: dict[str, Tensor]) -> None:
    state = {key: value for key, value in retinanet.items() if not key.startswith("bbox_head.")}
    state |= {"bbox_head.conv_centerness.weight": torch.zeros(1, 16, 3, 3), "bbox_head.scales.0.scale": torch.ones(1)}
    assert "FCOS (or a kin of it), whose boxes have learned scales" in told(
        save(tmp_path / "f.pth", state, "retinanet")
    )


def test_another_detector_is_named(tmp_path: Path) -> None:
    state = {"backbone.conv1.weight": torch.zeros(1), "transformer.x.weight": torch.zeros(1)}
    path = save(tmp_path / "detr.pth", state, "retinanet", cfg="model = dict(type='DETR')")
    assert "detr.pth is DETR, and what can be converted is RetinaNet and Faster R-CNN" in told(path)
    path = save(tmp_path / "detr.pth", state, "retinanet", cfg=None)
    assert "is a model of the parts backbone, transformer, and what" in told(path)


def test_another_backbone_is_told(tmp_path: Path, retinanet: dict[str, Tensor]) -> None:
    state = {key: value for key, value in retinanet.items() if not key.startswith("backbone.layer4.1")}
    path = save(tmp_path / "theirs.pth", state, "retinanet")
    assert "a backbone of (2, 2, 2, 1) blocks of 2 convolutions" in told(path)


@pytest.mark.parametrize("change, expected", [
    ({"bbox_head.retina_reg.bias": None}, "1 tensors missing (bbox_head.retina_reg.bias)"),
    ({"mask_head.conv.weight": torch.zeros(2)}, "1 tensors left over (mask_head.conv.weight)"),
    ({"bbox_head.retina_reg.bias": torch.zeros(4)}, "1 tensors of another shape (bbox_head.retina_reg.bias (4,))"),
    ({"neck.lateral_convs.0.conv.weight": None}, "has no tensor neck.lateral_convs.0.conv.weight"),
    ({"bbox_head.retina_cls.weight": torch.zeros(())}, "has no tensor bbox_head.retina_cls.weight with rows"),
])  # fmt: skip
def test_tensors_that_do_not_fit_are_named(
    tmp_path: Path, retinanet: dict[str, Tensor], change: dict[str, Tensor | None], expected: str
) -> None:
    state = {key: value for key, value in {**retinanet, **change}.items() if value is not None}
    assert expected in told(save(tmp_path / "theirs.pth", state, "retinanet"))


@pytest.mark.parametrize("classes, expected", [
    (None, "names no classes: give --classes FILE with its 3 names"),
    ("one", "a head of 3 classes, and 1 names are given (one)"),
    (["a", "b", "c", "d"], "a head of 3 classes, and 4 names are given (a, b, c, d)"),
    (["a", "b", "a"], "names the class a more than once"),
])  # fmt: skip
def test_class_names_must_fit_the_head(
    tmp_path: Path, retinanet: dict[str, Tensor], classes: object, expected: str
) -> None:
    meta = {"dataset_meta": {"classes": classes} if classes else None}
    path = save(tmp_path / "theirs.pth", retinanet, "retinanet", **meta)
    assert expected in told(path)
    assert convert_mmdetection(path, classes=["x", "y", "z"])["classes"] == ["x", "y", "z"]


class Trap:
    """Stands for mmengine's HistoryBuffer, which its training checkpoints hold."""

    def __init__(self, path: Path) -> None:
        self.path = str(path)

    def __reduce__(self) -> tuple[Any, ...]:
        return (os.mkdir, (self.path,))


def test_objects_are_refused_with_the_way_round(tmp_path: Path, retinanet: dict[str, Tensor]) -> None:
    content = {"state_dict": retinanet, "meta": {}, "message_hub": Trap(tmp_path / "sprung")}
    torch.save(content, tmp_path / "epoch_12.pth")
    message = told(tmp_path / "epoch_12.pth")
    assert (
        "holds more than tensors and plain values (posix.mkdir)" in message
        and "for k in ('meta', 'state_dict')" in message
    )
    assert not (tmp_path / "sprung").exists()


@pytest.mark.parametrize("content", [[1], {"model": {}}, {"state_dict": {}}, {"state_dict": {"a": 1}}])
def test_another_file_is_named(tmp_path: Path, content: object) -> None:
    torch.save(content, tmp_path / "odd.pth")
    assert "odd.pth is no checkpoint of mmdetection" in told(tmp_path / "odd.pth")


def test_an_unreadable_file_is_named(tmp_path: Path) -> None:
    (tmp_path / "odd.pth").write_bytes(b"no tensors")
    assert "odd.pth cannot be read as a PyTorch file" in told(tmp_path / "odd.pth")
    assert "none.pth is no file: give a checkpoint" in told(tmp_path / "none.pth")


def test_given_to_a_config_as_it_is_it_points_to_the_script(file: Path) -> None:
    with pytest.raises(UserError, match="convert it first if mmdetection made it: scripts/convert_checkpoint.py"):
        build_detector(ModelConfig(weights=str(file)), InputConfig(), CLASSES)


def run(monkeypatch: pytest.MonkeyPatch, *arguments: object) -> None:
    monkeypatch.setattr(sys, "argv", [str(SCRIPT), *map(str, arguments)])
    runpy.run_path(str(SCRIPT), run_name="__main__")


def test_the_script(file: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch, capsys: Any) -> None:
    (tmp_path / "names.txt").write_text("Katze\nHund\n\nPferd\n", encoding="utf-8")
    output = tmp_path / "new, too" / "teacher.pt"
    run(monkeypatch, "--input", file, "--output", output, "--classes", tmp_path / "names.txt")
    printed = capsys.readouterr().out
    assert "3 classes" in printed
    section = yaml.safe_load(printed.splitlines()[1])["teacher"]
    assert ModelConfig(**section).variant == "mmdetection"
    assert isinstance(build_detector(ModelConfig(**section), InputConfig(), ["Katze", "Hund", "Pferd"]), RetinaNet)
    assert torch.load(output, weights_only=True)["classes"] == ["Katze", "Hund", "Pferd"]


def test_the_script_tells_mistakes_in_one_line(tmp_path: Path, monkeypatch: pytest.MonkeyPatch, capsys: Any) -> None:
    with pytest.raises(SystemExit) as stopped:
        run(monkeypatch, "--input", tmp_path / "none.pth", "--output", tmp_path / "x.pt")
    assert stopped.value.code == 2
    assert capsys.readouterr().err == f"error: {tmp_path / 'none.pth'} is no file: give a checkpoint of mmdetection\n"
    with pytest.raises(SystemExit):
        run(monkeypatch, "--input", "a", "--output", "b", "--classes", tmp_path / "names.txt")
    assert "one name a line" in capsys.readouterr().err


def test_the_script_does_not_write_over_its_input(file: Path, monkeypatch: pytest.MonkeyPatch, capsys: Any) -> None:
    before = file.read_bytes()
    with pytest.raises(SystemExit):
        run(monkeypatch, "--input", file, "--output", file.parent / "." / file.name)
    assert "is the input, which would be lost" in capsys.readouterr().err and file.read_bytes() == before


def test_a_checkpoint_from_before_the_variants_is_torchvisions(tmp_path: Path) -> None:
    detector = build_detector(small_model(), InputConfig(), CLASSES)
    model = small_model().model_dump(mode="json")
    del model["variant"]
    torch.save(
        {"model": detector.state_dict(), "classes": list(CLASSES), "config": {"model": model}}, tmp_path / "o.pt"
    )
    build_detector(small_model(weights=str(tmp_path / "o.pt")), InputConfig(), CLASSES)
    with pytest.raises(UserError, match="made with variant torchvision, and this config has variant mmdetection"):
        build_detector(small_model(weights=str(tmp_path / "o.pt"), variant="mmdetection"), InputConfig(), CLASSES)


@pytest.mark.parametrize("model, teacher, message", [
    ({}, {"variant": "mmdetection"}, "teacher.variant is mmdetection and model.variant is torchvision: .* set model.v"),
    ({"detector": "fcos", "variant": "mmdetection"}, {"detector": "fcos"}, "variant mmdetection exists for retinanet"),
])  # fmt: skip
def test_a_config_tells_variants_that_do_not_fit(model: dict[str, str], teacher: dict[str, str], message: str) -> None:
    raw = {"output": "o", "data": {"format": "coco", "root": "d"}, "train": {"steps": 1}, "distill": {}}
    with pytest.raises(UserError, match=message):
        config_from_dict({**raw, "model": model, "teacher": {"weights": "t.pt", **teacher}}, name="x.yaml")
