"""A process of many ends as it should, though gloo's threads are not through with its last collective."""

from __future__ import annotations

import os
import shlex
import shutil
import subprocess
import sys
from pathlib import Path

import pytest
from launched import ENVIRONMENT, free_port
from zygote import PATIENCE

HERE = Path(__file__).parent
PROGRAM = """
import sys
import torch
from gid_cuda.engine import distributed

with distributed.processes():
    model = torch.nn.parallel.DistributedDataParallel(torch.nn.Linear(2, 2))
    for _ in range(3):
        model(torch.ones(2, 2)).sum().backward()
    if len(sys.argv) > 1:
        sys.exit(int(sys.argv[1]))
"""


@pytest.fixture(scope="module")
def late_threads(tmp_path_factory: pytest.TempPathFactory) -> Path:
    library = tmp_path_factory.mktemp("late") / "late.so"
    compiler = shlex.split(os.environ.get("CXX", "")) or ["c++" if shutil.which("c++") else "g++"]
    subprocess.run(
        [*compiler, "-std=c++20", "-shared", "-fPIC", "-o", library, HERE / "late_threads.cpp", "-ldl"], check=True
    )
    return library


@pytest.mark.slow
@pytest.mark.parametrize("status", [0, 3])
def test_gloos_threads_do_not_end_it(status: int, late_threads: Path) -> None:
    """It was SIGABRT, "terminate called without an active exception": what CI saw once."""
    of_torchrun = {
        "RANK": "0", "LOCAL_RANK": "0", "WORLD_SIZE": "1", "MASTER_ADDR": "127.0.0.1", "MASTER_PORT": str(free_port()),
        "TORCHELASTIC_USE_AGENT_STORE": "False",
    }  # fmt: skip
    done = subprocess.run(
        [sys.executable, "-c", PROGRAM, *([str(status)] if status else [])],
        env={**os.environ, **ENVIRONMENT, **of_torchrun, "LD_PRELOAD": str(late_threads)},
        stderr=subprocess.PIPE,
        text=True,
        timeout=PATIENCE,
    )
    assert "late" in done.stderr  # else torch's threads have another name now
    assert done.returncode == status, done.stderr
