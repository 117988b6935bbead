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


@pytest.mark.slow
def test_onnxruntime_detects_what_predict_does(exported: tuple[Any, Export, Path]) -> None:
    detector, done, folder = exported
    assert sorted(path.name for path in folder.iterdir()) == ["README.md", "detect.py", "student.onnx", "student.pth"]
    assert any("are those of predict" in note for note in done.notes)
    _hold_to_predict(detector, folder / "student.onnx")


@pytest.mark.slow
def test_a_batch_gives_what_each_image_gives(exported: tuple[Any, Export, Path]) -> None:
    session = detect.Detector(exported[2] / "student.onnx").session
    images = np.random.default_rng(0).random((3, 3, 64, 96), np.float32)
    together = session.run(None, {"images": images})
    for index in range(3):
        for many, one in zip(together, session.run(None, {"images": images[index : index + 1]}), strict=True):
            np.testing.assert_allclose(many[index], one[0], atol=1e-4)


@pytest.mark.slow
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


@pytest.fixture
def photo(tmp_path: Path) -> Path:
    from PIL import Image

    Image.fromarray(picture(120, 150)).save(tmp_path / "photo.png")
    return tmp_path / "photo.png"


@pytest.mark.slow
def test_a_photo_that_cannot_be_used_is_told_and_the_others_are_detected_in(
    exported: tuple[Any, Export, Path], photo: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    from PIL import Image

    bad = [photo.with_name(name) for name in ("gone.png", "text.png", "cut.png", "narrow.png", "folder")]
    bad[1].write_text("no image")
    bad[2].write_bytes(photo.read_bytes()[: photo.stat().st_size // 2])
    Image.fromarray(np.zeros((1, 5000, 3), np.uint8)).save(bad[3])
    bad[4].mkdir()
    assert detect.main([str(exported[2] / "student.onnx"), *map(str, bad), str(photo)]) == 1
    said = capsys.readouterr()
    assert said.out and all(line.startswith(f"{photo}\t") for line in said.out.splitlines())
    assert said.err.splitlines() == [
        f"error: {bad[0]}: No such file or directory",
        f"error: {bad[1]}: no image that pillow can read, or it is damaged",
        f"error: {bad[2]}: no image that pillow can read, or it is damaged",
        f"error: {bad[3]}: image has 1 x 5000 pixels: too narrow to be resized",
        f"error: {bad[4]}: Is a directory",
    ]


def test_files_that_are_no_detector_are_told(photo: Path, capsys: pytest.CaptureFixture[str]) -> None:
    gone = photo.with_name("student.onnx")
    assert detect.main([str(gone), str(photo)]) == 1
    assert capsys.readouterr().err == f"error: {gone}: No such file or directory\n"
    assert detect.main([str(photo), str(photo)]) == 1  # in the wrong order
    said = capsys.readouterr().err
    assert said.startswith(f"error: {photo} is no ONNX file that can be used (") and said.count("\n") == 1


@pytest.mark.slow
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


@pytest.mark.slow
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
    if kind == "faster_rcnn":
        _hold_second_stage_to_first(tmp_path / "out")


def _hold_second_stage_to_first(folder: Path) -> None:
    first, second = folder / "student.onnx", folder / "student_boxes.onnx"
    with pytest.raises(ValueError, match="student_boxes.onnx has no metadata 'gid_cuda': give the student.onnx"):
        detect.Detector(second)
    kept = second.read_bytes()
    second.write_bytes(first.read_bytes())
    with pytest.raises(ValueError, match="student_boxes.onnx does not belong to .*student.onnx: copy both"):
        detect.Detector(first)
    second.unlink()
    with pytest.raises(ValueError, match="student_boxes.onnx is missing: .*student.onnx goes on in it"):
        detect.Detector(first)
    second.write_bytes(kept)
