"""torchrun may start the processes of a run again: one was killed, a machine came or went. Then the run goes on.

A restarted process has the command line of the first, `--overwrite` included. Whether it begins the run or goes on with
it shows in the run's folder: there the launch, this start of torchrun, has left its mark when it began.
"""

from __future__ import annotations

import json
import os
import re
import socket
from pathlib import Path

import torch.distributed as dist

from gid_cuda.engine.distributed import gathered, on_main
from gid_cuda.files import write_text

MARK = "launch.json"

_begun_here: set[Path] = set()  # by this process: whoever trains twice into one folder means it


def is_restarted(folder: Path) -> bool:
    """Have earlier processes of this launch begun the run in `folder`? Asked by all processes; all get one answer."""
    if not dist.is_initialized() or folder.resolve() in _begun_here:
        return False
    launches = _launches()
    return on_main(lambda: bool(set(launches) & set(_marks(folder))))


def mark_begun(folder: Path) -> None:
    """Once the folder is this run's. Called by all processes."""
    if not dist.is_initialized():
        (folder / MARK).unlink(missing_ok=True)  # of an earlier run
    else:
        launches = _launches()
        on_main(lambda: write_text(folder / MARK, json.dumps(launches) + "\n"))
        _begun_here.add(folder.resolve())


def _marks(folder: Path) -> list[str]:
    try:
        marks = json.loads((folder / MARK).read_text(encoding="utf-8"))
    except (OSError, ValueError):
        return []
    return [mark for mark in marks if isinstance(mark, str)] if isinstance(marks, list) else []


def _launches() -> list[str]:
    """What names the start of torchrun on each machine, on rank 0; none where something else has started the processes.

    The machines of a launch differ in it. All are kept, so that a restart knows itself when some of them are gone.
    """
    return sorted({launch for launch in gathered(_launch()) if launch is not None})


def _launch() -> str | None:
    """What all processes have in common that this machine's torchrun starts, and those of no other torchrun.

    Other launchers start nothing again by themselves: there --overwrite means what it says, each time.
    """
    if "TORCHELASTIC_RUN_ID" not in os.environ:
        return None
    report = os.environ.get("TORCHELASTIC_ERROR_FILE", "")  # <folder with a random name>/attempt_<n>/<rank>/error.json
    folder = re.sub(r"[/\\]attempt_\d+[/\\].*", "", report)  # empty where torchrun was told to log to nowhere
    return f"{socket.gethostname()} {folder or os.getppid()}"
