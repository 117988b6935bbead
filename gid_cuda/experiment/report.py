"""Writes what an experiment has come to so far into its folder: tables as text, CSV and JSON, and report.html."""

from __future__ import annotations

import datetime
from collections.abc import Mapping
from functools import lru_cache
from pathlib import Path
from typing import Any

from gid_cuda.detectors.own import Builder
from gid_cuda.errors import UserError, reason
from gid_cuda.experiment import pictures as drawing
from gid_cuda.experiment.csv_files import read_runs_csv, runs_csv, table_csv
from gid_cuda.experiment.json_file import results_json
from gid_cuda.experiment.matrix import Experiment, teacher_key
from gid_cuda.experiment.page import Pictures, page
from gid_cuda.experiment.schema import METRICS
from gid_cuda.experiment.state import State, read_metrics, told_states
from gid_cuda.experiment.table import Results, table_lines, table_text
from gid_cuda.files import write_text
from gid_cuda.tensor_files import load_plain


def write_report(
    experiment: Experiment,
    states: Mapping[str, State],
    *,
    adapter: Builder | None = None,
    draw: bool = True,
    redo: bool = False,
) -> str:
    """states: of the runs that are settled; the others' are read. draw: whether pictures are made. Returns the table,
    and a sentence where the files are kept as they were: see `_kept`; not where runs are trained anew (redo).

    Each file is replaced in one move: whoever reads meanwhile sees a whole one.
    """
    known = told_states(experiment, states)
    results = done_results(experiment, known)
    if not redo and (told := _kept(experiment, known, results)):
        return f"{(experiment.output / 'table.txt').read_text(encoding='utf-8')}\n{told}\n"
    lines = table_lines(experiment, results)
    text = table_text(experiment, lines)
    experiment.output.mkdir(parents=True, exist_ok=True)
    write_text(experiment.output / "table.txt", text)
    write_text(experiment.output / "table.csv", table_csv(lines))
    write_text(experiment.output / "runs.csv", runs_csv(experiment, results))
    now = datetime.datetime.now().astimezone().strftime("%Y-%m-%d %H:%M %Z")
    write_text(experiment.output / "results.json", results_json(experiment, lines, now))
    images = _draw(experiment, set(results), adapter) if draw else {}
    write_text(experiment.output / "report.html", page(experiment, known, results, lines, images, now=now))
    return text


def _kept(experiment: Experiment, states: Mapping[str, State], results: Results) -> str | None:
    """Why nothing is written: an edited config would take numbers out of the tables, and nothing new comes in.

    The numbers stay in the runs' folders, but whoever edits a file to look at the plan shall not lose a page by it.
    """
    try:
        shown = set(read_runs_csv((experiment.output / "runs.csv").read_text(encoding="utf-8")))
        (experiment.output / "table.txt").read_text(encoding="utf-8")
    except (OSError, ValueError, KeyError, TypeError):
        return None  # no tables yet, or damaged ones
    planned = {run.key for run in experiment.runs}
    lost = [key for key in shown & planned if states[key].kind in ("changed", "blocked")]
    if not lost or set(results) & planned - shown:
        return None
    return (
        f"tables and page are kept as they were: {len(lost)} of their runs were made by another config than "
        f"{experiment.path} now has; --redo trains them anew"
    )


def done_results(experiment: Experiment, states: Mapping[str, State]) -> Results:
    """metrics.json of the runs that are done: no other number comes into a table."""
    found = {run.key: read_metrics(run) for run in experiment.runs if states[run.key].kind == "done"}
    return {key: metrics for key, metrics in found.items() if metrics is not None} | _given_teachers(experiment)


def _given_teachers(experiment: Experiment) -> dict[str, Any]:
    """What the checkpoints of teachers that are not trained here say of themselves: AP and AP50 of their own runs."""
    found: dict[str, Any] = {}
    for detector in experiment.detectors:
        weights = experiment.given_weights(detector)
        if weights in (None, "coco"):
            continue
        path = Path(weights or "")
        try:
            status = path.stat()
            metrics = _stored_metrics(path, status.st_mtime_ns, status.st_size)
        except OSError:
            continue
        if metrics is not None:
            found[teacher_key(detector)] = metrics
    return found


@lru_cache(maxsize=16)
def _stored_metrics(path: Path, changed: int, size: int) -> dict[str, float] | None:
    """None for weights without numbers: safetensors, a state dict, a file that cannot be read."""
    try:
        content = load_plain(path)
    except Exception:  # what a broken file raises depends on where; the runs that need it tell
        return None
    metrics = content.get("metrics") if isinstance(content, Mapping) else None
    if not isinstance(metrics, Mapping):
        return None
    return {name: float(metrics[name]) for name in METRICS if type(metrics.get(name)) in (int, float)}


def _draw(experiment: Experiment, done: set[str], adapter: Builder | None) -> Pictures:
    """What cannot be drawn leaves its reason: a page without a picture is better than none."""
    found: dict[tuple[str, str], Path | str] = {}
    for detector in experiment.detectors:
        for row in ("", *(row.name for row in experiment.rows)):
            try:
                if row:
                    picture = drawing.draw_row(experiment, detector, row, done, adapter)
                else:
                    picture = drawing.draw_curves(experiment, detector, done)
            except UserError as error:
                found[detector, row] = str(error)
                continue
            except Exception as error:  # a user's adapter may raise anything
                found[detector, row] = f"{type(error).__name__}: {reason(error)}"
                continue
            if picture is not None:
                found[detector, row] = picture
    return found
