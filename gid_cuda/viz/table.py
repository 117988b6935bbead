"""The table that sets runs side by side, from the `metrics.json` and `config.yaml` in their folders."""

from __future__ import annotations

import json
import os
from collections.abc import Sequence
from pathlib import Path
from typing import Any

import yaml

from gid_cuda.errors import UserError

_KEYS = ("parameters", "AP", "AP50", "seconds")
_EVALUATED_ON = ("format", "root", "val", "classes", "one_based", "generated")  # of a config's data section
_DRAWN = ("val_images", "width", "height", "seed")  # of its generated section: what pictures to evaluate on hang on
_LATER_KEYS = {"options": {}, "variant": "torchvision"}  # which runs of older versions did not write


def run_names(runs: Sequence[Path], names: Sequence[str] | None = None) -> list[str]:
    """What to call the runs: `names`, one for each, or their folders' names (with the parent's where two agree, and
    whole paths where these agree, too). UserError for a run that is there twice."""
    resolved = [run.resolve() for run in runs]
    if twice := [run for run, place in zip(runs, resolved, strict=True) if resolved.count(place) > 1]:
        raise UserError(f"{twice[0]} is there twice: give each run once")
    if names:
        if len(names) != len(runs):
            raise UserError(f"{len(names)} names for {len(runs)} runs: give one name a run, in the same order")
        return list(names)
    short = [run.resolve().name for run in runs]
    long = [f"{run.resolve().parent.name}/{name}" for run, name in zip(runs, short, strict=True)]
    names = [name if short.count(name) == 1 else both for name, both in zip(short, long, strict=True)]
    return [name if names.count(name) == 1 else str(run) for name, run in zip(names, runs, strict=True)]


def read_metrics(run: Path) -> dict[str, Any]:
    """A run's `metrics.json`."""
    path = run / "metrics.json"
    if run.is_file():
        raise UserError(f"{run} is a file: give the folder of a run")
    if not path.is_file():
        raise UserError(f"{run} has no metrics.json: it is not the folder of a run, or the run has not finished")
    try:
        metrics = json.loads(path.read_text(encoding="utf-8"))
    except ValueError:
        raise UserError(f"{path} is not JSON: the file is damaged, evaluate or train this run again") from None
    missing = [key for key in _KEYS if not isinstance(metrics, dict) or key not in metrics]
    if missing:
        raise UserError(f"{path} has no {', '.join(missing)}: it was not written by the trainer")
    return metrics


def plain_run(runs: Sequence[Path]) -> int | None:
    """Which of the runs trained the model of a distilled run without distillation; None where there is no such pair."""
    configs = [_read_config(run) for run in runs]
    distilled = [_model(config) for config in configs if config.get("distill") is not None]
    for index, config in enumerate(configs):
        if config and config.get("distill") is None and _model(config) in distilled:
            return index
    return None


def data_note(runs: Sequence[Path], names: Sequence[str]) -> str | None:
    """A sentence where runs were evaluated on other data than the first, by their configs; None where on the same."""
    data = [_read_config(run).get("data") for run in runs]
    known = [(name, values) for name, values in zip(names, data, strict=True) if isinstance(values, dict)]
    others: dict[str, list[str]] = {}
    for name, values in known[1:]:
        ours, first = _evaluated_on(values), _evaluated_on(known[0][1])
        if keys := [f"data.{key}" for key in _EVALUATED_ON if ours[key] != first[key]]:
            others.setdefault(", ".join(keys), []).append(name)
    if not others:
        return None
    told = "; ".join(f"{', '.join(names)} ({keys})" for keys, names in others.items())
    return f"evaluated on other data than {known[0][0]}, so AP may not compare: {told}"


def _evaluated_on(data: dict[str, Any]) -> dict[str, Any]:
    """The keys that decide it, each written in one way."""
    found = {key: data.get(key) for key in _EVALUATED_ON} | {"one_based": bool(data.get("one_based"))}
    val = found["val"] if isinstance(found["val"], list) else [found["val"]]
    found["val"] = [{k: v for k, v in split.items() if v is not None} for split in val if isinstance(split, dict)]
    found["val"] = [split for split in found["val"] if split]
    if found["format"] == "generated":  # the same pictures wherever they lie
        drawn = found["generated"] if isinstance(found["generated"], dict) else {}
        return found | {"root": None, "generated": {key: drawn.get(key) for key in _DRAWN}}
    root = os.path.abspath(os.path.expanduser(str(found["root"])))
    return found | {"root": root, "generated": None}


def _read_config(run: Path) -> dict[str, Any]:
    """The run's config, or nothing where there is none that can be read: the table does without."""
    try:
        config = yaml.safe_load((run / "config.yaml").read_text(encoding="utf-8"))
    except (OSError, ValueError, yaml.YAMLError):
        return {}
    return config if isinstance(config, dict) else {}


def _model(config: dict[str, Any]) -> dict[str, Any]:
    """What makes the network, not what it started from."""
    model = _LATER_KEYS | (config.get("model") or {})
    keys = ("detector", "backbone", "norm", "fpn_channels", "head_depth", "anchor_sizes", *_LATER_KEYS)
    return {key: model.get(key) for key in keys}


def comparison_table(
    runs: Sequence[Path], names: Sequence[str], *, baseline: str | None = None, markdown: bool = False
) -> str:
    """One line a run: millions of parameters, AP, AP50, their differences to the baseline, and seconds of training.

    baseline: the name of the plain run; without it see `plain_run`. Where there is none, there are no differences.
    """
    if baseline is not None and baseline not in names:
        raise UserError(f"no run is called {baseline!r}: --baseline has to be one of {', '.join(names)}")
    metrics = [read_metrics(run) for run in runs]
    index = plain_run(runs) if baseline is None else list(names).index(baseline)
    base = metrics[index] if index is not None else None
    against = () if index is None else (f"AP vs {names[index]}", f"AP50 vs {names[index]}")
    rows: list[tuple[str, ...]] = [("run", "parameters (M)", "AP", "AP50", *against, "seconds")]
    for name, values in zip(names, metrics, strict=True):
        differences = () if base is None else tuple(_difference(values, base, key) for key in ("AP", "AP50"))
        size, seconds = f"{values['parameters'] / 1e6:.2f}", f"{values['seconds']:.0f}"
        rows.append((name, size, _number(values["AP"]), _number(values["AP50"]), *differences, seconds))
    return _layout(rows, markdown)


def _number(value: float | None) -> str:
    return "-" if value is None else f"{value:.1f}"  # none: no ground truth to count


def _difference(values: dict[str, Any], base: dict[str, Any], key: str) -> str:
    """Of the numbers as they are shown, so that the table adds up."""
    if values is base or values[key] is None or base[key] is None:
        return ""
    return f"{round(round(values[key], 1) - round(base[key], 1), 1) + 0.0:+.1f}"  # + 0.0: no "-0.0"


def _layout(rows: Sequence[tuple[str, ...]], markdown: bool) -> str:
    """Rows, the first of which is the head, as aligned text: names to the left, numbers to the right."""
    if markdown:
        rows = [tuple(cell.replace("|", "\\|") for cell in row) for row in rows]
    widths = [max(3, *(len(row[i]) for row in rows)) for i in range(len(rows[0]))]
    lines = [[row[0].ljust(widths[0]), *(c.rjust(w) for c, w in zip(row[1:], widths[1:], strict=True))] for row in rows]
    if not markdown:
        rule = "-" * (sum(widths) + 3 * (len(widths) - 1))
        text = ["   ".join(line).rstrip() for line in lines]
        return "\n".join([text[0], rule, *text[1:]])
    rule_cells = ["-" * widths[0], *("-" * (width - 1) + ":" for width in widths[1:])]
    return "\n".join("| " + " | ".join(line) + " |" for line in [lines[0], rule_cells, *lines[1:]])
