"""scripts/export.py: what it prints and writes, and that each mistake is one sentence and leaves nothing behind."""

from __future__ import annotations

import runpy
import sys
from pathlib import Path
from typing import Any

import pytest
import torch
from export_helpers import CLASSES, checkpoint, tiny_config

from gid_cuda.config import config_to_dict
from gid_cuda.engine.checkpoint import save_checkpoint
from gid_cuda.export import cost, network

SCRIPT = Path(__file__).parents[2] / "scripts" / "export.py"


@pytest.fixture
def run(monkeypatch: Any, capsys: Any) -> Any:
    """Runs the script in this process: (exit status, stdout, stderr)."""
    monkeypatch.setattr(cost.Timer, "blocked_autorange", lambda self, **_: self.timeit(1))

    def call(*arguments: object) -> tuple[int, str, str]:
        monkeypatch.setattr(sys, "argv", ["export.py", *map(str, arguments), "--device", "cpu"])
        status = 0
        try:
            runpy.run_path(str(SCRIPT), run_name="__main__")
        except SystemExit as ended:
            status = ended.code
        said = capsys.readouterr()
        return status, said.out, said.err

    return call


def _distilled(teacher: Path, **teacher_model: Any) -> dict[str, Any]:
    config = config_to_dict(tiny_config("retinanet"))
    model = config_to_dict(tiny_config("retinanet", backbone="resnet34", **teacher_model))["model"]
    return {**config, "teacher": {**model, "weights": str(teacher)}, "distill": {}}


def test_teacher_against_student(run: Any, tmp_path: Path) -> None:
    checkpoint(tmp_path / "teacher" / "best.pt", tiny_config("retinanet", backbone="resnet34"))
    config = _distilled(tmp_path / "teacher" / "best.pt")
    checkpoint(tmp_path / "run" / "best.pt", tiny_config("retinanet"), config=config)
    status, out, err = run("--weights", tmp_path / "run", "--output", tmp_path / "out", "--no-onnx")
    assert status == 0 and err == ""
    lines = [[cell.strip() for cell in line.split("|")[1:-1]] for line in out.splitlines() if line.startswith("|")]
    assert lines[0] == ["", "parameters", "FLOPs", "latency", "AP"]
    (_, large, more, slower, teacher_ap), (_, small, fewer, faster, student_ap) = lines[2:4]
    assert (lines[2][0], lines[3][0], lines[4][0]) == ("teacher", "student", "teacher / student")
    assert float(large.split()[0]) > float(small.split()[0]) > 11 and float(more.split()[0]) > float(fewer.split()[0])
    assert slower.endswith(" ms") and faster.endswith(" ms") and (teacher_ap, student_ap) == ("12.3", "12.3")
    card = (tmp_path / "out" / "README.md").read_text()
    for part in (
        "distilled from retinanet resnet34 by General Instance Distillation", "0 cat, 1 dog", "val.json, 20 images",
        "cat 20.0, dog -, owl 4.7", "shorter side has 96 pixels", "[0.4, 0.5, 0.6]", "## Licence", "lambda_relation",
        "| student ", "torchvision " + __import__("torchvision").__version__, "it was left out at the export",
    ):  # fmt: skip
        assert part in card
    assert "/data/mine" not in card


def test_flops_of_a_network_counted_by_hand(tmp_path: Path) -> None:
    config = tiny_config("retinanet")
    detector = checkpoint(tmp_path / "best.pt", config)
    found = cost.cost(detector, config.input, torch.device("cpu"), min_run_time=0.01)
    assert found.parameters == sum(p.numel() for p in detector.parameters())
    total = [0]

    def count(layer: torch.nn.Conv2d, _: Any, output: torch.Tensor) -> None:
        total[0] += 2 * output.numel() * layer.weight[0].numel()

    for layer in detector.modules():
        if isinstance(layer, torch.nn.Conv2d):
            layer.register_forward_hook(count)
    detector.predict([torch.rand(3, 96, 160)])
    assert found.flops == total[0] and found.seconds > 0


def test_a_teacher_that_is_not_at_hand_has_no_ap(run: Any, tmp_path: Path) -> None:
    checkpoint(tmp_path / "run" / "last.pt", tiny_config("retinanet"), config=_distilled(Path("gone.pt")), step=9)
    status, out, _ = run("--weights", tmp_path / "run", "--output", tmp_path / "out", "--no-onnx")
    assert status == 0 and "gone.pt is not at hand" in out
    assert "has no evaluation of these very weights" in out  # metrics of step 7 inside, weights of step 9
    assert [line.split("|")[-2].strip() for line in out.splitlines() if line.startswith("| ")][2:4] == ["-", "-"]


def test_a_detector_without_onnx_goes_without_and_says_so(run: Any, tmp_path: Path, monkeypatch: Any) -> None:
    checkpoint(tmp_path / "best.pt", tiny_config("faster_rcnn"))
    monkeypatch.setattr(network, "FasterRCNN", network.FCOS)  # it is now as foreign as a detector of one's own
    status, out, _ = run("--weights", tmp_path / "best.pt", "--output", tmp_path / "out")
    assert status == 0 and "ONNX is written for RetinaNet, FCOS and Faster R-CNN, not for a detector of your own" in out
    assert sorted(path.name for path in (tmp_path / "out").iterdir()) == ["README.md", "student.pth"]
    assert "subtract 1" in (tmp_path / "out" / "README.md").read_text()


def test_an_export_is_replaced_only_when_told_to(run: Any, tmp_path: Path) -> None:
    checkpoint(tmp_path / "best.pt", tiny_config("retinanet"))
    arguments = ("--weights", tmp_path / "best.pt", "--output", tmp_path / "out", "--no-onnx")
    assert run(*arguments)[0] == 0
    (tmp_path / "out" / "README.md").write_text("mine")
    status, out, err = run(*arguments)
    assert (status, out) == (2, "") and "already holds an export" in err and "--overwrite" in err
    assert (tmp_path / "out" / "README.md").read_text() == "mine"
    assert run(*arguments, "--overwrite")[0] == 0 and "## Classes" in (tmp_path / "out" / "README.md").read_text()
    (tmp_path / "out" / "thesis.txt").write_text("mine")
    status, _, err = run(*arguments, "--overwrite")
    assert status == 2 and "thesis.txt, which no export wrote" in err and (tmp_path / "out" / "thesis.txt").exists()


def test_mistakes_are_one_sentence(run: Any, tmp_path: Path, monkeypatch: Any) -> None:
    config = config_to_dict(tiny_config("retinanet"))
    folder, good, bare = tmp_path / "empty", tmp_path / "good.pt", tmp_path / "bare.pt"
    folder.mkdir()
    checkpoint(good, tiny_config("retinanet"))
    torch.save({"weight": torch.zeros(1)}, bare)
    for name, changes in {
        "nothing": {"config": None},
        "own": {"config": {**config, "model": {"detector": "own"}}},
        "variant": {"config": {**config, "model": {**config["model"], "variant": "mmdetection"}}},
    }.items():
        save_checkpoint(
            tmp_path / f"{name}.pt",
            {"model": {}, "classes": CLASSES, "config": config, "step": 1, "metrics": None, **changes},
        )
    (tmp_path / "file").write_text("")
    monkeypatch.setattr(network, "PACKAGES", ("onnx_not_here", "onnxscript_not_here"))
    cases = {
        (tmp_path / "gone.pt",): "gone.pt does not exist: give the folder of a run",
        (folder,): "holds neither best.pt nor last.pt",
        (bare,): "is no checkpoint of gid_cuda",
        (tmp_path / "nothing.pt",): "nothing.pt has a NoneType as its config: it is damaged",
        (tmp_path / "own.pt",): "needs the Python file that builds it: add --adapter FILE",
        (tmp_path / "variant.pt",): "is of variant mmdetection",
        (good,): "ONNX needs the packages onnx_not_here, onnxscript_not_here: pip install -e '.[export]'",
        (good, "--no-onnx", "--output", tmp_path / "file"): "file is a file, expected a folder",
    }
    before = sorted(tmp_path.iterdir())
    monkeypatch.chdir(folder)
    for arguments, sentence in cases.items():
        status, out, err = run("--weights", *arguments)
        assert status == 2 and out == "" and err.startswith("error: ") and len(err.splitlines()) == 1, err
        assert sentence in err
    assert sorted(tmp_path.iterdir()) == before and not list(folder.iterdir())
