"""The schema of an experiment's file: which runs there are. `configs/experiments/*.yaml` are examples."""

from __future__ import annotations

import json
from pathlib import Path
from typing import Annotated, Any

from pydantic import AfterValidator, Field, ValidationError

from gid_cuda import config_file
from gid_cuda.config import HomePath, HomeText, Section, Seed
from gid_cuda.errors import UserError
from gid_cuda.plain_yaml import parse_yaml

METRICS = ("AP", "AP50", "AP75", "APs", "APm", "APl", "AR", "ARs", "ARm", "ARl")
"""The columns of the paper's Table 2, in its order, by the names of metrics.json."""


def _one_line(text: str) -> str:
    if not text.isprintable():
        raise ValueError(f"{text[:60]!a} has line breaks or control characters, which break tables: take them out")
    return text


OneLine = Annotated[str, AfterValidator(_one_line)]
Name = Annotated[OneLine, Field(min_length=1)]
Settings = dict[str, Any]
"""Changes to a config: key paths (`distill.top_k`) or sections, with their values."""


class PaperNumbers(Section):
    """What the paper prints for a row, in percent."""

    AP: float | None = None
    AP50: float | None = None
    AP75: float | None = None
    APs: float | None = None
    APm: float | None = None
    APl: float | None = None
    AR: float | None = None
    ARs: float | None = None
    ARm: float | None = None
    ARl: float | None = None


class StudentConfig(Section):
    """The config that every row starts from."""

    config: HomePath  # relative to the experiment's file
    set: Settings = {}


class TeacherConfig(Section):
    """Trained once, first, for all rows that distill; its `model` section becomes their `teacher` section."""

    config: HomePath  # of the run that trains it; relative to the experiment's file
    set: Settings = {}
    weights: HomeText | None = None  # a file, or "coco": then no teacher is trained
    paper: PaperNumbers | None = None


class DetectorConfig(Section):
    """A column of the matrix: each of the rows once more, with a teacher of its own."""

    name: Name
    set: Settings = {}  # for its students and its teacher
    student: StudentConfig | None = None  # none: the experiment's
    teacher: TeacherConfig | None = None  # none: the experiment's, with `set` of this detector


class RowConfig(Section):
    """A line of the table."""

    name: Name
    set: Settings = {}
    # a row for each value, or for each combination of values where there are several keys: {distill.top_k: [5, 10]}
    sweep: dict[str, Annotated[list[Any], Field(min_length=1)]] = {}
    only: Annotated[list[Name], Field(min_length=1)] | None = None  # names of detectors; none: all
    paper: PaperNumbers | dict[str, PaperNumbers] | None = None  # with detectors: by their names


class MatrixConfig(Section):
    output: HomePath  # folder of the runs, the tables and the page; relative to the working directory
    title: OneLine | None = None
    note: str | None = None  # a few sentences for the page: what is compared, what the paper says
    set: Settings = {}  # for every run, teachers too
    student: StudentConfig
    teacher: TeacherConfig | None = None  # none: `teacher` is as the rows' configs have it
    detectors: Annotated[list[DetectorConfig], Field(min_length=1)] | None = None
    rows: Annotated[list[RowConfig], Field(min_length=1)]
    seeds: Annotated[list[Seed], Field(min_length=1)] = [0]
    baseline: str | None = None  # the row that the others are compared with; none: the first that does not distill


def read_matrix(path: Path) -> MatrixConfig:
    """The checked content of an experiment's file. UserError: a sentence for each mistake."""
    try:
        text = config_file.read_text(path)
    except OSError as error:
        raise UserError(f"experiment file {path} cannot be read: {error.strerror}") from None
    except UnicodeDecodeError:
        raise UserError(f"experiment file {path} is not UTF-8 text") from None
    raw = parse_yaml(text, str(path))
    if not isinstance(raw, dict):
        raise UserError(f"{path}: an experiment holds `key: value` pairs, this one holds {config_file.describe(raw)}")
    config_file.none_to_null(raw, MatrixConfig)
    try:
        return MatrixConfig.model_validate_json(json.dumps(raw), strict=True)
    except ValidationError as error:
        raise UserError(config_file.explain(error, raw, {}, MatrixConfig, str(path))) from None
