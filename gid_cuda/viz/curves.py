"""Loss and AP curves of one run or several, from the `log.jsonl` in their folders."""

from __future__ import annotations

import json
import math
from collections.abc import Sequence
from pathlib import Path
from typing import Any

from matplotlib.axes import Axes
from matplotlib.figure import Figure
from matplotlib.layout_engine import ConstrainedLayoutEngine
from matplotlib.ticker import MaxNLocator

from gid_cuda.errors import UserError
from gid_cuda.viz.drawing import shorten

_COLOURS = ("#0072B2", "#D55E00", "#009E73", "#CC79A7", "#E69F00", "#000000", "#56B4E9")
_STYLES = ("-", "--", "-.", ":", (0, (7, 1.5, 1, 1.5, 1, 1.5)))
_METRICS = ("AP", "AP50")
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
    """A small picture for every loss (weighted, as logged) and for AP and AP50, each with one line a run.

    The thin lines behind the losses are the values as logged. `smoothing` is the weight of `smooth`; less is taken for
    a short log, which would otherwise lag behind its own values. Axes are logarithmic where the losses need it.
    """
    logs = [read_log(run) for run in runs]
    series = {key: [_points(log, "train", key) for log in logs] for key in _losses(logs)}
    series |= {key: [_points(log, "eval", key) for log in logs] for key in _METRICS}
    series = {key: of_runs for key, of_runs in series.items() if any(of_runs)}
    if not series:
        raise UserError(f"{', '.join(str(r) for r in runs)}: nothing is logged yet, so there is no curve to draw")
    columns = min(3, len(series))
    rows = math.ceil(len(series) / columns)
    legend_columns = 3 if max(map(len, names)) <= 24 else 2
    legend = 0.25 * math.ceil(len(runs) / legend_columns) + 0.15
    size = (3.25 * columns + 0.2, 2.15 * rows + legend)
    layout = ConstrainedLayoutEngine(rect=(0, legend / size[1], 1, 1 - legend / size[1]))
    figure = Figure(figsize=size, dpi=100, facecolor="white", layout=layout)
    cells = figure.subplots(rows, columns, squeeze=False).flatten()
    for axes, (key, of_runs) in zip(cells, series.items(), strict=False):
        _panel(axes, key, of_runs, smoothing)
    for axes in cells[len(series) :]:
        axes.set_axis_off()
    # Lines are drawn for runs that lack a term too (empty), so the first panel's handles are all runs'.
    handles = cells[0].get_lines()[-len(runs) :]
    labels = [shorten(name, 40) for name in names]
    figure.legend(handles, labels, loc="lower center", ncols=min(legend_columns, len(runs)), frameon=False,
                  fontsize=10.5, handlelength=3.5)  # fmt: skip
    return figure


def _losses(logs: Sequence[list[dict[str, Any]]]) -> list[str]:
    """The total first, then every loss term in the order in which the runs log them."""
    keys = [key for log in logs for entry in log if entry["kind"] == "train" for key in entry]
    return list(dict.fromkeys(["loss"] + [key for key in keys if key.startswith("loss_")]))


def _points(log: list[dict[str, Any]], kind: str, key: str) -> list[tuple[int, float]]:
    return [(e["step"], float(e[key])) for e in log if e["kind"] == kind and isinstance(e.get(key), (int, float))]


def _panel(axes: Axes, key: str, of_runs: Sequence[list[tuple[int, float]]], smoothing: float) -> None:
    is_metric = key in _METRICS
    for i, points in enumerate(of_runs):
        if not is_metric:
            axes.plot(*_columns(points), color=_COLOURS[i % len(_COLOURS)], linewidth=0.8, alpha=0.25)
    drawn: list[float] = []
    for i, points in enumerate(of_runs):
        steps, values = _columns(points)
        values = values if is_metric else smooth(values, max(0.0, min(smoothing, 1 - 14 / max(1, len(values)))))
        drawn += values
        style = _STYLES[i % len(_STYLES)]
        marker = "osD^v"[i % 5] if is_metric else ""
        axes.plot(steps, values, color=_COLOURS[i % len(_COLOURS)], linestyle=style, linewidth=1.8, marker=marker,
                  markersize=4)  # fmt: skip
    positive = [v for v in drawn if v > 0]
    if not is_metric and len(positive) == len(drawn) and max(positive) / min(positive) > _LOG_SCALE_SPAN:
        axes.set_yscale("log")
    elif is_metric:
        axes.set_ylim(0, 1.1 * max(positive, default=1.0))
    axes.set_xlim(left=0)
    axes.set_title(_title(key), fontsize=10.5)
    axes.set_xlabel("step", fontsize=9, labelpad=1)
    axes.tick_params(labelsize=8.5)
    axes.xaxis.set_major_locator(MaxNLocator(5, integer=True))
    axes.grid(alpha=0.3, linewidth=0.6)
    for side in ("top", "right"):
        axes.spines[side].set_visible(False)


def _columns(points: list[tuple[int, float]]) -> tuple[list[int], list[float]]:
    return [step for step, _ in points], [value for _, value in points]


def _title(key: str) -> str:
    return "loss, all terms" if key == "loss" else key.removeprefix("loss_").replace("_", " ")
