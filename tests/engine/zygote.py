"""Real processes that run a script, without the seconds that importing torch takes: forks of one that has done it."""

from __future__ import annotations

import contextlib
import json
import os
import runpy
import signal
import subprocess
import sys
import time
from collections.abc import Callable
from dataclasses import dataclass
from pathlib import Path
from typing import Any

PATIENCE = 100.0  # seconds, for what takes a few: beyond it something hangs, as on a full disk
LATE = 1000  # in place of an exit status


@dataclass
class Process:
    """One fork: a session of its own, its output in files."""

    zygote: subprocess.Popen[str]
    pid: int
    out: Path
    err: Path

    def send(self, number: int) -> None:
        os.kill(self.pid, number)

    def send_to_all(self, number: int) -> None:
        """To its loader processes, too, as a terminal does."""
        os.killpg(self.pid, number)

    def children(self) -> list[int]:
        return [int(pid) for pid in Path(f"/proc/{self.pid}/task/{self.pid}/children").read_text().split()]

    def wait(self, seconds: float = PATIENCE) -> int:
        """The exit status, negative for the signal that killed it; fails where it does not end in time."""
        status = _ask(self.zygote, {"wait": self.pid, "seconds": seconds})
        assert status != LATE, f"it did not end within {seconds} s: {self.said()}{self.err.read_text()}"
        return status

    def said(self) -> str:
        return self.out.read_text()

    def until(self, condition: Callable[[], bool], seconds: float = PATIENCE) -> None:
        """Waits for it; fails where the process ends first, or takes too long."""
        deadline = time.monotonic() + seconds
        while not condition():
            ended = Path(f"/proc/{self.pid}/stat").read_text().rpartition(")")[2].split()[0] == "Z"
            assert not ended, f"it ended too early: {self.said()}{self.err.read_text()}"
            assert time.monotonic() < deadline, f"nothing for {seconds} s: {self.said()}"
            time.sleep(0.005)


class Zygote:
    def __init__(self, folder: Path) -> None:
        self._folder, self._count = folder, 0
        environment = {**os.environ, "OMP_NUM_THREADS": "1", "PYTHONPATH": str(Path(__file__).parents[2])}
        self._zygote = subprocess.Popen(
            [sys.executable, __file__], stdin=subprocess.PIPE, stdout=subprocess.PIPE, text=True, env=environment
        )

    def start(self, script: Path, *arguments: str) -> Process:
        self._count += 1
        out, err = (self._folder / f"{self._count}.{name}" for name in ("out", "err"))
        out.touch()
        err.touch()
        pid = _ask(self._zygote, {"argv": [str(script), *arguments], "out": str(out), "err": str(err)})
        return Process(self._zygote, pid, out, err)

    def end_all(self) -> None:
        """Whatever a test that failed has left running, or stopped."""
        _ask(self._zygote, {"end": True})

    def close(self) -> None:
        self.end_all()
        assert self._zygote.stdin is not None
        self._zygote.stdin.close()
        self._zygote.wait(PATIENCE)


def _ask(zygote: subprocess.Popen[str], request: dict[str, Any]) -> int:
    assert zygote.stdin is not None and zygote.stdout is not None
    zygote.stdin.write(json.dumps(request) + "\n")
    zygote.stdin.flush()
    answer = zygote.stdout.readline()
    assert answer, f"the process that starts others has ended: {zygote.poll()}"
    return int(answer)


def _main() -> None:
    import gid_cuda.engine.trainer  # noqa: F401

    children: set[int] = set()
    for line in sys.stdin:
        request = json.loads(line)
        if "wait" in request:
            status = _status(request["wait"], request["seconds"])
            children.discard(request["wait"])
            print(status, flush=True)
        elif "end" in request:
            for pid in children:
                _status(pid, 0)
            children.clear()
            print(0, flush=True)
        else:
            pid = os.fork()
            if pid == 0:
                _become(request)
                return
            children.add(pid)
            print(pid, flush=True)


def _status(pid: int, seconds: float) -> int:
    """How that child has ended; LATE, and killed with its loaders, where it has not within these seconds."""
    deadline = time.monotonic() + seconds
    while True:
        ended, status = os.waitpid(pid, os.WNOHANG)
        if ended:
            return os.waitstatus_to_exitcode(status)
        if time.monotonic() >= deadline:
            with contextlib.suppress(ProcessLookupError):  # it has not become a group's first yet
                os.killpg(pid, signal.SIGKILL)
            os.kill(pid, signal.SIGKILL)
            os.waitpid(pid, 0)
            return LATE
        time.sleep(0.005)


def _become(request: dict[str, Any]) -> None:
    os.setsid()
    signal.signal(signal.SIGINT, signal.default_int_handler)
    for number, name in ((0, os.devnull), (1, request["out"]), (2, request["err"])):
        descriptor = os.open(name, os.O_RDWR | os.O_CREAT | os.O_TRUNC)
        os.dup2(descriptor, number)
        os.close(descriptor)
    sys.stdin = open(0)
    sys.argv = request["argv"]
    sys.path.insert(0, str(Path(sys.argv[0]).parent))
    runpy.run_path(sys.argv[0], run_name="__main__")


if __name__ == "__main__":
    _main()
