"""LaTeX in pages -> drawings, made by matplotlib when the site is built: a reader needs no script, font or server."""

from __future__ import annotations

import html
import re
from collections.abc import Iterator, Sequence

import numpy as np
from matplotlib.font_manager import FontProperties
from matplotlib.path import Path as Outline
from matplotlib.textpath import TextToPath
from numpy.typing import NDArray

# What pymdownx.arithmatex (generic: true) makes of $...$ and of $$...$$.
_INLINE = re.compile(r'<span class="arithmatex">\\\((.*?)\\\)</span>', re.DOTALL)
_BLOCK = re.compile(r'<div class="arithmatex">\s*\\\[(.*?)\\\]\s*</div>', re.DOTALL)
_EM = 20.0  # in which outlines are computed
_LETTERS = {Outline.MOVETO: ("M", 1), Outline.LINETO: ("L", 1), Outline.CURVE3: ("Q", 2), Outline.CURVE4: ("C", 3)}


def drawn(page: str) -> str:
    """The HTML of a page with its equations as SVG, in the size and colour of the text around them.

    ValueError where one is no LaTeX that matplotlib knows.
    """
    page = _BLOCK.sub(lambda found: f'<div class="equation">{_svg(found[1])}</div>', page)
    return _INLINE.sub(lambda found: _svg(found[1]), page)


def _svg(escaped: str) -> str:
    """An image that stands on the line, with the LaTeX as what a screen reader says."""
    latex = " ".join(html.unescape(escaped).split())
    font, outlines = FontProperties(size=_EM, math_fontfamily="cm"), TextToPath()
    text = f"${latex}$"
    width, height, depth = outlines.get_text_width_height_descent(text, font, ismath=True)
    scale = outlines.FONT_SCALE / _EM  # glyphs come in this size whatever the font's is
    vertices, codes = outlines.get_text_path(font, text, ismath=True)
    data = " ".join(_commands(np.asarray(vertices) / scale, list(codes)))
    pad = 1.0  # strokes that reach out of their box
    box = f"{-pad:g} {-(height - depth) - pad:.2f} {width + 2 * pad:.2f} {height + 2 * pad:.2f}"
    size = f"width:{(width + 2 * pad) / _EM:.3f}em;height:{(height + 2 * pad) / _EM:.3f}em"
    return (
        f'<svg class="math" role="img" aria-label="{html.escape(latex)}" viewBox="{box}" '
        f'style="{size};vertical-align:{-(depth + pad) / _EM:.3f}em"><path d="{data}" fill="currentColor"/></svg>'
    )


def _commands(vertices: NDArray[np.float64], codes: Sequence[int]) -> Iterator[str]:
    """An outline, y upwards, as SVG's path data, y downwards."""
    at = 0
    while at < len(codes):
        if codes[at] == Outline.CLOSEPOLY:
            yield "Z"
            at += 1
            continue
        letter, count = _LETTERS[codes[at]]
        yield letter + " ".join(f"{x:.2f} {-y:.2f}" for x, y in vertices[at : at + count])
        at += count
