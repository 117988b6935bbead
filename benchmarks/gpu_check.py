#!/usr/bin/env python3
"""Everything that needs a GPU, on a machine without network, with the Python that runs this file: `make gpu-check`.

Builds in place, runs the tests marked cuda, compute-sanitizer over some of the operator tests, and the benchmarks. Each
stage has a limit of its own and stops none of the next, but for the build, without which there is nothing to check; all
together end within nine minutes. The exit code is 0 where all went well, 1 where a stage failed, 2 where there is no
GPU, 130 where it was interrupted. OUT keeps at most eight files: log.txt with everything that the stages said,
summary.txt, there from the first stage on, tests.xml (JUnit), and the benchmarks' JSON and plot. Needs only Python.
"""

from __future__ import annotations

import argparse
import contextlib
import os
import shutil
import signal
import subprocess
import sys
import time
from dataclasses import dataclass, field
from pathlib import Path

ROOT = Path(__file__).resolve().parent.parent
SECONDS = 530.0  # for everything; the target's nine minutes less what starting and ending take
LEAST = 15.0  # seconds: with less left a stage is not begun
SANITIZER = "compute-sanitizer"
SANITIZER_PLACES = ("/usr/local/cuda/bin", "/opt/cuda/bin")
# Where tests for a GPU are; the others do not even import everywhere.
TESTS = ("tests/ops", "tests/distill", "tests/detectors", "tests/engine", "tests/data")
# What the build, the tests and the benchmark import, pydantic's own two as well: without one of them a whole stage can
# be lost.
NEEDED = (
    "annotated_types hypothesis matplotlib ninja numpy PIL pybind11 pycocotools pydantic pydantic_core pytest "
    "setuptools tensorboard torchvision tqdm typing_inspection yaml"
)
NO_GPU = 17  # the probe's exit code
PROBE = (
    "import shutil, sys, torch; from importlib.util import find_spec; "
    f"torch.cuda.is_available() or sys.exit({NO_GPU}); print(torch.cuda.get_device_name(), torch.__version__); "
    f"print(*[x for x in '{NEEDED}'.split() if find_spec(x) is None and not (x == 'ninja' and shutil.which(x))])"
)
PROBE_SECONDS = 90.0  # torch's first import from a cold disk and CUDA's start; a driver that hangs must not take it all
CUBLAS = {"CUBLAS_WORKSPACE_CONFIG": ":4096:8"}
STOPPING = (signal.SIGINT, signal.SIGTERM, signal.SIGHUP)  # asks this program to end; its stages are of other sessions
GRACE = 8.0  # seconds: for a stage that is out of time to write down what it has
FOUND_ERRORS = "97"  # the sanitizer's exit code, unlike any of pytest's

# One test of each kind for each kernel. Drawn inputs would take the sanitizer many minutes.
_SMALL = "(equals or pieces or memory or aligned or both) and not awkward and not torchvision and not chain"
_FLOAT32 = "(equals or pieces or both) and not awkward and not torchvision and not chain and not float16"


@dataclass
class Stage:
    """command runs in the checkout. extra: where time does not suffice for it, nothing has failed."""

    name: str
    command: list[str]
    limit: float
    environment: dict[str, str] = field(default_factory=dict)
    extra: bool = False


@dataclass
class Outcome:
    stage: Stage
    failed: bool
    words: str


def stages(python: str, out: Path) -> list[Stage]:
    """In order of what would be missed most."""
    bench = [python, "scripts/benchmark.py"]
    install = [python, "-m", "pip", "install", "--disable-pip-version-check", "--no-build-isolation", "--no-deps"]
    step = ["--step", "--cfg", "configs/retina.yaml", "train.amp=bf16", "data.workers=8", "--steps", "10"]
    return [
        # GID_CUDA: without its CUDA half the build fails; the other: such a machine's Python may be the system's own.
        Stage("build", [*install, "-e", "."], 120, {"GID_CUDA": "1", "PIP_BREAK_SYSTEM_PACKAGES": "1"}),
        # cuBLAS is told before the first test, as torch looks at it once, in whichever test multiplies matrices first.
        Stage("tests", [*_pytest(python, *TESTS), f"--junitxml={out / 'tests.xml'}"], 180, CUBLAS),
        Stage(
            "benchmark",
            [*bench, "--device", "cuda", "--no-compile", "--sweep"]
            + ["--json", str(out / "gpu.json"), "--plot", str(out / "gpu.png")],
            160,
        ),
        # The caching allocator would hide reads behind the end of a tensor.
        _sanitized(python, "memcheck", _SMALL, {"PYTORCH_NO_CUDA_MEMORY_CACHING": "1"}, ["--report-api-errors", "no"]),
        _sanitized(python, "racecheck", _FLOAT32, {}, ["--racecheck-report", "all"]),
        Stage("step", [*bench, "--device", "cuda", *step, "--json", str(out / "gpu-step.json")], 90, extra=True),
        Stage(
            "switches",
            [*bench, "--device", "cuda", *step, "--switches", "--json", str(out / "switches_gpu.json")],
            120,
            extra=True,
        ),
        Stage("compiled", [*bench, "--device", "cuda", "--json", str(out / "gpu-compiled.json")], 200, extra=True),
    ]


def _pytest(python: str, *where: str) -> list[str]:
    # A test file that needs a package that is not there says so, and the others run.
    options = ["-v", "-m", "cuda", "-p", "no:cacheprovider", "--continue-on-collection-errors"]
    return [python, "-m", "pytest", *options, *where]


def _sanitized(python: str, tool: str, which: str, environment: dict[str, str], options: list[str]) -> Stage:
    ours = ["--kernel-name", "kns=_ZN3gid"]  # kernels of this package alone; torch's would take too long
    command = [SANITIZER, "--tool", tool, "--error-exitcode", FOUND_ERRORS, *ours, *options]
    return Stage(tool, [*command, *_pytest(python, "tests/ops"), "-k", which], 70, environment)


def find_sanitizer() -> str | None:
    """The program's path: on PATH, or where CUDA is."""
    home = os.environ.get("CUDA_HOME")
    places = [os.environ.get("PATH", ""), *([f"{home}/bin"] if home else []), *SANITIZER_PLACES]
    return shutil.which(SANITIZER, path=os.pathsep.join(places))


def gpu_problem(python: str) -> str | None:
    """Why there is no GPU to check on, or nothing to check it with, in a sentence; None where all is there."""
    run = _probe([python, "-c", PROBE])
    if run is None:
        return f"torch of {python} does not say within {PROBE_SECONDS:.0f} s whether there is a GPU; try `nvidia-smi`"
    if run.returncode == NO_GPU:
        return f"torch of {python} sees no GPU here: run this where `nvidia-smi` lists one"
    last = (run.stderr.strip().splitlines() or [""])[-1]
    if run.returncode != 0 and "No module named 'torch'" in last:
        return f"{python} has no torch: give the Python that has it with PYTHON=..."
    if run.returncode != 0:
        return f"torch of {python} cannot be asked for a GPU (exit code {run.returncode}: {last[:200]}); mend that"
    device, _, missing = run.stdout.strip().partition("\n")
    print(f"device: {device}", flush=True)
    return f"{python} lacks the modules {missing}: install them first, nothing is downloaded" if missing else None


def _probe(command: list[str]) -> subprocess.CompletedProcess[str] | None:
    """None where it does not answer in time; then it is not waited for, as it may hang in the driver for ever."""
    process = subprocess.Popen(command, stdout=subprocess.PIPE, stderr=subprocess.PIPE, text=True)
    try:
        said, complained = process.communicate(timeout=PROBE_SECONDS)
    except subprocess.TimeoutExpired:
        process.kill()
        return None
    return subprocess.CompletedProcess(command, process.returncode, said, complained)


def run_stage(stage: Stage, log: Path, seconds: float) -> Outcome:
    """Within `seconds`, of which the last `GRACE` are for ending (as long again for what does not end); everything that
    it says into the log."""
    command = list(stage.command)
    if command[0] == SANITIZER:
        program = find_sanitizer()
        if program is None:
            return Outcome(stage, True, f"{SANITIZER} is not there: it comes with the CUDA toolkit, set CUDA_HOME")
        command[0] = program
    began = time.monotonic()
    with log.open("ab") as file:
        file.write(f"\n===== {stage.name}: {' '.join(command)}\n".encode())
        file.flush()
        start = file.tell()
        signal.pthread_sigmask(signal.SIG_BLOCK, STOPPING)  # else one that comes now leaves the stage without a parent
        process = subprocess.Popen(
            command, cwd=ROOT, stdout=file, stderr=subprocess.STDOUT, stdin=subprocess.DEVNULL,
            env={**os.environ, "PYTHONUNBUFFERED": "1", **stage.environment}, start_new_session=True,
            preexec_fn=_heed_interrupts,
        )  # fmt: skip
        try:
            signal.pthread_sigmask(signal.SIG_UNBLOCK, STOPPING)
            code: int | None = process.wait(timeout=max(1.0, seconds - GRACE))
        except subprocess.TimeoutExpired:
            code = None
            _interrupt(process)
        finally:  # the stage's children too, also where this program is interrupted
            _end_group(process)
    took = f"{time.monotonic() - began:.0f} s"
    if code is None:
        return Outcome(stage, not stage.extra, f"not done within {took}; {_last_line(log, start)}")
    said = f"{took}; {_last_line(log, start)}"
    return Outcome(stage, code != 0, f"exit code {code} after {said}" if code else f"ok, {said}")


def _heed_interrupts() -> None:
    """In a stage, before it begins: started from a shell's background, it would ignore them from birth."""
    signal.signal(signal.SIGINT, signal.SIG_DFL)
    signal.pthread_sigmask(signal.SIG_UNBLOCK, STOPPING)


def _interrupt(process: subprocess.Popen[bytes]) -> None:
    """As Ctrl-C would: pytest then writes its XML and its summary."""
    try:
        os.killpg(process.pid, signal.SIGINT)
        process.wait(timeout=GRACE)
    except (ProcessLookupError, subprocess.TimeoutExpired):
        pass


def _end_group(process: subprocess.Popen[bytes]) -> None:
    try:
        os.killpg(process.pid, signal.SIGKILL)
    except ProcessLookupError:
        pass
    with contextlib.suppress(subprocess.TimeoutExpired):  # who hangs in the driver does not even end so
        process.wait(timeout=GRACE)


def _last_line(log: Path, start: int) -> str:
    """The last line that a stage has said that holds more than ornament."""
    with log.open("rb") as file:
        file.seek(start)
        lines = [line.strip(" =\r") for line in file.read().decode(errors="replace").splitlines()]
    return next((line for line in reversed(lines) if line), "it said nothing")[:200]


def check(python: str, out: Path, seconds: float = SECONDS) -> int:
    """All stages; returns the exit code."""
    end = time.monotonic() + seconds
    problem = gpu_problem(python)
    log = out / "log.txt"
    try:
        if problem is None:
            out.mkdir(parents=True, exist_ok=True)
            log.write_text(f"{time.strftime('%Y-%m-%d %H:%M:%S')}\n")
            _write_summary(out, [], "nothing has ended yet")
    except OSError as error:
        problem = f"OUT={out} cannot be written to ({error.strerror}): give another folder"
    if problem is not None:
        print(f"error: {problem}", file=sys.stderr)
        return 2
    outcomes: list[Outcome] = []
    for stage in stages(python, out):
        outcomes.append(_outcome(stage, outcomes, log, end - time.monotonic()))
        print(_line(outcomes[-1]), flush=True)
        _write_summary(out, outcomes, "to be continued")
    failed = [outcome.stage.name for outcome in outcomes if outcome.failed]
    verdict = f"failed: {', '.join(failed)}; see {log}" if failed else "all well"
    _write_summary(out, outcomes, verdict)
    print(verdict)
    return 1 if failed else 0


def _outcome(stage: Stage, before: list[Outcome], log: Path, left: float) -> Outcome:
    if left < LEAST:
        return Outcome(stage, not stage.extra, "not begun: no time left")
    if any(outcome.failed and outcome.stage.name == "build" for outcome in before):
        return Outcome(stage, not stage.extra, "not begun: the build failed")
    return run_stage(stage, log, min(stage.limit, left))


def _write_summary(out: Path, outcomes: list[Outcome], last: str) -> None:
    """After each stage anew: whatever ends this program, what it has found is there."""
    (out / "summary.txt").write_text("\n".join([*map(_line, outcomes), last]) + "\n")


def _line(outcome: Outcome) -> str:
    return f"{'FAILED' if outcome.failed else '      '} {outcome.stage.name:<10} {outcome.words}"


def main() -> int:
    parser = argparse.ArgumentParser(
        description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter, allow_abbrev=False
    )
    parser.add_argument("out", type=Path, nargs="?", default=ROOT / "benchmarks" / "results", metavar="OUT")
    out = parser.parse_args().out.expanduser().absolute()
    for number in (signal.SIGTERM, signal.SIGHUP):
        if signal.getsignal(number) is not signal.SIG_IGN:  # as nohup has it
            signal.signal(number, signal.default_int_handler)
    try:
        return check(sys.executable, out)
    except KeyboardInterrupt:
        print("interrupted: OUT has what the stages before have left", file=sys.stderr)
        return 130
    except OSError as error:
        print(f"error: OUT={out} takes no more ({error.strerror}): make room there, or give another", file=sys.stderr)
        return 1


if __name__ == "__main__":
    sys.exit(main())
