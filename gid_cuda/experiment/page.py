"""One HTML page that tells all of an experiment, in one file: no scripts, and nothing is fetched to show it."""

from __future__ import annotations

import base64
import shlex
from collections.abc import Mapping, Sequence
from html import escape
from pathlib import Path

from gid_cuda.config import config_to_dict
from gid_cuda.experiment.matrix import TEACHER, Experiment
from gid_cuda.experiment.page_style import STYLE
from gid_cuda.experiment.page_tables import duration, numbers_table, runs_table, settings_table
from gid_cuda.experiment.state import State, machines_of
from gid_cuda.experiment.table import Line, Results
from gid_cuda.plain_yaml import dump_yaml

Pictures = Mapping[tuple[str, str], Path | str]
"""By detector and row ("": the detector's curves): the PNG file, or the sentence that says why there is none."""

_POLICY = "default-src 'none'; img-src data:; style-src 'unsafe-inline'"  # a browser then fetches nothing


def page(
    experiment: Experiment, states: Mapping[str, State], results: Results, lines: Sequence[Line], pictures: Pictures,
    *, now: str,
) -> str:  # fmt: skip
    """states: of every run; now: the time that the page says it was written at."""
    parts = [
        f"<h1>{escape(experiment.title)}</h1>",
        f"<p>{escape(experiment.matrix.note)}</p>" if experiment.matrix.note else "",
        _status(experiment, states, results, now),
        _problems(experiment, states),
        "<h2>Results</h2>",
        *(numbers_table(experiment, detector, lines) for detector in experiment.detectors),
        _curves(experiment, pictures),
        _instances(experiment, pictures),
        _settings(experiment),
        f"<h2>Runs and time</h2>{runs_table(experiment, states, results)}",
        _machines(experiment),
    ]
    return (
        '<!DOCTYPE html>\n<html lang="en"><head><meta charset="utf-8">'
        '<meta name="viewport" content="width=device-width, initial-scale=1">'
        f'<meta http-equiv="Content-Security-Policy" content="{_POLICY}">'
        f"<title>{escape(experiment.title)}</title><style>{STYLE}</style></head>\n<body>\n"
        + "\n".join(part for part in parts if part)
        + "\n</body></html>\n"
    )


def _status(experiment: Experiment, states: Mapping[str, State], results: Results, now: str) -> str:
    done = sum(state.kind == "done" for state in states.values())
    seconds = sum(results[key].get("seconds") or 0.0 for key in states if key in results)
    seeds = len(experiment.matrix.seeds)
    text = f"{done} of {len(states)} runs done · {seeds} seed{'s' * (seeds > 1)} · {duration(seconds)} of training"
    return f'<p class="status"><b>{text}</b> <span class="soft">· written {escape(now)}</span></p>'


def _problems(experiment: Experiment, states: Mapping[str, State]) -> str:
    bad = [run for run in experiment.runs if states[run.key].kind in ("failed", "changed", "blocked")]
    if not bad:
        return ""
    items = "".join(
        f"<li><b>{escape(run.title)}</b>: {states[run.key].kind}, {escape(states[run.key].reason)}</li>" for run in bad
    )
    return f'<div class="problems"><b>Not in the table</b><ul>{items}</ul></div>'


def _curves(experiment: Experiment, pictures: Pictures) -> str:
    figures = [
        _figure(pictures.get((detector, "")), detector, "losses as they are weighted, and AP; the first seed of a row")
        for detector in experiment.detectors
    ]
    return "<h2>Curves</h2>" + "".join(figures) if any(figures) else ""


def _instances(experiment: Experiment, pictures: Pictures) -> str:
    figures = [
        _figure(pictures.get((detector, row.name)), ", ".join(filter(None, (detector, row.name))), "")
        for detector in experiment.detectors
        for row in experiment.rows
    ]
    if not any(figures):
        return ""
    return (
        "<h2>General instances</h2><p>Where teacher and trained student disagree most on one validation image, "
        "and the score of every place of it. The first seed of a row.</p>" + "".join(figures)
    )


def _figure(picture: Path | str | None, name: str, what: str) -> str:
    if picture is None:
        return ""
    label = f"<b>{escape(name)}</b>{': ' if what else ''}" * bool(name) + escape(what)
    if isinstance(picture, str):
        return f"<p>{label}<br>no picture: {escape(picture)}</p>"
    data = f"data:image/png;base64,{base64.b64encode(picture.read_bytes()).decode()}"
    alt = escape(": ".join(filter(None, (name, what or "general instances"))), quote=True)
    return f'<figure><figcaption>{label}</figcaption><div class="wide"><img alt="{alt}" src="{data}"></div></figure>'


def _settings(experiment: Experiment) -> str:
    command = f"python scripts/experiment.py --cfg {shlex.quote(str(experiment.path))}"
    given = [f"<code>{escape(w)}</code>" for d in experiment.detectors if (w := experiment.given_weights(d))]
    beside = f", beside the teacher's weights, {', '.join(dict.fromkeys(given))}" if given else ""
    parts = [f"<h2>Settings</h2><p>All of it by one command{beside}: <code>{escape(command)}</code></p>"]
    parts.append(settings_table(experiment))
    for detector in experiment.detectors:
        for name in (TEACHER, *(row.name for row in experiment.rows)):
            for run in experiment.runs_of(detector, name)[:1]:
                text = dump_yaml(config_to_dict(run.config))
                parts.append(
                    f"<details><summary>config of {escape(run.title)}</summary><pre>{escape(text)}</pre></details>"
                )
    return "".join(parts)


def _machines(experiment: Experiment) -> str:
    found = machines_of(experiment)
    if not found:
        return ""
    rows = "".join(
        f'<tr><th scope="row">{escape(key)}</th>'
        + "".join(f"<td>{escape(str(machine.get(key, '')))}</td>" for machine in found)
        + "</tr>"
        for key in dict.fromkeys(key for machine in found for key in machine)
    )
    note = "" if len(found) == 1 else "<p>The runs were not all made by the same machine and versions.</p>"
    return f'<h2>Machine and versions</h2>{note}<div class="wide"><table class="list">{rows}</table></div>'
