"""One run as a process of its own: begun, watched, stopped; and the lock that outlives whoever began it.

The lock's file is inherited by the process that trains. So a run that goes on after its starter was killed (kill -9) is
known to go on, and is waited for instead of being trained twice in one folder.
"""

from __future__ import annotations

import contextlib
import fcntl
import os
import signal
import subprocess
import time
from collections.abc import Iterable, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import IO

from gid_cuda.experiment.matrix import PlannedRun
from gid_cuda.experiment.state import LOCK, LOG

PATIENCE = 10.0  # seconds that a stopped process has to end by itself
START = "--- "  # before the command of each start, in the run's log
_TAIL = 8192  # bytes of a log's end in which its last sentence is looked for


@dataclass
class Active:
    """A run that is being trained."""

    run: PlannedRun
    process: subprocess.Popen[bytes]
    slot: int
    began: float  # time.monotonic()


def take_lock(folder: Path) -> IO[str] | None:
    """The run's lock, or None where another process trains it. Closing the file gives it back."""
    folder.mkdir(parents=True, exist_ok=True)
    file = open(folder / LOCK, "a+", encoding="utf-8")
    try:
        fcntl.flock(file, fcntl.LOCK_EX | fcntl.LOCK_NB)
    except BlockingIOError:
        file.close()
        return None
    return file


def lock_holder(folder: Path) -> str:
    """The number of the process that trains, as it stands in the lock's file."""
    with contextlib.suppress(OSError):
        return (folder / LOCK).read_text(encoding="utf-8").strip() or "unknown"
    return "unknown"


def begin(run: PlannedRun, command: Sequence[str], lock: IO[str], *, slot: int, environment: dict[str, str]) -> Active:
    """Starts the command in a group of its own, its output at the end of the run's log; hands the lock over to it."""
    with lock, open(run.folder / LOG, "ab") as log:
        log.write(f"{START}{' '.join(command)}\n".encode())
        log.flush()
        process = subprocess.Popen(
            command, stdin=subprocess.DEVNULL, stdout=log, stderr=subprocess.STDOUT, start_new_session=True,
            pass_fds=[lock.fileno()], env={**os.environ, "PYTHONUNBUFFERED": "1", **environment},
        )  # fmt: skip
        lock.seek(0)
        lock.truncate()
        lock.write(f"{process.pid}\n")
    return Active(run, process, slot, time.monotonic())


def stop(active: Iterable[Active]) -> None:
    """Ends the processes and all that they have begun: asks first, and kills those that do not listen."""
    running = [a for a in active if a.process.poll() is None]
    for a in running:
        _signal(a.process, signal.SIGTERM)
    deadline = time.monotonic() + PATIENCE
    for a in running:
        try:
            a.process.wait(max(0.0, deadline - time.monotonic()))
        except subprocess.TimeoutExpired:
            _signal(a.process, signal.SIGKILL)
            a.process.wait()


def _signal(process: subprocess.Popen[bytes], number: signal.Signals) -> None:
    with contextlib.suppress(ProcessLookupError, PermissionError):
        os.killpg(process.pid, number)


def how_it_failed(active: Active) -> str:
    """A process that has ended badly: by which status or signal, and its last sentence."""
    status = active.process.returncode
    ended = f"killed by {signal.Signals(-status).name}" if status < 0 else f"exit status {status}"
    log = active.run.folder / LOG
    return f"{ended}: {last_sentence(log)} (all of it: {log})"


def last_sentence(log: Path) -> str:
    """The last line of the latest start that says anything; of a traceback that is the exception."""
    try:
        with open(log, "rb") as file:
            file.seek(max(0, log.stat().st_size - _TAIL))
            lines = file.read().decode("utf-8", "replace").splitlines()
    except OSError:
        return "it left no log"
    begun = max((i for i, line in enumerate(lines) if line.startswith(START)), default=-1)
    said = [line.strip() for line in lines[begun + 1 :] if line.strip()]
    return said[-1] if said else "it said nothing"
