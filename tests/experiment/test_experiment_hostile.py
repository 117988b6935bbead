"""Names that a spreadsheet would compute, or that would break a table; pages with <script> are in ..._page.py."""

from __future__ import annotations

import csv
import io
from pathlib import Path

import pytest

from gid_cuda.errors import UserError
from gid_cuda.experiment.csv_files import table_csv
from gid_cuda.experiment.schema import read_matrix
from gid_cuda.experiment.table import Line, Spread

NAMES = ["=1+1", "+ GID", "-cmd|' /C calc'!A0", "@SUM(A1)", '=HYPERLINK("http://x")']


@pytest.mark.parametrize("name", NAMES)
def test_no_cell_is_a_formula(name: str) -> None:
    text = table_csv([Line(name, name, 1, 1, {"AP": Spread(-1.5, None, 1)}, {}, {}, {})])
    (row,) = list(csv.DictReader(io.StringIO(text)))
    assert row["detector"] == row["row"] == f"'{name}"
    assert float(row["mean"]) == -1.5  # numbers stay numbers


def test_other_names_stay_as_they_are() -> None:
    text = table_csv([Line("", "GID, top_k 5", 1, 1, {"AP": Spread(1.0, 0.1, 2)}, {}, {}, {})])
    assert next(csv.DictReader(io.StringIO(text)))["row"] == "GID, top_k 5"


@pytest.mark.parametrize("name", ['"a\\nb"', '"a\\tb"', '"a\\u202eb"', '"a\\u2028b"'])
def test_a_name_is_one_printable_line(tmp_path: Path, name: str) -> None:
    for text in (f"rows: [{{name: {name}}}]", f"title: {name}\nrows: [{{name: a}}]"):
        (tmp_path / "x.yaml").write_text(f"output: x\nstudent: {{config: c.yaml}}\n{text}\n")
        with pytest.raises(UserError, match="line breaks or control characters"):
            read_matrix(tmp_path / "x.yaml")
