"""detect.py, the code without torch: each step against torch's, and the whole against `predict`, without any ONNX."""

from __future__ import annotations

import ast
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch
from export_helpers import CLASSES, as_tensor, bold, picture, tiny_config
from torchvision.ops import batched_nms

from gid_cuda.detectors.build import build_detector
from gid_cuda.export import detect
from gid_cuda.export.check import common
from gid_cuda.export.network import Network, settings
from gid_cuda.export.student import Model


def test_it_imports_numpy_and_onnxruntime_alone() -> None:
    tree = ast.parse(Path(detect.__file__).read_text())
    names = set()
    for node in ast.walk(tree):
        if isinstance(node, ast.Import):
            names |= {alias.name.partition(".")[0] for alias in node.names}
        elif isinstance(node, ast.ImportFrom):
            names.add((node.module or "gid_cuda").partition(".")[0])
    assert names == {"json", "math", "sys", "numpy", "onnxruntime", "PIL"}  # PIL in main alone


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
        def run(self, _: None, feed: dict[str, np.ndarray]) -> list[np.ndarray]:
            with torch.no_grad():
                return [output.numpy() for output in Network(detector).eval()(torch.from_numpy(feed["images"]))]

    runner = detect.Detector.__new__(detect.Detector)
    runner.session, runner.settings, runner.classes = Session(), values, values["classes"]
    return runner(image)


@pytest.mark.parametrize("kind", ["retinanet", "fcos"])
@pytest.mark.parametrize("size", [(200, 280), (170, 90), (96, 160)])
def test_detections_are_those_of_predict(kind: str, size: tuple[int, int]) -> None:
    config = tiny_config(kind, score_thresh=0.3, detections_per_img=40)
    torch.manual_seed(0)
    detector = bold(build_detector(config.model, config.input, CLASSES))
    image = picture(*size)
    found = _torch_as_session(detector, image, settings(Model(detector, config, CLASSES)))
    expected = {key: value.numpy() for key, value in detector.predict([as_tensor(image)])[0].items()}
    assert len(expected["scores"]) > 3
    assert common(expected, found) >= len(expected["scores"]) - 1 and len(found["scores"]) == len(expected["scores"])
    assert (np.diff(found["scores"]) <= 0).all()


def test_no_detection_is_no_mistake() -> None:
    config = tiny_config("retinanet", score_thresh=1.0)
    detector = bold(build_detector(config.model, config.input, CLASSES))
    found = _torch_as_session(detector, picture(90, 90), settings(Model(detector, config, CLASSES)))
    assert found["boxes"].shape == (0, 4) and found["scores"].shape == found["labels"].shape == (0,)


def test_images_of_another_kind_are_refused() -> None:
    with pytest.raises(ValueError, match=r"image is float32 of shape \(4, 4, 3\), expected uint8"):
        detect.prepare(np.zeros((4, 4, 3), np.float32), {"min_size": 8, "max_size": 8, "mean": [0, 0, 0]})
