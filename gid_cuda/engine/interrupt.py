"""SIGTERM, SIGINT (Ctrl-C) and SIGHUP (a closed terminal) while a run goes on: no step that was done is lost."""

from __future__ import annotations

import contextlib
import os
import signal
import threading
from collections.abc import Iterator
from types import FrameType
from typing import Any

from gid_cuda.errors import Stopped

_SIGNALS = (signal.SIGTERM, signal.SIGINT, signal.SIGHUP)


class Interrupt:
    """As a context, around a run. A signal raises `Stopped` at once; after `finish_steps()` it is noted, and `asked()`
    tells. What is raised anywhere may be dropped, as in the middle of a fork, or become another error in code that
    reports its callbacks' errors: so it is noted, too, and what comes out of the context is `Stopped`.

    After the first signal, Ctrl-C ends the process by the system's own hand, even where it hangs in a driver or waits
    for another process. What `nohup` has switched off stays off. Outside the main thread, where Python allows no
    handlers, nothing is changed.
    """

    def __init__(self) -> None:
        self._number: int | None = None
        self._finishing = self._leaving = self._raised = False
        self._before: dict[int, Any] = {}
        self._process = os.getpid()

    def __enter__(self) -> Interrupt:
        if threading.current_thread() is threading.main_thread():
            numbers = [n for n in _SIGNALS if signal.getsignal(n) not in (signal.SIG_IGN, None)]
            self._before = {number: signal.signal(number, self._note) for number in numbers}
        return self

    def __exit__(self, kind: type[BaseException] | None, *_: object) -> None:
        for number, handler in self._before.items():
            signal.signal(number, handler)
        if self._raised and kind is not None and not issubclass(kind, Stopped):
            raise self.stopped() from None

    def finish_steps(self) -> None:
        """From here on, what is begun is finished: `asked()` is asked where the run may end."""
        self._finishing = True
        self.leave_if_asked()

    @contextlib.contextmanager
    def leaving(self) -> Iterator[None]:
        """Among the steps: what stands in here need not be finished, as everything is saved. It calls `leave_if_asked`
        often."""
        self._leaving = True
        try:
            self.leave_if_asked()
            yield
        finally:
            self._leaving = False

    def leave_if_asked(self) -> None:
        if self.asked():
            raise self.stopped()

    def asked(self) -> bool:
        """Whether a signal has come: the one place at which a run learns of it. (Processes that train together agree on
        it by `distributed.any_process`, as a signal may reach them between different steps.)"""
        return self._number is not None

    def stopped(self, what_is_saved: str = "nothing that was done is lost, and --resume goes on") -> Stopped:
        return Stopped(self._number or signal.SIGTERM, what_is_saved)  # without a number it came to another process

    def _note(self, number: int, frame: FrameType | None) -> None:
        if os.getpid() != self._process:
            return  # a loader process, which has inherited this: it is the trainer that ends it
        self._number = self._number or number
        if signal.SIGINT in self._before:
            signal.signal(signal.SIGINT, signal.SIG_DFL)
        if not self._finishing:
            self._raised = True
            raise self.stopped()
        if self._leaving:
            return
        name = signal.Signals(number).name
        os.write(2, f"\n{name}: finishing this step and saving it; Ctrl-C now leaves without\n".encode())
