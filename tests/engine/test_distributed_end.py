"""A process of many ends as it should, though gloo's threads are not through with its last collective."""

from __future__ import annotations

import os
import subprocess
import sys
from pathlib import Path

import pytest
from launched import ENVIRONMENT, free_port, of_torchrun
from zygote import PATIENCE

from build_tools import host

PROGRAM = """
import atexit
import ctypes
import sys
import time

def last():
    # gloo's thread asks for the interpreter meanwhile: for less than the 5 ms after which it would get it
    lateness.value = 3
    until = time.perf_counter() + 0.003
    while time.perf_counter() < until:
        pass

lateness = ctypes.c_int.in_dll(ctypes.PyDLL(None), "lateness")
atexit.register(last)  # what is registered first is called last

import torch
from gid_cuda.engine import distributed

with distributed.processes():
    model = torch.nn.parallel.DistributedDataParallel(torch.nn.Linear(2, 2))
    for lateness.value in (0, 0, 1):
        model(torch.ones(2, 2)).sum().backward()
    atexit.register(setattr, lateness, "value", 2)
    if status := int(sys.argv[1]):
        sys.exit(status)
"""


@pytest.fixture(scope="module")
def late_threads(tmp_path_factory: pytest.TempPathFactory) -> Path:
    library = tmp_path_factory.mktemp("late") / "late.so"
    source = Path(__file__).with_name("late_threads.cpp")
    subprocess.run([*host.compiler(), "-shared", "-fPIC", "-o", library, source, "-ldl"], check=True)
    return library


@pytest.mark.slow
@pytest.mark.parametrize("status", [0, 3])
def test_gloos_threads_do_not_end_it(status: int, late_threads: Path) -> None:
    """It was SIGABRT, "terminate called without an active exception": what CI saw once."""
    own = of_torchrun(0, 1, free_port())
    done = subprocess.run(
        [sys.executable, "-c", PROGRAM, str(status)],
        env={**os.environ, **ENVIRONMENT, **own, "LD_PRELOAD": str(late_threads)},
        stderr=subprocess.PIPE,
        text=True,
        timeout=PATIENCE,
    )
    assert "late" in done.stderr  # else torch's threads have another name now
    assert done.returncode == status, done.stderr
