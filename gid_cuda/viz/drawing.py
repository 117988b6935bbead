"""Boxes with labels over images.

Colours are Okabe and Ito's, which readers with any common colour blindness can tell apart; where there are more kinds
of boxes than colours, the line style differs too. Every line and letter has a dark rim, so that it shows on any ground.
"""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass
from functools import lru_cache
from pathlib import Path

import matplotlib
import numpy as np
from numpy.typing import NDArray
from PIL import Image, ImageDraw, ImageFont
from torch import Tensor

Rectangle = tuple[int, int, int, int]
"""x1, y1, x2, y2 in pixels of the canvas, all inside."""

PALETTE = ("#E69F00", "#56B4E9", "#F0E442", "#CC79A7", "#009E73", "#D55E00", "#0072B2")
DASHES: tuple[tuple[int, int] | None, ...] = (None, (5, 3), (2, 2), (9, 4))  # on and off, in line widths; None: solid

_RIM = (20, 20, 20)
_LONGEST_TEXT = 28


@dataclass(frozen=True)
class DrawnBox:
    """A box to draw: xyxy in pixels of the image as given, colour "#rrggbb", dash as in `DASHES`, and its label.

    texts: what the label may say, best first; a shorter one stands in where there is no room for a longer. Empty: none.
    """

    xyxy: tuple[float, float, float, float]
    colour: str
    dash: tuple[int, int] | None = None
    texts: tuple[str, ...] = ()


def detection_boxes(
    boxes: Tensor, labels: Tensor, scores: Tensor, classes: Sequence[str], *, threshold: float = 0.0
) -> list[DrawnBox]:
    """Detections of one image, boxes (N, 4) xyxy, labels (N,) and scores (N,), as boxes to draw, the surest first.

    Each class has its own colour and line style; the label says class and score.
    """
    drawn = []
    for index in scores.argsort(descending=True).tolist():
        score, label = float(scores[index]), int(labels[index])
        if score < threshold:
            break
        x1, y1, x2, y2 = boxes[index].tolist()
        name, number = shorten(classes[label]), f"{score:.2f}"
        dash = DASHES[label // len(PALETTE) % len(DASHES)]
        drawn.append(DrawnBox((x1, y1, x2, y2), PALETTE[label % len(PALETTE)], dash, (f"{name} {number}", name)))
    return drawn


def to_picture(image: Tensor) -> Image.Image:
    """An image tensor (3, H, W) uint8 as a PIL image."""
    return Image.fromarray(image.permute(1, 2, 0).contiguous().cpu().numpy())


def draw_boxes(
    picture: Image.Image, boxes: Sequence[DrawnBox], *, least_side: int = 800, emphasis: float = 1.0
) -> Image.Image:
    """A new picture with the boxes over it; the first box lies on top and has the first choice of place for its label.

    A picture whose longer side is under `least_side` pixels is enlarged to that first, or labels would cover it.
    emphasis: width of lines and size of letters, over the usual.
    Labels never leave the picture, and cover each other only where there is no room.
    """
    scale = max(1.0, least_side / max(picture.size))
    size = (max(1, round(picture.width * scale)), max(1, round(picture.height * scale)))
    canvas = picture.convert("RGB").resize(size, Image.Resampling.BICUBIC) if scale > 1 else picture.convert("RGB")
    pen = ImageDraw.Draw(canvas)
    width = max(2, round(emphasis * max(size) / 300))
    rectangles = [_on_canvas(box.xyxy, size[0] / picture.width, size[1] / picture.height, size) for box in boxes]
    for box, rectangle in reversed(list(zip(boxes, rectangles, strict=True))):
        _outline(pen, rectangle, box.colour, box.dash, width)
    font = _font(max(13, round(emphasis * max(size) / 52)))
    taken: list[Rectangle] = []
    for box, rectangle in zip(boxes, rectangles, strict=True):
        if box.texts:
            taken.append(_label(pen, box, rectangle, taken, size, font, width))
    return canvas


def _on_canvas(xyxy: Sequence[float], scale_x: float, scale_y: float, size: tuple[int, int]) -> Rectangle:
    """The box in canvas pixels, clipped so that its lines are inside."""
    x1, y1, x2, y2 = (round(v * s) for v, s in zip(xyxy, (scale_x, scale_y, scale_x, scale_y), strict=True))
    x1, y1 = min(max(x1, 0), size[0] - 1), min(max(y1, 0), size[1] - 1)
    return x1, y1, min(max(x2, x1), size[0] - 1), min(max(y2, y1), size[1] - 1)


def _outline(
    pen: ImageDraw.ImageDraw, rectangle: Rectangle, colour: str, dash: tuple[int, int] | None, width: int
) -> None:
    x1, y1, x2, y2 = rectangle
    strokes = []
    for start, end in _strokes(x1, x2, dash, width):
        strokes += [(start, y1, end, min(y1 + width - 1, y2)), (start, max(y2 - width + 1, y1), end, y2)]
    for start, end in _strokes(y1, y2, dash, width):
        strokes += [(x1, start, min(x1 + width - 1, x2), end), (max(x2 - width + 1, x1), start, x2, end)]
    for a, b, c, d in strokes:
        pen.rectangle((a - 1, b - 1, c + 1, d + 1), fill=_RIM)
    for stroke in strokes:
        pen.rectangle(stroke, fill=colour)


def _strokes(start: int, end: int, dash: tuple[int, int] | None, width: int) -> list[tuple[int, int]]:
    """The stretch from start to end cut into dashes; it begins and ends with one, so that corners are closed."""
    if dash is None:
        return [(start, end)]
    on, off = dash[0] * width, dash[1] * width
    count = max(1, round((end - start - on) / (on + off)))  # gaps
    pitch = (end - start - on) / count
    if pitch <= on:  # too short for a gap
        return [(start, end)]
    return [(round(start + i * pitch), round(start + i * pitch + on)) for i in range(count + 1)]


def _label(
    pen: ImageDraw.ImageDraw,
    box: DrawnBox,
    rectangle: Rectangle,
    taken: list[Rectangle],
    size: tuple[int, int],
    font: ImageFont.FreeTypeFont,
    width: int,
) -> Rectangle:
    """Writes the box's label where it covers least of the others and returns its place."""
    best: tuple[int, Rectangle, str] | None = None
    ascent, descent = font.getmetrics()
    others = np.array(taken, np.int64).reshape(-1, 4)
    for text in box.texts:
        text_size = (round(font.getlength(text)) + 6, ascent + descent + 2)
        for place in _places(rectangle, text_size, size, width):
            covered = _covered(place, others)
            if best is None or covered < best[0]:
                best = (covered, place, text)
        if best is not None and best[0] == 0:
            break
    assert best is not None
    _, place, text = best
    pen.rectangle((place[0] - 1, place[1] - 1, place[2] + 1, place[3] + 1), fill=_RIM)
    pen.rectangle(place, fill=box.colour)
    pen.text((place[0] + 3, place[1] + 1), text, fill=ink_on(box.colour), font=font)
    return place


def _places(rectangle: Rectangle, text_size: tuple[int, int], size: tuple[int, int], width: int) -> list[Rectangle]:
    """Where a label may stand, best first: above the box, inside its top, below, inside its bottom, beside it. Moved
    into the canvas."""
    x1, y1, x2, y2 = rectangle
    w, h = text_size
    columns = (x1, x2 - w, (x1 + x2 - w) // 2, x1 - w // 2, x2 - w // 2)
    corners = [(x, y) for y in (y1 - h - 1, y1 + width + 1, y2 + 2, y2 - width - h - 1) for x in columns]
    corners += [(x, y) for y in (y1, y2 - h, (y1 + y2 - h) // 2) for x in (x2 + 3, x1 - w - 4)]
    inside = [(max(1, min(x, size[0] - w - 2)), max(1, min(y, size[1] - h - 2))) for x, y in corners]
    return [(left, top, left + w, top + h) for left, top in inside]


def _covered(place: Rectangle, others: NDArray[np.int64]) -> int:
    """How many pixels of others (N, 4) the place covers, one by one."""
    sides = np.minimum(place[2:], others[:, 2:]) - np.maximum(place[:2], others[:, :2]) + 3  # 3: the rims
    return int(sides.clip(0).prod(axis=1).sum())


def shorten(text: str, longest: int = _LONGEST_TEXT, *, keep_end: bool = False) -> str:
    """The text, cut with an ellipsis where it is longer: at its end, or at its beginning."""
    if len(text) <= longest:
        return text
    return "…" + text[len(text) - longest + 1 :] if keep_end else text[: longest - 1] + "…"


def ink_on(colour: str) -> str:
    """Black or white, whichever is easier to read on the colour."""
    red, green, blue = (int(colour[i : i + 2], 16) for i in (1, 3, 5))
    return "#000000" if 0.299 * red + 0.587 * green + 0.114 * blue > 120 else "#FFFFFF"


@lru_cache
def _font(size: int) -> ImageFont.FreeTypeFont:
    """The font that comes with matplotlib: the same on every machine, with Greek, Cyrillic and accents."""
    return ImageFont.truetype(str(Path(matplotlib.get_data_path()) / "fonts" / "ttf" / "DejaVuSans-Bold.ttf"), size)
