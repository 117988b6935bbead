"""`make gpu-check` without a GPU: stand-ins for Python and compute-sanitizer are called, fail and hang in its stead."""

from __future__ import annotations

import contextlib
import importlib.util
import os
import re
import signal
import stat
import subprocess
import sys
import time
from collections.abc import Callable
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
    assert gpu_check.check(python(calls, bad="--no-compile"), out) == 1
    assert len(calls.read_text().splitlines()) == 9
    summary = (out / "summary.txt").read_text()
    assert re.search(r"FAILED benchmark +exit code 3 after \d+ s; no luck", summary)
    assert summary.splitlines()[-1] == f"failed: benchmark; see {out / 'log.txt'}"


def test_without_a_build_there_is_nothing_to_check(calls: Path, tmp_path: Path) -> None:
    assert gpu_check.check(python(calls, bad="pip install"), tmp_path / "out") == 1
    assert len(calls.read_text().splitlines()) == 2
    summary = (tmp_path / "out" / "summary.txt").read_text()
    assert summary.count("not begun: the build failed") == 7


@pytest.mark.parametrize("number", [signal.SIGTERM, signal.SIGINT, signal.SIGHUP])
def test_stopped_it_ends_its_stage_and_keeps_what_it_has(calls: Path, tmp_path: Path, number: int) -> None:
    child = tmp_path / "child"
    text = PYTHON.replace("sleep 60", f"sleep 600 & echo $! > {child}; wait")
    stand_in = script(tmp_path / "python", text, calls=calls, bad="nothing", code=3, slow="junitxml")
    code = "import sys; sys.executable = sys.argv.pop(1); from benchmarks import gpu_check as g; sys.exit(g.main())"
    command = [sys.executable, "-c", code, str(stand_in), str(tmp_path / "out")]
    before = signal.signal(signal.SIGINT, signal.default_int_handler)  # a shell's `&` has it ignored
    process = subprocess.Popen(command, cwd=ROOT, stdout=subprocess.PIPE, stderr=subprocess.PIPE, text=True)
    signal.signal(signal.SIGINT, before)
    wait_until(lambda: child.exists() and child.read_text().strip())
    pid = int(child.read_text())
    try:
        process.send_signal(number)
        _, said = process.communicate(timeout=60)
        assert process.returncode == 130 and said == "interrupted: OUT has what the stages before have left\n"
        wait_until(lambda: not is_alive(pid))
    finally:
        with contextlib.suppress(ProcessLookupError):
            os.kill(pid, signal.SIGKILL)
    summary = (tmp_path / "out" / "summary.txt").read_text().splitlines()
    assert len(summary) == 2 and "build      ok" in summary[0] and summary[1] == "to be continued"


BEGINNING = """
import os, signal, subprocess, sys
from pathlib import Path
from types import SimpleNamespace
from benchmarks import gpu_check

def popen(*arguments, **options):
    os.kill(os.getpid(), signal.SIGTERM)
    begun.append(subprocess.Popen(*arguments, **options))
    return begun[-1]

begun = []
signal.signal(signal.SIGTERM, signal.default_int_handler)
gpu_check.subprocess = SimpleNamespace(**{**vars(subprocess), "Popen": popen})
try:
    gpu_check.run_stage(gpu_check.Stage("slow", ["sleep", "600"], 100), Path(sys.argv[1]), 60)
except KeyboardInterrupt:
    print([process.returncode for process in begun])
"""


def test_a_signal_while_a_stage_begins_waits_until_it_can_be_ended(tmp_path: Path) -> None:
    """In a process of its own, as gpu_check is: other threads, which tests may have left, would take the signal."""
    command = [sys.executable, "-c", BEGINNING, str(tmp_path / "log.txt")]
    run = subprocess.run(command, cwd=ROOT, capture_output=True, text=True, timeout=60)
    assert (run.stdout, run.stderr) == (f"[{-signal.SIGKILL.value}]\n", "")


def wait_until(holds: Callable[[], object]) -> None:
    end = time.monotonic() + 60
    while not holds():
        assert time.monotonic() < end
        time.sleep(0.05)


def is_alive(pid: int) -> bool:
    """Neither gone nor dead and waiting for its parent to notice."""
    try:
        return "\nState:\tZ" not in Path(f"/proc/{pid}/status").read_text()
    except (FileNotFoundError, ProcessLookupError):
        return False


@pytest.mark.parametrize("trap", ["true", "trap '' INT"])
def test_a_stage_that_hangs_is_ended_with_its_children(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, trap: str
) -> None:
    """Also where it heeds no interrupt, as who hangs in a driver."""
    monkeypatch.setattr(gpu_check, "GRACE", 0.5)
    child = tmp_path / "child"
    stage = gpu_check.Stage("slow", ["sh", "-c", f"{trap}; sleep 60 & echo $! > {child}; wait"], 100)
    began = time.monotonic()
    outcome = gpu_check.run_stage(stage, tmp_path / "log.txt", 1.5)
    assert time.monotonic() - began < 10
    assert outcome.failed and re.fullmatch(r"not done within \d s; it said nothing", outcome.words)
    wait_until(lambda: not is_alive(int(child.read_text())))
    stage.extra = True
    assert not gpu_check.run_stage(stage, tmp_path / "log.txt", 1.5).failed


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


def test_a_folder_that_cannot_be_written_to(calls: Path, tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    (tmp_path / "file").touch()
    for out in (tmp_path / "file", tmp_path / "file" / "below", Path("/proc/there")):
        assert gpu_check.check(python(calls), out) == 2
        said = capsys.readouterr().err
        assert said.startswith(f"error: OUT={out} cannot be written to (") and said.count("\n") == 1
    (tmp_path / "out" / "summary.txt").mkdir(parents=True)
    assert gpu_check.check(python(calls), tmp_path / "out") == 2 and "pip install" not in calls.read_text()


def test_a_disk_that_takes_no_more(calls: Path, tmp_path: Path, monkeypatch: Any, capsys: Any) -> None:
    def full(*arguments: Any) -> None:
        raise OSError(28, "No space left on device")

    monkeypatch.setattr(gpu_check, "run_stage", full)
    monkeypatch.setattr(sys, "executable", python(calls))
    monkeypatch.setattr(sys, "argv", ["gpu_check.py", str(tmp_path / "out")])
    handlers = {number: signal.getsignal(number) for number in (signal.SIGTERM, signal.SIGHUP)}
    try:
        assert gpu_check.main() == 1
    finally:
        for number, handler in handlers.items():
            signal.signal(number, handler)
    told = f"error: OUT={tmp_path / 'out'} takes no more (No space left on device): make room there, or give another\n"
    assert capsys.readouterr().err == told


def test_without_a_gpu_one_sentence_and_nothing_is_written(calls: Path, tmp_path: Path, capsys: Any) -> None:
    assert gpu_check.check(python(calls, bad="is_available", code=gpu_check.NO_GPU), tmp_path / "out") == 2
    assert capsys.readouterr().err.endswith("sees no GPU here: run this where `nvidia-smi` lists one\n")
    assert not (tmp_path / "out").exists()


@pytest.mark.parametrize(
    ("says", "sentence"),
    [
        (f"exit({gpu_check.NO_GPU})", "sees no GPU here: run this where `nvidia-smi` lists one"),
        ("print('Some GPU', 2.11); print('pydantic tqdm')", "lacks the modules pydantic tqdm: install them first"),
        ("print('Some GPU', 2.11); print()", None),
        ("exit('ModuleNotFoundError: No module named \\'torch\\'')", "has no torch: give the Python that has it with"),
        ("raise ImportError('libcudart.so.13: none')", "(exit code 1: ImportError: libcudart.so.13: none); mend that"),
        ("import time; time.sleep(60)", "does not say within 2 s"),
    ],
)
def test_why_there_is_none(says: str, sentence: str | None, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(gpu_check, "PROBE_SECONDS", 2.0)
    stand_in = script(tmp_path / "python", '#!/bin/sh\nexec {python} -c "{says}"\n', python=sys.executable, says=says)
    problem = gpu_check.gpu_problem(str(stand_in))
    assert problem is None if sentence is None else sentence in (problem or "")


def test_what_has_to_be_there_is_here() -> None:
    assert [name for name in gpu_check.NEEDED.split() if importlib.util.find_spec(name) is None] == []


def test_a_stage_out_of_time_may_write_down_what_it_has(tmp_path: Path) -> None:
    """As pytest does with its XML when it is interrupted; started with interrupts ignored, as by a shell's `&`."""
    kept = tmp_path / "kept"
    command = ["sh", "-c", f"trap 'echo seen > {kept}; exit 1' INT; sleep 60 & wait"]
    before = signal.signal(signal.SIGINT, signal.SIG_IGN)
    try:
        outcome = gpu_check.run_stage(gpu_check.Stage("tests", command, 100), tmp_path / "log.txt", gpu_check.GRACE + 2)
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
