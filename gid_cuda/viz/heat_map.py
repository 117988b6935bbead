"""The GI score over an image, from the scores of all predicted boxes (paper, Figure 4)."""

from __future__ import annotations

import torch
from torch import Tensor
from torch.nn.functional import interpolate, max_pool2d

from gid_cuda.detectors.outputs import DetectorOutputs


def gi_heat_map(scores: Tensor, outputs: DetectorOutputs, index: int, size: tuple[int, int]) -> Tensor:
    """The GI score over one image: (H, W) float32 for size (H, W), the image's own height and width.

    scores: (R,) GI scores (eq. 1) of image `index` of the batch.
    Each level of the pyramid has a grid of anchor centres. A centre's value is the largest score of the boxes predicted
    there; between centres it is interpolated linearly, beyond the last ones continued. A pixel takes the maximum over
    the levels. Which boxes survive NMS plays no part: the map shows all R.
    That needs boxes ordered by level, row, column (as torchvision's are), equally many at each centre. Those of a
    detector with another order are drawn as spots at their anchors' centres, three cells of the finest level wide.
    """
    values = scores.detach().float().cpu().nan_to_num(0.0)
    centers = (outputs.anchors[:, :2] + outputs.anchors[:, 2:]).cpu() / 2
    seen = outputs.image_sizes[index].tolist()
    levels = _grids(values, centers, [(f.shape[2], f.shape[3]) for f in outputs.features])
    if levels is None:
        return _spots(values, centers, min(outputs.strides), seen, size)
    rows = (torch.arange(size[0]) + 0.5) * seen[0] / size[0]  # pixel centres of the result in the outputs' pixels
    columns = (torch.arange(size[1]) + 0.5) * seen[1] / size[1]
    heat = torch.zeros(size)
    for value, y, x in levels:
        heat = torch.maximum(heat, _interpolation(rows, y) @ value @ _interpolation(columns, x).T)
    return heat


def _grids(values: Tensor, centers: Tensor, cells: list[tuple[int, int]]) -> list[tuple[Tensor, Tensor, Tensor]] | None:
    """For each level: the largest value at each centre (h, w), the centres' y (h,) and x (w,).

    None where the boxes do not lie on grids of h x w `cells` in the order that `gi_heat_map` names.
    """
    per_cell, rest = divmod(len(values), sum(h * w for h, w in cells))
    if rest or per_cell == 0:
        return None
    levels, start = [], 0
    for h, w in cells:
        part = slice(start, start + h * w * per_cell)
        center = centers[part].view(h, w, per_cell, 2)
        y, x = center[:, 0, 0, 1], center[0, :, 0, 0]
        grid = torch.stack([x.expand(h, w), y[:, None].expand(h, w)], dim=-1)[:, :, None].expand_as(center)
        even = all((n.diff().diff().abs() < 1).all() and (n.diff() > 0).all() for n in (y, x))
        if not even or not torch.allclose(center, grid, rtol=0, atol=1):  # a pixel: some round their anchors
            return None
        levels.append((values[part].view(h, w, per_cell).amax(2), y, x))
        start = part.stop
    return levels


def _interpolation(positions: Tensor, nodes: Tensor) -> Tensor:
    """(positions, nodes): weights that interpolate linearly between ascending, evenly spaced nodes."""
    if len(nodes) == 1:
        return torch.ones(len(positions), 1)
    pitch = nodes[1] - nodes[0]
    inside = positions.clamp(float(nodes[0]), float(nodes[-1]))
    return (1 - (inside[:, None] - nodes).abs() / pitch).clamp(min=0)


def _spots(values: Tensor, centers: Tensor, cell: int, seen: list[int], size: tuple[int, int]) -> Tensor:
    """(H, W) for size: the largest value of the centres in each cell of `cell` pixels and in the cells around it."""
    h, w = (-(-side // cell) for side in seen)
    column, row = (centers / cell).long().unbind(1)
    inside = (centers >= 0).all(1) & (column < w) & (row < h)
    flat = torch.zeros(h * w).scatter_reduce(0, (row * w + column)[inside], values[inside], "amax")
    wide = max_pool2d(flat.view(1, 1, h, w), 3, stride=1, padding=1)
    wide = interpolate(wide, scale_factor=float(cell), mode="nearest")[..., : seen[0], : seen[1]]
    return interpolate(wide, size=size, mode="nearest")[0, 0]
