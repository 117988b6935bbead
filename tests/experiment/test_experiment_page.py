"""The page: all in one file, nothing in it is taken for HTML, and a browser shows it."""

from __future__ import annotations

import re
import shutil
import subprocess
from html.parser import HTMLParser
from pathlib import Path

import numpy as np
import pytest
import torch
from experiment_helpers import Workshop
from PIL import Image

from gid_cuda.config import Config
from gid_cuda.engine.pictures import distilled_kinds
from gid_cuda.experiment.matrix import Experiment
from gid_cuda.experiment.report import write_report
from gid_cuda.experiment.runner import Runner

BROWSER = next(filter(None, map(shutil.which, ("chromium", "chromium-browser", "google-chrome"))), None)
EVIL = "<script>alert(1)</script> & \"'"
VOID = {"meta", "img", "br"}


class Reader(HTMLParser):
    """Tags, attributes and text; tags that are not closed in order fail."""

    def __init__(self, text: str) -> None:
        super().__init__()
        self.open: list[str] = []
        self.tags: list[tuple[str, dict[str, str | None]]] = []
        self.text: list[str] = []
        self.feed(text)
        assert self.open == []

    def handle_starttag(self, tag: str, attrs: list[tuple[str, str | None]]) -> None:
        self.tags.append((tag, dict(attrs)))
        if tag not in VOID:
            self.open.append(tag)

    def handle_endtag(self, tag: str) -> None:
        assert self.open.pop() == tag

    def handle_data(self, data: str) -> None:
        self.text.append(data)


@pytest.fixture(scope="module")
def done(tmp_path_factory: pytest.TempPathFactory) -> Experiment:
    workshop = Workshop(tmp_path_factory.mktemp("experiment"))
    rows = [
        {"name": "plain", "paper": {"AP": 36.2}},
        {"name": f"{EVIL} GID", "set": {"distill.top_k": 5}, "paper": {"AP": 39.1}},
        {"name": "broken", "set": {"train.lr": 7.0}},
    ]
    workshop.control(broken_seed1="fail")
    experiment = workshop.experiment(title=f"{EVIL} title", note=EVIL, rows=rows, seeds=[0, 1])
    states = Runner(experiment, workshop.command, say=lambda line: None).work()
    write_report(experiment, states)
    return experiment


def test_self_contained_and_escaped(done: Experiment) -> None:
    text = (done.output / "report.html").read_text()
    page = Reader(text)
    names = [tag for tag, _ in page.tags]
    assert not {"script", "link", "iframe", "object", "base"} & set(names)
    for tag, attributes in page.tags:
        assert not {"href", "srcset", "onload", "onclick"} & set(attributes)
        assert tag != "img" or str(attributes["src"]).startswith("data:image/png;base64,")
    assert "url(" not in text and "@import" not in text and "http://" not in text and "https://" not in text
    policy = next(a["content"] for tag, a in page.tags if a.get("http-equiv") == "Content-Security-Policy")
    assert policy is not None and policy.startswith("default-src 'none'")
    shown = "".join(page.text)
    assert shown.count(EVIL) >= 5  # title twice, note, table, settings


def test_what_it_tells(done: Experiment) -> None:
    shown = " ".join("".join(Reader((done.output / "report.html").read_text()).text).split())
    assert "6 of 7 runs done · 2 seeds · 45 s of training" in shown
    assert "broken, seed 1: failed, exit status 1: error: the loss became nan at step 3" in shown
    assert "25.5 ±0.7" in shown and "+5.0 ±0.0" in shown and "39.1 (+2.9)" in shown
    assert "distill.top_k: 5" in shown and "train.lr: 7.0" in shown
    assert "python scripts/experiment.py --cfg" in shown and "git commit" in shown and "fpn_channels: 256" in shown


def test_curves_are_on_it_and_a_picture_that_cannot_be_drawn_is_told(done: Experiment) -> None:
    text = (done.output / "report.html").read_text()
    page = Reader(text)
    images = [attributes for tag, attributes in page.tags if tag == "img"]
    assert len(images) == 1 and str(images[0]["alt"]).startswith("losses")  # the fake checkpoints have no detector
    assert "<b></b>" not in text
    assert "no picture: " in "".join(page.text)
    picture = done.output / "pictures" / "curves.png"
    drawn = picture.stat().st_mtime_ns
    write_report(done, {})
    assert picture.stat().st_mtime_ns == drawn  # kept, as nothing has changed


def test_a_page_before_anything_is_done(workshop: Workshop) -> None:
    experiment = workshop.experiment()
    table = write_report(experiment, {})
    assert table.splitlines()[1].split()[:3] == ["teacher", "0/1", "-"]
    text = "".join(Reader((experiment.output / "report.html").read_text()).text)
    assert "0 of 3 runs done" in text and "Curves" not in text


def test_what_was_made_by_another_config_is_in_no_table(workshop: Workshop) -> None:
    Runner(workshop.experiment(rows=[{"name": "plain"}], seeds=[0]), workshop.command, say=lambda line: None).work()
    changed = workshop.experiment(rows=[{"name": "plain", "set": {"train.lr": 0.5}}], seeds=[0, 1])
    write_report(changed, {})
    text = "".join(Reader((changed.output / "report.html").read_text()).text)
    assert "changed, train.lr was 0.01 and is 0.5" in text and "0/2" in text and "1 of 3 runs done" in text


@pytest.mark.skipif(BROWSER is None, reason="no chromium or google-chrome here: the page is not looked at")
@pytest.mark.parametrize("width, height", [(1200, 900), (500, 900)])
def test_a_browser_shows_it(done: Experiment, tmp_path: Path, width: int, height: int) -> None:
    picture = tmp_path / "page.png"
    address = (done.output / "report.html").as_uri()
    browse(tmp_path, f"--screenshot={picture}", f"--window-size={width},{height}", address)
    pixels = np.asarray(Image.open(picture).convert("L"))
    assert pixels.shape == (height, width)
    assert 0.01 < (pixels < 128).mean() < 0.4 and (pixels == 255).mean() > 0.4  # dark text on a white ground
    assert len(np.unique(pixels)) > 50
    if width == 1200:
        page = browse(tmp_path, "--dump-dom", address)
        head = re.findall(r'<th scope="col">(.*?)</th>', page)
        assert head[:5] == ["method", "seeds", "AP", "AP<sub>50</sub>", "AP<sub>75</sub>"]
        assert "alert(1)" in page and "<script" not in page


def browse(folder: Path, *arguments: str) -> str:
    flags = [
        "--headless", "--no-sandbox", "--disable-gpu", "--disable-quic", "--no-first-run", "--hide-scrollbars",
        "--disable-background-networking", "--disable-component-update", "--disable-sync",
        f"--user-data-dir={folder / 'browser'}",
    ]  # fmt: skip
    assert BROWSER is not None
    run = subprocess.run([BROWSER, *flags, *arguments], capture_output=True, text=True, timeout=120)
    assert run.returncode == 0, run.stderr
    return run.stdout


def test_a_picture_that_fails_in_whatever_way_leaves_its_reason(
    workshop: Workshop, monkeypatch: pytest.MonkeyPatch
) -> None:
    def draw(*_: object, **__: object) -> None:
        raise RuntimeError("from <an> adapter")

    experiment = workshop.experiment()
    Runner(experiment, workshop.command, say=lambda line: None).work()
    monkeypatch.setattr("gid_cuda.experiment.pictures.draw_instances", draw)
    write_report(experiment, {})
    page = (experiment.output / "report.html").read_text(encoding="utf-8")
    assert "no picture: RuntimeError: from &lt;an&gt; adapter" in page


def test_an_edited_config_takes_no_number_off_the_page_until_a_new_one_comes(workshop: Workshop) -> None:
    experiment = workshop.experiment()
    write_report(experiment, Runner(experiment, workshop.command, say=lambda line: None).work(), draw=False)
    names = ("table.txt", "table.csv", "runs.csv", "results.json", "report.html")
    before = {name: (experiment.output / name).read_bytes() for name in names}
    edited = {"teacher": {"config": "teacher.yaml", "set": {"train.steps": 11}}}
    changed = workshop.experiment(**edited)
    states = Runner(changed, workshop.command, say=lambda line: None).work()
    told = write_report(changed, states, draw=False)
    assert {name: (experiment.output / name).read_bytes() for name in names} == before
    assert told.startswith(before["table.txt"].decode()) and "kept as they were: 2 of their runs were made by" in told
    assert "kept" not in write_report(changed, states, draw=False, redo=True)
    write_report(experiment, {}, draw=False)
    more = workshop.experiment(seeds=[0, 1], **edited)
    states = Runner(more, workshop.command, say=lambda line: None).work()
    assert "kept" not in write_report(more, states, draw=False)
    assert "teacher: changed, train.steps was 10 and is 11" in "".join(
        Reader((more.output / "report.html").read_text()).text
    )
    states = Runner(more, workshop.command, say=lambda line: None, redo=True).work()
    assert "kept" not in write_report(more, states, draw=False) and {s.kind for s in states.values()} == {"done"}


def test_a_teacher_that_is_given_has_the_numbers_of_its_checkpoint(workshop: Workshop) -> None:
    weights = workshop.folder / "teacher.pt"
    torch.save({"model": {}, "metrics": {"AP": 38.0, "AP50": 58.25, "APs": None, "step": 3}}, weights)
    teacher = {"config": "teacher.yaml", "weights": str(weights), "paper": {"AP": 38.1}, "set": {"seed": 7}}
    experiment = workshop.experiment(teacher=teacher, set={"train.steps": 5}, student={
        "config": "student.yaml", "set": {"train.lr": 0.25}
    })  # fmt: skip
    table = write_report(experiment, {}, draw=False)
    assert table.splitlines()[1].split()[:4] == ["teacher", "-", "38.0", "58.2"]
    assert table.splitlines()[2].split()[:3] == ["the", "paper", "38.1"]
    shown = "".join(Reader((experiment.output / "report.html").read_text()).text)
    assert f"by one command, beside the teacher's weights, {weights}: " in shown and "0 of 2 runs done" in shown
    for setting in ("train.steps: 5", "train.lr: 0.25", "seed: 7"):
        assert setting in shown
    weights.write_bytes(b"broken")
    assert write_report(experiment, {}, draw=False).splitlines()[1].split()[:3] == ["teacher", "-", "-"]


def test_a_plain_row_is_drawn_without_a_word_of_what_teaches(
    workshop: Workshop, monkeypatch: pytest.MonkeyPatch
) -> None:
    said: list[str] = []

    def draw(config: Config, *_: object, **__: object) -> None:
        assert config.distill is not None
        said.append(f"{distilled_kinds(config.distill)}, {config.distill.top_k}")
        raise RuntimeError("enough")

    rows = [{"name": "plain"}, {"name": "GID", "set": {"distill": {"kinds": ["negative"], "top_k": 3}}}]
    experiment = workshop.experiment(rows=rows)
    Runner(experiment, workshop.command, say=lambda line: None).work()
    monkeypatch.setattr("gid_cuda.experiment.pictures.draw_instances", draw)
    write_report(experiment, {})
    assert said == [", 3", "of them teach: negative, 3"]
