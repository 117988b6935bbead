"""benchmarks/readme.py on experiments that are unfinished, oddly named or damaged."""

from __future__ import annotations

import json
from pathlib import Path
from typing import Any

import pytest

from benchmarks import readme


def row(name: str, done: int = 1, **changes: Any) -> dict[str, Any]:
    values = {"AP": {"mean": 20.0, "deviation": None, "count": done}} if done else {}
    numbers = {"values": values, "differences": {}, "paper": {}, "paper_differences": {}}
    return {"detector": "", "name": name, "planned": 2, "done": done, **numbers, **changes}


def results(*rows: dict[str, Any]) -> dict[str, Any]:
    return {"title": "a|b", "machines": [], "date": "today", "rows": list(rows)}


def test_rows_of_an_experiment() -> None:
    given = row("teacher", planned=0, done=0)
    given["values"] = row("x")["values"]
    rows = [row("a|b", 2), row("GID", detector="FCOS"), row("later", 0, paper={"AP": 36.2}), given]
    head, _, *lines = readme.experiment(results(*rows)).splitlines()
    assert head.startswith("| a\\|b | seeds |")
    assert [line.split(" | ")[:3] for line in lines[:3]] == [
        ["| a\\|b", "2", "20.0"], ["| FCOS, GID", "1 of 2", "20.0"], ["| teacher", "", "20.0"]
    ]  # fmt: skip
    assert lines[3] == ""


@pytest.mark.parametrize(
    ("text", "told"),
    [
        ('{"title": ', "cannot be read as JSON"),
        ("[]", "holds no results"),
        ("{}", "has no 'title'"),
        (json.dumps(results({"name": "a"})), "has no 'values'"),
        (json.dumps({**results(), "rows": 3}), "has other values than results have"),
    ],
)
@pytest.mark.parametrize("name", ["methods", "speed-cpu"])
def test_a_damaged_file_is_told(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, name: str, text: str, told: str
) -> None:
    path = tmp_path / "x.json"
    path.write_text(text)
    monkeypatch.setattr(readme, "RESULTS", tmp_path)
    with pytest.raises(SystemExit) as caught:
        readme.table(name, "x.json")
    assert str(caught.value).startswith(f"error: {path} ")
    assert name != "methods" or told in str(caught.value)


def test_settings_of_the_loop_as_far_as_they_were_timed() -> None:
    machine = {"device": "some CPU", "threads": 2, "torch": "2", "commit": "abc", "date": "today"}
    timed = {"name": "train.compile", "setting": "off", "step_s": 0.2, "other_s": 0.1, "ratio": 0.51, "padding": [0, 0]}
    group = {**timed, "name": "data.group_by_aspect", "setting": "on", "padding": [0.1, 0.25]}
    head = {"machine": machine, "config": "c.yaml", "images": 4, "steps": 20}
    some = readme.loop({**head, "switches": [timed]})
    assert "| train.compile: off | 200 ms | 100 ms | 0.51x |" in some
    assert "padding" not in some and "4 images a step, some CPU, 2 CPU threads" in some
    assert "10% of the pixels are padding, else 25%" in readme.loop({**head, "switches": [timed, group]})
