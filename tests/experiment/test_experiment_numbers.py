"""The table's numbers, worked by hand, and as text and CSV."""

from __future__ import annotations

import csv
import io
import json
import math

import pytest
from experiment_helpers import Workshop

from benchmarks import readme
from gid_cuda.experiment.csv_files import TABLE_COLUMNS, read_runs_csv, runs_csv, table_csv
from gid_cuda.experiment.json_file import results_json
from gid_cuda.experiment.matrix import Experiment
from gid_cuda.experiment.schema import METRICS
from gid_cuda.experiment.state import NOTE
from gid_cuda.experiment.table import Spread, one_decimal, show, spread, table_lines, table_text


def metrics(ap: float | None, ap50: float | None = None) -> dict[str, float | None]:
    return {**dict.fromkeys(METRICS), "AP": ap, "AP50": ap50, "seconds": 12.5, "step": 10, "parameters": 7}


RESULTS = {  # AP of plain 10, 12, 14 and of GID 13, 18, 17: differences 3, 6, 3
    "teacher": metrics(30.0),
    "plain/seed0": metrics(10.0, 20.0), "plain/seed1": metrics(12.0, None), "plain/seed2": metrics(14.0, 30.0),
    "gid/seed0": metrics(13.0, 26.0), "gid/seed1": metrics(18.0, 27.0), "gid/seed2": metrics(17.0, 32.0),
}  # fmt: skip


@pytest.fixture
def experiment(workshop: Workshop) -> Experiment:
    rows = [
        {"name": "plain", "paper": {"AP": 36.2}},
        {"name": "GID", "set": {"distill.method": "gid"}, "paper": {"AP": 39.1, "AP50": 59.0}},
    ]
    teacher = {"config": "teacher.yaml", "paper": {"AP": 38.1}}
    return workshop.experiment(rows=rows, seeds=[0, 1, 2], teacher=teacher)


def test_mean_and_sample_standard_deviation() -> None:
    assert spread([]) is None and spread([4.0]) == Spread(4.0, None, 1)
    assert spread([10.0, 12.0, 14.0]) == Spread(12.0, 2.0, 3)  # (4 + 0 + 4) / 2 = 4
    assert spread([1.0, 2.0]) == Spread(1.5, pytest.approx(math.sqrt(0.5)), 2)


def test_differences_are_paired_by_seed(experiment: Experiment) -> None:
    teacher, plain, gid = table_lines(experiment, RESULTS)
    assert plain.values["AP"] == Spread(12.0, 2.0, 3) and plain.differences == {}
    assert gid.values["AP"] == Spread(16.0, pytest.approx(math.sqrt(7)), 3)  # (9 + 4 + 1) / 2
    assert gid.differences["AP"] == Spread(4.0, pytest.approx(math.sqrt(3)), 3)  # of 3, 6, 3: (1 + 4 + 1) / 2
    assert plain.values["AP50"].count == 2  # one seed has nothing to count
    assert gid.differences["AP50"] == Spread(4.0, pytest.approx(math.sqrt(8)), 2)  # of 6 and 2
    assert "APl" not in gid.values and (gid.done, gid.planned) == (3, 3)
    assert teacher.values["AP"] == Spread(30.0, None, 1) and teacher.differences == {}
    assert teacher.paper == {"AP": 38.1} and teacher.paper_differences == {}
    assert gid.paper == {"AP": 39.1, "AP50": 59.0} and gid.paper_differences == {"AP": pytest.approx(2.9)}


def test_only_seeds_that_both_have_are_compared(experiment: Experiment) -> None:
    done = {key: value for key, value in RESULTS.items() if key not in ("plain/seed1", "gid/seed2")}
    _, plain, gid = table_lines(experiment, done)
    assert plain.values["AP"].mean == 12.0 and gid.values["AP"].mean == 15.5
    assert gid.differences["AP"] == Spread(3.0, None, 1) and (gid.done, gid.planned) == (2, 3)


def test_numbers_as_text() -> None:
    assert show(Spread(15.66, 0.449, 3)) == "15.7 ±0.4" and show(Spread(2.0, None, 1), signed=True) == "+2.0"
    assert show(None) == "-" and one_decimal(-0.04, signed=True) == "+0.0" and one_decimal(-2.96, signed=True) == "-3.0"


def test_the_table_as_text(experiment: Experiment) -> None:
    lines = table_text(experiment, table_lines(experiment, RESULTS)).splitlines()
    assert lines[0].split() == ["matrix", "seeds", *METRICS]
    assert lines[1].split()[:3] == ["teacher", "1/1", "30.0"] and lines[2].split() == ["the", "paper", "38.1"]
    assert lines[5].split()[:4] == ["GID", "3/3", "16.0", "±2.6"]
    assert lines[6].split() == ["against", "plain", "+4.0", "±1.7", "+4.0", "±2.8"]
    assert lines[7].split() == ["the", "paper", "39.1", "(+2.9)", "59.0"]
    assert len(lines) == 8


def test_the_csv_gives_back_every_digit(experiment: Experiment) -> None:
    odd = {**RESULTS, "gid/seed0": metrics(1 / 3, 26.0)}
    back = read_runs_csv(runs_csv(experiment, odd))
    assert {key: {m: row[m] for m in METRICS} for key, row in back.items()} == {
        key: {m: row[m] for m in METRICS} for key, row in odd.items()
    }
    assert table_lines(experiment, back) == table_lines(experiment, odd)


def test_the_table_as_csv(experiment: Experiment) -> None:
    rows = list(csv.DictReader(io.StringIO(table_csv(table_lines(experiment, RESULTS)))))
    assert tuple(rows[0]) == TABLE_COLUMNS
    by_row = {(row["row"], row["metric"]): row for row in rows}
    gid = by_row["GID", "AP"]
    assert [float(gid[key]) for key in ("mean", "difference", "paper", "seeds")] == [16.0, 4.0, 39.1, 3.0]
    assert float(gid["difference_deviation"]) == pytest.approx(math.sqrt(3))
    assert float(gid["paper_difference"]) == pytest.approx(2.9)
    assert by_row["teacher", "AP"]["difference"] == "" and ("GID", "APl") not in by_row


def test_readmes_table_is_made_from_the_json(experiment: Experiment) -> None:
    for run, commit in zip(experiment.runs, "aabbbbb", strict=True):
        run.folder.mkdir(parents=True)
        machine = {"CPU": "C", "GPU": "none", "torch": "2", "git commit": commit}
        (run.folder / NOTE).write_text(json.dumps({"machines": [machine]}))
    content = json.loads(results_json(experiment, table_lines(experiment, RESULTS), "2026-01-02 03:04 UTC"))
    assert content["baseline"] == "plain"
    head, _, teacher, plain, gid, _, made_with = readme.experiment(content).splitlines()
    assert head.startswith(f"| {experiment.title} | seeds | AP |")
    assert teacher == "| teacher | 1 | 30.0 |  |  | 38.1 |"
    assert plain == "| plain | 3 | 12.0 ± 2.0 | 25.0 ± 7.1 |  | 36.2 |"
    assert gid == "| GID | 3 | 16.0 ± 2.6 | 28.3 ± 3.2 | +4.0 ± 1.7 | 39.1, +2.9 |"
    assert "commit a; C, GPU none, torch 2, commit b, 2026-01-02 03:04 UTC" in made_with
