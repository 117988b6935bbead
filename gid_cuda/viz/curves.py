"""Curves of losses, AP and kinds of general instances of one run or several, from the `log.jsonl` in their folders."""

from __future__ import annotations

import json
import math
from collections.abc import Callable, Sequence
from functools import partial
from pathlib import Path
from typing import Any

from matplotlib.axes import Axes
from matplotlib.figure import Figure
from matplotlib.layout_engine import ConstrainedLayoutEngine
from matplotlib.lines import Line2D
from matplotlib.ticker import MaxNLocator

from gid_cuda.errors import UserError
from gid_cuda.viz.drawing import shorten
from gid_cuda.viz.style import bar_style, line_style, marker_style, quiet_axes

Points = list[tuple[int, float]]
"""(step, value) of what a run has logged under one name."""

_METRICS = ("AP", "AP50")
_KINDS: dict[str, dict[str, Any]] = {
    "gi_positive": {"color": "#D55E00", "linestyle": "-", "marker": "o"},
    "gi_semi_positive": {"color": "#E69F00", "linestyle": (0, (3.2, 1.4)), "marker": "s"},
    "gi_negative": {"color": "#56B4E9", "linestyle": (0, (1.2, 1.2)), "marker": "D"},
    "gi_uncounted": {"color": "#777777", "linestyle": (0, (6, 1.5, 1.2, 1.5)), "marker": "^"},
}
"""Counts of general instances an image by kind, in colours near those of the pictures."""
_LOG_SCALE_SPAN = 30.0  # curves whose values span more than this factor get a logarithmic axis


def read_log(run: Path) -> list[dict[str, Any]]:
    """The entries of a run's `log.jsonl`. A last line that is cut off (the run goes on, or was killed) is left out."""
    path = run / "log.jsonl"
    if not path.is_file():
        raise UserError(f"{run} has no log.jsonl: name the folder of a run (the `output` of its config)")
    entries: list[dict[str, Any]] = []
    lines = path.read_text(encoding="utf-8").splitlines()
    for number, line in enumerate(lines, start=1):
        try:
            entry = json.loads(line)
            int(entry["step"]), entry["kind"]
        except (ValueError, TypeError, KeyError):
            if number == len(lines):
                break
            raise UserError(f"{path}, line {number} is not an entry of a training log: {shorten(line, 60)!r}") from None
        entries.append(entry)
    return entries


def smooth(values: Sequence[float], weight: float = 0.9) -> list[float]:
    """Exponential smoothing: a mean in which each value weighs `weight` times as much as the one after it."""
    total, norm, result = 0.0, 0.0, []
    for value in values:
        if math.isfinite(value):
            total, norm = weight * total + value, weight * norm + 1
        result.append(total / norm if norm else math.nan)
    return result


def curves_figure(runs: Sequence[Path], names: Sequence[str], *, smoothing: float = 0.9) -> Figure:
    """A small picture for every loss (weighted, as logged) with one line a run; for the kinds of general instances an
    image (paper, Figure 5), one picture for each run that counts them; and for AP and AP50, as bars where no run was
    evaluated more than once.

    The thin lines behind are the values as logged. `smoothing` is the weight of `smooth`; less is taken for a short
    log, which would otherwise lag behind its own values. Axes are logarithmic where the losses need it.
    """
    logs = [read_log(run) for run in runs]
    labels = [shorten(name, 40) for name in names]
    panels = _loss_panels(logs, smoothing) + _kind_panels(logs, labels, smoothing) + _metric_panels(logs)
    if not panels:
        raise UserError(f"{', '.join(str(r) for r in runs)}: nothing is logged yet, so there is no curve to draw")
    columns = min(3, len(panels))
    rows = math.ceil(len(panels) / columns)
    legend_columns = 3 if max(map(len, names)) <= 24 else 2
    legend = 0.25 * math.ceil(len(runs) / legend_columns) + 0.15
    size = (3.25 * columns + 0.2, 2.15 * rows + legend)
    layout = ConstrainedLayoutEngine(rect=(0, legend / size[1], 1, 1 - legend / size[1]))
    figure = Figure(figsize=size, dpi=100, facecolor="white", layout=layout)
    cells = figure.subplots(rows, columns, squeeze=False).flatten()
    for axes, draw in zip(cells, panels, strict=False):
        draw(axes)
    for axes in cells[len(panels) :]:
        axes.set_axis_off()
    handles = [Line2D([], [], **line_style(i), **marker_style(i, 1)) for i in range(len(runs))]
    figure.legend(handles, labels, loc="lower center", ncols=min(legend_columns, len(runs)), frameon=False,
                  fontsize=10.5, handlelength=3.5)  # fmt: skip
    return figure


Panel = Callable[[Axes], None]
"""Draws one of the small pictures."""


def _loss_panels(logs: Sequence[list[dict[str, Any]]], smoothing: float) -> list[Panel]:
    """The total first, then every loss term in the order in which the runs log them."""
    logged = [key for log in logs for entry in log if entry["kind"] == "train" for key in entry]
    keys = dict.fromkeys(["loss"] + [key for key in logged if key.startswith("loss_")])
    series = {key: [_points(log, "train", key) for log in logs] for key in keys}
    return [partial(_losses, key=key, of_runs=s, smoothing=smoothing) for key, s in series.items() if any(s)]


def _kind_panels(logs: Sequence[list[dict[str, Any]]], labels: Sequence[str], smoothing: float) -> list[Panel]:
    of_runs = [{key: _points(log, "train", key) for key in _KINDS} for log in logs]
    counting = [(label, kinds) for label, kinds in zip(labels, of_runs, strict=True) if any(kinds.values())]
    every = [_smoothed(points, smoothing) for _, kinds in counting for points in kinds.values()]
    top = max((value for values in every for value in values if math.isfinite(value)), default=1.0)
    title = "general instances an image" if len(counting) == 1 else "instances, {}"
    return [
        partial(_kinds, title=title.format(shorten(label, 24)), kinds=kinds, top=top, smoothing=smoothing)
        for label, kinds in counting
    ]


def _metric_panels(logs: Sequence[list[dict[str, Any]]]) -> list[Panel]:
    series = {key: [_points(log, "eval", key) for log in logs] for key in _METRICS}
    series = {key: of_runs for key, of_runs in series.items() if any(of_runs)}
    if series and all(len(points) <= 1 for of_runs in series.values() for points in of_runs):
        return [partial(_bars, series=series)]
    return [partial(_metric, key=key, of_runs=of_runs) for key, of_runs in series.items()]


def _losses(axes: Axes, key: str, of_runs: Sequence[Points], smoothing: float) -> None:
    styles = [{**line_style(i), **marker_style(i, len(points))} for i, points in enumerate(of_runs)]
    drawn = _curves(axes, of_runs, styles, smoothing)  # empty for a run without this term
    positive = [v for v in drawn if v > 0]
    if positive and len(positive) == len(drawn) and max(positive) / min(positive) > _LOG_SCALE_SPAN:
        axes.set_yscale("log")
    _steps(axes, "loss, all terms" if key == "loss" else key.removeprefix("loss_").replace("_", " "))


def _kinds(axes: Axes, title: str, kinds: dict[str, Points], top: float, smoothing: float) -> None:
    styles = []
    for i, (key, points) in enumerate(kinds.items()):
        name = key.removeprefix("gi_").replace("_", "-")
        styles.append({**marker_style(i, len(points)), **_KINDS[key], "linewidth": 1.8, "label": name})
    _curves(axes, list(kinds.values()), styles, smoothing)
    axes.set_ylim(0, 1.5 * top or 1)  # room for the legend
    axes.legend(loc="upper center", ncols=2, fontsize=8.5, frameon=False, handlelength=3.2, columnspacing=1,
                labelspacing=0.25, borderaxespad=0.1)  # fmt: skip
    _steps(axes, title)


def _metric(axes: Axes, key: str, of_runs: Sequence[Points]) -> None:
    for i, points in enumerate(of_runs):
        axes.plot(*_columns(points), **line_style(i), **marker_style(i, len(points), every_point=True))
        if len(points) == 1:  # one mark among curves is easily missed
            axes.axhline(points[0][1], color=line_style(i)["color"], linewidth=1, alpha=0.5, zorder=1)
    axes.set_ylim(0, 1.1 * max([value for points in of_runs for _, value in points if value > 0], default=1.0))
    _steps(axes, key)


def _bars(axes: Axes, series: dict[str, list[Points]]) -> None:
    """The only evaluation of each run, as a group of bars for each metric."""
    steps = {points[0][0] for of_runs in series.values() for points in of_runs if points}
    quiet_axes(axes, f"after step {steps.pop()}" if len(steps) == 1 else "after the last step")
    count = len(next(iter(series.values())))
    width = 0.84 / count
    for i in range(count):
        found = [(place, of_runs[i][0][1]) for place, of_runs in enumerate(series.values()) if of_runs[i]]
        places = [place + width * (i - (count - 1) / 2) for place, _ in found]
        bars = axes.bar(places, [value for _, value in found], width=0.94 * width, **bar_style(i))
        if count <= 5:
            axes.bar_label(bars, fmt="%.1f", fontsize=8.5, padding=1)
    axes.set_xticks(range(len(series)), list(series), fontsize=9)
    axes.grid(False, axis="x")
    axes.margins(y=0.12)
    axes.set_ylim(bottom=0)


def _curves(axes: Axes, series: Sequence[Points], styles: Sequence[dict[str, Any]], smoothing: float) -> list[float]:
    """Faint lines of the values behind bold ones of the smoothed values, which are returned, all in one list."""
    for points, style in zip(series, styles, strict=True):
        axes.plot(*_columns(points), color=style["color"], linewidth=0.8, alpha=0.25)
    drawn: list[float] = []
    for points, style in zip(series, styles, strict=True):
        smoothed = _smoothed(points, smoothing)
        axes.plot([step for step, _ in points], smoothed, **style)
        drawn += smoothed
    return drawn


def _smoothed(points: Points, smoothing: float) -> list[float]:
    return smooth([value for _, value in points], max(0.0, min(smoothing, 1 - 14 / max(1, len(points)))))


def _steps(axes: Axes, title: str) -> None:
    quiet_axes(axes, title)
    axes.set_xlim(left=0)
    axes.xaxis.set_major_locator(MaxNLocator(5, integer=True))
    axes.set_xlabel("step", fontsize=9, labelpad=1)


def _points(log: list[dict[str, Any]], kind: str, key: str) -> Points:
    return [(e["step"], float(e[key])) for e in log if e["kind"] == kind and isinstance(e.get(key), (int, float))]


def _columns(points: Points) -> tuple[list[int], list[float]]:
    return [step for step, _ in points], [value for _, value in points]
