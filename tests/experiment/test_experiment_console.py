"""A terminal or pipe that goes away ends no experiment."""

from __future__ import annotations

import subprocess
import sys

import pytest
from experiment_helpers import ROOT, Workshop

SCRIPT = ROOT / "scripts" / "experiment.py"


def without_a_reader(workshop: Workshop, *arguments: str) -> subprocess.CompletedProcess[str]:
    """The script with the fake trainer; its output is a pipe whose other end is closed."""
    code = (
        "import runpy, sys, pathlib; import gid_cuda.experiment.command as c\n"
        f"c.train_command = lambda *_: {workshop.command!r}\n"
        f"sys.argv = [{str(SCRIPT)!r}, *sys.argv[1:]]\n"
        f"runpy.run_path({str(SCRIPT)!r}, run_name='__main__')\n"
    )
    command = [sys.executable, "-c", code, "--cfg", str(workshop.folder / "matrix.yaml"), "--no-pictures", *arguments]
    first = subprocess.Popen(["true"], stdin=subprocess.PIPE)
    first.wait()
    return subprocess.run(command, cwd=ROOT, stdout=first.stdin, stderr=subprocess.PIPE, text=True, timeout=120)


@pytest.mark.slow
@pytest.mark.parametrize("arguments", [(), ("--dry-run",), ("--report",)])
def test_a_closed_pipe_ends_nothing_and_is_not_told(workshop: Workshop, arguments: tuple[str, ...]) -> None:
    experiment = workshop.experiment()
    ended = without_a_reader(workshop, *arguments)
    assert (ended.returncode, ended.stderr) == (0, "")
    assert len(workshop.calls()) == (0 if arguments else 3)
    assert (experiment.output / "report.html").exists() == (arguments != ("--dry-run",))
