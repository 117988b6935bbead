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
