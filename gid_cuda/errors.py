"""Mistakes that a user can mend (config, data, weights, a full disk): told in one sentence, without a traceback."""

from __future__ import annotations

import contextlib
import signal
import sys
from collections.abc import Iterator


class UserError(ValueError):
    """A mistake outside the code, told in one sentence: what is wrong, where, and what to do."""


class Stopped(KeyboardInterrupt):
    """A signal has ended the run; as an exception it passes by what catches mistakes, as Ctrl-C does.

    status: the exit status that shells expect, 128 + the signal's number.
    """

    def __init__(self, number: int, consequence: str) -> None:
        super().__init__(f"stopped by {signal.Signals(number).name}: {consequence}")
        self.status = 128 + number


def reason(error: Exception) -> str:
    """What a library says went wrong, fit to stand within a sentence: its first line, not its pages of advice."""
    if "Weights only load failed" in str(error):  # torch goes on to advise loading it as code
        return "it holds no plain tensors alone"
    lines = str(error).strip().splitlines()
    return lines[0][:200] if lines else type(error).__name__


def printable(text: str) -> str:
    """Fit for a terminal: control characters are escaped, but for line breaks.

    Names of files, and texts out of them, could else move the cursor, hide what stands above, or imitate it.
    """
    return "".join(c if c.isprintable() or c == "\n" else c.encode("unicode_escape").decode() for c in text)


@contextlib.contextmanager
def told_in_one_sentence(*, interrupted: str = "interrupted") -> Iterator[None]:
    """Around a script's work: a UserError, or what the file system refuses, prints `error: ...` and exits with 2.

    Ctrl-C prints `interrupted` and exits with 130, as shells expect; a `Stopped` its own sentence and status.
    """
    try:
        yield
    except UserError as error:
        print(printable(f"error: {error}"), file=sys.stderr)
        sys.exit(2)
    except OSError as problem:
        where = f"{problem.filename}: " if problem.filename else ""
        text = f"error: {where}{problem.strerror or problem}; is there room, and may this user write?"
        print(printable(text), file=sys.stderr)
        sys.exit(2)
    except Stopped as stopped:
        print(stopped, file=sys.stderr)
        sys.exit(stopped.status)
    except KeyboardInterrupt:
        print(interrupted, file=sys.stderr)
        sys.exit(130)
