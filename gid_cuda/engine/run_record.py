"""run.json: what a run was made with, so that it can be made again. One entry for each time that it was started."""

from __future__ import annotations

import datetime
import json
import os
import platform
import shlex
import sys
from pathlib import Path
from typing import Any

import torch

import gid_cuda
from gid_cuda.config import Config, config_to_dict
from gid_cuda.files import write_text
from gid_cuda.machine import cpu_name, git_commit, nvidia_smi, package_version

FILE = "run.json"


def write_run_record(folder: Path, config: Config, classes: list[str], *, step: int) -> None:
    """{"classes": names by label, "starts": [...]}. step: after which this start goes on; 0: a run from the beginning.

    A start holds date, command line and folder, the resolved config, seed, versions, commit and machine.
    """
    record = {"classes": classes, "starts": [*(_starts(folder) if step else []), _start(config, step)]}
    write_text(folder / FILE, json.dumps(record, indent=1) + "\n")


def _starts(folder: Path) -> list[Any]:
    """Of the file that is there; a run of an older version has none, and a damaged one is not worth a stop."""
    try:
        return list(json.loads((folder / FILE).read_text(encoding="utf-8"))["starts"])
    except (OSError, ValueError, KeyError, TypeError):
        return []


def _start(config: Config, step: int) -> dict[str, Any]:
    smi = nvidia_smi("name,driver_version")
    return {
        "date": datetime.datetime.now(datetime.timezone.utc).isoformat(timespec="seconds"),
        "after_step": step,
        "command": shlex.join(sys.orig_argv),
        "working_directory": os.getcwd(),
        "seed": config.seed,  # of weights, batches and draws; data.generated has one of its own
        "deterministic": config.deterministic,
        "python": platform.python_version(),
        "torch": torch.__version__,
        "torchvision": package_version("torchvision"),
        "gid_cuda": gid_cuda.__version__,
        "git_commit": git_commit(),  # -dirty: with changes of its own; null: not run from a checkout
        "cuda": torch.version.cuda,
        "driver": smi[0].rpartition(", ")[2] if smi else None,
        "gpus": [torch.cuda.get_device_name(i) for i in range(torch.cuda.device_count())],
        "cpu": cpu_name(),
        "threads": torch.get_num_threads(),
        "system": platform.platform(),
        "processes": int(os.environ.get("WORLD_SIZE", "1")),  # as torchrun says
        "config": config_to_dict(config),
    }
