"""Links between the pages of docs/, and from there to other files of the checkout."""

from __future__ import annotations

import os.path
import re
from collections.abc import Iterable, Iterator
from pathlib import Path

ROOT = Path(__file__).resolve().parent.parent
GENERATED = {"docs/reference/config.md": None, "docs/changelog.md": "CHANGELOG.md"}  # by hooks.py; and from what

_LINK = re.compile(r"(?<!!)\[([^\]]*)\]\(([^)\s]+)\)")
_CODE = re.compile(r"^```.*?^```|^ {4}.*?$|`[^`\n]*`", re.MULTILINE | re.DOTALL)
_HEADING = re.compile(r"^#{1,6} +(.+?) *(?:\{ *#([\w.-]+) *\})?$", re.MULTILINE)
_ID = re.compile(r'<a id="([\w.-]+)">')


def outside_as_names(markdown: str, page: Path) -> str:
    """Links to files outside of docs/ as the names of these files: the built pages have nothing to link to there.

    page: its path in the checkout. FileNotFoundError where there is no such file.
    """

    def replace(found: re.Match[str]) -> str:
        text, target = found.groups()
        path = _path(page, target)
        if path is None or path.parts[0] == "docs":
            return found[0]
        if not (ROOT / path).exists():
            raise FileNotFoundError(f"{page}: there is no {target}")
        return text if str(path) in text or path.name in text else f"{text} (`{path}`)"

    return _LINK.sub(replace, markdown)


def broken(pages: Iterable[Path], anchors_of_generated: dict[str, set[str]]) -> Iterator[str]:
    """A sentence for each link of these Markdown files, paths in the checkout, that leads nowhere."""
    for page in pages:
        for _, target in _LINK.findall(_CODE.sub("", (ROOT / page).read_text(encoding="utf-8"))):
            if re.match(r"\w+:", target):
                continue  # another host's
            path, anchor = _path(page, target) or page, target.partition("#")[2]
            if str(path) in GENERATED:
                known = anchors_of_generated.get(str(path), set())
            elif not (ROOT / path).exists():
                yield f"{page}: there is no {target}"
                continue
            else:
                known = anchors((ROOT / path).read_text(encoding="utf-8")) if path.suffix == ".md" else set()
            if anchor and anchor not in known:
                yield f"{page}: {path} has no place #{anchor}"


def anchors(markdown: str) -> set[str]:
    """Where links into this page can lead: its headings, as mkdocs and GitHub name them, and ids of its own."""
    text = re.sub(r"^```.*?^```", "", markdown, flags=re.MULTILINE | re.DOTALL)
    return {name or slug(title) for title, name in _HEADING.findall(text)} | set(_ID.findall(text))


def slug(title: str) -> str:
    return re.sub(r"[\s]+", "-", re.sub(r"[^\w\s-]", "", title).strip().lower())


def _path(page: Path, target: str) -> Path | None:
    """The linked file's path in the checkout; None for a place on the page itself, or another host's."""
    file = target.partition("#")[0]
    if not file or re.match(r"\w+:", target):
        return None
    return Path(os.path.normpath(page.parent / file))
