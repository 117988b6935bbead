"""A run by torchrun: real processes, that are given up when nothing comes of them."""

from __future__ import annotations

import os
import signal
import socket
import subprocess
import sys
import time
from collections.abc import Callable
from pathlib import Path

from engine_helpers import CONFIGS
from zygote import PATIENCE

ROOT = CONFIGS.parent
ENVIRONMENT = {
    "PYTHONPATH": f"{ROOT}:{os.environ.get('PYTHONPATH', '')}", "GLOO_SOCKET_IFNAME": "lo", "OMP_NUM_THREADS": "1"
}  # fmt: skip


def free_port() -> int:
    with socket.socket() as one:
        one.bind(("127.0.0.1", 0))
        return one.getsockname()[1]


def of_torchrun(rank: int, count: int, port: int) -> dict[str, str]:
    """What torchrun sets for one of `count` processes of a machine; gloo's connections stay on it."""
    return {
        "RANK": str(rank), "LOCAL_RANK": str(rank), "WORLD_SIZE": str(count), "MASTER_ADDR": "127.0.0.1",
        "MASTER_PORT": str(port), "TORCHELASTIC_USE_AGENT_STORE": "False", "GLOO_SOCKET_IFNAME": "lo",
    }  # fmt: skip


class Launched:
    """torchrun with two processes on configs/demo_student.yaml. folder: for what it says."""

    def __init__(self, folder: Path, *arguments: str, script: str = "train.py", restarts: int = 0) -> None:
        folder.mkdir(parents=True, exist_ok=True)
        number = len(list(folder.iterdir()))
        self._out, self._err = (folder / f"{number}.{name}" for name in ("out", "err"))
        command = [
            sys.executable, "-m", "torch.distributed.run", "--nproc-per-node", "2", "--master-port", str(free_port()),
            "--max-restarts", str(restarts), str(ROOT / "scripts" / script),
            "--cfg", str(CONFIGS / "demo_student.yaml"), *arguments,
        ]  # fmt: skip
        with open(self._out, "w") as out, open(self._err, "w") as err:
            self._agent = subprocess.Popen(command, env={**os.environ, **ENVIRONMENT}, stdout=out, stderr=err)

    def said(self) -> str:
        return self._out.read_text()

    def complained(self) -> str:
        return self._err.read_text()

    def send(self, number: int) -> None:
        """To torchrun, as a scheduler does."""
        self._agent.send_signal(number)

    def worker(self, rank: int) -> int:
        """The process id of a rank."""
        for pid in self._children():
            if f"\0RANK={rank}\0".encode() in Path(f"/proc/{pid}/environ").read_bytes():
                return pid
        raise AssertionError(f"torchrun has no process of rank {rank}")

    def until(self, condition: Callable[[], bool]) -> None:
        """Waits for it; fails where torchrun ends first, or where nothing new is said for PATIENCE seconds."""
        size, deadline = -1, 0.0
        while not condition():
            assert self._agent.poll() is None, f"it ended too early: {self.said()}{self.complained()}"
            if (now := self._out.stat().st_size + self._err.stat().st_size) != size:
                size, deadline = now, time.monotonic() + PATIENCE
            assert time.monotonic() < deadline, f"nothing new for {PATIENCE} s: {self.said()}{self.complained()}"
            time.sleep(0.02)

    def finished(self) -> tuple[int, str, str]:
        """(exit status, what it said, what it complained of)."""
        self.until(lambda: self._agent.poll() is not None)
        return self._agent.returncode, self.said(), self.complained()

    def end(self) -> None:
        """Whatever a test that failed has left running."""
        if self._agent.poll() is None:
            for pid in [*self._children(), self._agent.pid]:
                os.kill(pid, signal.SIGKILL)
            self._agent.wait()

    def _children(self) -> list[int]:
        listed = Path(f"/proc/{self._agent.pid}/task/{self._agent.pid}/children").read_text().split()
        return [int(pid) for pid in listed]
