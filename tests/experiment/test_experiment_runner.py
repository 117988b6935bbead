"""What is missing is trained, what is there is kept, what differs is told; and being stopped costs nothing."""

from __future__ import annotations

import os
import signal
import subprocess
import sys
import threading
import time
from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest
from experiment_helpers import ROOT, Workshop

from gid_cuda.errors import UserError
from gid_cuda.experiment.command import _without_stopping, device_slots, plan_text
from gid_cuda.experiment.matrix import Experiment
from gid_cuda.experiment.process import last_sentence
from gid_cuda.experiment.runner import Runner, _signals_interrupt
from gid_cuda.experiment.state import LOCK, current_states, read_note, told_states


def work(workshop: Workshop, experiment: Experiment, **options: Any) -> tuple[dict[str, str], list[str]]:
    """(state by run, what was said)"""
    said: list[str] = []
    states = Runner(experiment, workshop.command, say=said.append, **options).work()
    return {key: state.kind for key, state in states.items()}, said


def until(condition: Callable[[], bool]) -> None:
    deadline = time.monotonic() + 120
    while not condition():
        assert time.monotonic() < deadline, "it did not happen within two minutes"
        time.sleep(0.02)


def test_missing_runs_are_trained_once_in_order(workshop: Workshop) -> None:
    experiment = workshop.experiment()
    reports: list[int] = []
    states, said = work(workshop, experiment, finished=lambda states: reports.append(len(states)))
    assert set(states.values()) == {"done"} and reports == [1, 2, 3, 3]
    assert workshop.calls() == [f"{key} --overwrite -" for key in ("teacher", "plain/seed0", "gid/seed0")]
    assert said[-1] == "[3/3] GID, seed 0: done, AP 25.0, AP50 50.0"
    note = read_note(experiment.runs[2])
    assert note["machines"][0]["torch"] and len(note["seconds"]) == 1 and note["teacher"]
    assert set(work(workshop, experiment)[0].values()) == {"done"} and workshop.calls() == []


def test_a_new_seed_and_a_new_row_join_what_is_done(workshop: Workshop) -> None:
    work(workshop, workshop.experiment())
    workshop.calls()
    rows = [{"name": "plain"}, {"name": "K 5", "set": {"distill.top_k": 5}}]
    work(workshop, workshop.experiment(seeds=[0, 1], rows=rows))
    assert [call.split()[0] for call in workshop.calls()] == ["k-5/seed0", "plain/seed1", "k-5/seed1"]


def test_a_changed_row_is_told_and_only_trained_anew_when_asked(workshop: Workshop) -> None:
    work(workshop, workshop.experiment())
    workshop.calls()
    rows = [{"name": "plain"}, {"name": "GID", "set": {"distill.top_k": 5}}]
    changed = workshop.experiment(rows=rows)
    assert "of another config: distill.top_k was 10 and is 5" in plan_text(changed, redo=False)
    states, said = work(workshop, changed)
    assert states == {"teacher": "done", "plain/seed0": "done", "gid/seed0": "changed"}
    assert workshop.calls() == [] and said[-1].endswith("changed, distill.top_k was 10 and is 5")
    assert set(work(workshop, changed, redo=True)[0].values()) == {"done"}
    assert workshop.calls() == ["gid/seed0 --overwrite -"]


def test_students_of_a_teacher_that_was_trained_anew_are_told(workshop: Workshop) -> None:
    work(workshop, workshop.experiment())
    longer = workshop.experiment(teacher={"config": "teacher.yaml", "set": {"train.steps": 11}})
    states, said = work(workshop, longer)
    assert states == {"teacher": "changed", "plain/seed0": "done", "gid/seed0": "blocked"}
    workshop.calls()
    assert set(work(workshop, longer, redo=True)[0].values()) == {"done"}
    assert workshop.calls() == ["teacher --overwrite -", "gid/seed0 --overwrite -"]


def test_where_it_runs_is_no_change_and_the_folder_may_move(workshop: Workshop) -> None:
    work(workshop, workshop.experiment())
    workshop.calls()
    (workshop.folder / "out").rename(workshop.folder / "moved")
    moved = workshop.experiment(output=str(workshop.folder / "moved"), set={"device": "cpu", "data.workers": 7})
    assert set(work(workshop, moved)[0].values()) == {"done"} and workshop.calls() == []


def test_a_failed_run_is_told_with_its_last_sentence_and_the_others_go_on(workshop: Workshop) -> None:
    workshop.control(plain_seed0="fail")
    experiment = workshop.experiment()
    states, said = work(workshop, experiment)
    assert states == {"teacher": "done", "plain/seed0": "failed", "gid/seed0": "done"}
    assert "failed, exit status 1: error: the loss became nan at step 3 (all of it: " in said[-3]
    workshop.control()
    workshop.calls()
    assert set(work(workshop, experiment)[0].values()) == {"done"}  # and is tried again
    assert workshop.calls() == ["plain/seed0 --resume -"]


def test_no_student_learns_from_a_teacher_that_failed(workshop: Workshop) -> None:
    workshop.control(teacher="fail")
    states, _ = work(workshop, workshop.experiment())
    assert states == {"teacher": "failed", "plain/seed0": "done", "gid/seed0": "blocked"}


def test_a_trainer_that_leaves_nothing_has_failed(workshop: Workshop) -> None:
    (workshop.folder / "train.py").write_text("print('well done')")
    states, said = work(workshop, workshop.experiment(rows=[{"name": "plain"}], teacher=None))
    assert states == {"plain/seed0": "failed"} and "it ended well but is missing: no metrics.json" in said[-1]


def test_each_gpu_has_a_run_of_its_own(workshop: Workshop) -> None:
    workshop.control(plain_seed0="wait", plain_seed1="wait")
    experiment = workshop.experiment(rows=[{"name": "plain"}], teacher=None, seeds=[0, 1, 2])
    calls = workshop.folder / "calls.txt"
    both = threading.Event()

    def look() -> None:  # both go on at once: neither ends before both have begun
        until(lambda: calls.exists() and len(calls.read_text().splitlines()) == 2)
        both.set()
        (workshop.folder / "go").touch()

    watcher = threading.Thread(target=look)
    watcher.start()
    states, said = work(workshop, experiment, devices=["4", "6"])
    watcher.join()
    assert both.is_set() and set(states.values()) == {"done"}
    lines = sorted(workshop.calls())
    assert lines[:2] == ["plain/seed0 --overwrite 4", "plain/seed1 --overwrite 6"] and lines[2].split()[2] in "46"
    assert "plain, seed 1: begins on GPU 6" in said


def test_device_slots() -> None:
    assert device_slots(None, None) == [None] and device_slots(None, 3) == [None] * 3
    assert device_slots("0,1", None) == ["0", "1"] and device_slots("0, 1", 4) == ["0", "1", "0", "1"]
    assert device_slots("2,3", 1) == ["2"]
    with pytest.raises(UserError, match="names no GPUs"):
        device_slots("0,", None)


def start(workshop: Workshop) -> subprocess.Popen[str]:
    """The script, with the fake trainer in the place of scripts/train.py."""
    code = (
        "import sys; from pathlib import Path; from gid_cuda.errors import told_in_one_sentence\n"
        "from gid_cuda.experiment.runner import Runner; from gid_cuda.experiment.matrix import load_experiment\n"
        "with told_in_one_sentence():\n"
        "    Runner(load_experiment(Path(sys.argv[1])), sys.argv[2:]).work()"
    )
    command = [sys.executable, "-c", code, str(workshop.folder / "matrix.yaml"), *workshop.command]
    return subprocess.Popen(command, cwd=ROOT, stdout=subprocess.PIPE, stderr=subprocess.PIPE, text=True)


def alive(pid: int) -> bool:
    try:
        with open(f"/proc/{pid}/stat") as file:
            return file.read().split(") ")[1][0] != "Z"
    except OSError:
        return False


@pytest.mark.parametrize("number", [signal.SIGTERM, signal.SIGINT, signal.SIGHUP])
def test_stopped_by_a_signal_it_ends_what_it_has_begun(workshop: Workshop, number: signal.Signals) -> None:
    workshop.control(plain_seed0="sleep")
    experiment = workshop.experiment(rows=[{"name": "plain"}], teacher=None)
    folder = experiment.runs[0].folder
    runner = start(workshop)
    until(lambda: (folder / "config.yaml").exists())
    trainer = int((folder / LOCK).read_text())
    runner.send_signal(number)
    assert runner.wait(120) == 130
    assert not alive(trainer)
    workshop.control()
    assert set(work(workshop, experiment)[0].values()) == {"done"}


def test_a_killed_runners_run_goes_on_and_is_waited_for(workshop: Workshop) -> None:
    """kill -9 leaves the trainer behind: its run must not be trained by a second one in the same folder."""
    workshop.control(plain_seed0="wait")
    experiment = workshop.experiment(rows=[{"name": "plain"}], teacher=None)
    folder = experiment.runs[0].folder
    runner = start(workshop)
    until(lambda: (folder / "config.yaml").exists())
    trainer = int((folder / LOCK).read_text())
    runner.kill()
    runner.wait()
    assert alive(trainer)
    said: list[str] = []

    def say(line: str) -> None:
        said.append(line)
        (workshop.folder / "go").touch()  # once the second runner waits, the first one's run may end

    states = Runner(experiment, workshop.command, say=say).work()
    assert {state.kind for state in states.values()} == {"done"}
    assert said[0] == f"plain, seed 0: process {trainer} trains it already: waiting for it"
    assert len(workshop.calls()) == 1


def test_a_killed_trainer_is_told_and_continued(workshop: Workshop) -> None:
    workshop.control(plain_seed0="sleep")
    experiment = workshop.experiment(rows=[{"name": "plain"}], teacher=None)
    folder = experiment.runs[0].folder

    def kill() -> None:
        until(lambda: (folder / "config.yaml").exists())
        os.kill(int((folder / LOCK).read_text()), signal.SIGKILL)

    killer = threading.Thread(target=kill)
    killer.start()
    states, said = work(workshop, experiment)
    killer.join()
    assert states == {"plain/seed0": "failed"} and "killed by SIGKILL: device: none" in said[-1]
    assert "failed, to be continued: killed by SIGKILL" in plan_text(experiment, redo=False)
    workshop.control()
    assert work(workshop, experiment)[0] == {"plain/seed0": "done"}


def test_a_dry_run_writes_nothing(workshop: Workshop) -> None:
    experiment = workshop.experiment()
    before = sorted(workshop.folder.rglob("*"))
    assert [line.split("  ")[-1] for line in plan_text(experiment, redo=False).splitlines()] == ["to be trained"] * 3
    assert sorted(workshop.folder.rglob("*")) == before


def test_killed_before_a_redo_has_begun_old_numbers_do_not_pass_for_new_ones(workshop: Workshop) -> None:
    """The teacher is another, the config is not: nothing but the fingerprint tells, which must not be ahead of it."""
    experiment = workshop.experiment()
    work(workshop, experiment)
    (workshop.folder / "out/runs/teacher/best.pt").write_bytes(b"anew")
    trainer = (workshop.folder / "train.py").read_text()
    (workshop.folder / "train.py").write_text("raise SystemExit('killed while it loads')")
    assert work(workshop, experiment, redo=True)[0]["gid/seed0"] == "failed"
    (workshop.folder / "train.py").write_text(trainer)
    workshop.calls()
    assert set(work(workshop, experiment)[0].values()) == {"done"}
    assert workshop.calls() == ["gid/seed0 --overwrite -"]


def test_another_teacher_in_the_same_file_is_told(workshop: Workshop) -> None:
    weights = workshop.folder / "teacher.pt"
    weights.write_bytes(b"one")
    experiment = workshop.experiment(teacher={"config": "teacher.yaml", "weights": str(weights)})
    assert set(work(workshop, experiment)[0].values()) == {"done"}
    weights.write_bytes(b"another")
    states, said = work(workshop, experiment)
    assert states == {"plain/seed0": "done", "gid/seed0": "changed"}
    assert "its teacher's weights have changed" in said[-1]


def test_a_dry_run_and_a_report_block_what_a_run_blocks(workshop: Workshop) -> None:
    work(workshop, workshop.experiment())
    longer = workshop.experiment(teacher={"config": "teacher.yaml", "set": {"train.steps": 11}})
    assert {key: state.kind for key, state in current_states(longer).items()} == work(workshop, longer)[0]
    assert "GID, seed 0    its teacher is not done" in plan_text(longer, redo=False)
    assert "to be trained anew, after its teacher" in plan_text(longer, redo=True)


def test_the_last_sentence_is_of_the_latest_start(tmp_path: Path) -> None:
    log = tmp_path / "log"
    log.write_text("--- train\nerror: of yesterday\n--- train\n\n")
    assert last_sentence(log) == "it said nothing"
    log.write_text("--- train\nerror: of yesterday\n--- train\nstep 1\nerror: of today\n")
    assert last_sentence(log) == "error: of today"


def test_what_nohup_has_switched_off_stays_off() -> None:
    before = signal.signal(signal.SIGHUP, signal.SIG_IGN)
    try:
        with _signals_interrupt():
            os.kill(os.getpid(), signal.SIGHUP)
            assert signal.getsignal(signal.SIGHUP) is signal.SIG_IGN
            with pytest.raises(KeyboardInterrupt):
                signal.raise_signal(signal.SIGTERM)
    finally:
        signal.signal(signal.SIGHUP, before)


def test_a_page_that_fails_in_whatever_way_stops_no_run(workshop: Workshop, capsys: pytest.CaptureFixture[str]) -> None:
    def report(states: object) -> None:
        raise RuntimeError("from an adapter")

    states, _ = work(workshop, workshop.experiment(), finished=lambda states: _without_stopping(report, states))
    assert set(states.values()) == {"done"}
    assert "could not be written: RuntimeError: from an adapter" in capsys.readouterr().err


def test_the_time_of_a_run_that_was_stopped_counts(workshop: Workshop) -> None:
    workshop.control(plain_seed0="sleep")
    experiment = workshop.experiment(rows=[{"name": "plain"}], teacher=None)

    def interrupt() -> None:
        until(lambda: (workshop.folder / "calls.txt").exists())
        os.kill(os.getpid(), signal.SIGTERM)

    thread = threading.Thread(target=interrupt)
    thread.start()
    with pytest.raises(KeyboardInterrupt):
        work(workshop, experiment)
    thread.join()
    assert len(read_note(experiment.runs[0])["seconds"]) == 1


def test_how_a_run_failed_is_remembered_until_it_is_done(workshop: Workshop) -> None:
    experiment = workshop.experiment(detectors=[{"name": "A"}])
    workshop.control(**{"a_teacher": "fail"})
    work(workshop, experiment)
    why = "exit status 1: error: the loss became nan at step 3"
    assert f"A, teacher        failed, to be continued: {why}" in plan_text(experiment, redo=False)
    kinds = {key: (state.kind, state.reason) for key, state in told_states(experiment, {}).items()}
    assert kinds["a/teacher"][0] == "failed" and kinds["a/teacher"][1].startswith(why)
    assert kinds["a/gid/seed0"] == ("blocked", "its teacher (A, teacher) is not done")
    workshop.control()
    work(workshop, experiment)
    assert "failed" not in plan_text(experiment, redo=False)
    assert {state.kind for state in told_states(experiment, {}).values()} == {"done"}
    assert "failed" not in read_note(experiment.runs[0])


@pytest.mark.parametrize("text", ["two", "0", "-1", "1.5"])
def test_jobs_are_a_whole_number(text: str) -> None:
    command = [sys.executable, str(ROOT / "scripts" / "experiment.py"), "--cfg", "x.yaml", "--jobs", text]
    ended = subprocess.run(command, capture_output=True, text=True, timeout=120)
    assert ended.returncode == 2 and f"{text!r} is no number of runs: give a whole number above 0" in ended.stderr
