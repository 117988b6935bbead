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
    launches = set(gathered(_launch()))
    return on_main(lambda: bool(launches & set(_marks(folder))))


def mark_begun(folder: Path) -> None:
    """Once the folder is this run's. Called by all processes."""
    if not dist.is_initialized():
        (folder / MARK).unlink(missing_ok=True)  # of an earlier run
    else:
        launches = sorted(set(gathered(_launch())))
        on_main(lambda: write_text(folder / MARK, json.dumps(launches) + "\n"))
        _begun_here.add(folder.resolve())


def _marks(folder: Path) -> list[str]:
    try:
        marks = json.loads((folder / MARK).read_text(encoding="utf-8"))
    except (OSError, ValueError):
        return []
    return [mark for mark in marks if isinstance(mark, str)] if isinstance(marks, list) else []


def _launch() -> str:
    """What all processes have in common that this machine's torchrun starts, and those of no other torchrun.

    The machines of a launch differ in it. All are kept, so that a restart knows itself when some of them are gone.
    """
    report = os.environ.get("TORCHELASTIC_ERROR_FILE", "")  # <folder with a random name>/attempt_<n>/<rank>/error.json
    folder = re.sub(r"[/\\]attempt_\d+[/\\].*", "", report)
    return f"{socket.gethostname()} {folder or os.getppid()}"
