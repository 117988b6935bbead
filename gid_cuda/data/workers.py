"""Loader processes: which signals they heed, and what happens where one dies."""

from __future__ import annotations

import atexit
import ctypes
import multiprocessing
import os
import signal
import threading
import warnings
import weakref
from collections.abc import Callable, Iterator
from multiprocessing import sharedctypes
from typing import TypeVar

from torch.utils.data import DataLoader

from gid_cuda.errors import UserError, reason

T = TypeVar("T")

_MOST_DEATHS = 3  # in a row, on one batch
_DEAD = ("DataLoader worker (pid", "Pin memory thread exited")  # how torch's sentences about it begin


_begun: weakref.WeakSet[multiprocessing.process.BaseProcess] = weakref.WeakSet()
os.register_at_fork(after_in_child=_begun.clear)  # they are the parent's


@atexit.register  # before multiprocessing's own, which sends SIGTERM, that they do not heed, and waits for them to end
def _end_those_left() -> None:
    """Where an error ends the program, its traceback holds the loader that would have ended its processes."""
    for process in list(_begun):
        process.kill()


class _Flag:
    """multiprocessing's Event without its lock: killed while it holds that, as it does at each batch, a loader process
    would let the trainer wait for ever."""

    def __init__(self) -> None:
        self._shared = sharedctypes.RawValue(ctypes.c_bool, False)

    def is_set(self) -> bool:
        return self._shared.value

    def set(self) -> None:
        self._shared.value = True


def loader_context() -> multiprocessing.context.BaseContext:
    """The `multiprocessing_context` of a DataLoader whose processes may be killed at any moment."""
    usual = multiprocessing.get_context(multiprocessing.get_start_method())

    class Context(type(usual)):
        def Event(self) -> _Flag:
            return _Flag()

    return Context()


def leave_signals_to_the_trainer(worker: int) -> None:
    """In each loader process. Ctrl-C and launchers signal a whole process group: the trainer finishes its step, for
    which it needs batches, and then ends its loaders. They end by themselves, too, where it has died."""
    signal.signal(signal.SIGINT, signal.SIG_IGN)
    signal.signal(signal.SIGTERM, signal.SIG_IGN)
    signal.signal(signal.SIGHUP, signal.SIG_IGN)


def _started(loader: DataLoader[T]) -> Iterator[T]:
    """iter(loader), whose processes are remembered."""
    before = set(multiprocessing.active_children())
    batches = iter(loader)
    _begun.update(set(multiprocessing.active_children()) - before)
    return batches


def surviving(loader_from: Callable[[int], DataLoader[T]]) -> Iterator[T]:
    """The batches of `loader_from(0)`, from new processes wherever one dies (the system kills them when memory runs
    out): loader_from(n) goes on after the first n batches.

    Raises UserError where the same batch takes down three in a row.
    """
    done = deaths = 0
    while True:
        try:
            for batch in _noticing_deaths_here(loader_from(done)):
                yield batch
                done, deaths = done + 1, 0
            return
        except (RuntimeError, ConnectionError, EOFError) as error:  # the latter: its batch went with it
            if isinstance(error, RuntimeError) and not str(error).startswith(_DEAD):
                raise
            deaths += 1
            if deaths == _MOST_DEATHS:
                raise UserError(
                    f"a process that loads images died {deaths} times in a row on one batch ({reason(error)}): most "
                    "often memory or /dev/shm is full, so lower data.workers; with data.workers=0 an image that "
                    "crashes its decoder crashes in the open; --resume goes on from the last checkpoint"
                ) from None
            warnings.warn(f"a process that loads images died ({reason(error)}): new ones go on", stacklevel=2)


def _noticing_deaths_here(loader: DataLoader[T]) -> Iterator[T]:
    """torch's handler of SIGCHLD raises wherever the trainer stands, be it in the middle of the optimizer's step.
    Without it, the wait for a batch looks after the processes every few seconds."""
    if loader.num_workers == 0 or threading.current_thread() is not threading.main_thread():
        return _started(loader)
    before = signal.getsignal(signal.SIGCHLD)
    batches = _started(loader)
    signal.signal(signal.SIGCHLD, before if before is not None else signal.SIG_DFL)
    return batches
