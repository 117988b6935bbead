"""What has become of a run, as its folder tells: done, unfinished, missing, or made by another config.

Beside what `scripts/train.py` writes, a run's folder holds

    experiment.yaml   the config that it was begun with
    experiment.json   the note: commit and machine, the teacher's fingerprint, seconds of each start, how it failed
    experiment.log    what it printed
    experiment.lock   held as long as it is being trained
"""

from __future__ import annotations

import hashlib
import json
import os
from collections.abc import Mapping
from dataclasses import dataclass
from functools import lru_cache
from pathlib import Path
from typing import Any, Literal

from gid_cuda.config import Config, config_from_dict, config_to_dict
from gid_cuda.errors import UserError
from gid_cuda.experiment.matrix import TEACHER, Experiment, PlannedRun
from gid_cuda.experiment.settings import leaves
from gid_cuda.plain_yaml import parse_yaml

CONFIG, NOTE, LOG, LOCK = (f"experiment.{suffix}" for suffix in ("yaml", "json", "log", "lock"))

Kind = Literal["missing", "unfinished", "done", "changed", "failed", "blocked"]

# Where a run stands and what it runs on decides nothing that its numbers say.
_MAY_DIFFER = ("output", "device", "data.workers", "train.log_every", "train.checkpoint_every")


@dataclass(frozen=True)
class State:
    kind: Kind
    reason: str = ""  # changed, failed, blocked: why; missing, unfinished: how it failed last time, if it did


def state_of(run: PlannedRun) -> State:
    """Reads files, writes none."""
    if not (run.folder / "config.yaml").is_file():
        return State("missing", _failure(run))
    differences = config_differences(run)
    if differences:
        return State("changed", "; ".join(differences))
    before = read_note(run).get("teacher")
    if before is not None and fingerprint(run) not in (None, before):
        return State("changed", "its teacher's weights have changed since")
    return State("unfinished", _failure(run)) if read_metrics(run) is None else State("done")


def _failure(run: PlannedRun) -> str:
    return str(read_note(run).get("failed") or "")


def current_states(experiment: Experiment) -> dict[str, State]:
    """Of every run, by its key. Numbers that came from a teacher that is not there as planned count for nothing."""
    states = {run.key: state_of(run) for run in experiment.runs}
    titles = {run.key: run.title for run in experiment.runs}
    for run in experiment.runs:
        teacher = states[run.teacher].kind if run.teacher else "done"
        if teacher == "changed" or teacher != "done" and states[run.key].kind == "done":
            states[run.key] = blocked(titles[run.teacher or ""])
    return states


def told_states(experiment: Experiment, settled: Mapping[str, State]) -> dict[str, State]:
    """For tables and page: what failed last time stays failed until it is done, and blocks what would learn from it.

    settled: what this start has come to; the other runs are as their folders tell.
    """
    states = current_states(experiment) | dict(settled)
    for run in experiment.runs:
        state = states[run.key]
        if state.kind in ("missing", "unfinished") and state.reason:
            states[run.key] = State("failed", state.reason)
        elif run.teacher and states[run.teacher].kind == "failed" and state.kind in ("missing", "unfinished"):
            states[run.key] = blocked(next(other.title for other in experiment.runs if other.key == run.teacher))
    return states


def blocked(teacher: str) -> State:
    """teacher: its run's title."""
    name = "teacher" if teacher == TEACHER else f"teacher ({teacher})"
    return State("blocked", f"its {name} is not done")


def config_differences(run: PlannedRun) -> list[str]:
    """How the config in the run's folder differs from the planned one, a phrase a key."""
    path = run.folder / "config.yaml"
    try:
        raw = parse_yaml(path.read_text(encoding="utf-8"), str(path))
        stored = config_from_dict(raw if isinstance(raw, dict) else {}, name=str(path))
    except (UserError, OSError, UnicodeDecodeError) as error:
        return [f"its config.yaml cannot be read ({str(error).splitlines()[0]})"]
    then, now = dict(leaves(_placeless(stored))), dict(leaves(_placeless(run.config)))
    keys = [key for key in [*now, *(key for key in then if key not in now)] if then.get(key) != now.get(key)]
    return [f"{key} was {_say(then.get(key))} and is {_say(now.get(key))}" for key in keys if key not in _MAY_DIFFER]


def _placeless(config: Config) -> dict[str, Any]:
    """The teacher's weights relative to the run's folder: an experiment's folder may be moved as a whole."""
    values = config_to_dict(config)
    if values["teacher"] and values["teacher"]["weights"] not in (None, "coco"):
        values["teacher"]["weights"] = os.path.relpath(values["teacher"]["weights"], config.output)
    return values


def _say(value: Any) -> str:
    return "none" if value is None else str(value)


def forget(run: PlannedRun) -> None:
    """The run in the folder counts no more: it is missing. Its other files go when the next one begins to train."""
    (run.folder / "config.yaml").unlink(missing_ok=True)


def read_metrics(run: PlannedRun) -> dict[str, Any] | None:
    """None where the run has not finished, or its file is damaged: it then finishes once more, from its checkpoint."""
    return _read_json(run.folder / "metrics.json")


def read_note(run: PlannedRun) -> dict[str, Any]:
    return _read_json(run.folder / NOTE) or {}


def machines_of(experiment: Experiment) -> list[dict[str, str]]:
    """What the runs were made with, as `describe_machine` had it when each began; each kind once."""
    found: list[dict[str, str]] = []
    for run in experiment.runs:
        found += [machine for machine in read_note(run).get("machines", []) if machine not in found]
    return found


def _read_json(path: Path) -> dict[str, Any] | None:
    try:
        content = json.loads(path.read_text(encoding="utf-8"))
    except (OSError, ValueError):
        return None
    return content if isinstance(content, dict) else None


def fingerprint(run: PlannedRun) -> str | None:
    """Of the weights that this run learns from; None where there are none yet, or no file of them."""
    if run.config.distill is None or run.config.teacher is None or run.config.teacher.weights in (None, "coco"):
        return None
    path = Path(run.config.teacher.weights or "")
    try:
        status = path.stat()
    except OSError:
        return None
    return _digest(path, status.st_mtime_ns, status.st_size)


@lru_cache(maxsize=64)
def _digest(path: Path, changed: int, size: int) -> str:
    digest = hashlib.sha256()
    with open(path, "rb") as file:
        while block := file.read(1 << 20):
            digest.update(block)
    return digest.hexdigest()[:16]
