"""Draws the pictures of the generated data set: shapes on a table, in numpy and PIL alone.

Classes differ in outline and texture; each prefers a range of hues, which overlaps with its neighbours', so that a
glance tells something and only a look tells the rest. Everything else makes the task harder in a way that a larger
model copes with better: sizes from a sixth to more than half of the shorter side, squashed and rotated; look-alikes of
each class in its colours that carry no box (a flower beside the gear, stars with another number of points, a broken
ring, a plain and a striped disc and a dotted tile beside the dotted disc); bars and leaves in front; textured
backgrounds; uneven light, blur, noise and contrast.
"""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import dataclass
from typing import Any

import numpy as np
from numpy.typing import NDArray
from PIL import Image, ImageFilter

Array = NDArray[np.floating[Any]]
Surface = tuple[Array, Array]
"""Signed distance to the outline in radii of the shape, positive inside; and tone: 0 first colour, 1 second."""

MIN_VISIBLE = 0.3  # a shape that can be seen to less than this (covered, or outside the picture) is taken off the table
_MARGIN = 6  # pixels around a shape for its soft shadow


@dataclass
class Scene:
    """pixels (H, W, 3) uint8; boxes (N, 4) int, xyxy pixels, tight around what can be seen; areas: visible pixels."""

    pixels: NDArray[np.uint8]
    boxes: NDArray[np.int64]
    labels: NDArray[np.int64]
    areas: NDArray[np.int64]


@dataclass
class _Layer:
    """One thing on the table, in a canvas of its own whose upper left corner lies at (x, y) of the picture."""

    x: int
    y: int
    alpha: Array  # (h, w)
    shadow: Array  # (h, w)
    colour: Array  # (h, w, 3)
    label: int | None  # None: carries no box


def _star(u: Array, v: Array, points: int, inner: float) -> Array:
    half = np.pi / points
    angle = np.abs((np.arctan2(v, u) + half) % (2 * half) - half)  # folded into half a point
    radius = np.hypot(u, v)
    edge_x, edge_y = inner * np.cos(half) - 1, inner * np.sin(half)
    cross = edge_x * radius * np.sin(angle) - edge_y * (radius * np.cos(angle) - 1)
    return cross / np.hypot(edge_x, edge_y)


def _ring(u: Array, v: Array, inner: float) -> Array:
    radius = np.hypot(u, v)
    return np.minimum(1 - radius, radius - inner)


def _plain(distance: Array) -> Surface:
    return distance, np.zeros_like(distance)


def _stripes(u: Array, rng: np.random.Generator) -> Array:
    return np.clip(0.5 + 4 * np.sin(u * rng.uniform(7, 11) + rng.uniform(0, 6.3)), 0, 1)


def _dots(u: Array, v: Array, rng: np.random.Generator) -> Array:
    pitch = rng.uniform(0.45, 0.6)
    x, y = ((w + rng.uniform(0, pitch)) % pitch - pitch / 2 for w in (u, v))
    return np.clip(0.5 + 25 * (0.3 * pitch - np.hypot(x, y)), 0, 1)


def _gear(u: Array, v: Array, rng: np.random.Generator) -> Surface:
    teeth = np.tanh(4 * np.sin(rng.integers(7, 11) * np.arctan2(v, u)))
    radius = np.hypot(u, v)
    return _plain(np.minimum(0.86 + 0.13 * teeth - radius, radius - rng.uniform(0.25, 0.35)))


def _five_points(u: Array, v: Array, rng: np.random.Generator) -> Surface:
    return _plain(_star(u, v, 5, rng.uniform(0.42, 0.55)))


def _closed_ring(u: Array, v: Array, rng: np.random.Generator) -> Surface:
    return _plain(_ring(u, v, rng.uniform(0.5, 0.68)))


def _striped_disc(u: Array, v: Array, rng: np.random.Generator) -> Surface:
    return 1 - np.hypot(u, v), _stripes(u, rng)


def _dotted_disc(u: Array, v: Array, rng: np.random.Generator) -> Surface:
    return 1 - np.hypot(u, v), _dots(u, v, rng)


def _flower(u: Array, v: Array, rng: np.random.Generator) -> Surface:
    petals = np.sin(rng.integers(5, 8) * np.arctan2(v, u))
    radius = np.hypot(u, v)
    return _plain(np.minimum(0.84 + 0.15 * petals - radius, radius - rng.uniform(0.25, 0.35)))


def _other_star(u: Array, v: Array, rng: np.random.Generator) -> Surface:
    return _plain(_star(u, v, int(rng.choice([3, 4, 7])), rng.uniform(0.42, 0.6)))


def _broken_ring(u: Array, v: Array, rng: np.random.Generator) -> Surface:
    gap = np.abs(np.arctan2(v, u)) - rng.uniform(0.35, 0.75)
    return _plain(np.minimum(_ring(u, v, rng.uniform(0.5, 0.68)), gap * np.hypot(u, v)))


def _plain_disc(u: Array, v: Array, rng: np.random.Generator) -> Surface:
    return _plain(1 - np.hypot(u, v))


def _tile(u: Array, v: Array, rng: np.random.Generator) -> Surface:
    return 0.8 - np.maximum(np.abs(u), np.abs(v)), _dots(u, v, rng)


def _bar(u: Array, v: Array, rng: np.random.Generator) -> Surface:
    return _plain(np.minimum(rng.uniform(0.05, 0.12) - np.abs(v), 1 - np.abs(u)))


def _leaf(u: Array, v: Array, rng: np.random.Generator) -> Surface:
    width = rng.uniform(0.25, 0.4)
    return width * (1 - u * u) - np.abs(v), np.clip(1.5 - 40 * np.abs(v), 0, 1)


Shape = Callable[[Array, Array, np.random.Generator], Surface]
CLASSES: dict[str, Shape] = {
    "gear": _gear,
    "star": _five_points,
    "ring": _closed_ring,
    "dotted disc": _dotted_disc,
}
_LOOK_ALIKES: list[tuple[Shape, int]] = [  # and the class whose colours it wears
    (_flower, 0), (_other_star, 1), (_broken_ring, 2), (_striped_disc, 3), (_plain_disc, 3), (_tile, 3)
]  # fmt: skip
_COVERS: list[Shape] = [_bar, _leaf]


_HUE_SPREAD = 0.1  # of the whole circle, standard deviation


def _colour(
    rng: np.random.Generator, saturation: tuple[float, float], value: tuple[float, float], hue: float | None = None
) -> Array:
    """A colour in [0, 1]; hue: 0 to 1 around the circle, drawn where it is None."""
    turn = rng.random() if hue is None else hue
    s, v = rng.uniform(*saturation), rng.uniform(*value)
    offset = (np.array([5.0, 3.0, 1.0]) + turn * 6) % 6  # the usual HSV to RGB
    return (v - v * s * np.clip(np.minimum(offset, 4 - offset), 0, 1)).astype(np.float32)


def _tones(rng: np.random.Generator, label: int | None) -> tuple[Array, Array]:
    """Two colours of one hue, far enough apart for a pattern to be seen; label: of the class that wears them."""
    hue = None if label is None else rng.normal(label / len(CLASSES), _HUE_SPREAD)
    first = _colour(rng, (0.3, 0.75), (0.45, 0.95), hue)
    dark = first.mean() > 0.5
    second = first * rng.uniform(0.45, 0.65) if dark else 1 - (1 - first) * rng.uniform(0.35, 0.55)
    return first, second.astype(np.float32)


def _layer(
    shape: Shape, size: float, label: int | None, looks: int | None, extent: tuple[int, int], rng: np.random.Generator
) -> _Layer:
    """`shape`, `size` pixels across, squashed, rotated and lit, somewhere in a picture of `extent` (width, height).

    label: its class, where it carries a box. looks: the class whose colours it wears.
    """
    radius = size / 2
    reach = int(np.ceil(radius * 1.2)) + _MARGIN
    center_x, center_y = (rng.uniform(0.35 * min(size, e), e - 0.35 * min(size, e)) for e in extent)
    x, y = int(center_x) - reach, int(center_y) - reach
    grid_y, grid_x = np.mgrid[: 2 * reach, : 2 * reach].astype(np.float32)
    dx, dy = (grid_x + (x + 0.5 - center_x)) / radius, (grid_y + (y + 0.5 - center_y)) / radius
    angle, squash = rng.uniform(0, 2 * np.pi), rng.uniform(0.82, 1.0)
    u = (dx * np.cos(angle) + dy * np.sin(angle)).astype(np.float32)
    v = ((dy * np.cos(angle) - dx * np.sin(angle)) / squash).astype(np.float32)

    distance, tone = shape(u, v, rng)
    distance = distance * radius
    first, second = _tones(rng, looks)
    colour = first + (second - first) * tone[..., None]
    light = 1 - 0.16 * (dx + dy)  # from the upper left
    rim = 1 - 0.35 * np.clip(1.6 - distance, 0, 1)  # a darker outline
    grain = 1 + rng.uniform(0, 0.04) * rng.standard_normal(distance.shape, dtype=np.float32)
    shadow = np.roll(np.clip(0.5 + distance / 5, 0, 1), (3, 2), (0, 1))
    return _Layer(x, y, np.clip(distance + 0.5, 0, 1), shadow, colour * (light * rim * grain)[..., None], label)


def _noise(width: int, height: int, cells: int, rng: np.random.Generator) -> Array:
    """Smooth noise in about [-1, 1], `cells` bumps across the picture."""
    small = rng.uniform(-1, 1, (cells, cells)).astype(np.float32)
    return np.asarray(Image.fromarray(small).resize((width, height), Image.Resampling.BICUBIC))


def _background(width: int, height: int, rng: np.random.Generator) -> Array:
    value = (0.2, 0.5) if rng.random() < 0.4 else (0.5, 0.9)
    first, second = (_colour(rng, (0.05, 0.5), value) for _ in range(2))
    mix = 0.5 + 0.5 * _noise(width, height, int(rng.integers(2, 5)), rng)
    pixels = first + (second - first) * mix[..., None]
    y, x = np.mgrid[:height, :width].astype(np.float32)
    angle, pitch = rng.uniform(0, np.pi), rng.uniform(0.12, 0.8)
    across = (x * np.cos(angle) + y * np.sin(angle)) * pitch
    kind = rng.integers(4)
    if kind == 0:  # wood: bent lines
        texture = np.sin(across + 4 * _noise(width, height, 6, rng))
    elif kind == 1:  # cloth: two crossed gratings
        along = (y * np.cos(angle) - x * np.sin(angle)) * pitch
        texture = np.sin(across * 1.5) * np.sin(along * 1.5)
    elif kind == 2:  # stone
        texture = _noise(width, height, 24, rng) + _noise(width, height, 60, rng)
    else:  # paper
        texture = rng.standard_normal((height, width), dtype=np.float32)
    return pixels * (1 + rng.uniform(0.02, 0.09) * texture[..., None])


def _layers(width: int, height: int, rng: np.random.Generator) -> list[_Layer]:
    """Everything on the table, lowest first: shapes and look-alikes mixed, then a few covers."""
    side = min(width, height)
    smallest, largest = max(10.0, side / 6), side * 0.6

    def put(shape: Shape, label: int | None, looks: int | None, low: float, high: float) -> _Layer:
        size = float(np.exp(rng.uniform(np.log(low), np.log(max(low, high)))))
        return _layer(shape, size, label, looks, (width, height), rng)

    shapes = list(CLASSES.values())
    labels = rng.integers(len(shapes), size=rng.integers(3, 8))
    layers = [put(shapes[label], int(label), int(label), smallest, largest) for label in labels]
    for which in rng.integers(len(_LOOK_ALIKES), size=rng.integers(1, 4)):
        shape, looks = _LOOK_ALIKES[which]
        layers.append(put(shape, None, looks, smallest, largest))
    layers = [layers[i] for i in rng.permutation(len(layers))]
    for which in rng.integers(len(_COVERS), size=rng.integers(0, 3)):
        layers.append(put(_COVERS[which], None, None, side / 4, side * 0.9))
    return layers


def _windows(layer: _Layer, width: int, height: int) -> tuple[tuple[slice, slice], tuple[slice, slice]]:
    """Where the layer meets the picture: in the picture, and in the layer's own canvas."""
    h, w = layer.alpha.shape
    left, right = max(layer.x, 0), min(layer.x + w, width)
    top, bottom = max(layer.y, 0), min(layer.y + h, height)
    right, bottom = max(right, left), max(bottom, top)
    inside = (slice(top, bottom), slice(left, right))
    return inside, (slice(top - layer.y, bottom - layer.y), slice(left - layer.x, right - layer.x))


def _finish(pixels: Array, rng: np.random.Generator) -> NDArray[np.uint8]:
    """Light, blur, contrast and noise of the whole picture."""
    height, width = pixels.shape[:2]
    pixels = pixels * (1 + 0.2 * _noise(width, height, 2, rng)[..., None])
    image = Image.fromarray((np.clip(pixels, 0, 1) * 255).astype(np.uint8))
    if rng.random() < 0.4:
        image = image.filter(ImageFilter.GaussianBlur(rng.uniform(0.3, 0.8)))
    pixels = np.asarray(image, np.float32) / 255
    pixels = (pixels - 0.5) * rng.uniform(0.75, 1.1) + 0.5 + rng.uniform(-0.06, 0.06)
    pixels += rng.uniform(0.005, 0.02) * rng.standard_normal(pixels.shape, dtype=np.float32)
    return (np.clip(pixels, 0, 1) * 255 + 0.5).astype(np.uint8)


def draw_scene(width: int, height: int, rng: np.random.Generator) -> Scene:
    """One picture with its boxes; a function of the arguments alone.

    A shape that can be seen to less than `MIN_VISIBLE` of its area is left out of the picture, so that nothing in it
    is half annotated.
    """
    pixels = _background(width, height, rng)
    covered = np.zeros((height, width), bool)
    kept: list[tuple[_Layer, NDArray[np.bool_]]] = []
    for layer in reversed(_layers(width, height, rng)):  # from the top: what lies above decides what can be seen
        inside, own = _windows(layer, width, height)
        solid = layer.alpha[own] > 0.5
        seen = solid & ~covered[inside]
        if layer.label is not None and seen.sum() <= MIN_VISIBLE * (layer.alpha > 0.5).sum():
            continue
        covered[inside] |= solid
        kept.append((layer, seen))

    boxes, labels, areas = [], [], []
    for layer, seen in reversed(kept):
        inside, own = _windows(layer, width, height)
        alpha = layer.alpha[own][..., None]
        under = pixels[inside] * (1 - 0.4 * layer.shadow[own][..., None])
        pixels[inside] = under + (layer.colour[own] - under) * alpha
        if layer.label is None:
            continue
        rows, columns = np.flatnonzero(seen.any(1)), np.flatnonzero(seen.any(0))
        top, left = inside[0].start, inside[1].start
        boxes.append([left + columns[0], top + rows[0], left + columns[-1] + 1, top + rows[-1] + 1])
        labels.append(layer.label)
        areas.append(seen.sum())
    as_int = np.int64
    return Scene(
        _finish(pixels, rng), np.array(boxes, as_int).reshape(-1, 4), np.array(labels, as_int), np.array(areas, as_int)
    )
