"""detect.py, the code without torch: each step against torch's, and the whole against `predict`, without any ONNX."""

from __future__ import annotations

import ast
import json
import os
import subprocess
import sys
from pathlib import Path
from types import SimpleNamespace
from typing import Any

import numpy as np
import pytest
import torch
from export_helpers import CLASSES, as_tensor, bold, picture, tiny_config
from torchvision.ops import batched_nms

from gid_cuda.detectors.aligned_rois import ShiftedRoIAlign
from gid_cuda.detectors.build import build_detector
from gid_cuda.detectors.faster_rcnn import FasterRCNN
from gid_cuda.export import detect
from gid_cuda.export.check import common
from gid_cuda.export.network import Network, settings
from gid_cuda.export.student import Model
from gid_cuda.export.two_stage import SECOND_NAMES, FirstStage, SecondStage


def test_it_imports_numpy_and_onnxruntime_alone() -> None:
    tree = ast.parse(Path(detect.__file__).read_text())
    names = set()
    for node in ast.walk(tree):
        if isinstance(node, ast.Import):
            names |= {alias.name.partition(".")[0] for alias in node.names}
        elif isinstance(node, ast.ImportFrom):
            names.add((node.module or "gid_cuda").partition(".")[0])
    assert names == {"json", "math", "sys", "numpy", "onnxruntime", "PIL"}  # PIL in read_photo alone


@pytest.mark.parametrize(("before", "after"), [((50, 70), (96, 134)), ((200, 131), (64, 41)), ((64, 96), (64, 96))])
def test_resize_is_torchs_interpolation(before: tuple[int, int], after: tuple[int, int]) -> None:
    image = picture(*before).astype(np.float32) / 255
    expected = torch.nn.functional.interpolate(torch.from_numpy(image).permute(2, 0, 1)[None], after, mode="bilinear")
    np.testing.assert_allclose(detect.resize(image, after), expected[0].permute(1, 2, 0).numpy(), atol=2e-6)


def test_nms_is_torchvisions() -> None:
    generator = np.random.default_rng(0)
    corners = generator.uniform(0, 60, (300, 2)).astype(np.float32)
    boxes = np.concatenate([corners, corners + generator.uniform(5, 40, (300, 2)).astype(np.float32)], axis=1)
    boxes[7] = boxes[8] = [5, 5, 5, 9]  # no area: overlaps nothing
    scores, groups = generator.random(300).astype(np.float32), generator.integers(0, 3, 300)
    expected = batched_nms(*(torch.from_numpy(x) for x in (boxes, scores, groups)), 0.4).numpy()
    np.testing.assert_array_equal(detect.nms(boxes, scores, groups, 0.4, 1000), expected)
    np.testing.assert_array_equal(detect.nms(boxes, scores, groups, 0.4, 5), expected[:5])
    assert len(detect.nms(boxes[:0], scores[:0], groups[:0], 0.4, 5)) == 0


def _torch_as_session(detector: Any, image: np.ndarray, values: dict[str, Any]) -> dict[str, np.ndarray]:
    """`detect.Detector.__call__` with torch in onnxruntime's place."""

    class Session:
        def __init__(self, network: Any, names: list[str]) -> None:
            self.network, self.names = network.eval(), names

        def run(self, _: None, feed: dict[str, np.ndarray]) -> list[np.ndarray]:
            assert all(len(value) for value in feed.values())
            with torch.no_grad():
                return [output.numpy() for output in self.network(*(torch.from_numpy(feed[n]) for n in self.names))]

    runner = detect.Detector.__new__(detect.Detector)
    runner.settings, runner.classes, runner.of_boxes = values, values["classes"], None
    if isinstance(detector, FasterRCNN):
        runner.of_boxes = Session(SecondStage(detector), SECOND_NAMES[0])
    network = FirstStage if isinstance(detector, FasterRCNN) else Network
    runner.session = Session(network(detector), ["images"])
    return runner(image)


@pytest.mark.parametrize("kind", ["retinanet", "fcos", "faster_rcnn"])
@pytest.mark.parametrize("size", [(200, 280), (170, 90), (96, 160)])
def test_detections_are_those_of_predict(kind: str, size: tuple[int, int]) -> None:
    config = tiny_config(kind, score_thresh=0.1 if kind == "faster_rcnn" else 0.3, detections_per_img=40)
    torch.manual_seed(0)
    detector = bold(build_detector(config.model, config.input, CLASSES))
    image = picture(*size)
    found = _torch_as_session(detector, image, settings(Model(detector, config, CLASSES)))
    expected = {key: value.numpy() for key, value in detector.predict([as_tensor(image)])[0].items()}
    assert len(expected["scores"]) > 3
    assert common(expected, found) >= len(expected["scores"]) - 1 and len(found["scores"]) == len(expected["scores"])
    assert (np.diff(found["scores"]) <= 0).all()


def test_boxes_belong_to_the_levels_that_torchvision_gives_them() -> None:
    sides = torch.tensor([0.0, 1.0, 55.9, 111.9, 112.0, 112.1, 223.9, 224.0, 447.9, 448.0, 900.0])
    boxes = torch.stack([sides * 0 + 3, sides * 0 + 5, sides + 3, sides / 2 + sides / 2 + 5], dim=1)
    expected = ShiftedRoIAlign(["0", "1", "2", "3"], [4, 8, 16, 32]).map_levels([boxes])
    found = detect.by_level(boxes.numpy(), {"canonical": [224, 4], "roi_strides": [4, 8, 16, 32]})
    assert len(expected.unique()) == 4
    for index, level in enumerate(found):
        np.testing.assert_array_equal(level, boxes[expected == index].numpy())


def test_levels_without_a_proposal_get_one_that_is_left_out_again(monkeypatch: pytest.MonkeyPatch) -> None:
    """Of the four levels the second and the last have a proposal each."""
    rois = np.array([[0, 0, 150, 150], [0, 0, 500, 500]], np.float32)
    monkeypatch.setattr(detect, "proposals", lambda *_: rois)

    class Session:
        def run(self, _: None, feed: dict[str, np.ndarray]) -> tuple[np.ndarray, np.ndarray]:
            np.testing.assert_array_equal(np.concatenate([feed[f"rois{index}"] for index in (1, 3)]), rois)
            assert [len(feed[f"rois{index}"]) for index in range(4)] == [1] * 4
            return 9 * np.eye(5, dtype=np.float32)[1:], np.zeros((4, 20), np.float32)

    runner = detect.Detector.__new__(detect.Detector)
    runner.of_boxes = Session()
    runner.settings = {
        "canonical": [224, 4], "roi_strides": [4, 8, 16, 32], "score_thresh": 0.5, "box_weights": [10, 10, 5, 5],
        "nms_thresh": 0.5, "detections_per_img": 10,
    }  # fmt: skip
    boxes, scores, labels = runner._of_proposals([np.zeros((1, 1, 1))] * 6, (512, 512), (512, 512))
    np.testing.assert_array_equal(boxes, rois)
    assert labels.tolist() == [1, 3] and (scores > 0.5).all()


@pytest.mark.parametrize("kind", ["retinanet", "faster_rcnn"])
def test_no_detection_is_no_mistake(kind: str) -> None:
    config = tiny_config(kind, score_thresh=1.0)
    detector = bold(build_detector(config.model, config.input, CLASSES))
    found = _torch_as_session(detector, picture(90, 90), settings(Model(detector, config, CLASSES)))
    assert found["boxes"].shape == (0, 4) and found["scores"].shape == found["labels"].shape == (0,)


def test_no_proposal_is_no_mistake() -> None:
    """As of weights that are NaN."""
    config = tiny_config("faster_rcnn")
    detector = bold(build_detector(config.model, config.input, CLASSES))
    with torch.no_grad():
        detector.rpn.head.bbox_pred.bias.fill_(torch.nan)
    found = _torch_as_session(detector, picture(90, 90), settings(Model(detector, config, CLASSES)))
    assert found["boxes"].shape == (0, 4) and found["scores"].shape == found["labels"].shape == (0,)


class _Session:
    """In onnxruntime's place: of a JSON file with its metadata, and names and shapes of inputs and outputs."""

    def __init__(self, path: str, providers: list[str]) -> None:
        self.content = json.loads(Path(path).read_text())

    def get_modelmeta(self) -> Any:
        return SimpleNamespace(custom_metadata_map=self.content["metadata"])

    def get_inputs(self) -> list[Any]:
        return [SimpleNamespace(name=name, shape=shape) for name, shape in self.content["inputs"].items()]

    def get_outputs(self) -> list[Any]:
        return [SimpleNamespace(name=name, shape=shape) for name, shape in self.content["outputs"].items()]


def test_the_second_stage_has_to_be_there_and_of_the_first(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    monkeypatch.setitem(sys.modules, "onnxruntime", SimpleNamespace(InferenceSession=_Session))
    first, second = tmp_path / "student.onnx", tmp_path / "student_boxes.onnx"
    levels = {f"level{index}": ["batch", 32, "h", "w"] for index in range(4)}
    settings = {"classes": CLASSES, "proposals": 10}
    first.write_text(json.dumps({
        "metadata": {"gid_cuda": json.dumps(settings)}, "inputs": {"images": ["batch", 3, "h", "w"]},
        "outputs": {"logits": ["batch", "n", 1], "deltas": ["batch", "n", 4], **levels},
    }))  # fmt: skip

    def told(inputs: dict[str, list[Any]], classes: int) -> str:
        second.write_text(json.dumps({"metadata": {}, "inputs": inputs, "outputs": {"logits": ["n", classes + 1]}}))
        status = detect.main([str(first), str(tmp_path / "gone.png")])
        assert status == 1
        return capsys.readouterr().err

    assert detect.main([str(first), "photo.png"]) == 1
    assert capsys.readouterr().err.startswith(f"error: {second} is missing: {first} goes on in it")
    assert told(levels, len(CLASSES)) == f"error: {tmp_path / 'gone.png'}: No such file or directory\n"  # they fit
    wrong = f"error: {second} does not belong to {first}: copy both from one export\n"
    assert told({"images": ["batch", 3, "h", "w"]}, len(CLASSES)) == wrong
    assert told({name: ["batch", 64, "h", "w"] for name in levels}, len(CLASSES)) == wrong
    assert told(levels, 5) == wrong


def test_a_shell_is_told_how_to_call_it_and_what_is_not_installed(
    monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    assert detect.main(["student.onnx"]) == 2
    assert capsys.readouterr().err.startswith("usage: python detect.py student.onnx photo.jpg")
    monkeypatch.setitem(sys.modules, "onnxruntime", None)
    assert detect.main(["student.onnx", "photo.jpg"]) == 1
    assert capsys.readouterr().err == "error: onnxruntime is not installed: pip install numpy onnxruntime pillow\n"
    bare = [sys.executable, "-I", "-S", detect.__file__]  # without site-packages: no numpy
    run = subprocess.run([*bare, "student.onnx", "photo.jpg"], capture_output=True, text=True)
    told = "error: numpy is not installed: pip install numpy onnxruntime pillow\n"
    assert (run.returncode, run.stdout, run.stderr) == (1, "", told)


@pytest.mark.parametrize("kind", [ImportError, ModuleNotFoundError])
def test_a_package_that_does_not_load_is_not_said_to_be_missing(
    monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str], tmp_path: Path, kind: type[ImportError]
) -> None:
    def broken(*arguments: Any) -> None:
        raise kind("multiarray failed\n\nto import")

    told = "error: a package does not load (multiarray failed to import): pip install --force-reinstall numpy onnxru"
    monkeypatch.setattr(detect, "load", broken)
    assert detect.main(["student.onnx", "photo.jpg"]) == 1
    assert capsys.readouterr().err.startswith(told)
    (tmp_path / "numpy.py").write_text(f"raise {kind.__name__}('multiarray failed\\n\\nto import')")
    command = [sys.executable, detect.__file__, "student.onnx", "photo.jpg"]
    run = subprocess.run(command, capture_output=True, text=True, env={**os.environ, "PYTHONPATH": str(tmp_path)})
    assert (run.returncode, run.stdout) == (1, "") and run.stderr.startswith(told) and run.stderr.count("\n") == 1


def test_images_of_another_kind_are_refused() -> None:
    with pytest.raises(ValueError, match=r"image is float32 of shape \(4, 4, 3\), expected uint8"):
        detect.prepare(np.zeros((4, 4, 3), np.float32), {"min_size": 8, "max_size": 8, "mean": [0, 0, 0]})
