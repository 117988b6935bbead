"""Trains what is missing of an experiment, one run after the other or several at once.

Nothing is remembered but what lies in the runs' folders, so it may be stopped at any moment, by any means; started
again, it goes on from there.
"""

from __future__ import annotations

import contextlib
import json
import os
import signal
import sys
import time
from collections.abc import Callable, Iterator, Sequence
from typing import Any

from gid_cuda.config import config_to_dict
from gid_cuda.experiment import process
from gid_cuda.experiment.machine import describe_machine
from gid_cuda.experiment.matrix import Experiment, PlannedRun
from gid_cuda.experiment.process import Active
from gid_cuda.experiment.state import (
    CONFIG,
    NOTE,
    State,
    blocked,
    fingerprint,
    forget,
    read_metrics,
    read_note,
    state_of,
)
from gid_cuda.files import write_text
from gid_cuda.plain_yaml import dump_yaml

POLL = 0.2  # seconds between two looks at the processes

States = dict[str, State]
"""By the key of a run."""


class Runner:
    """`work` trains; `states` is what became of each run, those that are not settled yet left out.

    command:  what trains a run; `--cfg FILE --resume` (or --overwrite) is added
    devices:  for each run that may go on at the same time its CUDA_VISIBLE_DEVICES, None: as it is
    redo:     runs of another config are trained anew; otherwise they are left as they are, and told
    finished: called after every run that has ended, and at the end
    """

    def __init__(
        self,
        experiment: Experiment,
        command: Sequence[str],
        *,
        devices: Sequence[str | None] = (None,),
        redo: bool = False,
        say: Callable[[str], None] = print,
        finished: Callable[[States], None] = lambda states: None,
    ) -> None:
        self.states: States = {}
        self._experiment, self._command, self._devices, self._redo = experiment, list(command), list(devices), redo
        self._say, self._finished = say, finished
        self._runs = {run.key: run for run in experiment.runs}
        self._active: list[Active] = []
        self._waiting: set[str] = set()

    def work(self) -> States:
        """Returns when every run is done, changed, failed or blocked. KeyboardInterrupt (also on SIGTERM, SIGHUP) ends
        the processes; they go on next time from their last checkpoints."""
        with _signals_interrupt():
            try:
                while len(self.states) < len(self._runs):
                    if not (self._reap() or self._begin_next()):
                        time.sleep(POLL)
            finally:
                process.stop(self._active)
                for active in self._active:
                    self._add_to_note(active.run, seconds=time.monotonic() - active.began)
                self._active.clear()
        self._finished(self.states)
        return self.states

    def _reap(self) -> bool:
        """Settles the processes that have ended."""
        ended = [active for active in self._active if active.process.poll() is not None]
        for active in ended:
            self._active.remove(active)
            state = state_of(active.run)
            if active.process.returncode != 0:
                state = State("failed", process.how_it_failed(active))
            elif state.kind != "done":
                state = State("failed", f"it ended well but is {state.kind}: {state.reason or 'no metrics.json'}")
            failed = state.reason if state.kind == "failed" else None
            self._add_to_note(active.run, seconds=time.monotonic() - active.began, failed=failed)
            self._settle(active.run, state)
            self._finished(self.states)
        return bool(ended)

    def _begin_next(self) -> bool:
        """Settles or begins the first run that can be; False where there is nothing to do but wait."""
        taken = {active.slot for active in self._active}
        free = next((slot for slot in range(len(self._devices)) if slot not in taken), None)
        busy = {active.run.key for active in self._active}
        for run in self._experiment.runs:
            if run.key in self.states or run.key in busy:
                continue
            teacher = self.states.get(run.teacher) if run.teacher else State("done")
            if teacher is None:
                continue  # it comes first
            if teacher.kind != "done":
                self._settle(run, blocked(self._runs[run.teacher or ""].title))
                return True
            state = state_of(run)
            if state.kind == "done" or state.kind == "changed" and not self._redo:
                self._settle(run, state)
                return True
            if free is not None and self._begin(run, free):
                return True
        return False

    def _begin(self, run: PlannedRun, slot: int) -> bool:
        lock = process.take_lock(run.folder)
        if lock is None:
            if run.key not in self._waiting:
                self._say(f"{run.title}: process {process.lock_holder(run.folder)} trains it already: waiting for it")
                self._waiting.add(run.key)
            return False
        state = state_of(run)  # whoever held the lock may have finished it
        if state.kind == "done" or state.kind == "changed" and not self._redo:
            lock.close()
            return False
        write_text(run.folder / CONFIG, dump_yaml(config_to_dict(run.config)))
        if state.kind == "changed":
            forget(run)  # before the note speaks of the new teacher: killed now, the old numbers would pass for its own
        note = read_note(run) if state.kind == "unfinished" else {}
        note.pop("failed", None)
        note["machines"] = _with(note.get("machines", []), describe_machine())
        note["teacher"] = fingerprint(run) or note.get("teacher")
        write_text(run.folder / NOTE, json.dumps(note, indent=1) + "\n")
        way = "--resume" if state.kind == "unfinished" else "--overwrite"  # no config.yaml: nobody knows whose last.pt
        command = [*self._command, "--cfg", str(run.folder / CONFIG), way]
        self._active.append(process.begin(run, command, lock, slot=slot, environment=self._environment(slot)))
        device = f" on GPU {self._devices[slot]}" if self._devices[slot] is not None else ""
        verb = {"changed": "anew", "unfinished": "goes on"}.get(state.kind, "begins")
        self._say(f"{run.title}: {verb}{device}")
        return True

    def _environment(self, slot: int) -> dict[str, str]:
        device = self._devices[slot]
        if device is not None:
            return {"CUDA_VISIBLE_DEVICES": device}
        if len(self._devices) == 1 or "OMP_NUM_THREADS" in os.environ:
            return {}
        return {"OMP_NUM_THREADS": str(max(1, (os.cpu_count() or 1) // len(self._devices)))}

    def _settle(self, run: PlannedRun, state: State) -> None:
        self.states[run.key] = state
        place = f"[{len(self.states)}/{len(self._runs)}] {run.title}"
        if state.kind == "done":
            metrics = read_metrics(run) or {}
            self._say(f"{place}: done, AP {_percent(metrics.get('AP'))}, AP50 {_percent(metrics.get('AP50'))}")
        else:
            self._say(f"{place}: {state.kind}, {state.reason}")

    def _add_to_note(self, run: PlannedRun, *, seconds: float, failed: str | None = None) -> None:
        note = read_note(run)
        if failed is not None:
            note["failed"] = failed
        note["seconds"] = [*note.get("seconds", []), round(seconds, 1)]
        write_text(run.folder / NOTE, json.dumps(note, indent=1) + "\n")


def train_command(script: str, adapter: str | None = None) -> list[str]:
    """`scripts/train.py` with the Python that runs this."""
    return [sys.executable, script, *(["--adapter", adapter] if adapter else [])]


def _with(values: list[Any], value: Any) -> list[Any]:
    return values if value in values else [*values, value]


def _percent(value: float | None) -> str:
    return "-" if value is None else f"{value:.1f}"


@contextlib.contextmanager
def _signals_interrupt() -> Iterator[None]:
    """SIGTERM and SIGHUP (a closed terminal) end as Ctrl-C does; what `nohup` has switched off stays off."""

    def interrupt(*_: object) -> None:
        raise KeyboardInterrupt

    numbers = [n for n in (signal.SIGTERM, signal.SIGHUP) if signal.getsignal(n) is not signal.SIG_IGN]
    before = {number: signal.signal(number, interrupt) for number in numbers}
    try:
        yield
    finally:
        for number, handler in before.items():
            signal.signal(number, handler)
