"""The tables of an experiment's page as HTML. Every text from a file goes through `escape`."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from html import escape

from gid_cuda.experiment.matrix import TEACHER, Experiment, PlannedRun
from gid_cuda.experiment.schema import METRICS
from gid_cuda.experiment.settings import leaves
from gid_cuda.experiment.state import State, read_note
from gid_cuda.experiment.table import Line, Results, Spread, one_decimal

_HEADS = {metric: f"{metric[:2]}<sub>{metric[2:].upper()}</sub>" if metric[2:] else metric for metric in METRICS}


def numbers_table(experiment: Experiment, detector: str, lines: Sequence[Line]) -> str:
    """The paper's Table 2 for one detector: each row's numbers, its difference to the baseline, the paper's numbers."""
    lines = [line for line in lines if line.detector == detector]
    head = "".join(f'<th scope="col">{_HEADS[metric]}</th>' for metric in METRICS)
    best = {m: _best([line for line in lines if line.name != TEACHER], m) for m in METRICS}
    bodies = "".join(_body(experiment, line, best) for line in lines)
    caption = "Percent, on the validation images. Mean ± sample standard deviation over seeds; bold: the best student."
    if experiment.baseline is not None:
        caption += (
            f" Against {escape(experiment.baseline)}: the difference of runs of the same seed, which start from the "
            "same weights and see the same batches."
        )
    name = f"<h3>{escape(detector)}</h3>" if detector else ""
    return name + (  # the caption stands before what scrolls sideways
        f'<p class="soft">{caption}</p><div class="wide"><table class="numbers"><thead><tr><th scope="col">method</th>'
        f'<th scope="col">seeds</th>{head}</tr></thead>{bodies}</table></div>'
    )


def _body(experiment: Experiment, line: Line, best: Mapping[str, float | None]) -> str:
    seeds = f"{line.done}/{line.planned}" if line.planned and line.name != TEACHER else ""
    cells = "".join(_value_cell(line, metric, best[metric]) for metric in METRICS)
    rows = [f'<tr><th scope="row">{escape(line.name)}</th><td>{seeds}</td>{cells}</tr>']
    if line.differences:
        gains = "".join(f"<td>{_spread(line.differences.get(m), signed=True)}</td>" for m in METRICS)
        head = f"against {escape(experiment.baseline or '')}"
        rows.append(f'<tr class="sub gain"><th scope="row">{head}</th><td></td>{gains}</tr>')
    if line.paper:
        cells = "".join(f"<td>{_paper(line, metric)}</td>" for metric in METRICS)
        rows.append(f'<tr class="sub"><th scope="row">in the paper</th><td></td>{cells}</tr>')
    return f"<tbody>{''.join(rows)}</tbody>"


def _value_cell(line: Line, metric: str, best: float | None) -> str:
    value = line.values.get(metric)
    is_best = value is not None and best is not None and round(value.mean, 1) == best and line.name != TEACHER
    return f"<td{' class=best' if is_best else ''}>{_spread(value)}</td>"


def _best(lines: Sequence[Line], metric: str) -> float | None:
    """As shown, so that what looks equal is equally bold; None where there is nothing to compare."""
    means = [round(line.values[metric].mean, 1) for line in lines if metric in line.values]
    return max(means) if len(means) > 1 else None


def _spread(value: Spread | None, *, signed: bool = False) -> str:
    if value is None:
        return "–"
    small = "" if value.deviation is None else f" <small>±{value.deviation:.1f}</small>"
    return one_decimal(value.mean, signed=signed).replace("-", "−") + small


def _paper(line: Line, metric: str) -> str:
    if metric not in line.paper:
        return ""
    gain = line.paper_differences.get(metric)
    small = "" if gain is None else f" <small>({one_decimal(gain, signed=True).replace('-', '−')})</small>"
    return one_decimal(line.paper[metric]) + small


def settings_table(experiment: Experiment) -> str:
    """What the experiment sets for all runs, for students, teachers and detectors, and each row on top of it."""
    matrix, detectors = experiment.matrix, experiment.matrix.detectors or []
    common = [("all runs", matrix.set), ("students", matrix.student.set)]
    if matrix.teacher:
        common.append((TEACHER, matrix.teacher.set))
    for detector in detectors:
        common.append((f"{detector.name}, all runs", detector.set))
        common += [(f"{detector.name}, students", detector.student.set)] if detector.student else []
        common += [(f"{detector.name}, {TEACHER}", detector.teacher.set)] if detector.teacher else []
    rows = []
    for name, settings in [*((n, s) for n, s in common if s), *((row.name, row.set) for row in experiment.rows)]:
        lines = [escape(f"{key}: {_plain(value)}") for key, value in leaves(settings) if key]
        said = "<br>".join(f"<code>{line}</code>" for line in lines)
        rows.append(f'<tr><th scope="row">{escape(name)}</th><td>{said or "nothing"}</td></tr>')
    head = '<thead><tr><th scope="col">for</th><th scope="col">what is set</th></tr></thead>'
    return f'<div class="wide"><table class="list">{head}<tbody>{"".join(rows)}</tbody></table></div>'


def _plain(value: object) -> str:
    return "none" if value is None else str(value)


def runs_table(experiment: Experiment, states: Mapping[str, State], results: Results) -> str:
    """Every run: its state, AP, and the time it took."""
    names = ("run", "state", "AP", "AP50", "parameters", "training", "with evaluation and starts")
    head = "".join(f'<th scope="col">{name}</th>' for name in names)
    rows = "".join(_run_row(run, states, results) for run in experiment.runs)
    return f'<div class="wide"><table class="runs"><thead><tr>{head}</tr></thead><tbody>{rows}</tbody></table></div>'


def _run_row(run: PlannedRun, states: Mapping[str, State], results: Results) -> str:
    metrics = results.get(run.key, {})
    numbers = [f"{metrics[m]:.1f}" if metrics.get(m) is not None else "–" for m in ("AP", "AP50")]
    size = f"{metrics['parameters'] / 1e6:.2f} M" if metrics.get("parameters") else "–"
    trained = duration(metrics["seconds"]) if metrics.get("seconds") is not None else "–"
    whole = duration(sum(seconds)) if (seconds := read_note(run).get("seconds")) else "–"
    cells = [states[run.key].kind, *numbers, size, trained, whole]
    return f"<tr><td>{escape(run.title)}</td>" + "".join(f"<td>{escape(cell)}</td>" for cell in cells) + "</tr>"


def duration(seconds: float) -> str:
    """74 s, 12 min, 3.4 h"""
    if seconds < 120:
        return f"{seconds:.0f} s"
    return f"{seconds / 60:.0f} min" if seconds < 7200 else f"{seconds / 3600:.1f} h"
