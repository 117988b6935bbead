"""A user's own detector: the guide's commands, the file that builds it and its mistakes."""

from __future__ import annotations

import glob
import re
import runpy
import shlex
import sys
from pathlib import Path
from typing import Any

import pytest
import torch
from engine_helpers import CONFIGS, distilled_config, plain_config
from torch import nn

from gid_cuda.config import Config, load_config
from gid_cuda.detectors import build_detector
from gid_cuda.detectors.own import build_own, check_adapter, load_adapter
from gid_cuda.engine.checkpoint import load_checkpoint, load_detector
from gid_cuda.engine.trainer import train
from gid_cuda.errors import UserError

ROOT = CONFIGS.parent
EXAMPLE = ROOT / "examples" / "point_detector.py"
GUIDE = (ROOT / "docs" / "own_detector.md").read_text()
COMMANDS = re.findall(r"^    (scripts/.*)$", GUIDE, re.MULTILINE)
FEW = [
    "data.generated.width=96", "data.generated.height=64", "data.generated.train_images=6", "data.workers=0",
    "data.generated.val_images=3", "input.min_size=[64]", "input.max_size=96", "train.batch_size=2", "train.steps=2",
    "train.warmup_steps=1", "device=cpu",
]  # fmt: skip
STUDENT = ["model.options={width: 8, depth: 1}"]
TEACHER = ["model.options={width: 16, depth: 2}"]
DISTILLED = [*STUDENT, "teacher.options={width: 16, depth: 2}"]


def config(name: str, data: Path, output: Path, *more: str) -> Config:
    return load_config(EXAMPLE.with_name(f"point_{name}.yaml"), [*FEW, f"data.root={data}", f"output={output}", *more])


def call(monkeypatch: Any, script: str, *arguments: str) -> int:
    monkeypatch.setattr(sys, "argv", [script, *arguments])
    try:
        runpy.run_path(str(ROOT / "scripts" / script), run_name="__main__")
    except SystemExit as ended:
        return ended.code or 0
    return 0


def test_every_command_of_the_guide(tmp_path: Path, monkeypatch: Any, capsys: Any) -> None:
    """In the guide's order, each as it stands there, with fewer and smaller images and steps."""
    assert [command.split()[0] for command in COMMANDS] == [f"scripts/{name}.py" for name in (
        "train", "train", "train", "compare", "evaluate", "predict", "visualize", "benchmark")]  # fmt: skip
    monkeypatch.chdir(tmp_path)
    (tmp_path / "examples").symlink_to(EXAMPLE.parent)
    for command in COMMANDS:
        script, *arguments = shlex.split(command)
        arguments = [file for word in arguments for file in (glob.glob(word) if "*" in word else [word])]
        if "--cfg" in arguments:
            cfg = next(word for word in arguments if word.endswith(".yaml"))
            options = TEACHER if "teacher" in cfg else DISTILLED if "distilled" in cfg else STUDENT
            arguments += [*FEW, *options]
        if "--step" in arguments:
            arguments += ["--steps", "1"]
        assert call(monkeypatch, Path(script).name, *arguments) == 0, command
    said = capsys.readouterr().out
    assert "model: own PointDetector" in said and "teacher: own PointDetector" in said and "response_cls" in said
    assert len(list((tmp_path / "runs/point/predictions").glob("*.jpg"))) == 3
    assert len(list((tmp_path / "runs/point/pictures").glob("instances_*.png"))) == 3


def test_it_goes_on_after_a_stop(data: Path, tmp_path: Path) -> None:
    adapter = load_adapter(EXAMPLE)
    whole, parts = tmp_path / "whole", tmp_path / "parts"
    train(config("student", data, whole, *STUDENT, "train.schedule=constant"), adapter=adapter)
    train(config("student", data, parts, *STUDENT, "train.schedule=constant", "train.steps=1"), adapter=adapter)
    train(config("student", data, parts, *STUDENT, "train.schedule=constant"), adapter=adapter, resume=True)
    one, other = (load_checkpoint(folder / "last.pt")["model"] for folder in (whole, parts))
    assert all(torch.equal(value, other[key]) for key, value in one.items())
    detector, _, classes = load_detector(whole / "best.pt", adapter)
    assert detector.num_classes == len(classes)
    with pytest.raises(UserError, match="detector: own needs the Python file that builds it: add --adapter FILE"):
        load_detector(whole / "best.pt")


def test_weights_of_another_order_of_classes_and_of_other_options(data: Path, tmp_path: Path) -> None:
    adapter = load_adapter(EXAMPLE)
    train(config("student", data, tmp_path, *STUDENT), adapter=adapter)
    best = f"model.weights={tmp_path}/best.pt"
    same, classes = config("student", data, tmp_path, *STUDENT, best), load_checkpoint(tmp_path / "best.pt")["classes"]
    straight = build_detector(same.model, same.input, classes, adapter=adapter)
    turned = build_detector(same.model, same.input, classes[::-1], adapter=adapter)
    assert "brought into the data set's order" in turned.weight_notes[0]
    assert torch.equal(turned.logits.weight, straight.logits.weight.flip(0))
    other = config("student", data, tmp_path, "model.options={width: 8, depth: 2}", best)
    with pytest.raises(UserError, match=r"was made with options \{.*'depth': 1.*and this config has options \{.*2"):
        build_detector(other.model, other.input, classes, adapter=adapter)


def test_a_broken_contract_ends_the_run_before_its_folder(data: Path, tmp_path: Path, monkeypatch: Any) -> None:
    file = tmp_path / "wrong.py"
    file.write_text(EXAMPLE.read_text().replace("strides=[STRIDE]", "strides=[12]"))
    settings = [*FEW, *STUDENT, f"data.root={data}", f"output={tmp_path}/run"]
    cfg = str(EXAMPLE.with_name("point_student.yaml"))
    assert call(monkeypatch, "train.py", "--cfg", cfg, "--adapter", str(file), *settings) == 2
    assert not (tmp_path / "run").exists()


def test_a_student_of_ones_own_and_a_teacher_of_the_package(data: Path, teacher: Path, tmp_path: Path) -> None:
    """Possible where their boxes correspond one to one, as here, where the adapter hands on a RetinaNet."""
    file = tmp_path / "handed_on.py"
    file.write_text(
        "from gid_cuda.detectors import build_detector as build\n"
        "def build_detector(model, input, classes):\n"
        "    return build(model.model_copy(update={'detector': 'retinanet'}), input, classes)\n"
    )
    mixed = distilled_config(data, tmp_path / "run", teacher, "model.detector=own", "train.steps=1")
    result = train(mixed, adapter=load_adapter(file))
    assert result["step"] == 1
    with pytest.raises(UserError, match="model and teacher do not fit together: the teacher has .* boxes an image"):
        train(mixed, adapter=load_adapter(EXAMPLE), overwrite=True)
    assert (tmp_path / "run" / "last.pt").exists()  # refused before the old run was cleared away


@pytest.mark.parametrize(
    ("source", "told"),
    [
        ("x = 1", "defines no function build_detector(model, input, classes): add one that returns your detector"),
        ("build_detector = 3", "defines no function build_detector(model, input, classes)"),
    ],
)
def test_a_file_without_the_function(source: str, told: str, tmp_path: Path) -> None:
    file = tmp_path / "mine.py"
    file.write_text(source)
    with pytest.raises(UserError) as caught:
        load_adapter(file)
    assert str(caught.value).startswith(f"--adapter: {file} {told}")
    with pytest.raises(UserError, match="gone.py is not a file: give the Python file that defines build_detector"):
        load_adapter(tmp_path / "gone.py")
    assert load_adapter(None) is None


@pytest.mark.parametrize(
    ("result", "told"), [(nn.Identity(), "returned an Identity, expected a Detector"), (None, "returned nothing (None")]
)
def test_a_result_that_is_no_detector(result: Any, told: str, data: Path) -> None:
    own = config("student", data, data)
    with pytest.raises(UserError) as caught:
        build_own(lambda *_: result, own.model, own.input, ["a"])
    assert told in str(caught.value) and Path(__file__).name in str(caught.value)


def test_what_the_users_code_raises_keeps_its_traceback(tmp_path: Path, data: Path) -> None:
    file = tmp_path / "mine.py"
    file.write_text("import nothing_of_this_name")
    with pytest.raises(ModuleNotFoundError):
        load_adapter(file)
    file.write_text("def build_detector(model, input, classes):\n    open('/gone/file')")
    own = config("student", data, data)
    with pytest.raises(RuntimeError, match="the adapter raised FileNotFoundError") as caught:  # the scripts tell an
        build_own(load_adapter(file), own.model, own.input, ["a"])  # OSError in one sentence about their own files
    assert isinstance(caught.value.__cause__, FileNotFoundError)
    with pytest.raises(TypeError, match="unexpected keyword argument 'widht'"):
        wrong = config("student", data, data, "model.options={widht: 8}")
        build_own(load_adapter(EXAMPLE), wrong.model, wrong.input, ["a"])


def test_the_file_may_use_its_neighbours_and_dataclasses(tmp_path: Path) -> None:
    (tmp_path / "beside_of_mine.py").write_text("VALUE = 7")
    file = tmp_path / "mine.txt"
    file.write_text(
        "from __future__ import annotations\nfrom dataclasses import dataclass, field\nimport beside_of_mine\n"
        "@dataclass\nclass D:\n    x: list[int] = field(default_factory=list)\n"
        "def build_detector(*_):\n    return beside_of_mine.VALUE, D()"
    )
    build = load_adapter(file)
    assert build is not None and build()[0] == 7


def test_detector_and_adapter_go_together(data: Path, tmp_path: Path, monkeypatch: Any, capsys: Any) -> None:
    own, package, adapter = config("student", data, tmp_path), plain_config(data, tmp_path), load_adapter(EXAMPLE)
    check_adapter(adapter, package.model, own.model)
    check_adapter(None, package.model, None)
    cfg = str(EXAMPLE.with_name("point_student.yaml"))
    for settings, told in (
        (["--cfg", cfg], "error: detector: own needs the Python file that builds it: add --adapter FILE"),
        (["--cfg", str(CONFIGS / "demo_student.yaml"), "--adapter", str(EXAMPLE)],
         "error: --adapter is for detector: own, and here it is retinanet: leave --adapter out"),
    ):  # fmt: skip
        assert call(monkeypatch, "train.py", *settings, f"output={tmp_path}/run", f"data.root={data}") == 2
        assert capsys.readouterr().err.startswith(told)
        assert call(monkeypatch, "evaluate.py", *settings, "--weights", "x.pt", f"data.root={data}") == 2
        assert capsys.readouterr().err.startswith(told)


def test_a_missing_teacher_names_the_command_with_an_adapter(tmp_path: Path, monkeypatch: Any, capsys: Any) -> None:
    cfg = str(EXAMPLE.with_name("point_distilled.yaml"))
    places = [f"data.root={tmp_path}/data", f"output={tmp_path}/run", f"teacher.weights={tmp_path}/gone.pt"]
    assert call(monkeypatch, "train.py", "--cfg", cfg, "--adapter", str(EXAMPLE), *FEW, *places) == 2
    assert "--adapter FILE`, or name another file with teacher.weights=" in capsys.readouterr().err


@pytest.mark.parametrize(
    ("override", "told"),
    [
        ("model.detector=retinanet", "options is set but detector is retinanet, which has none: set detector: own"),
        ("model.weights=coco", "weights: coco exists for torchvision's detectors, not for detector: own: name a file"),
        ("distill.response_cls=focal", "distill.response_cls is for the package's detectors, and model.detector"),
        ("model.options.width={a: 1}", "model.options.width has a section, expected "),
        ("model.options.width=[[1]]", "model.options.width[0] has the list [1], expected "),
    ],
)
def test_configs_that_do_not_fit(override: str, told: str, tmp_path: Path) -> None:
    with pytest.raises(UserError) as caught:
        config("distilled", tmp_path, tmp_path, override)
    assert told in str(caught.value)


def test_options_arrive_as_they_were_written(tmp_path: Path) -> None:
    given = {"width": 8, "scale": 0.5, "deep": True, "name": "12", "list": [1, 2.5, "x", False]}
    text = "model.options={width: 8, scale: 0.5, deep: true, name: '12', list: [1, 2.5, x, false], depth: 1}"
    options = config("student", tmp_path, tmp_path, text).model.options
    assert options == {**given, "depth": 1}
    assert [type(value) for value in options["list"]] == [int, float, str, bool] and options["deep"] is True
