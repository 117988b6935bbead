"""What every command has in common: --help, and options that are taken only as they are written."""

from __future__ import annotations

import runpy
from pathlib import Path

import pytest

ROOT = Path(__file__).parents[1]
FILES = [*(ROOT / "scripts").glob("*.py"), *(ROOT / "benchmarks").glob("*.py")]
REPORT = "gid_cuda/__main__.py"
COMMANDS = [REPORT, *sorted(str(p.relative_to(ROOT)) for p in FILES if "ArgumentParser(" in p.read_text())]


def call(command: str, monkeypatch: pytest.MonkeyPatch, *arguments: str) -> int:
    """The exit status of a script."""
    monkeypatch.setattr("sys.argv", [command, *arguments])
    with pytest.raises(SystemExit) as end:
        runpy.run_path(str(ROOT / command), run_name="__main__")
    assert isinstance(end.value.code, int)
    return end.value.code


def test_all_are_looked_at() -> None:
    assert {path.name for path in (ROOT / "scripts").glob("*.py")} <= {Path(command).name for command in COMMANDS}


@pytest.mark.parametrize("command", COMMANDS)
def test_no_option_stands_for_another(
    command: str, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    """--hel is not --help, nor --resum --resume: a typing mistake may not start, or overwrite, a week's run."""
    assert call(command, monkeypatch, "--help") == 0
    assert capsys.readouterr().out.startswith("usage: ")
    assert call(command, monkeypatch, "--hel") == 2
    said = capsys.readouterr()
    assert said.out == "" and "error: " in said.err.splitlines()[-1]


def test_the_package_takes_no_other_option(monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]) -> None:
    assert call(REPORT, monkeypatch, "--foo") == 2
    assert capsys.readouterr().err.splitlines()[-1] == "python -m gid_cuda: error: unrecognized arguments: --foo"
