"""General instances over an image, beside the heat map of the GI score (paper, Figure 4)."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass
from typing import Any

import numpy as np
from matplotlib.axes import Axes
from matplotlib.colors import Normalize
from matplotlib.figure import Figure
from matplotlib.image import AxesImage
from matplotlib.lines import Line2D
from matplotlib.patheffects import withStroke
from PIL import Image
from torch import Tensor

from gid_cuda.viz.drawing import DrawnBox, draw_boxes, shorten, to_picture

GROUND_TRUTH = "ground truth"
# Colours are the paper's. Red beside green is the worst pair there is for many readers: hence the styles and letters.
STYLES: dict[str, tuple[str, tuple[int, int] | None, str]] = {
    GROUND_TRUTH: ("#00B828", None, ""),
    "positive": ("#FF2D2D", (6, 3), "P"),
    "semi-positive": ("#FFE600", (4, 2), "S"),
    "negative": ("#00E5FF", (2, 2), "N"),
    "uncounted": ("#F2F2F2", (2, 5), "U"),
}
_PANEL_INCHES, _DPI = 4.6, 100
_WHAT = ": general instances"


@dataclass(frozen=True)
class InstancesOfImage:
    """What one student and one teacher make of one image; all in pixels of the image as it is drawn.

    title: over its pictures, as "distilled/best.pt, step 5000"
    boxes: (N, 4) xyxy, the general instances, best first · scores: (N,) their GI scores
    kinds: N names out of "positive", "semi-positive", "negative", "uncounted"
    heat:  (H, W) GI score at each pixel, see `heat_map.gi_heat_map`
    """

    title: str
    boxes: Tensor
    scores: Tensor
    kinds: Sequence[str]
    heat: Tensor


def instances_figure(
    image: Tensor, ground_truth: Tensor, parts: Sequence[InstancesOfImage], heading: str, *, note: str = ""
) -> Figure:
    """Figure 4 for one image: the instances of a student beside its heat map; of several students a column each.

    image: (3, H, W) uint8; ground_truth: (N, 4) xyxy. Two parts or more (e.g. stages of a training) are columns, the
    instances above and the heat maps below. All heat maps have one scale of scores. note: a line below the legend.
    """
    picture = to_picture(image)
    aspect = picture.height / picture.width
    figure, lefts, rights, bar = _layout(aspect, len(parts), 0.22 if note else 0.0)
    figure.suptitle(shorten(heading, 90), y=1 - 0.08 / figure.get_figheight(), va="top", fontsize=12, fontweight="bold")
    most = max([float(part.heat.max()) for part in parts if part.heat.numel()] + [1e-3])
    panel = _panel_inches(len(parts))
    longest = int(11.5 * panel) - (0 if len(parts) > 1 else len(_WHAT))  # letters that fit above a panel
    for part, left, right in zip(parts, lefts, rights, strict=True):
        drawn = draw_boxes(picture, _drawn(ground_truth, part), emphasis=1.25 * _PANEL_INCHES / panel)
        left.imshow(np.asarray(drawn), extent=(0, 1, 1, 0), aspect=aspect)
        title = shorten(part.title, longest, keep_end=True)  # the end says which step
        left.set_title(title + (_WHAT if len(parts) == 1 else ""), fontsize=10.5)
        shown = _show_heat(right, picture, part.heat, most)
        right.set_title("GI score", fontsize=10.5)
        for axes in (left, right):
            axes.set_axis_off()
    color_bar = figure.colorbar(shown, cax=bar)
    assert color_bar.solids is not None
    color_bar.solids.set_alpha(1)  # the map's own alpha would fade it
    bar.tick_params(labelsize=9)
    _legend(figure, parts, len(ground_truth) > 0, 0.22 / figure.get_figheight() if note else 0.0)
    if note:
        figure.text(0.5, 0.06 / figure.get_figheight(), note, ha="center", va="bottom", fontsize=10)
    return figure


def _panel_inches(count: int) -> float:
    return _PANEL_INCHES if count <= 2 else max(2.6, 11 / count)


def _layout(aspect: float, count: int, note: float) -> tuple[Figure, list[Axes], list[Axes], Axes]:
    """An empty figure with the places of `count` pictures, of their heat maps, of the scale of these, and of a note of
    this height (inches)."""
    width = _panel_inches(count)
    height = width * min(max(aspect, 0.35), 1.6)  # beyond these bounds white is left around the picture
    rows, columns = (1, 2) if count == 1 else (2, count)
    above, title, below, gap, bar_width = 0.32, 0.3, 0.45 + note, 0.12, 0.16
    scale = 0.62  # inches for its numbers: 0.0012
    inches = columns * (width + gap) + bar_width + 0.1 + scale, above + (height + title) * rows + below
    figure = Figure(figsize=inches, dpi=_DPI, facecolor="white")
    widths = (*[width] * columns, bar_width)
    grid = figure.add_gridspec(
        rows, columns + 1, width_ratios=widths, wspace=(columns + 1) * gap / sum(widths), hspace=title / height,
        left=0.1 / inches[0], right=1 - scale / inches[0],
        top=1 - (above + title) / inches[1], bottom=below / inches[1],
    )  # fmt: skip
    axes = [figure.add_subplot(grid[i, j]) for i in range(rows) for j in range(columns)]
    return figure, axes[:count], axes[count:], figure.add_subplot(grid[rows - 1, columns])


def _show_heat(axes: Axes, picture: Image.Image, heat: Tensor, most: float) -> AxesImage:
    """The map over the darkened, grey picture; the higher the score, the less of the picture shows through."""
    aspect = picture.height / picture.width
    gray = np.asarray(picture.convert("L"), dtype=np.float32) / 255 * 0.8
    axes.imshow(gray, cmap="gray", vmin=0, vmax=1, extent=(0, 1, 1, 0), aspect=aspect)
    alpha = 0.3 + 0.55 * (heat.numpy() / most).clip(0, 1) ** 0.5
    return axes.imshow(
        heat.numpy(), cmap="inferno", norm=Normalize(0, most), alpha=alpha, extent=(0, 1, 1, 0), aspect=aspect,
        interpolation="bilinear",
    )  # fmt: skip


def _drawn(ground_truth: Tensor, part: InstancesOfImage) -> list[DrawnBox]:
    drawn = []
    for box, score, kind in zip(part.boxes.tolist(), part.scores.tolist(), part.kinds, strict=True):
        colour, dash, letter = STYLES[kind]
        drawn.append(DrawnBox(tuple(box), colour, dash, (f"{letter} {score:.2f}", letter)))
    colour, dash, _ = STYLES[GROUND_TRUTH]
    return drawn + [DrawnBox(tuple(box), colour, dash) for box in ground_truth.tolist()]


def _legend(figure: Figure, parts: Sequence[InstancesOfImage], has_ground_truth: bool, bottom: float) -> None:
    seen = {kind for part in parts for kind in part.kinds} | ({GROUND_TRUTH} if has_ground_truth else set())
    lines = []
    for kind, (colour, dash, letter) in STYLES.items():
        if kind in seen:
            style: Any = "solid" if dash is None else (0, (dash[0] * 0.8, dash[1] * 0.8))
            label = f"{letter}  {kind}" if letter else kind
            rim = [withStroke(linewidth=4.6, foreground="#141414")]
            lines.append(Line2D([], [], color=colour, linestyle=style, linewidth=2.8, path_effects=rim, label=label))
    if lines:
        figure.legend(handles=lines, loc="lower center", bbox_to_anchor=(0.5, bottom), ncols=len(lines),
                      frameon=False, fontsize=10.5, handlelength=3.4)  # fmt: skip
