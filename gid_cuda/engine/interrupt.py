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
    tells.

    After the first signal, Ctrl-C ends the process by the system's own hand, even where it hangs in a driver or waits
    for another process. What `nohup` has switched off stays off. Outside the main thread, where Python allows no
    handlers, nothing is changed.
    """

    def __init__(self) -> None:
        self._number: int | None = None
        self._finishing = False
        self._before: dict[int, Any] = {}
        self._process = os.getpid()

    def __enter__(self) -> Interrupt:
        if threading.current_thread() is threading.main_thread():
            numbers = [n for n in _SIGNALS if signal.getsignal(n) not in (signal.SIG_IGN, None)]
            self._before = {number: signal.signal(number, self._note) for number in numbers}
        return self

    def __exit__(self, *_: object) -> None:
        for number, handler in self._before.items():
            signal.signal(number, handler)

    def finish_steps(self) -> None:
        """From here on, what is begun is finished: `asked()` is asked where the run may end."""
        self._finishing = True

    @contextlib.contextmanager
    def at_once(self) -> Iterator[None]:
        """Among the steps: what stands in here need not be finished, as everything is saved."""
        self._finishing = False
        try:
            if self.asked():
                raise self.stopped()
            yield
        finally:
            self._finishing = True

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
            raise self.stopped()
        name = signal.Signals(number).name
        os.write(2, f"\n{name}: finishing this step and saving it; Ctrl-C now leaves without\n".encode())
