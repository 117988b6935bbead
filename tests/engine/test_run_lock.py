"""Two runs never write into one folder; what holds it is told, and a process that died holds nothing."""

from __future__ import annotations

import multiprocessing
import os
import signal
import subprocess
import sys
import time
from collections.abc import Iterator
from multiprocessing.synchronize import Event
from pathlib import Path

import pytest
from engine_helpers import plain_config

from gid_cuda.engine.run_lock import LOCK, RunLock
from gid_cuda.engine.trainer import train
from gid_cuda.errors import UserError

HOLD = """
import sys, time
from pathlib import Path
from gid_cuda.engine.run_lock import RunLock
with RunLock(Path(sys.argv[1])) as lock:
    lock.take()
    print("held", flush=True)
    time.sleep(100)
"""


@pytest.fixture
def holder(tmp_path: Path) -> Iterator[subprocess.Popen[str]]:
    """A process that holds tmp_path / "run"."""
    (tmp_path / "run").mkdir()
    process = subprocess.Popen([sys.executable, "-c", HOLD, str(tmp_path / "run")], stdout=subprocess.PIPE, text=True)
    assert process.stdout is not None and process.stdout.readline() == "held\n"
    yield process
    process.kill()
    process.wait()
    process.stdout.close()


@pytest.mark.parametrize("how", [{}, {"resume": True}, {"overwrite": True}])
def test_a_folder_that_another_process_trains_into(
    how: dict[str, bool], holder: subprocess.Popen[str], data: Path, tmp_path: Path
) -> None:
    config = plain_config(data, tmp_path / "run", "train.steps=1")
    with pytest.raises(UserError, match=f"output: process {holder.pid} on .* is training into .*run: wait for its end"):
        train(config, **how)
    assert [path.name for path in (tmp_path / "run").iterdir()] == [LOCK]
    holder.send_signal(signal.SIGKILL)
    holder.wait()
    assert train(config, **how)["step"] == 1  # the lock went with the process
    assert not (tmp_path / "run" / LOCK).exists()


def test_restarted_processes_go_on_all_the_same(holder: subprocess.Popen[str], tmp_path: Path) -> None:
    with RunLock(tmp_path / "run") as lock:
        lock.insists = False
        lock.take()
    assert (tmp_path / "run" / LOCK).read_text().startswith(f"process {holder.pid} ")


def _compete(folder: Path, begin: Event, number: int) -> None:
    """Takes the lock and gives it back, again and again; while it is held, a file must not be there twice."""
    begin.wait(20)
    end, held = time.monotonic() + 1.0, 0
    while time.monotonic() < end:
        with RunLock(folder) as lock:
            try:
                lock.take()
            except UserError:
                continue
            os.close(os.open(folder / "alone", os.O_CREAT | os.O_EXCL))
            (folder / "alone").unlink()
            held += 1
    (folder / f"held{number}").write_text(str(held))


def test_never_two_at_once(tmp_path: Path) -> None:
    context = multiprocessing.get_context("fork")  # as loaders do; spawn would import torch anew
    begin = context.Event()
    processes = [context.Process(target=_compete, args=(tmp_path, begin, number)) for number in range(3)]
    for process in processes:
        process.start()
    begin.set()
    for process in processes:
        process.join(60)
    assert [process.exitcode for process in processes] == [0, 0, 0]
    assert sum(int((tmp_path / f"held{number}").read_text()) for number in range(3)) > 100


def test_a_folder_without_locks_is_trained_into(tmp_path: Path) -> None:
    with RunLock(tmp_path / "nowhere") as lock:
        lock.take()
    assert not (tmp_path / "nowhere").exists()
    (tmp_path / LOCK).mkdir()
    with RunLock(tmp_path) as lock:
        lock.take()
