"""What a run says and writes down."""

from __future__ import annotations

import json
import os
import threading
import time
from pathlib import Path
from typing import Any

import pytest
from tensorboard.backend.event_processing.event_accumulator import EventAccumulator

from gid_cuda.engine.log import RunLog
from gid_cuda.errors import UserError
from gid_cuda.files import write_text


def lines(folder: Path) -> list[dict[str, Any]]:
    return [json.loads(line) for line in (folder / "log.jsonl").read_text().splitlines()]


def metrics(ap: float | None) -> dict[str, Any]:
    return {"step": 4, "AP": ap, "AP50": ap, "AP75": None, "per_class": {"cat": ap}}


def test_means_over_the_steps_since_the_last_line(tmp_path: Path, capsys: Any) -> None:
    with RunLog(tmp_path, start_step=0, steps=5, every=2) as log:
        for step in range(1, 6):
            log.train(step, {"loss_x": float(step), "loss": 2.0 * step}, lr=0.1, images=8)
        log.evaluated(5, metrics(12.3), 0.5)
    train = [e for e in lines(tmp_path) if e["kind"] == "train"]
    assert [(e["step"], e["loss_x"], e["loss"]) for e in train] == [(2, 1.5, 3.0), (4, 3.5, 7.0), (5, 5.0, 10.0)]
    assert all(e["lr"] == 0.1 and e["images_per_s"] > 0 for e in train)
    assert lines(tmp_path)[-1] == {"kind": "eval", **metrics(12.3), "step": 4}
    said = capsys.readouterr().out.splitlines()
    assert said[0].startswith("step 2/5  x 1.5  loss 3  lr 0.1  ") and said[0].endswith(" left")
    assert said[-1] == "step 5: AP 12.3  AP50 12.3"


def test_kinds_of_instances_are_logged_and_not_said(tmp_path: Path, capsys: Any) -> None:
    with RunLog(tmp_path, start_step=0, steps=2, every=2) as log:
        for step, count in ((1, 3.0), (2, 4.0)):
            log.train(step, {"loss": 1.0, "instances": 9.0, "gi_positive": count}, lr=0.1, images=8)
    assert lines(tmp_path)[0]["gi_positive"] == 3.5
    assert "instances 9 " in (said := capsys.readouterr().out) and "gi_" not in said
    events = EventAccumulator(str(tmp_path / "tensorboard")).Reload()
    assert [e.value for e in events.Scalars("train/gi_positive")] == [3.5]


def test_speed_and_remaining_time_count_from_the_first_step(tmp_path: Path, capsys: Any, monkeypatch: Any) -> None:
    """Not from the check of the teacher before it, and without the evaluations between the steps."""
    now = [0.0]
    monkeypatch.setattr("gid_cuda.engine.log.time.monotonic", lambda: now[0])
    with RunLog(tmp_path, start_step=0, steps=4, every=1) as log:
        now[0] = 1000.0
        log.start_clock()
        for step, pause in ((1, 500.0), (2, 0.0)):
            now[0] += 2.0
            log.train(step, {"loss": 1.0}, lr=0.1, images=8)
            now[0] += pause
            log.evaluated(step, metrics(1.0), pause)
    assert [e["images_per_s"] for e in lines(tmp_path) if e["kind"] == "train"] == [4.0, 4.0]
    assert "00:06 left" in (said := capsys.readouterr().out) and "00:04 left" in said


def test_tensorboard(tmp_path: Path) -> None:
    with RunLog(tmp_path, start_step=0, steps=2, every=1) as log:
        log.train(1, {"loss": 3.0}, lr=0.1, images=8)
        log.evaluated(2, metrics(7.0), 0.0)
    events = EventAccumulator(str(tmp_path / "tensorboard")).Reload()
    assert set(events.Tags()["scalars"]) == {
        "train/loss", "train/lr", "train/images_per_s", "eval/AP", "eval/AP50"
    }  # fmt: skip
    assert [(e.step, e.value) for e in events.Scalars("train/loss")] == [(1, 3.0)]


def test_a_resumed_run_drops_what_it_does_again(tmp_path: Path) -> None:
    with RunLog(tmp_path, start_step=0, steps=9, every=1) as log:
        for step in range(1, 5):
            log.train(step, {"loss": 1.0}, lr=0.1, images=8)
    with open(tmp_path / "log.jsonl", "a") as file:
        file.write('{"kind": "train", "st')  # killed while writing
    with RunLog(tmp_path, start_step=2, steps=9, every=1) as log:
        log.train(3, {"loss": 2.0}, lr=0.1, images=8)
    assert [(e["step"], e["loss"]) for e in lines(tmp_path)] == [(1, 1.0), (2, 1.0), (3, 2.0)]


def test_no_ap_is_said(tmp_path: Path, capsys: Any) -> None:
    with RunLog(tmp_path, start_step=0, steps=2, every=1) as log:
        log.evaluated(2, metrics(None), 0.0)
    assert "no ground truth in the validation images" in capsys.readouterr().out


@pytest.mark.parametrize("terminal", [True, False])
def test_bar_on_a_terminal_lines_elsewhere(terminal: bool, tmp_path: Path, capsys: Any, monkeypatch: Any) -> None:
    monkeypatch.setattr("gid_cuda.engine.log.sys.stderr.isatty", lambda: terminal, raising=False)
    with RunLog(tmp_path, start_step=0, steps=2, every=1) as log:
        log.train(1, {"loss": 1.0}, lr=0.1, images=8)
    said = capsys.readouterr()
    assert ("step 1/2" in said.out) is not terminal
    assert ("1/2" in said.err) is terminal


def test_a_line_without_its_end_is_not_glued_to_the_next(tmp_path: Path) -> None:
    """Killed, or out of room, between an entry and its line break."""
    (tmp_path / "log.jsonl").write_text('{"kind": "train", "step": 1, "loss": 2.0}')
    with RunLog(tmp_path, start_step=1, steps=2, every=1) as log:
        log.train(2, {"loss": 1.0}, lr=0.1, images=8)
    assert [entry["step"] for entry in lines(tmp_path)] == [1, 2]


@pytest.mark.parametrize("damage", [b"\xff\xfe\x00", b"3", b"null", b'{"kind": "train", "step": "x"}', b"[" * 100_000])
def test_a_line_that_is_damaged_is_dropped(damage: bytes, tmp_path: Path) -> None:
    """As a machine that loses power leaves it, or a person."""
    whole = [b'{"kind": "train", "step": %d, "loss": 2.0}' % step for step in (1, 2)]
    (tmp_path / "log.jsonl").write_bytes(b"\n".join([whole[0], damage, whole[1]]))
    with RunLog(tmp_path, start_step=2, steps=3, every=1):
        pass
    assert [entry["step"] for entry in lines(tmp_path)] == [1, 2]


@pytest.mark.parametrize(
    ("problem", "told"), [(OSError(28, "Full"), UserError), (KeyboardInterrupt(), KeyboardInterrupt)]
)
def test_what_stops_its_beginning_leaves_nothing_open(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, problem: BaseException, told: type[BaseException]
) -> None:
    opened: list[Any] = []

    def spied(*arguments: Any, **options: Any) -> Any:
        opened.append(open(*arguments, **options))
        return opened[-1]

    def board(*arguments: Any, **options: Any) -> None:
        raise problem

    hook = threading.excepthook
    monkeypatch.setattr("gid_cuda.engine.log.open", spied, raising=False)
    monkeypatch.setattr("gid_cuda.engine.log.SummaryWriter", board)
    with pytest.raises(told):
        RunLog(tmp_path, start_step=0, steps=9, every=1)
    assert threading.excepthook is hook and opened and all(file.closed for file in opened)


FULL = Path("/dev/full")  # takes nothing, as a full disk does
needs_full = pytest.mark.skipif(not FULL.exists(), reason="needs /dev/full")
TOLD = "the log in .* could not be written .No space left.*checkpoints that are there are intact.*--resume"


@needs_full
def test_a_full_disk_is_told_in_one_sentence(tmp_path: Path, capsys: Any) -> None:
    hook = threading.excepthook
    with pytest.raises(UserError, match=TOLD):
        with RunLog(tmp_path, start_step=0, steps=9, every=1) as log:
            log._file = open(FULL, "w", buffering=1)
            log.train(1, {"loss": 1.0}, lr=0.1, images=8)
    assert threading.excepthook is hook and capsys.readouterr().err == ""


@needs_full
def test_tensorboards_thread_has_nothing_to_add(tmp_path: Path, capsys: Any) -> None:
    with pytest.raises(UserError, match=TOLD):
        with RunLog(tmp_path, start_step=0, steps=9, every=1) as log:
            (events,) = (tmp_path / "tensorboard").iterdir()
            (tmp_path / "full").symlink_to(FULL)
            os.replace(tmp_path / "full", events)  # in one move: the thread would make a file that is gone anew
            for step in range(1, 200):
                log.train(step, {"loss": 1.0}, lr=0.1, images=8)
                time.sleep(0.005)
    assert step < 199 and "Traceback" not in capsys.readouterr().err


@needs_full
def test_what_ends_a_run_on_a_full_disk_is_not_hidden(tmp_path: Path) -> None:
    before = threading.enumerate()
    with pytest.raises(KeyboardInterrupt), RunLog(tmp_path, start_step=0, steps=9, every=1) as log:
        log._file = open(FULL, "w")
        log._file.write("not on the disk yet")
        raise KeyboardInterrupt
    assert set(threading.enumerate()) <= set(before)  # TensorBoard's thread has ended, too


@needs_full
def test_a_text_that_finds_no_room(tmp_path: Path) -> None:
    write_text(tmp_path / "x", "old")
    (tmp_path / ".x.part").symlink_to(FULL)
    with pytest.raises(OSError, match="No space left") as raised:
        write_text(tmp_path / "x", "new")
    assert raised.value.filename == str(tmp_path / "x")
    assert [p.name for p in tmp_path.iterdir()] == ["x"] and (tmp_path / "x").read_text() == "old"


def test_a_link_stays_one_and_a_pipe_a_pipe(tmp_path: Path) -> None:
    (tmp_path / "there").mkdir()
    link, pipe = tmp_path / "link", tmp_path / "pipe"
    link.symlink_to(tmp_path / "there" / "file")
    for text in ("new", "newer"):
        write_text(link, text)
        assert link.is_symlink() and (tmp_path / "there" / "file").read_text() == text
    os.mkfifo(pipe)
    reader = os.open(pipe, os.O_RDONLY | os.O_NONBLOCK)
    write_text(pipe, "through")
    assert os.read(reader, 100) == b"through" and pipe.is_fifo()
    os.close(reader)
    assert sorted(path.name for path in tmp_path.rglob("*")) == ["file", "link", "pipe", "there"]
