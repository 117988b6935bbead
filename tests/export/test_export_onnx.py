"""ONNX by onnxruntime against `predict`. torch takes some ten seconds for an export: one serves all fast tests."""

from __future__ import annotations

import subprocess
import sys
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch
from export_helpers import CLASSES, as_tensor, checkpoint, picture, tiny_config

from gid_cuda.errors import UserError
from gid_cuda.export import Export, detect, export
from gid_cuda.export.check import check_onnx, common
from gid_cuda.export.network import PACKAGES

for package in PACKAGES:
    pytest.importorskip(package)
CPU = torch.device("cpu")


@pytest.fixture(scope="module")
def exported(tmp_path_factory: pytest.TempPathFactory) -> tuple[Any, Export, Path]:
    """(the detector, what was exported, the folder)."""
    run = tmp_path_factory.mktemp("run")
    detector = checkpoint(run / "best.pt", tiny_config("retinanet", backbone="resnet18", score_thresh=0.3))
    return detector, export(run, run / "out", device=CPU, min_run_time=0.01), run / "out"


def _hold_to_predict(detector: Any, path: Path) -> None:
    runner = detect.Detector(path)
    assert runner.classes == CLASSES
    for number, size in enumerate([(200, 280), (280, 200), (96, 160), (90, 90)]):
        image = picture(*size, seed=number)
        expected = {key: value.numpy() for key, value in detector.predict([as_tensor(image)])[0].items()}
        found = runner(image)
        assert len(expected["scores"]) > 3
        assert common(expected, found) >= 0.98 * max(len(expected["scores"]), len(found["scores"]))


def test_onnxruntime_detects_what_predict_does(exported: tuple[Any, Export, Path]) -> None:
    detector, done, folder = exported
    assert sorted(path.name for path in folder.iterdir()) == ["README.md", "detect.py", "student.onnx", "student.pth"]
    assert any("are those of predict" in note for note in done.notes)
    _hold_to_predict(detector, folder / "student.onnx")


def test_a_batch_gives_what_each_image_gives(exported: tuple[Any, Export, Path]) -> None:
    session = detect.Detector(exported[2] / "student.onnx").session
    images = np.random.default_rng(0).random((3, 3, 64, 96), np.float32)
    together = session.run(None, {"images": images})
    for index in range(3):
        for many, one in zip(together, session.run(None, {"images": images[index : index + 1]}), strict=True):
            np.testing.assert_allclose(many[index], one[0], atol=1e-4)


def test_the_folder_works_where_there_is_no_torch(exported: tuple[Any, Export, Path], tmp_path: Path) -> None:
    from PIL import Image

    detector, _, folder = exported
    Image.fromarray(picture(120, 150)).save(tmp_path / "photo.png")
    script = (
        "import runpy, sys; sys.modules['torch'] = sys.modules['gid_cuda'] = None; "
        "sys.argv = ['detect.py', 'student.onnx', sys.argv[1]]; runpy.run_path('detect.py', run_name='__main__')"
    )
    command = [sys.executable, "-c", script, str(tmp_path / "photo.png")]
    lines = subprocess.run(command, cwd=folder, capture_output=True, text=True, check=True).stdout.splitlines()
    expected = detector.predict([as_tensor(picture(120, 150))])[0]
    assert len(lines) == len(expected["scores"])
    name, label, score, _ = lines[0].split("\t")
    assert name.endswith("photo.png") and label == CLASSES[int(expected["labels"][0])]
    assert float(score) == pytest.approx(float(expected["scores"][0]), abs=2e-3)


def test_a_file_with_other_weights_does_not_pass_the_check(exported: tuple[Any, Export, Path]) -> None:
    detector, _, folder = exported
    layer = detector.head.classification_head.cls_logits
    kept = layer.weight.detach().clone()
    try:
        with torch.no_grad():
            layer.weight.copy_(kept.flip(0))
        with pytest.raises(UserError, match="detects something else than the checkpoint"):
            check_onnx(detector, folder / "student.onnx")
    finally:
        with torch.no_grad():
            layer.weight.copy_(kept)


def test_nothing_of_the_machine_is_in_the_file(exported: tuple[Any, Export, Path]) -> None:
    content = (exported[2] / "student.onnx").read_bytes()
    here = str(Path(__file__).parents[2]).encode()
    assert here not in content and b"site-packages" not in content


@pytest.mark.slow
@pytest.mark.parametrize(
    ("kind", "changes"),
    [("fcos", {}), ("retinanet", {"backbone": "mobilenet_v3_small"}), ("faster_rcnn", {"score_thresh": 0.1})],
)
def test_other_networks(kind: str, changes: dict[str, Any], tmp_path: Path) -> None:
    detector = checkpoint(tmp_path / "best.pt", tiny_config(kind, **{"score_thresh": 0.3, **changes}))
    done = export(tmp_path, tmp_path / "out", device=CPU, min_run_time=0.01)
    names = ["student.pth", "student.onnx", *["student_boxes.onnx"] * (kind == "faster_rcnn"), "detect.py", "README.md"]
    assert [path.name for path in done.files] == names and all(path.is_file() for path in done.files)
    assert all(f"`{name}`" in (tmp_path / "out" / "README.md").read_text() for name in names[1:-1])
    _hold_to_predict(detector, tmp_path / "out" / "student.onnx")
