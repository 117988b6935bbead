"""General instances over an image, beside the heat map of the GI score (paper, Figure 4)."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass
from typing import Any

import numpy as np
import torch
from matplotlib.colors import Normalize
from matplotlib.figure import Figure
from matplotlib.lines import Line2D
from matplotlib.patheffects import withStroke
from torch import Tensor

from gid_cuda.detectors.outputs import DetectorOutputs
from gid_cuda.viz.drawing import DrawnBox, draw_boxes, shorten, to_picture

GROUND_TRUTH = "ground truth"
# Colours are the paper's. Red beside green is the worst pair there is for many readers: hence the styles and letters.
STYLES: dict[str, tuple[str, tuple[int, int] | None, str]] = {
    GROUND_TRUTH: ("#00B828", None, ""),
    "positive": ("#FF2D2D", (5, 2), "P"),
    "semi-positive": ("#FFE600", (3, 2), "S"),
    "negative": ("#00E5FF", (1, 2), "N"),
    "uncounted": ("#F2F2F2", (2, 5), "U"),
}
_PANEL_INCHES, _DPI = 4.6, 100


@dataclass(frozen=True)
class InstancesOfImage:
    """What one student and one teacher make of one image; all in pixels of the image as it is drawn.

    title: over the two pictures, as "step 5000"
    boxes: (N, 4) xyxy, the general instances, best first · scores: (N,) their GI scores
    kinds: N names out of "positive", "semi-positive", "negative", "uncounted"
    heat:  (H, W) GI score at each pixel, see `gi_heat_map`
    """

    title: str
    boxes: Tensor
    scores: Tensor
    kinds: Sequence[str]
    heat: Tensor


def gi_heat_map(scores: Tensor, outputs: DetectorOutputs, index: int, size: tuple[int, int]) -> Tensor:
    """The GI score over one image: (H, W) float32 for size (H, W), the image's own height and width.

    scores: (R,) GI scores (eq. 1) of image `index` of the batch.
    Each level of the pyramid has a grid of anchor centres. A centre's value is the largest score of the boxes predicted
    there; between centres it is interpolated linearly, beyond the last ones continued. A pixel takes the maximum over
    the levels. Which boxes survive NMS plays no part: the map shows all R.
    The boxes have to be ordered by level, row, column (as torchvision's are), equally many at each centre.
    """
    cells = [(f.shape[2], f.shape[3]) for f in outputs.features]
    per_cell, rest = divmod(len(scores), sum(h * w for h, w in cells))
    if rest or per_cell == 0:
        raise ValueError(f"{len(scores)} boxes cannot be laid out over feature maps of {cells} cells")
    height, width = outputs.image_sizes[index].tolist()
    rows = (torch.arange(size[0]) + 0.5) * height / size[0]  # pixel centres of the result in the outputs' pixels
    columns = (torch.arange(size[1]) + 0.5) * width / size[1]
    centers = (outputs.anchors[:, :2] + outputs.anchors[:, 2:]).cpu() / 2
    heat = torch.zeros(size)
    start = 0
    for h, w in cells:
        part = slice(start, start + h * w * per_cell)
        value = scores[part].detach().float().cpu().nan_to_num(0.0).view(h, w, per_cell).amax(2)
        center = centers[part].view(h, w, per_cell, 2)
        level = _interpolation(rows, center[:, 0, 0, 1]) @ value @ _interpolation(columns, center[0, :, 0, 0]).T
        heat = torch.maximum(heat, level)
        start = part.stop
    return heat


def _interpolation(positions: Tensor, nodes: Tensor) -> Tensor:
    """(positions, nodes): weights that interpolate linearly between ascending, evenly spaced nodes."""
    if len(nodes) == 1:
        return torch.ones(len(positions), 1)
    pitch = nodes[1] - nodes[0]
    inside = positions.clamp(float(nodes[0]), float(nodes[-1]))
    return (1 - (inside[:, None] - nodes).abs() / pitch).clamp(min=0)


def instances_figure(image: Tensor, ground_truth: Tensor, parts: Sequence[InstancesOfImage], heading: str) -> Figure:
    """Figure 4 for one image: for each of `parts` the instances on the left and the heat map on the right.

    image: (3, H, W) uint8; ground_truth: (N, 4) xyxy. Two parts or more stand below each other, on one scale of scores.
    """
    picture = to_picture(image)
    aspect = picture.height / picture.width
    panel = _PANEL_INCHES * min(max(aspect, 0.35), 1.6)  # its height; beyond these bounds white is left around it
    above, title, below, gap, bar_width = 0.32, 0.3, 0.45, 0.12, 0.16
    inches = 2 * _PANEL_INCHES + bar_width + 2 * gap + 0.6, above + (panel + title) * len(parts) + below
    figure = Figure(figsize=inches, dpi=_DPI, facecolor="white")
    widths = (_PANEL_INCHES, _PANEL_INCHES, bar_width)
    grid = figure.add_gridspec(
        len(parts), 3, width_ratios=widths, wspace=3 * gap / sum(widths), hspace=title / panel,
        left=0.1 / inches[0], right=1 - 0.5 / inches[0], top=1 - (above + title) / inches[1], bottom=below / inches[1],
    )  # fmt: skip
    figure.suptitle(shorten(heading, 90), y=1 - 0.08 / inches[1], va="top", fontsize=12, fontweight="bold")
    most = max([float(part.heat.max()) for part in parts if part.heat.numel()] + [1e-3])
    gray = np.asarray(picture.convert("L"), dtype=np.float32) / 255 * 0.8
    for i, part in enumerate(parts):
        left, right, bar = (figure.add_subplot(grid[i, j]) for j in range(3))
        drawn = draw_boxes(picture, _drawn(ground_truth, part), emphasis=1.25)
        left.imshow(np.asarray(drawn), extent=(0, 1, 1, 0), aspect=aspect)
        left.set_title(f"{part.title}: general instances", fontsize=10.5)
        right.imshow(gray, cmap="gray", vmin=0, vmax=1, extent=(0, 1, 1, 0), aspect=aspect)
        strength = part.heat.numpy() / most
        shown = right.imshow(
            part.heat.numpy(), cmap="inferno", norm=Normalize(0, most), alpha=0.3 + 0.55 * strength.clip(0, 1) ** 0.5,
            extent=(0, 1, 1, 0), aspect=aspect, interpolation="bilinear",
        )  # fmt: skip
        right.set_title("GI score", fontsize=10.5)
        color_bar = figure.colorbar(shown, cax=bar)
        assert color_bar.solids is not None
        color_bar.solids.set_alpha(1)  # the map's own alpha would fade it
        bar.tick_params(labelsize=9)
        for axes in (left, right):
            axes.set_axis_off()
    _legend(figure, parts, len(ground_truth) > 0)
    return figure


def _drawn(ground_truth: Tensor, part: InstancesOfImage) -> list[DrawnBox]:
    drawn = []
    for box, score, kind in zip(part.boxes.tolist(), part.scores.tolist(), part.kinds, strict=True):
        colour, dash, letter = STYLES[kind]
        drawn.append(DrawnBox(tuple(box), colour, dash, (f"{letter} {score:.2f}", letter)))
    colour, dash, _ = STYLES[GROUND_TRUTH]
    return drawn + [DrawnBox(tuple(box), colour, dash) for box in ground_truth.tolist()]


def _legend(figure: Figure, parts: Sequence[InstancesOfImage], has_ground_truth: bool) -> None:
    seen = {kind for part in parts for kind in part.kinds} | ({GROUND_TRUTH} if has_ground_truth else set())
    lines = []
    for kind, (colour, dash, letter) in STYLES.items():
        if kind in seen:
            style: Any = "solid" if dash is None else (0, (dash[0] * 0.8, dash[1] * 0.8))
            label = f"{letter}  {kind}" if letter else kind
            rim = [withStroke(linewidth=4.6, foreground="#141414")]
            lines.append(Line2D([], [], color=colour, linestyle=style, linewidth=2.8, path_effects=rim, label=label))
    if lines:
        figure.legend(handles=lines, loc="lower center", ncols=len(lines), frameon=False, fontsize=10.5,
                      handlelength=3.4)  # fmt: skip
