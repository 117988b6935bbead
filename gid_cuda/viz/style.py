"""What the charts have in common: lines that differ in more than colour, and quiet axes.

Colours are Okabe and Ito's, which readers with any common colour blindness can tell apart; dashes, markers and hatches
differ as well, for those who see or print no colour at all.
"""

from __future__ import annotations

from typing import Any

from matplotlib.axes import Axes

_COLOURS = ("#0072B2", "#D55E00", "#009E73", "#CC79A7", "#E69F00", "#000000", "#56B4E9")
_STYLES = ("-", (0, (5, 1.6)), (0, (1.2, 1.2)), (0, (6, 1.5, 1.2, 1.5)), (0, (7, 1.5, 1.2, 1.5, 1.2, 1.5)))
_MARKERS = "osD^v"
_HATCHES = ("", "///", "...", "\\\\\\", "xxx")
_MARKS = 6  # on a line that is not made of few points


def line_style(index: int) -> dict[str, Any]:
    """Colour and dash of the index-th line, for `Axes.plot` and `Axes.stairs`."""
    return {"color": _COLOURS[index % len(_COLOURS)], "linestyle": _STYLES[index % len(_STYLES)], "linewidth": 1.8}


def marker_style(index: int, points: int, *, every_point: bool = False) -> dict[str, Any]:
    """Its markers: on each of its points, or on a few, not on those of the next line."""
    pitch = 1 if every_point else max(1, points // _MARKS)
    start = 0 if every_point else index * pitch // 3 % pitch
    return {"marker": _MARKERS[index % len(_MARKERS)], "markersize": 4.5, "markevery": (start, pitch)}


def bar_style(index: int) -> dict[str, Any]:
    """Colour and hatch of the index-th bar of a group; the lines of the hatch are white."""
    return {
        "color": _COLOURS[index % len(_COLOURS)], "hatch": _HATCHES[index % len(_HATCHES)], "edgecolor": "white",
        "linewidth": 0,
    }  # fmt: skip


def quiet_axes(axes: Axes, title: str) -> None:
    """The title, a faint grid, small figures, no box around."""
    axes.set_title(title, fontsize=10.5)
    axes.tick_params(labelsize=8.5)
    axes.grid(alpha=0.3, linewidth=0.6)
    axes.set_axisbelow(True)
    for side in ("top", "right"):
        axes.spines[side].set_visible(False)
