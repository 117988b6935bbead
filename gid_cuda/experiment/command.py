"""What scripts/experiment.py does with its arguments."""

from __future__ import annotations

import argparse
from pathlib import Path

from gid_cuda.errors import UserError
from gid_cuda.experiment.checks import check_start
from gid_cuda.experiment.console import say
from gid_cuda.experiment.matrix import Experiment, load_experiment
from gid_cuda.experiment.runner import Runner, States, train_command
from gid_cuda.experiment.state import current_states


def run(arguments: argparse.Namespace, trainer: Path) -> int:
    """The exit status: 0 where every run is done. trainer: scripts/train.py."""
    experiment = load_experiment(arguments.cfg)
    slots = device_slots(arguments.devices, arguments.jobs)
    if not arguments.report:
        check_start(experiment, current_states(experiment))
    if arguments.dry_run:
        say(plan_text(experiment, redo=arguments.redo))
        return 0
    from gid_cuda.detectors.own import check_adapter, load_adapter  # late: torch takes seconds
    from gid_cuda.experiment.report import write_report

    adapter = load_adapter(arguments.adapter)
    for planned in experiment.runs:
        check_adapter(adapter, planned.config.model, planned.config.teacher)

    told: list[str] = []  # the table as it was last

    def report(states: States) -> str:
        draw = not arguments.no_pictures
        told.append(write_report(experiment, states, adapter=adapter, draw=draw, redo=arguments.redo))
        return told[-1]

    if arguments.report:
        say(report({}))
        say(f"page: {experiment.output / 'report.html'}")
        return 0
    command = train_command(str(trainer), arguments.adapter)
    work = Runner(
        experiment, command, devices=slots, redo=arguments.redo, say=say,
        finished=lambda states: _without_stopping(report, states),
    )  # fmt: skip
    states = work.work()
    say(f"\n{told[-1] if told else (experiment.output / 'table.txt').read_text(encoding='utf-8')}")
    say(f"page: {experiment.output / 'report.html'}")
    return tell_problems(experiment, states)


def tell_problems(experiment: Experiment, states: States) -> int:
    """Once more at the end, where it is seen; the exit status."""
    bad = [planned for planned in experiment.runs if states[planned.key].kind != "done"]
    for planned in bad:
        say(f"{planned.title}: {states[planned.key].kind}, {states[planned.key].reason}", problem=True)
    if any(states[planned.key].kind == "changed" for planned in bad):
        say("--redo trains anew what was made by another config", problem=True)
    return 1 if bad else 0


def _without_stopping(report: object, states: States) -> None:
    """The page can wait; the runs go on."""
    assert callable(report)
    try:
        report(states)
    except Exception as error:  # whatever it is: days of training are not to end by it
        say(f"warning: tables and page could not be written: {type(error).__name__}: {error}", problem=True)


def device_slots(devices: str | None, jobs: int | None) -> list[str | None]:
    """("0,1", 4) -> ["0", "1", "0", "1"]: where each of the runs that go on at the same time is put."""
    if devices is None:
        return [None] * (jobs or 1)
    names = [name.strip() for name in devices.split(",")]
    if not all(names):
        raise UserError(f"--devices {devices!r} names no GPUs: write their numbers with commas between, as 0,1")
    return [names[i % len(names)] for i in range(jobs or len(names))]


def plan_text(experiment: Experiment, *, redo: bool) -> str:
    """A line a run: its state and what would be done."""
    states = current_states(experiment)
    width = max(len(planned.title) for planned in experiment.runs)
    lines = []
    for planned in experiment.runs:
        state = states[planned.key]
        doing = {
            "missing": "to be trained",
            "unfinished": "to be continued",
            "done": "done",
            "changed": f"{'to be trained anew' if redo else 'of another config'}: {state.reason}",
            "blocked": "to be trained anew, after its teacher" if redo else state.reason,
        }[state.kind]
        if state.kind in ("missing", "unfinished") and state.reason:
            doing = f"failed, {doing}: {state.reason}"
        lines.append(f"{planned.title:<{width}}  {doing}")
    return "\n".join(lines)
