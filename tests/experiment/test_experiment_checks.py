"""What ends a run at its start is told before the first one begins."""

from __future__ import annotations

from pathlib import Path
from typing import Any

import pytest
import torch
from experiment_helpers import Workshop

from gid_cuda.errors import UserError
from gid_cuda.experiment import checks
from gid_cuda.experiment.checks import check_start
from gid_cuda.experiment.state import State, current_states

GID = {"distill.method": "gid"}
GIVEN = {"config": "teacher.yaml", "weights": "gone.pt"}
PLAIN = {"name": "plain"}


def start(workshop: Workshop, **changes: Any) -> None:
    experiment = workshop.experiment(**changes)
    check_start(experiment, current_states(experiment))


@pytest.mark.parametrize(
    ("changes", "told"),
    [
        ({"teacher": GIVEN}, "row GID: teacher.weights: gone.pt does not exist: name another file"),
        ({"rows": [PLAIN, {"name": "a", "set": {"model.weights": "/"}}]}, "row a: model.weights: / is a folder: name"),
        ({"rows": [PLAIN, {"name": "a", "set": {"model.detector": "fcos", "model.fpn_channels": 16}}]},
         "row a: fpn_channels is 16, but FCOS"),
        ({"set": {"model.detector": "faster_rcnn", "model.head_depth": 2}}, "teacher: head_depth is 2, but the RPN of"),
        ({"rows": [{"name": "a", "set": {"model.trainable_layers": 6}}]}, "row a: trainable_layers is 6, but resnet18"),
        ({"rows": [{"name": "a", "set": {**GID, "model.fpn_channels": 32, "distill.adapt": "none"}}]},
         "row a: distill: "),
        ({"rows": [{"name": "a", "set": {"model.weights": "coco", "input.std": [1.0, 1.0, 1.0]}}]},
         "row a: weights: coco was trained with input.std"),
    ],
)  # fmt: skip
def test_told_before_the_first_begins(workshop: Workshop, changes: dict[str, Any], told: str) -> None:
    with pytest.raises(UserError) as caught:
        start(workshop, **changes)
    assert told in str(caught.value) and "\n" not in str(caught.value) and "matrix.yaml" in str(caught.value)


def test_what_can_run_is_let_through_and_what_is_done_needs_nothing(workshop: Workshop) -> None:
    start(workshop)
    experiment = workshop.experiment(teacher=GIVEN)
    check_start(experiment, {run.key: State("done") for run in experiment.runs})


def test_a_gpu_that_is_not_there(workshop: Workshop, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(torch.cuda, "is_available", lambda: False)
    with pytest.raises(UserError, match="row plain: device is cuda, but torch sees no GPU here"):
        start(workshop, rows=[{"name": "plain", "set": {"device": "cuda"}}], teacher=None)


def test_an_output_that_cannot_be_written(workshop: Workshop, monkeypatch: pytest.MonkeyPatch) -> None:
    file = workshop.folder / "file"
    file.write_text("")
    for output in (file, file / "below"):
        with pytest.raises(UserError, match=f"output: {file} is a file, expected a folder"):
            start(workshop, output=str(output))
    monkeypatch.setattr(checks.os, "access", lambda path, mode: Path(path) != workshop.folder)
    with pytest.raises(UserError, match=f"output: {workshop.folder} cannot be written"):
        start(workshop, output=str(workshop.folder / "new"))


def test_names_are_short_and_a_choice_of_no_kinds_is_refused(workshop: Workshop) -> None:
    with pytest.raises(UserError, match=r"rows: the name aaa.* has 300 letters, and a folder is named after it"):
        workshop.experiment(rows=[{"name": "a" * 300}])
    with pytest.raises(UserError, match=r"row a: distill.kinds has the list \[\], expected"):
        workshop.experiment(rows=[{"name": "a", "set": {"distill.kinds": []}}])
