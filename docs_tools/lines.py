"""Where lines of a built page may break."""

from __future__ import annotations

import re

_PLAIN_BLOCK = re.compile(r"(<pre><span></span><code)(>[^<]*)(</code>)")  # code in a language is full of tags


def broken_well(page: str) -> str:
    """The HTML of a page: commands wrap, each as a line of its own, so that all of it is seen on a phone, too; a number
    and its spread stay together."""
    page = _PLAIN_BLOCK.sub(_wrapped, page)
    return page.replace(" ± ", "\u00a0±\u00a0")


def _wrapped(block: re.Match[str]) -> str:
    lines = block[2][1:].splitlines(keepends=True)
    return f'{block[1]} class="commands">' + "".join(f"<span>{line}</span>" for line in lines) + block[3]
