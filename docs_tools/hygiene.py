"""What a text file should not have; `python -m docs_tools.hygiene FILE ...` tells it and exits with 1."""

from __future__ import annotations

import sys
from collections.abc import Iterator
from pathlib import Path

_LARGEST = 1_000_000  # bytes
_CONFLICT = ("<<<<<<< ", ">>>>>>> ", "||||||| ")


def problems(path: Path) -> Iterator[str]:
    """A sentence for each."""
    content = path.read_bytes()
    if len(content) > _LARGEST:
        yield f"{path}: {len(content):,} bytes, more than {_LARGEST:,}"
    if b"\r" in content:
        yield f"{path}: line ends of Windows"
    lines = content.decode("utf-8", errors="replace").split("\n")
    for number, line in enumerate(lines, 1):
        if line != line.rstrip():
            yield f"{path}:{number}: white space at the line's end"
        if line.startswith(_CONFLICT):
            yield f"{path}:{number}: a mark of a merge conflict"
    if content and (not content.endswith(b"\n") or content.endswith(b"\n\n")):
        yield f"{path}: should end with one line break"


def main(files: list[str]) -> int:
    found = [problem for file in files for problem in problems(Path(file))]
    print("\n".join(found), end="\n" if found else "")
    return 1 if found else 0


if __name__ == "__main__":
    sys.exit(main(sys.argv[1:]))
