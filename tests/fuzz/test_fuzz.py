"""A minute of hypothesis for whatever takes a stranger's files, and for the operators; what it finds becomes a test."""

from __future__ import annotations

import os
import subprocess
import sys
from pathlib import Path

import pytest

ROOT = Path(__file__).parents[2]


def seed_of_commit() -> int:
    """New examples for each commit, and the same ones wherever that commit is tested; 0 outside git."""
    try:
        told = subprocess.run(["git", "rev-parse", "--short=7", "HEAD"], cwd=ROOT, capture_output=True, text=True)
    except OSError:  # no git
        return 0
    return int(told.stdout.strip()[:7] or "0", 16)


@pytest.mark.slow
@pytest.mark.parametrize("target", ["config", "coco", "voc", "operators"])
def test_a_minute_of(target: str) -> None:
    command = [sys.executable, str(Path(__file__).with_name("run.py")), target, "60", str(seed_of_commit())]
    environment = os.environ | {"PYTHONPATH": str(ROOT)}
    done = subprocess.run(command, capture_output=True, text=True, timeout=600, env=environment)
    last = [line for line in done.stdout.splitlines() if "seed" in line][-1:]
    again = f"again: python tests/fuzz/run.py {target} 1 SEED ({last})"
    assert done.returncode == 0, f"exit status {done.returncode}, {again}\n{done.stderr[-6000:]}"
    assert "nothing found" in done.stdout
