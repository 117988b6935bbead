"""The table's numbers with what they were made with: what README's tables are written from."""

from __future__ import annotations

import json
from collections.abc import Sequence
from dataclasses import asdict

from gid_cuda.experiment.matrix import Experiment
from gid_cuda.experiment.state import machines_of
from gid_cuda.experiment.table import Line


def results_json(experiment: Experiment, lines: Sequence[Line], now: str) -> str:
    """{title, baseline, date, machines, rows}: what the runs were made with; a row for each `Line`, its fields by their
    names."""
    content = {
        "title": experiment.title,
        "baseline": experiment.baseline,
        "date": now,
        "machines": machines_of(experiment),
        "rows": [asdict(line) for line in lines],
    }
    return json.dumps(content, indent=1) + "\n"
