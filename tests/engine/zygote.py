"""Real processes that run a script, without the seconds that importing torch takes: forks of one that has done it."""

from __future__ import annotations

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

    def wait(self) -> int:
        """The exit status, negative for the signal that killed it."""
        return _ask(self.zygote, {"wait": self.pid})

    def said(self) -> str:
        return self.out.read_text()

    def until(self, condition: Callable[[], bool], seconds: float = 60.0) -> None:
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

    def close(self) -> None:
        assert self._zygote.stdin is not None
        self._zygote.stdin.close()
        self._zygote.wait()


def _ask(zygote: subprocess.Popen[str], request: dict[str, Any]) -> int:
    assert zygote.stdin is not None and zygote.stdout is not None
    zygote.stdin.write(json.dumps(request) + "\n")
    zygote.stdin.flush()
    return int(zygote.stdout.readline())


def _main() -> None:
    import gid_cuda.engine.trainer  # noqa: F401

    for line in sys.stdin:
        request = json.loads(line)
        if "wait" in request:
            print(os.waitstatus_to_exitcode(os.waitpid(request["wait"], 0)[1]), flush=True)
            continue
        pid = os.fork()
        if pid == 0:
            _become(request)
            return
        print(pid, flush=True)


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
