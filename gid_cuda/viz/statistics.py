"""How the general instances of one student or several are distributed: GI score, IoU, IoP, and their kinds."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass
from typing import Any

import numpy as np
from matplotlib.axes import Axes
from matplotlib.figure import Figure
from matplotlib.layout_engine import ConstrainedLayoutEngine
from matplotlib.ticker import PercentFormatter
from torch import Tensor

from gid_cuda.viz.drawing import shorten
from gid_cuda.viz.style import bar_style, line_style, quiet_axes

KINDS = ("positive", "semi-positive", "negative", "uncounted")
EDGES = np.linspace(0, 1, 21)
_VALUES = {
    "score": ("GI score", ()),
    "iou": ("largest IoU with ground truth", (0.5,)),
    "iop": ("largest IoP with ground truth", (0.3, 0.7)),
}
"""Field: (title, the limits between the kinds, eq. 11)."""


@dataclass(frozen=True)
class InstanceStatistics:
    """The general instances of one student and its teacher over some images.

    title: which student · images: how many images
    score, iou, iop: (N,) float32 GI score, largest IoU and largest IoP with the ground truth of each instance
    kinds: N names out of `KINDS`
    """

    title: str
    images: int
    score: Tensor
    iou: Tensor
    iop: Tensor
    kinds: Sequence[str]

    def counts(self, field: str) -> list[int]:
        """Instances in each bin of `EDGES` (the last has both its ends) by score, iou or iop."""
        values = getattr(self, field).clamp(0, 1).numpy()  # an IoU of 1 may be rounded to a little more
        return np.histogram(values, EDGES)[0].tolist()

    def shares(self) -> dict[str, float]:
        """What share each kind has, 0 to 1; 0 where there is no instance."""
        return {kind: list(self.kinds).count(kind) / max(1, len(self.kinds)) for kind in KINDS}


def statistics_data(parts: Sequence[InstanceStatistics]) -> dict[str, Any]:
    """What the picture shows, as plain numbers: `edges` of the bins; of each student counts in them, means, kinds."""
    students = []
    for part in parts:
        entry: dict[str, Any] = {"student": part.title, "images": part.images, "instances": len(part.kinds)}
        for field in _VALUES:
            mean = float(getattr(part, field).mean()) if len(part.kinds) else None
            entry[field] = {"mean": mean, "counts": part.counts(field)}
        entry["kinds"] = {kind: list(part.kinds).count(kind) for kind in KINDS}
        students.append(entry)
    return {"edges": [round(edge, 2) for edge in EDGES.tolist()], "students": students}


def statistics_figure(parts: Sequence[InstanceStatistics], heading: str) -> Figure:
    """Three histograms and the shares of the kinds, one line or bar a student. Dotted: the limits between the kinds."""
    legend = 0.24 * len(parts) + 0.1
    size = (8.8, 5.2 + legend)
    layout = ConstrainedLayoutEngine(rect=(0, legend / size[1], 1, 1 - legend / size[1]))
    figure = Figure(figsize=size, dpi=100, facecolor="white", layout=layout)
    figure.suptitle(shorten(heading, 90), fontsize=12, fontweight="bold")
    cells = figure.subplots(2, 2).flatten()
    for axes, (field, (title, limits)) in zip(cells, _VALUES.items(), strict=False):
        for limit in limits:
            axes.axvline(limit, color="#555555", linestyle=":", linewidth=1.2, zorder=1)
        for i, part in enumerate(parts):
            axes.stairs(np.array(part.counts(field)) / max(1, len(part.kinds)), EDGES, baseline=None, **line_style(i))
        quiet_axes(axes, title)
        axes.set_xlim(0, 1)
        axes.set_ylim(bottom=0)
        axes.yaxis.set_major_formatter(PercentFormatter(1, decimals=0))
    _kinds(cells[3], parts)
    labels = [
        f"{shorten(part.title, 60, keep_end=True)}: {len(part.kinds)} instances in {part.images} images"
        for part in parts
    ]
    figure.legend(cells[0].patches, labels, loc="lower center", ncols=1, frameon=False, fontsize=10.5,
                  handlelength=3.5)  # fmt: skip
    return figure


def _kinds(axes: Axes, parts: Sequence[InstanceStatistics]) -> None:
    quiet_axes(axes, "kinds of instances")
    width = 0.84 / len(parts)
    for i, part in enumerate(parts):
        places = np.arange(len(KINDS)) + width * (i - (len(parts) - 1) / 2)
        bars = axes.bar(places, list(part.shares().values()), width=0.94 * width, **bar_style(i))
        if len(parts) <= 3:
            axes.bar_label(bars, [f"{share:.0%}" for share in part.shares().values()], fontsize=8.5, padding=1)
    axes.set_xticks(np.arange(len(KINDS)), KINDS)
    axes.grid(False, axis="x")
    axes.margins(y=0.12)
    axes.yaxis.set_major_formatter(PercentFormatter(1, decimals=0))
