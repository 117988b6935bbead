"""What is told on the terminal, which may go away: a lost terminal or pipe must not end days of training."""

from __future__ import annotations

import contextlib
import os
import sys

from gid_cuda.errors import printable


def say(text: str, *, problem: bool = False) -> None:
    """A line (or lines) to standard output, or to standard error; once nobody reads there any more, to nowhere."""
    stream = sys.stderr if problem else sys.stdout
    try:
        print(printable(text), file=stream, flush=True)
    except OSError:  # a pipe without a reader, a full disk behind `> FILE`
        with contextlib.suppress(OSError, ValueError):  # no file behind it: nothing more can fail
            nowhere = os.open(os.devnull, os.O_WRONLY)
            os.dup2(nowhere, stream.fileno())  # also takes what still is in the buffer, when Python ends
            os.close(nowhere)
