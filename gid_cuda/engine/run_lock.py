"""One run a folder: whoever trains holds a lock on it, which ends with the process, however that ends."""

from __future__ import annotations

import contextlib
import fcntl
import os
import socket
from pathlib import Path
from typing import IO

from gid_cuda.errors import UserError

LOCK = ".train.lock"


class RunLock:
    """For `with`: nothing is held at first, and nothing after it.

    insists: whether a folder that another process holds is refused. Not where torchrun has started this process again:
    those before it are dead, but the file server may not know that yet of a machine that was lost.

    A POSIX lock, not flock's: that is inherited by loader processes, which outlive a killed parent for a while.
    """

    def __init__(self, folder: Path) -> None:
        self.insists = True
        self._path = folder / LOCK
        self._file: IO[str] | None = None

    def take(self) -> None:
        """UserError where another process trains into the folder.

        No lock where there is no folder yet, where it cannot be written to, or where its file system knows no locks.
        """
        if self._file is not None or not self._path.parent.is_dir():
            return
        try:
            self._file = self._locked()
        except BlockingIOError:
            if self.insists:
                raise UserError(
                    f"output: {self._holder()} is training into {self._path.parent}: wait for its end, stop it, or "
                    "name another folder with output=..."
                ) from None
        except OSError:
            return

    def _locked(self) -> IO[str]:
        while True:
            file = open(self._path, "a+", encoding="utf-8")
            try:
                fcntl.lockf(file, fcntl.LOCK_EX | fcntl.LOCK_NB)
                if self._is_there(file):
                    file.truncate(0)
                    file.write(f"process {os.getpid()} on {socket.gethostname()}\n")
                    file.flush()
                    return file
            except BaseException:
                file.close()
                raise
            file.close()  # whoever held it has deleted it in the meantime: again, with a new one

    def _is_there(self, file: IO[str]) -> bool:
        try:
            return os.path.samestat(os.fstat(file.fileno()), os.stat(self._path))
        except FileNotFoundError:
            return False

    def _holder(self) -> str:
        with contextlib.suppress(OSError, UnicodeDecodeError):
            return self._path.read_text(encoding="utf-8").strip() or "another process"
        return "another process"

    def __enter__(self) -> RunLock:
        return self

    def __exit__(self, *_: object) -> None:
        if self._file is not None:
            with contextlib.suppress(OSError):
                self._path.unlink()  # first: once it is closed, it may be another's
            self._file.close()
            self._file = None
