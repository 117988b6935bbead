"""Fuzzes one target: python tests/fuzz/run.py config|coco|voc|operators [SECONDS] [SEED]

A process of its own, so that a crash of the interpreter shows as its exit status. The seed of every round is said
before the round: with SEED that round is done first, and so again.
"""

from __future__ import annotations

import sys
import tempfile
import time
from importlib import import_module
from pathlib import Path

import hypothesis

ROUND = 100  # examples


def run(target: str, seconds: float, seed: int) -> int:
    """How many examples were tried; what the target raises comes through."""
    done, end = 0, time.monotonic() + seconds
    with tempfile.TemporaryDirectory() as folder:
        test = import_module(f"target_{target}").make(Path(folder))
        test = hypothesis.settings(
            max_examples=ROUND, deadline=None, database=None, suppress_health_check=list(hypothesis.HealthCheck)
        )(test)
        while time.monotonic() < end or not done:
            print(f"{target}: seed {seed}", flush=True)
            hypothesis.seed(seed)(test)()
            done, seed = done + ROUND, seed + 1
    return done


if __name__ == "__main__":
    name, seconds, first, *_ = [*sys.argv[1:], *["60", str(time.time_ns() % 10**9)][len(sys.argv) - 2 :]]
    print(f"{name}: {run(name, float(seconds), int(first))} examples, nothing found")
