"""Docstrings are written to be read in an editor; here they become the Markdown that says the same."""

from __future__ import annotations

import re
from typing import Any

try:
    from griffe import Extension
except ImportError:  # the text alone can be tested without the packages that build the site
    Extension = object  # type: ignore[assignment, misc]

# "name: text" or "name = text" at the margin, continued by indented lines: one of several things that are described.
_TERM = re.compile(r"^([a-z_]\w*(?:, [a-z_]\w*)*)(:| =) (?=\S)")


class AsWritten(Extension):
    """Called by mkdocstrings for everything that has a docstring; see mkdocs.yml."""

    def on_instance(self, *, obj: Any, **_: Any) -> None:
        if obj.docstring:
            obj.docstring.value = as_markdown(obj.docstring.value)


def as_markdown(docstring: str) -> str:
    """Stars are multiplication, and lines that begin with a name are the items of a list."""
    lines: list[str] = []
    in_list = False
    for number, line in enumerate(docstring.split("\n")):
        term = _TERM.match(line) if number else None
        if term:
            if not in_list and lines and lines[-1].strip():
                lines.append("")
            lines.append(f"- `{term[1]}`{term[2]} " + _plain(line[term.end() :]))
        elif line.startswith("        ") or re.match(r" {4}\S", line) and not in_list:
            lines.append(line)  # code, or a section's entries
            continue
        else:
            if in_list and line.strip() and not line.startswith(" "):
                lines.append("")
            lines.append(_plain(line))
        in_list = bool(term) or in_list and line.startswith(" ")
    return "\n".join(lines)


def _plain(text: str) -> str:
    """Without emphasis; what stands between backticks stays."""
    parts = re.split(r"(`[^`]*`)", text)
    return "".join(part if part.startswith("`") else part.replace("*", "\\*") for part in parts)
