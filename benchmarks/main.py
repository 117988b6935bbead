"""What `scripts/benchmark.py` does with its arguments."""

from __future__ import annotations

import argparse
import json
import warnings
from collections.abc import Iterator
from dataclasses import replace
from pathlib import Path
from typing import Any

import torch

from benchmarks import machine, plot, report
from benchmarks.cases import LEAST_SETS, MOST_SETS, Case, Results, run_case
from benchmarks.suite import NAMES, Extent, cases
from benchmarks.sweep import by_curve, sweep
from benchmarks.timing import copy_bandwidth
from gid_cuda.errors import UserError
from gid_cuda.files import write_text

SECONDS = {"quick": 0.01, "cpu": 0.6, "cuda": 0.2}  # of runs, a contender
_QUICK_COPY = 1 << 20  # bytes


def run(arguments: argparse.Namespace) -> int:
    """The exit code: 1 where a contender's result is not ours though it should be."""
    _check(arguments)
    if arguments.step:
        from benchmarks import step, switches  # pull in all of training

        (switches if arguments.switches else step).main(arguments)
        return 0
    # Compiling says much that helps nobody here; what it cannot compile is listed at the end.
    warnings.filterwarnings("ignore", module="torch")
    result = _measure(arguments)
    for title, lines in (("not measured", result["skipped"]), ("NOT EQUAL", result["differing"])):
        if lines:
            print("\n".join([f"\n{title}:", *(f"  {line}" for line in lines)]))
    if arguments.json:
        print(f"\nwritten: {arguments.json}")
    if arguments.plot:
        plot.save(result, arguments.plot)
        print(f"written: {arguments.plot}")
    return 1 if result["differing"] else 0


def _measure(arguments: argparse.Namespace) -> dict[str, Any]:
    """What --json keeps. It is written after each case, so that a run that is stopped leaves what it has."""
    device = machine.pick_device(arguments.device)
    extent = "full" if arguments.full else "quick" if arguments.quick else "usual"
    seconds = SECONDS["quick" if arguments.quick else device.type]
    bandwidth = copy_bandwidth(device, 10 * seconds, _QUICK_COPY if arguments.quick else None)
    how = {"seconds": seconds, "bandwidth": bandwidth, "most_sets": LEAST_SETS if arguments.quick else MOST_SETS}
    results = Results()
    result: dict[str, Any] = {
        "machine": machine.describe(device),
        "copy_bandwidth": bandwidth,
        "extent": extent,
        "rows": results.rows,
        "sweep": [],
        "skipped": results.skipped,
        "differing": results.differing,
        "complete": False,
    }
    print(report.machine_text(result["machine"], bandwidth), flush=True)
    for case in _chosen(device, extent, arguments):
        done = len(results.rows)
        run_case(case, device, results=results, **how)
        if results.rows[done:]:
            print("\n" + report.case_text(results.rows[done:]), flush=True)
        _keep(result, arguments.json)
    if arguments.sweep:
        print("\nhow cost grows:")
        for rows in sweep(device, arguments.only or NAMES, results, quick=arguments.quick, **how):
            result["sweep"] = by_curve(result["sweep"] + rows)
            print("\n".join(map(report.point_text, rows)), flush=True)
            _keep(result, arguments.json)
        print("\n" + report.sweep_text(result["sweep"]))
    result["complete"] = True
    _keep(result, arguments.json)
    return result


def _chosen(device: torch.device, extent: Extent, arguments: argparse.Namespace) -> Iterator[Case]:
    """The cases that the arguments ask for, each once."""
    seen = set()
    for case in cases(device, extent):
        if (arguments.only and case.operator not in arguments.only) or case.title in seen:
            continue
        seen.add(case.title)
        if arguments.no_compile:
            case = replace(case, contenders=[c for c in case.contenders if c.role != "compile"], absent="")
        yield case


def _keep(result: dict[str, Any], path: Path | None) -> None:
    if path:
        path.parent.mkdir(parents=True, exist_ok=True)
        write_text(path, json.dumps(result, indent=1) + "\n")


def _check(arguments: argparse.Namespace) -> None:
    """What would fail only after minutes is told before the first."""
    for name in arguments.only or ():
        if name not in NAMES:
            raise UserError(f"--only {name}: there is no such case; choose from {', '.join(NAMES)}")
    if arguments.plot and not arguments.sweep:
        raise UserError("--plot draws the sweep: add --sweep")
    if arguments.step and not arguments.cfg:
        raise UserError("--step needs a config: add --cfg FILE, for example --cfg configs/retina.yaml")
    if not arguments.step and (arguments.cfg or arguments.overrides):
        what = arguments.overrides[0] if arguments.overrides else "--cfg"
        raise UserError(f"{what} is for the training step: add --step, or leave it out")
    if not arguments.step and arguments.adapter:
        raise UserError("--adapter builds the detectors of the training step: add --step, or leave it out")
    if not arguments.step and arguments.switches:
        raise UserError("--switches is for the training step: add --step, or leave it out")
    if arguments.steps < 1:
        raise UserError(f"--steps is {arguments.steps}: give at least 1")
    for option, path in (("--json", arguments.json), ("--plot", arguments.plot)):
        if path:
            _check_writable(option, path)


def _check_writable(option: str, path: Path) -> None:
    if path.is_dir():
        raise UserError(f"{option} {path} is a folder: give the name of a file")
    new = not path.exists()
    path.parent.mkdir(parents=True, exist_ok=True)
    path.open("a").close()  # an OSError is told in one sentence
    if new:
        path.unlink()
