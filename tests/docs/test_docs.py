"""The pages' commands do what the pages say: with few steps and small pictures where they can run here, and else as far
as their scripts read them."""

from __future__ import annotations

import glob
import re
from pathlib import Path
from typing import Any

import pytest
import yaml
from docs_helpers import (
    DOCS,
    FEW,
    FEW_DRAWN,
    FEW_OF_THE_TEACHER,
    FEW_UNLABELED,
    PAGES,
    ROOT,
    call,
    commands,
    understood,
    write_coco,
    write_voc,
)

from docs_tools import config_reference
from gid_cuda.config import load_config
from gid_cuda.engine.checkpoint import load_checkpoint

HAND_WRITTEN = {page.relative_to(DOCS).as_posix(): page for page in PAGES}


@pytest.fixture
def checkout(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Path:
    """Where commands run: what they read is that of the checkout, and what they write is here."""
    for name in ("configs", "examples"):
        (tmp_path / name).symlink_to(ROOT / name)
    monkeypatch.chdir(tmp_path)
    return tmp_path


def run_small(monkeypatch: pytest.MonkeyPatch, words: list[str]) -> None:
    words = [file for word in words for file in (sorted(glob.glob(word)) if "*" in word else [word])]
    if "--cfg" in words:
        after = words.index("--cfg") + 2
        path = Path(words[after - 1])
        few = [*FEW, *(FEW_DRAWN if "demo" in path.name else [])]
        few += FEW_OF_THE_TEACHER if "teacher" in yaml.safe_load(path.read_text()) else []
        few += ["train.steps=3"] if "--resume" in words else []
        few += FEW_UNLABELED if any("data.unlabeled" in word for word in words) else []
        end = after if "--curves" in words else len(words)  # which takes all words that come after it
        words[end:end] = few
    assert call(monkeypatch, words) == 0, " ".join(words)


def test_every_command_of_the_start_page(checkout: Path, monkeypatch: Any, capsys: Any) -> None:
    found = commands(DOCS / "index.md")
    names = [Path(words[0]).stem for words in found]
    assert names == ["train", "train", "train", "compare", "evaluate", "predict", "visualize", "train"]
    for words in found:
        run_small(monkeypatch, words)
    said = capsys.readouterr().out
    assert "teacher: AP50" in said and "response_cls" in said
    for file in re.findall(r"^\| `([\w./]+)` \|", (DOCS / "index.md").read_text(), re.MULTILINE):
        assert (checkout / "runs/demo/distilled" / file).exists(), file
    assert list((checkout / "runs/demo/predictions").glob("*.jpg"))
    assert list((checkout / "runs/demo/pictures").glob("*.png"))


def test_every_command_of_the_data_page(checkout: Path, monkeypatch: Any, capsys: Any) -> None:
    """All but the conversion of a file that only mmdetection can make; tests/detectors has that."""
    run_small(monkeypatch, commands(DOCS / "index.md")[0])  # the demo's teacher
    write_coco(checkout / "mine")
    write_voc(checkout / "voc")
    found = [words for words in commands(DOCS / "own_data.md") if "convert" not in words[0]]
    assert [Path(words[0]).stem for words in found] == [
        "train",
        "train",
        "train",
        "compare",
        "train",
        "train",
        "predict",
    ]
    for words in found:
        run_small(monkeypatch, [word.replace("/data/", f"{checkout}/") for word in words])
    assert load_checkpoint(checkout / "runs/mine/voc/best.pt")["classes"] == ["nut"]
    assert len(list((checkout / "runs/mine/predictions").glob("*.jpg"))) == 4


@pytest.mark.slow
def test_every_command_of_the_pages_on_long_runs_shipping_and_trouble(checkout: Path, monkeypatch: Any) -> None:
    """In the order of one run's life. tests/engine has the commands of the page on one's own detector."""
    from benchmarks import switches

    for package in ("onnx", "onnxscript", "onnxruntime"):
        pytest.importorskip(package)
    teacher, _, distilled, *_ = commands(DOCS / "index.md")
    (resume, averaged, settings), (export,) = commands(DOCS / "long_runs.md"), commands(DOCS / "export.md")
    (benchmark,) = commands(DOCS / "troubleshooting.md")
    kept = [switch for switch in switches.SWITCHES if switch.name != "train.compile"]  # which takes minutes
    monkeypatch.setattr(switches, "SWITCHES", kept)
    for words in (teacher, distilled, resume, averaged, export, benchmark, [*settings, "--steps", "1"]):
        run_small(monkeypatch, words)
    assert load_checkpoint(checkout / "runs/demo/distilled/last.pt")["step"] == 3
    assert load_checkpoint(checkout / "runs/demo/averaged/last.pt")["resume"]["ema"]["updates"] == 2
    written = {path.name for path in (checkout / "exported").iterdir()}
    told = set(re.findall(r"^\| `([\w.]+)` \|", (DOCS / "export.md").read_text(), re.MULTILINE))
    assert written == told - {"student_boxes.onnx"}  # of Faster R-CNN alone


@pytest.mark.parametrize("name", HAND_WRITTEN)
def test_every_command_is_understood_by_its_script(name: str, monkeypatch: Any) -> None:
    """Flags, the config's file and every override. Those of torchrun are not started."""
    from torch.distributed.run import get_args_parser

    monkeypatch.chdir(ROOT)
    for words in commands(HAND_WRITTEN[name]):
        if words[0] == "torchrun":
            launch = get_args_parser().parse_args(words[1:])
            words = [launch.training_script, *launch.training_script_args]
        arguments = understood(monkeypatch, words)
        if getattr(arguments, "cfg", None) and Path(words[0]).stem != "experiment":
            load_config(arguments.cfg, arguments.overrides)
        for file in (getattr(arguments, key, None) for key in ("cfg", "adapter")):
            assert file is None or Path(file).is_file(), words


@pytest.mark.parametrize("name", HAND_WRITTEN)
def test_examples_in_python_run(name: str) -> None:
    signature_alone = name == "own_detector.md"  # its contract; the example itself is run by tests/engine
    for code in re.findall(r"^```python\n(.*?)^```", HAND_WRITTEN[name].read_text(), re.MULTILINE | re.DOTALL):
        if signature_alone:
            compile(code + "    ...", name, "exec")
        else:
            exec(compile(code, name, "exec"), {})


@pytest.mark.parametrize("name", HAND_WRITTEN)
def test_examples_in_yaml_are_valid(name: str, checkout: Path) -> None:
    for text in re.findall(r"^```yaml\n(.*?)^```", HAND_WRITTEN[name].read_text(), re.MULTILINE | re.DOTALL):
        if "\nrows:" in text:  # an experiment's, which tests/experiment loads
            continue
        (checkout / "example.yaml").write_text(text)
        load_config(checkout / "example.yaml")


@pytest.mark.parametrize("name", HAND_WRITTEN)
def test_keys_files_and_make_targets_that_it_names_are_there(name: str) -> None:
    text = HAND_WRITTEN[name].read_text()
    keys = {key for key, _ in config_reference.keys()}
    keys |= {key.replace("model.", "teacher.", 1) for key in keys} | {key.replace(".train.", ".val.") for key in keys}
    named = set(re.findall(r"`((?:data|input|model|teacher|distill|train)\.\w+(?:\.\w+)*)(?:[=:][^`]*)?`", text))
    assert named - keys == set()
    files = re.findall(r"`((?:configs|examples|scripts|csrc|docs_tools|tests|benchmarks|gid_cuda)/[\w./]*)`", text)
    assert [file for file in files if "NAME" not in file and not (ROOT / file).exists()] == []
    targets = set(re.findall(r"^([\w-]+):", (ROOT / "Makefile").read_text(), re.MULTILINE))
    assert set(re.findall(r"(?:^    |`)make ([\w-]+)", text, re.MULTILINE)) - targets == set()
