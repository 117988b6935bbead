"""`make gpu-check` without a GPU: stand-ins for Python and compute-sanitizer are called, fail and hang in its stead."""

from __future__ import annotations

import importlib.util
import re
import signal
import stat
import subprocess
import sys
import time
from pathlib import Path
from typing import Any

import pytest

from benchmarks import gpu_check

ROOT = Path(__file__).parents[1]
PYTHON = """#!/bin/sh
echo "python $@" >> {calls}
case "$*" in
  *"{bad}"*) echo "no luck"; exit {code};;
  *"{slow}"*) sleep 60;;
  *torch.cuda.is_available*) echo "Some GPU 2.11";;
  *) echo "done"; echo "=====";;
esac
"""
SANITIZER = """#!/bin/sh
echo "sanitizer $@" >> {calls}
echo "========= ERROR SUMMARY: 0 errors"
"""


def script(path: Path, text: str, **values: Any) -> Path:
    path.parent.mkdir(exist_ok=True)
    path.write_text(text.format(**values))
    path.chmod(path.stat().st_mode | stat.S_IXUSR)
    return path


@pytest.fixture
def calls(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Path:
    """What was called, a line each; compute-sanitizer is there and finds nothing."""
    monkeypatch.setenv("CUDA_HOME", str(tmp_path))
    monkeypatch.setattr(gpu_check, "SANITIZER_PLACES", ())
    script(tmp_path / "bin" / "compute-sanitizer", SANITIZER, calls=tmp_path / "calls")
    return tmp_path / "calls"


def python(calls: Path, *, bad: str = "nothing", code: int = 3, slow: str = "nothing") -> str:
    return str(script(calls.parent / "python", PYTHON, calls=calls, bad=bad, code=code, slow=slow))


def test_all_stages_run_in_order_and_leave_few_files(calls: Path, tmp_path: Path, capsys: Any) -> None:
    out = tmp_path / "out"
    assert gpu_check.check(python(calls), out) == 0
    lines = calls.read_text().splitlines()
    expected = ["is_available", "pip install", "pytest", "--sweep", "memcheck", "racecheck"]
    expected += ["-step.json", "--switches", "compiled.json"]
    assert len(lines) == len(expected)
    assert all(word in line for word, line in zip(expected, lines, strict=True))
    assert "--no-build-isolation --no-deps -e ." in lines[1]
    assert f"--error-exitcode {gpu_check.FOUND_ERRORS}" in lines[4] and "-m pytest" in lines[4]
    summary = (out / "summary.txt").read_text()
    assert summary.splitlines()[-1] == "all well" and len(summary.splitlines()) == 9
    assert summary == capsys.readouterr().out.split("\n", 1)[1]
    assert re.search(r"  memcheck +ok, \d+ s; ERROR SUMMARY: 0 errors", summary)
    assert re.search(r"  build +ok, \d+ s; done", summary)
    # What the stages were told to write, with log and summary.
    named = set(re.findall(rf"{out}/[\w.-]+", calls.read_text())) | {f"{out}/log.txt", f"{out}/summary.txt"}
    assert len(named) <= 8
    assert "===== racecheck: " in (out / "log.txt").read_text()


def test_a_failed_stage_stops_no_other_but_shows_in_the_end(calls: Path, tmp_path: Path, capsys: Any) -> None:
    out = tmp_path / "out"
    assert gpu_check.check(python(calls, bad="pip install"), out) == 1
    assert len(calls.read_text().splitlines()) == 9
    summary = (out / "summary.txt").read_text()
    assert re.search(r"FAILED build +exit code 3 after \d+ s; no luck", summary)
    assert summary.splitlines()[-1] == f"failed: build; see {out / 'log.txt'}"


def test_a_stage_that_hangs_is_ended_with_its_children(
    calls: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    stage = gpu_check.Stage("slow", [python(calls, slow="hang"), "hang"], 100)
    began = time.monotonic()
    outcome = gpu_check.run_stage(stage, tmp_path / "log.txt", 0.5)
    assert time.monotonic() - began < 10
    assert outcome.failed and re.fullmatch(r"not done within \d s; it said nothing", outcome.words)
    stage.extra = True
    assert not gpu_check.run_stage(stage, tmp_path / "log.txt", 0.1).failed


def test_where_no_time_is_left_stages_are_not_begun(calls: Path, tmp_path: Path) -> None:
    assert gpu_check.check(python(calls), tmp_path / "out", seconds=1) == 1
    summary = (tmp_path / "out" / "summary.txt").read_text()
    assert summary.count("not begun: no time left") == 8
    assert summary.splitlines()[-1].startswith("failed: build, tests, benchmark, memcheck, racecheck; see ")


def test_limits_fit_into_nine_minutes() -> None:
    stages = gpu_check.stages("python", Path("out"))
    assert gpu_check.SECONDS < 9 * 60
    assert {stage.name for stage in stages if stage.extra} == {"step", "switches", "compiled"}
    assert all(stage.limit <= 200 for stage in stages)


def test_without_a_sanitizer_the_rest_runs_and_one_sentence_says_so(
    calls: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    (tmp_path / "bin" / "compute-sanitizer").unlink()
    monkeypatch.setenv("PATH", "/usr/bin:/bin")
    assert gpu_check.check(python(calls), tmp_path / "out") == 1
    summary = (tmp_path / "out" / "summary.txt").read_text()
    assert summary.count("compute-sanitizer is not there: it comes with the CUDA toolkit, set CUDA_HOME") == 2
    assert "failed: memcheck, racecheck;" in summary


def test_without_a_gpu_one_sentence_and_nothing_is_written(calls: Path, tmp_path: Path, capsys: Any) -> None:
    assert gpu_check.check(python(calls, bad="is_available", code=1), tmp_path / "out") == 2
    assert not (tmp_path / "out").exists()


@pytest.mark.parametrize(
    ("says", "sentence"),
    [
        ("raise AssertionError", "sees no GPU here: run this where `nvidia-smi` lists one"),
        ("print('Some GPU', 2.11); print('pydantic tqdm')", "lacks pydantic tqdm: install that first"),
        ("import there_is_no_such_torch", "has no torch: give the Python that has it with PYTHON=..."),
    ],
)
def test_why_there_is_none(says: str, sentence: str, tmp_path: Path) -> None:
    stand_in = script(tmp_path / "python", '#!/bin/sh\nexec {python} -c "{says}"\n', python=sys.executable, says=says)
    assert sentence in (gpu_check.gpu_problem(str(stand_in)) or "")


def test_what_has_to_be_there_is_here() -> None:
    assert [name for name in gpu_check.NEEDED.split() if importlib.util.find_spec(name) is None] == []


def test_a_stage_out_of_time_may_write_down_what_it_has(tmp_path: Path) -> None:
    """As pytest does with its XML when it is interrupted; started with interrupts ignored, as by a shell's `&`."""
    kept = tmp_path / "kept"
    command = ["sh", "-c", f"trap 'echo seen > {kept}; exit 1' INT; sleep 60 & wait"]
    before = signal.signal(signal.SIGINT, signal.SIG_IGN)
    try:
        outcome = gpu_check.run_stage(gpu_check.Stage("tests", command, 100), tmp_path / "log.txt", 2)
    finally:
        signal.signal(signal.SIGINT, before)
    assert outcome.failed and outcome.words.startswith("not done within ")
    assert kept.read_text() == "seen\n"


def test_the_target_hands_over_python_and_folder(calls: Path, tmp_path: Path) -> None:
    """make's own exit code is 2 for whatever fails."""
    make = ["make", "--silent", "gpu-check", f"PYTHON={python(calls)}", f"OUT={tmp_path / 'out'}"]
    run = subprocess.run(make, cwd=ROOT, capture_output=True, text=True)
    assert run.returncode == 0
    assert calls.read_text() == f"python benchmarks/gpu_check.py {tmp_path / 'out'}\n"
