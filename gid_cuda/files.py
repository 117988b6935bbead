"""Files that are there whole or not at all."""

from __future__ import annotations

import contextlib
import os
from pathlib import Path


def write_text(path: Path, text: str) -> None:
    """In one move: what was there stays readable until the new text is. Raises OSError, which names the file.

    A link stays one: what it leads to is replaced. What is no file (a pipe, /dev/stdout) is written to as it is.
    """
    place = Path(os.path.realpath(path))
    moved = place.is_file() or not place.exists()
    part = place.with_name(f".{place.name}.part") if moved else place
    try:
        part.write_text(text, encoding="utf-8")
        if moved:
            os.replace(part, place)
    except OSError as error:
        if moved:
            with contextlib.suppress(OSError):
                part.unlink()
        error.filename, error.filename2 = str(path), None  # a full disk names none, the others that of the part
        raise
