"""The numbers of an experiment: means over seeds, differences to the baseline, the paper's own; and as aligned text."""

from __future__ import annotations

import statistics
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from typing import Any

from gid_cuda.experiment.matrix import TEACHER, Experiment, teacher_key
from gid_cuda.experiment.schema import METRICS, PaperNumbers

Results = Mapping[str, Mapping[str, Any]]
"""metrics.json of the runs that are done, by the key of the run; of teachers whose weights are given, by `teacher_key`,
what their checkpoints say."""


@dataclass(frozen=True)
class Spread:
    """Over `count` seeds: the mean and the sample standard deviation (divided by n - 1), which one seed has not."""

    mean: float
    deviation: float | None
    count: int


@dataclass(frozen=True)
class Line:
    """A row of the table for one detector; by metric, where there is a number."""

    detector: str
    name: str
    planned: int  # seeds; 0: a teacher whose weights are given
    done: int
    values: dict[str, Spread]
    differences: dict[str, Spread]  # to the baseline, paired by seed
    paper: dict[str, float]
    paper_differences: dict[str, float]


def spread(values: Sequence[float]) -> Spread | None:
    if not values:
        return None
    return Spread(statistics.fmean(values), statistics.stdev(values) if len(values) > 1 else None, len(values))


def table_lines(experiment: Experiment, results: Results) -> list[Line]:
    """Detector by detector: its teacher, then the rows in the order of the file."""
    return [
        _line(experiment, results, detector, name)
        for detector in experiment.detectors
        for name in (TEACHER, *(row.name for row in experiment.rows))
        if name != TEACHER and experiment.runs_of(detector, name) or name == TEACHER and experiment.teacher(detector)
    ]


def _line(experiment: Experiment, results: Results, detector: str, name: str) -> Line:
    runs = experiment.runs_of(detector, name)
    own = {run.seed: results[run.key] for run in runs if run.key in results}
    if name == TEACHER and not runs and teacher_key(detector) in results:
        own = {0: results[teacher_key(detector)]}
    base_runs = experiment.runs_of(detector, experiment.baseline) if experiment.baseline else []
    compared = name not in (TEACHER, experiment.baseline)
    base = {run.seed: results[run.key] for run in base_runs if run.key in results} if compared else {}
    values, differences = {}, {}
    for metric in METRICS:
        if (value := spread([m[metric] for m in own.values() if m.get(metric) is not None])) is not None:
            values[metric] = value
        if (value := spread(_paired(own, base, metric))) is not None:
            differences[metric] = value
    paper = _numbers(experiment.paper(detector, name))
    paper_base = _numbers(experiment.paper(detector, experiment.baseline)) if base_runs and compared else {}
    gains = {metric: paper[metric] - paper_base[metric] for metric in paper if metric in paper_base}
    done = len(own) if runs else 0
    return Line(detector, name, len(runs), done, values, differences, paper, gains)


def _paired(own: Mapping[int, Mapping[str, Any]], base: Mapping[int, Mapping[str, Any]], metric: str) -> list[float]:
    """Of the seeds that both have: they started from the same weights and saw the same batches."""
    pairs = [(own[seed].get(metric), base[seed].get(metric)) for seed in own if seed in base]
    return [mine - theirs for mine, theirs in pairs if mine is not None and theirs is not None]


def _numbers(paper: PaperNumbers | None) -> dict[str, float]:
    return {} if paper is None else paper.model_dump(exclude_none=True)


def show(value: Spread | None, *, signed: bool = False) -> str:
    """15.7 ±0.6, or for a difference +2.9 ±0.3."""
    if value is None:
        return "-"
    mean = one_decimal(value.mean, signed=signed)
    return mean if value.deviation is None else f"{mean} ±{value.deviation:.1f}"


def one_decimal(value: float, *, signed: bool = False) -> str:
    value = round(value, 1) + 0.0  # no "-0.0"
    return f"{value:+.1f}" if signed else f"{value:.1f}"


def table_text(experiment: Experiment, lines: Sequence[Line]) -> str:
    """Three lines a row where there are so many: the numbers, the difference to the baseline, the paper's numbers."""
    rows: list[tuple[str, ...]] = []
    for detector in experiment.detectors:
        head = detector or experiment.title
        rows.append((head, "seeds", *METRICS))
        for line in (line for line in lines if line.detector == detector):
            seeds = f"{line.done}/{line.planned}" if line.planned else "-"
            rows.append((line.name, seeds, *(show(line.values.get(m)) for m in METRICS)))
            if line.differences:
                cells = [show(d, signed=True) if (d := line.differences.get(m)) else "" for m in METRICS]
                rows.append((f"  against {experiment.baseline}", "", *cells))
            if line.paper:
                rows.append(("  the paper", "", *(_paper_cell(line, m) for m in METRICS)))
    widths = [max(len(row[i]) for row in rows) for i in range(len(rows[0]))]
    text = [
        "  ".join([row[0].ljust(widths[0]), *(c.rjust(w) for c, w in zip(row[1:], widths[1:], strict=True))]).rstrip()
        for row in rows
    ]
    return "\n".join(text) + "\n"


def _paper_cell(line: Line, metric: str) -> str:
    if metric not in line.paper:
        return ""
    gain = f" ({one_decimal(line.paper_differences[metric], signed=True)})" if metric in line.paper_differences else ""
    return one_decimal(line.paper[metric]) + gain
