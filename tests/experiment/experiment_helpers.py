"""A small experiment, and a trainer that only writes what scripts/train.py leaves behind."""

from __future__ import annotations

import json
import sys
from pathlib import Path
from typing import Any

import yaml

from gid_cuda.experiment.matrix import Experiment, load_experiment

ROOT = Path(__file__).parents[2]
STUDENT = {
    "output": "ignored",
    "data": {"format": "generated", "root": "data"},
    "model": {"backbone": "resnet18"},
    "train": {"steps": 10, "batch_size": 2},
}
# argv: --cfg FILE --resume|--overwrite. control.json beside it: by run, "fail", "sleep" (until killed), "wait".
TRAINER = """
import json, os, sys, time
from pathlib import Path
import yaml
config = yaml.safe_load(Path(sys.argv[2]).read_text())
output, here = Path(config["output"]), Path(__file__).parent
key = str(output).partition("/runs/")[2]
with open(here / "calls.txt", "a") as calls:
    calls.write(f"{key} {sys.argv[3]} {os.environ.get('CUDA_VISIBLE_DEVICES', '-')}\\n")
output.joinpath("config.yaml").write_text(yaml.safe_dump(config))
todo = json.loads((here / "control.json").read_text()).get(key)
print("device: none")
if todo == "fail":
    sys.exit("error: the loss became nan at step 3")
patience = time.monotonic() + 120  # a test that failed may have left it
while (todo == "sleep" or todo == "wait" and not (here / "go").exists()) and time.monotonic() < patience:
    time.sleep(0.02)
ap = 20.0 + config["seed"] + (5.0 if config["distill"] else 0.0)
log = [{"kind": "train", "step": 1, "loss": 2.0}, {"kind": "eval", "step": 1, "AP": ap, "AP50": 2 * ap}]
output.joinpath("log.jsonl").write_text("".join(json.dumps(entry) + "\\n" for entry in log))
output.joinpath("best.pt").write_bytes(json.dumps(config["train"]).encode())
metrics = {"AP": ap, "AP50": 2 * ap, "APl": None, "seconds": 7.5, "parameters": 3000000}
output.joinpath("metrics.json").write_text(json.dumps(metrics))
"""


class Workshop:
    """A folder with an experiment's file, and what the fake trainer is told and tells."""

    def __init__(self, folder: Path) -> None:
        self.folder = folder
        (folder / "student.yaml").write_text(yaml.safe_dump(STUDENT))
        (folder / "teacher.yaml").write_text("base: student.yaml\nmodel: {backbone: resnet34}\n")
        (folder / "train.py").write_text(TRAINER)
        self.control()

    def experiment(self, **changes: Any) -> Experiment:
        content = {
            "output": str(self.folder / "out"),
            "student": {"config": "student.yaml"},
            "teacher": {"config": "teacher.yaml"},
            "rows": [{"name": "plain"}, {"name": "GID", "set": {"distill.method": "gid"}}],
            **changes,
        }
        path = self.folder / "matrix.yaml"
        path.write_text(yaml.safe_dump({k: v for k, v in content.items() if v is not None}, sort_keys=False))
        return load_experiment(path)

    @property
    def command(self) -> list[str]:
        return [sys.executable, str(self.folder / "train.py")]

    def control(self, **todo: str) -> None:
        """plain_seed0="fail": what the run plain/seed0 does."""
        (self.folder / "control.json").write_text(json.dumps({k.replace("_", "/"): v for k, v in todo.items()}))

    def calls(self) -> list[str]:
        """Since the last time."""
        path = self.folder / "calls.txt"
        text = path.read_text() if path.exists() else ""
        path.unlink(missing_ok=True)
        return text.splitlines()
