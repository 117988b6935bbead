"""docs/experiment_files.md: its example is planned as it says, and no key of the schema is left out."""

from __future__ import annotations

import re
from pathlib import Path

import pytest
from experiment_helpers import ROOT

from gid_cuda.experiment import schema
from gid_cuda.experiment.checks import check_start
from gid_cuda.experiment.command import plan_text
from gid_cuda.experiment.matrix import load_experiment
from gid_cuda.experiment.state import current_states

PAGE = (ROOT / "docs" / "experiment_files.md").read_text(encoding="utf-8")


def test_the_example_is_planned(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    found = re.search(r"<!-- example -->\n```yaml\n(.*?)```", PAGE, re.DOTALL)
    assert found
    (tmp_path / "configs").symlink_to(ROOT / "configs")
    path = tmp_path / "mine.yaml"
    path.write_text(re.sub(r"(config: )(\w+\.yaml)", r"\1configs/\2", found[1]))
    monkeypatch.chdir(tmp_path)
    experiment = load_experiment(path)
    check_start(experiment, current_states(experiment))
    plan = plan_text(experiment, redo=False).splitlines()
    assert f"it is {len(plan)} runs" in PAGE and len(plan) == 16
    assert all(line.endswith("to be trained") for line in plan)
    assert "Faster R-CNN, Mimicking, seed 1" in plan[-1] and sorted(tmp_path.iterdir()) == [tmp_path / "configs", path]


@pytest.mark.parametrize("part", [schema.MatrixConfig, schema.StudentConfig, schema.TeacherConfig,
                                  schema.DetectorConfig, schema.RowConfig])  # fmt: skip
def test_every_key_is_told(part: type[schema.Section]) -> None:
    assert [key for key in part.model_fields if f"`{key}`" not in PAGE] == []
