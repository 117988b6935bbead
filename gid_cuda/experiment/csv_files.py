"""The numbers as CSV, every digit kept: one file of the runs, one of the table made from them.

A spreadsheet takes a text that begins with =, +, - or @ for a formula, and runs it. Such a name ("+ GID") has a ' put
before it, which spreadsheets do not show; the column `run`, by which runs are found again, never begins so.
"""

from __future__ import annotations

import csv
import io
from collections.abc import Sequence
from typing import Any

from gid_cuda.experiment.matrix import Experiment
from gid_cuda.experiment.schema import METRICS
from gid_cuda.experiment.table import Line, Results, Spread

_MORE = ("step", "best_ap", "best_step", "seconds", "parameters")  # of metrics.json
RUN_COLUMNS = ("run", "detector", "row", "seed", *METRICS, *_MORE)
TABLE_COLUMNS = (
    "detector", "row", "metric", "mean", "deviation", "seeds", "difference", "difference_deviation",
    "difference_seeds", "paper", "paper_difference",
)  # fmt: skip


def runs_csv(experiment: Experiment, results: Results) -> str:
    """A line for each run that is done; an empty field: nothing to count."""
    rows = [
        [run.key, run.detector, run.row, run.seed, *(results[run.key].get(name) for name in (*METRICS, *_MORE))]
        for run in experiment.runs
        if run.key in results
    ]
    return _text(RUN_COLUMNS, rows)


def read_runs_csv(text: str) -> Results:
    """`runs_csv` read back: metrics by run."""
    return {
        row["run"]: {name: float(row[name]) if row[name] else None for name in (*METRICS, *_MORE)}
        for row in csv.DictReader(io.StringIO(text))
    }


def table_csv(lines: Sequence[Line]) -> str:
    """A line for each row and metric."""
    rows = [
        [line.detector, line.name, metric, *_fields(line.values.get(metric)), *_fields(line.differences.get(metric)),
         line.paper.get(metric), line.paper_differences.get(metric)]
        for line in lines
        for metric in METRICS
        if metric in line.values or metric in line.paper
    ]  # fmt: skip
    return _text(TABLE_COLUMNS, rows)


def _fields(value: Spread | None) -> list[Any]:
    return [None, None, None] if value is None else [value.mean, value.deviation, value.count]


def _no_formula(value: Any) -> Any:
    return f"'{value}" if isinstance(value, str) and value.startswith(("=", "+", "-", "@")) else value


def _text(columns: Sequence[str], rows: Sequence[Sequence[Any]]) -> str:
    file = io.StringIO()
    writer = csv.writer(file, lineterminator="\n")
    writer.writerow(columns)
    writer.writerows([_no_formula(value) for value in row] for row in rows)
    return file.getvalue()
