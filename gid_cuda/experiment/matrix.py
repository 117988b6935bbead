"""From an experiment's file to its runs: which config each has, in which folder, after which teacher."""

from __future__ import annotations

import itertools
import re
from collections.abc import Iterator
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from gid_cuda import config_file
from gid_cuda.config import NO_SUCH_PAIR, Config, config_from_dict, config_to_dict
from gid_cuda.errors import UserError
from gid_cuda.experiment.schema import (
    DetectorConfig,
    MatrixConfig,
    PaperNumbers,
    RowConfig,
    Settings,
    StudentConfig,
    TeacherConfig,
    read_matrix,
)
from gid_cuda.experiment.settings import check_does_not_distill, check_once, check_settings, nested

TEACHER = "teacher"
MAX_NAME = 100  # letters; file systems take folders of 255 bytes


@dataclass(frozen=True)
class PlannedRun:
    """One run of `scripts/train.py`."""

    key: str  # its folder below OUTPUT/runs, which names it everywhere: fcos/gid/seed0
    detector: str  # "" where the matrix has no detectors
    row: str  # TEACHER: the run that trains the teacher
    seed: int
    config: Config
    teacher: str | None = None  # key of the run that has to be done first

    @property
    def folder(self) -> Path:
        return self.config.output

    @property
    def title(self) -> str:
        detector = f"{self.detector}, " if self.detector else ""
        return f"{detector}{self.row}" + ("" if self.row == TEACHER else f", seed {self.seed}")


@dataclass(frozen=True)
class Row:
    """A line of a table; sweeps are already taken apart."""

    name: str
    set: Settings
    only: tuple[str, ...] | None
    paper: PaperNumbers | dict[str, PaperNumbers] | None


@dataclass(frozen=True)
class Experiment:
    path: Path
    matrix: MatrixConfig
    detectors: tuple[str, ...]  # ("",) where the matrix names none
    rows: tuple[Row, ...]
    runs: tuple[PlannedRun, ...]  # in the order in which they are begun
    baseline: str | None

    @property
    def output(self) -> Path:
        return self.matrix.output

    @property
    def title(self) -> str:
        return self.matrix.title or self.path.stem

    def runs_of(self, detector: str, row: str) -> list[PlannedRun]:
        """By seed, in the order of the file; none where the row is not for this detector."""
        return [run for run in self.runs if (run.detector, run.row) == (detector, row)]

    def teacher(self, detector: str) -> TeacherConfig | None:
        parts = {d.name: d.teacher for d in self.matrix.detectors or () if d.teacher}
        return parts.get(detector, self.matrix.teacher)

    def given_weights(self, detector: str) -> str | None:
        """The teacher's, where they come from elsewhere: then no run trains it."""
        part = self.teacher(detector)
        return part.weights if part else None

    def paper(self, detector: str, row: str) -> PaperNumbers | None:
        if row == TEACHER:
            part = self.teacher(detector)
            return part.paper if part else None
        numbers = next(r.paper for r in self.rows if r.name == row)
        return numbers.get(detector) if isinstance(numbers, dict) else numbers


def load_experiment(path: Path) -> Experiment:
    """Every run's config is made and checked here, so that a mistake in the last row is told before the first begins.

    Raises UserError, in one sentence for each mistake, with the row or the teacher where it is.
    """
    matrix = read_matrix(path)
    rows = tuple(row for config in matrix.rows for row in _take_apart(config, path))
    detectors = matrix.detectors or [DetectorConfig(name="-")]
    names = tuple(d.name for d in detectors) if matrix.detectors else ("",)
    _check_names(path, "rows", [TEACHER, *(row.name for row in rows)])
    _check_names(path, "detectors", [name for name in names if name])
    if len(set(matrix.seeds)) != len(matrix.seeds):
        raise UserError(f"{path}: seeds names {_twice(matrix.seeds)} twice: name each once")
    for row in rows:
        _check_detectors(path, row, names)
    if matrix.teacher is not None and matrix.teacher.paper is not None and len(names) > 1:
        raise UserError(f"{path}: teacher.paper would stand for every detector: give each its own teacher with it")
    runs = tuple(
        run
        for name, detector in zip(names, detectors, strict=True)
        for run in _runs(path, matrix, name, detector, rows)
    )
    return Experiment(path, matrix, names, rows, runs, _baseline(path, matrix, rows, runs))


def _runs(
    path: Path, matrix: MatrixConfig, name: str, detector: DetectorConfig, rows: tuple[Row, ...]
) -> Iterator[PlannedRun]:
    """Of one detector: its teacher, then all rows of the first seed, of the second: a table is whole early."""
    folder = f"{slug(name)}/" if name else ""
    common = [("set", matrix.set), (f"detector {name}", detector.set)]
    part, teacher_section, trained = detector.teacher or matrix.teacher, None, None
    if part is not None:
        key = teacher_key(name)
        check_once(path, TEACHER, list(part.set.items()))
        teacher = _config(path, part, [*common, (TEACHER, part.set)], matrix.output / "runs" / key)
        weights = part.weights or str(teacher.output / "best.pt")
        teacher_section = config_to_dict(teacher)["model"] | {"weights": weights, "backbone_weights": None}
        if part.weights is None:
            if teacher.distill is not None:
                raise UserError(f"{path}: the teacher's config distills: name that of a plain run, or give its weights")
            trained = key
            yield PlannedRun(key, name, TEACHER, teacher.seed, teacher)
    student = detector.student or matrix.student
    for where, changes in (*common, ("student", student.set), *((f"row {row.name}", row.set) for row in rows)):
        check_once(path, where, list(changes.items()))
        check_settings(path, where, changes, has_teacher=part is not None, for_all=(where, changes) in common)
    for seed, row in itertools.product(matrix.seeds, rows):
        if row.only is not None and name not in row.only:
            continue
        key = f"{folder}{slug(row.name)}/seed{seed}"
        settings = [*common, ("student", student.set), (f"row {row.name}", row.set)]
        try:
            config = _config(path, student, settings, matrix.output / "runs" / key, seed=seed, teacher=teacher_section)
        except UserError as error:
            if NO_SUCH_PAIR not in str(error) or not name:
                raise
            raise UserError(f"{error}; or let row {row.name} leave out {name} by only: [...]") from None
        yield PlannedRun(key, name, row.name, seed, config, trained if config.distill is not None else None)


def _config(
    path: Path,
    part: StudentConfig | TeacherConfig,
    settings: list[tuple[str, Settings]],
    output: Path,
    *,
    seed: int | None = None,
    teacher: dict[str, Any] | None = None,
) -> Config:
    """A run's config: its file with the settings on top, the later ones above; teacher: replaces the file's section."""
    raw, origins = config_file.read_config_file(path.parent / part.config)
    for where, changes in settings:
        for key, value in changes.items():
            config_file.merge(raw, nested(key, value, f"{path}, {where}"), origins, f"{path}, {where}")
    if isinstance(part, TeacherConfig):
        check_does_not_distill(path, settings[:-1], raw)
    raw["output"] = str(output)
    if seed is not None:
        raw["seed"] = seed
    distills = raw.get("distill") not in (None, "none")
    if teacher is not None or not distills:  # a plain run names no teacher: it does not change with one
        raw["teacher"] = teacher if distills else None
    return config_from_dict(raw, name=f"{path}, {settings[-1][0]}", origins=origins)


def _take_apart(row: RowConfig, path: Path) -> Iterator[Row]:
    only = None if row.only is None else tuple(row.only)
    if not row.sweep:
        yield Row(row.name, row.set, only, row.paper)
        return
    if row.paper is not None:
        raise UserError(f"{path}: row {row.name} has a sweep and paper, which cannot say which value it is of: "
                        "write a row for each value")  # fmt: skip
    for values in itertools.product(*row.sweep.values()):
        chosen = dict(zip(row.sweep, values, strict=True))
        check_once(path, f"row {row.name}", [*row.set.items(), *chosen.items()])
        said = ", ".join(f"{key.rpartition('.')[2]} {_say(value)}" for key, value in chosen.items())
        yield Row(f"{row.name}, {said}", row.set | chosen, only, None)


def _say(value: Any) -> str:
    return ", ".join(map(_say, value)) if isinstance(value, list) else "none" if value is None else str(value)


def teacher_key(detector: str) -> str:
    """Of its run; of its numbers, where its weights are given."""
    return f"{slug(detector)}/{TEACHER}" if detector else TEACHER


def slug(name: str) -> str:
    """A name as part of a path: "+ Fine-grained" -> "fine-grained". Empty where nothing is left."""
    return re.sub(r"[^\w.]+", "-", name.lower()).strip("-.")


def _check_names(path: Path, what: str, names: list[str]) -> None:
    slugs = [slug(name) for name in names]
    if long := [name for name in names if len(name) > MAX_NAME or len(slug(name).encode()) > 2 * MAX_NAME]:
        raise UserError(
            f"{path}: {what}: the name {long[0][:40]}... has {len(long[0])} letters, and a folder is named after it: "
            f"take at most {MAX_NAME}"
        )
    for name, short in zip(names, slugs, strict=True):
        if not short:
            raise UserError(f"{path}: {what}: the name {name!r} has no letter and no digit, of which a folder is named")
    if len(set(slugs)) != len(slugs):
        first, second = (name for name, short in zip(names, slugs, strict=True) if short == _twice(slugs))
        same = f"{first} and {second} name the same folder" if first != second else f"{first} is there twice"
        raise UserError(f"{path}: {what}: {same}: give each its own name ({TEACHER} is the teacher's)")


def _twice(values: list[Any]) -> Any:
    return next(value for i, value in enumerate(values) if value in values[:i])


def _check_detectors(path: Path, row: Row, names: tuple[str, ...]) -> None:
    by_name = list(row.paper) if isinstance(row.paper, dict) else []
    for unknown in [name for name in [*(row.only or ()), *by_name] if name not in names]:
        known = ", ".join(names) if names != ("",) else "no detectors"
        raise UserError(f"{path}: row {row.name} names the detector {unknown}, but the experiment has {known}")
    if isinstance(row.paper, PaperNumbers) and len(names) > 1:
        raise UserError(f"{path}: row {row.name}: paper has to name the detector: paper: {{{names[0]}: {{AP: ...}}}}")


def _baseline(path: Path, matrix: MatrixConfig, rows: tuple[Row, ...], runs: tuple[PlannedRun, ...]) -> str | None:
    names = [row.name for row in rows]
    if matrix.baseline is not None:
        if matrix.baseline not in names:
            raise UserError(f"{path}: baseline is {matrix.baseline}, expected the name of a row: {', '.join(names)}")
        return matrix.baseline
    return next((run.row for run in runs if run.config.distill is None and run.row != TEACHER), None)
