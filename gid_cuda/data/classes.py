"""The config's `classes`: which of a data set's classes are kept, and in which order."""

from __future__ import annotations

import difflib
from collections import Counter
from collections.abc import Sequence
from pathlib import Path

from gid_cuda.errors import UserError

_SHOWN = 100  # of a data set's names, at most


def check_selection(wanted: list[str]) -> None:
    """The config's `classes`: at least one, each once."""
    if not wanted:
        raise UserError("data.classes is an empty list: name at least one class, or leave it out to take all")
    twice = [name for name, count in Counter(wanted).items() if count > 1]
    if twice:
        raise UserError(f"data.classes names {twice[0]!r} twice: name each class once")


def nearest(name: str, known: Sequence[str]) -> str | None:
    """The known name that `name` was probably meant to be."""
    lower = {other.lower(): other for other in known}
    close = difflib.get_close_matches(name.lower(), lower, n=1)
    return lower[close[0]] if close else None


def unknown_class(name: str, known: Sequence[str], where: Path | str) -> UserError:
    meant = nearest(name, known)
    hint = f" (did you mean {meant!r}?)" if meant else ""
    return UserError(f"data.classes names {name!r}{hint}, which {where} does not have; it has {_first(known)}")


def _first(names: Sequence[str]) -> str:
    more = f" and {len(names) - _SHOWN} more" if len(names) > _SHOWN else ""
    return ", ".join(names[:_SHOWN]) + more
