"""The settings of an experiment's file: changes to a config by key paths or sections, and what they may not say."""

from __future__ import annotations

import itertools
from collections.abc import Iterator
from pathlib import Path
from typing import Any

from gid_cuda.errors import UserError
from gid_cuda.experiment.schema import Settings


def check_does_not_distill(path: Path, settings: list[tuple[str, Settings]], raw: dict[str, Any]) -> None:
    """UserError where what is set for all runs makes the teacher distill, too. settings: the common ones."""
    if raw.get("distill") in (None, "none"):
        return
    for where, changes in settings:
        if any(key.partition(".")[0] == "distill" and value not in (None, "none") for key, value in changes.items()):
            raise UserError(
                f"{path}, {where}: sets distill for the teacher, too, which does not distill: put it into student.set "
                "or the rows"
            )


def check_settings(path: Path, where: str, changes: Settings, *, has_teacher: bool, for_all: bool) -> None:
    """UserError for what the experiment itself decides: it would be without effect. for_all: a teacher has it, too."""
    sections = {key.partition(".")[0] for key in changes}
    if "seed" in sections and not for_all:
        raise UserError(f"{path}, {where}: sets seed, which is without effect: name the seeds once, as seeds: [0, 1]")
    if "teacher" in sections and has_teacher:
        raise UserError(
            f"{path}, {where}: sets teacher, which is without effect as the experiment has a teacher of its own: set "
            "it there (its keys are those of the config that trains it), or leave that out"
        )


def check_once(path: Path, where: str, entries: list[tuple[str, Any]]) -> None:
    """UserError where two entries of one place set the same key, or one a key of what the other has as a value."""
    written: list[tuple[str, tuple[str, ...], Any]] = []
    for key, value in entries:
        found = [(leaf, tuple(leaf.split(".")), inner) for leaf, inner in leaves(value, key) if inner != {}]
        for (leaf, keys, inner), (other, others, its) in itertools.product(found, written):
            if keys == others:
                raise UserError(f"{path}, {where}: sets {leaf} twice: leave out one of them")
            if keys[: len(others)] == others or others[: len(keys)] == keys:
                upper, lower, off = (leaf, other, inner) if len(keys) < len(others) else (other, leaf, its)
                does = "switches" if off in (None, "none") else "sets"
                what = f"{does} {upper}{' off' if does == 'switches' else ''}"
                raise UserError(f"{path}, {where}: {what} and sets {lower}: leave out one of them")
        written += found


def leaves(value: Any, path: str = "") -> Iterator[tuple[str, Any]]:
    """{"model": {"norm": "live"}} -> ("model.norm", "live"); a section that is switched off is a leaf."""
    if not isinstance(value, dict) or not value:
        yield path, value
        return
    for key, inner in value.items():
        yield from leaves(inner, f"{path}.{key}".lstrip("."))


def nested(key: str, value: Any, where: str) -> dict[str, Any]:
    """("distill.top_k", 5) -> {"distill": {"top_k": 5}}"""
    keys = key.split(".")
    if not all(keys):
        raise UserError(f"{where}: {key!r} is no key path: write for example distill.top_k")
    if keys[0] == "output":
        raise UserError(f"{where}: sets output, which the experiment's own output decides for every run: leave it out")
    for part in reversed(keys):
        value = {part: value}
    return value
