"""The table's numbers with what they were made with: what README's tables are written from."""

from __future__ import annotations

import json
from collections.abc import Sequence
from dataclasses import asdict

from gid_cuda.experiment.machine import describe_machine
from gid_cuda.experiment.matrix import Experiment
from gid_cuda.experiment.table import Line


def results_json(experiment: Experiment, lines: Sequence[Line], now: str) -> str:
    """{title, baseline, date, machine, rows}: a row for each `Line`, its fields by their names."""
    content = {
        "title": experiment.title,
        "baseline": experiment.baseline,
        "date": now,
        "machine": describe_machine(),
        "rows": [asdict(line) for line in lines],
    }
    return json.dumps(content, indent=1) + "\n"
