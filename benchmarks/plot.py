"""The sweep as a picture: a panel an axis, both axes logarithmic, a colour and a marker an operator.

Ours are solid lines with filled markers, what one would take instead dashed ones with hollow markers, so that the
picture can be read without its colours.
"""

from __future__ import annotations

from collections.abc import Sequence
from itertools import groupby
from pathlib import Path
from typing import Any

from matplotlib.axes import Axes
from matplotlib.figure import Figure
from matplotlib.lines import Line2D
from matplotlib.ticker import FuncFormatter, LogLocator, NullFormatter

from benchmarks.report import seconds_text
from gid_cuda.errors import UserError

_STYLES = {  # Okabe and Ito's colours
    "gi_score": ("#0072B2", "o"),
    "topk_nms": ("#D55E00", "s"),
    "multilevel_roi_align": ("#009E73", "^"),
    "pairwise_distance": ("#CC79A7", "D"),
    "criterion": ("#000000", "v"),
}
_TITLES = {"R": "R: predicted boxes an image", "K": "K: boxes kept, or instances, an image", "B": "B: images"}


def save(result: dict[str, Any], path: Path) -> None:
    """result: what --json keeps. The same result gives the same file."""
    rows = result["sweep"]
    if not rows:
        raise UserError("there is no sweep to draw: run with --sweep, and with cases that have one")
    axes_names = [axis for axis in _TITLES if any(row["axis"] == axis for row in rows)]
    figure = Figure(figsize=(3.3 * len(axes_names) + 0.3, 3.6), dpi=100, facecolor="white", layout="constrained")
    panels = figure.subplots(1, len(axes_names), squeeze=False, sharey=True)[0]
    for panel, axis in zip(panels, axes_names, strict=True):
        _panel(panel, axis, [row for row in rows if row["axis"] == axis])
    panels[0].set_ylabel("time of a call", fontsize=9)
    operators = [operator for operator in _STYLES if any(row["operator"] == operator for row in rows)]
    handles = [Line2D([], [], color=_STYLES[o][0], marker=_STYLES[o][1], markersize=5, label=o) for o in operators]
    handles.append(Line2D([], [], color="0.4", linestyle="--", marker="o", markerfacecolor="white", markersize=5,
                          label="instead of it"))  # fmt: skip
    figure.legend(handles=handles, loc="outside lower center", ncols=3, frameon=False, fontsize=9.5, handlelength=3)
    figure.suptitle(result["machine"]["device"], fontsize=10)
    path.parent.mkdir(parents=True, exist_ok=True)
    # Without matplotlib's version in it, which would make another file of the same picture.
    figure.savefig(path, metadata={"Software": None} if path.suffix == ".png" else None)


def _panel(panel: Axes, axis: str, rows: Sequence[dict[str, Any]]) -> None:
    for (operator, role), group in groupby(rows, key=lambda row: (row["operator"], row["role"])):
        points = [(row["value"], row["median_s"]) for row in group]
        colour, marker = _STYLES[operator]
        ours = role == "ours"
        panel.plot(*zip(*points, strict=True), color=colour, marker=marker, markersize=5,
                   linestyle="-" if ours else (0, (4, 2)), linewidth=1.8 if ours else 1.2,
                   markerfacecolor=colour if ours else "white")  # fmt: skip
    panel.set_xscale("log")
    panel.set_yscale("log")
    panel.set_title(_TITLES[axis], fontsize=9.5)
    values = sorted({row["value"] for row in rows})
    panel.set_xticks(values, [f"{value:,}" for value in values])
    panel.xaxis.set_minor_formatter(NullFormatter())
    panel.minorticks_off()
    panel.yaxis.set_major_locator(LogLocator(numticks=12))
    panel.yaxis.set_major_formatter(FuncFormatter(lambda seconds, _: seconds_text(seconds)))
    panel.tick_params(labelsize=8.5)
    panel.grid(alpha=0.3, linewidth=0.6)
    for side in ("top", "right"):
        panel.spines[side].set_visible(False)
