#!/usr/bin/env python3
"""Is the demo's gain what the method does, or luck? One teacher, then plain and distilled student for several seeds.

    python benchmarks/demo_seeds.py [--seeds 5] [--output runs/seeds] [--json benchmarks/results/demo_seeds.json]

Plain and distilled student of one seed start from the same weights and see the same batches. Finished runs are kept, so
it can be stopped and started again. All seeds are reported. `benchmarks/readme.py` makes README's table from the JSON.
"""

from __future__ import annotations

import argparse
import json
import platform
import subprocess
from pathlib import Path

import torch

from gid_cuda.config import load_config
from gid_cuda.engine.trainer import train
from gid_cuda.errors import told_in_one_sentence

CONFIGS = Path(__file__).parent.parent / "configs"
ROLES = {"teacher": "demo_teacher.yaml", "plain": "demo_student.yaml", "distilled": "demo.yaml"}
STUDENTS = ("plain", "distilled")


def run(role: str, seed: int, folder: Path) -> dict:
    """Train one role with one seed unless that is done; its metrics.json."""
    output = folder / f"{role}-{seed}"
    metrics = output / "metrics.json"
    if not metrics.exists():
        overrides = [f"seed={seed}", f"output={output}"]
        if role == "distilled":
            overrides.append(f"teacher.weights={folder / 'teacher-0' / 'best.pt'}")
        train(load_config(CONFIGS / ROLES[role], overrides), resume=True)
    return json.loads(metrics.read_text())


def machine() -> dict[str, str | int]:
    """What the figures were made with."""
    commit = subprocess.run(["git", "describe", "--always", "--dirty"], capture_output=True, text=True, cwd=CONFIGS)
    return {
        "cpu": platform.processor() or platform.machine(),
        "threads": torch.get_num_threads(),
        "torch": torch.__version__,
        "python": platform.python_version(),
        "commit": commit.stdout.strip() or "unknown",
    }


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    parser.add_argument("--seeds", type=int, default=5, help="how many seeds, counted from 0 (default: 5)")
    parser.add_argument("--output", type=Path, default=Path("runs/seeds"), help="folder of the runs")
    parser.add_argument("--json", type=Path, default=Path(__file__).parent / "results" / "demo_seeds.json")
    arguments = parser.parse_args()
    runs = []
    for role, seed in [("teacher", 0), *((role, seed) for seed in range(arguments.seeds) for role in STUDENTS)]:
        metrics = run(role, seed, arguments.output)
        runs.append({"role": role, "seed": seed, **{k: v for k, v in metrics.items() if k != "per_class"}})
        print(f"{role} of seed {seed}: AP {metrics['AP']:.1f}, AP50 {metrics['AP50']:.1f}", flush=True)
    arguments.json.parent.mkdir(parents=True, exist_ok=True)
    arguments.json.write_text(json.dumps({"machine": machine(), "runs": runs}, indent=1) + "\n")


if __name__ == "__main__":
    with told_in_one_sentence():
        main()
