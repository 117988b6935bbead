"""The folder of a run: who may write into it, and what a resumed run must share with the one that it goes on from.

    config.yaml · log.jsonl · run.json · tensorboard/ · last.pt · best.pt · metrics.json
    launch.json, of many processes · .train.lock, while it trains
"""

from __future__ import annotations

import json
import shutil
from collections.abc import Iterator
from pathlib import Path
from typing import Any

from gid_cuda.config import Config, config_from_dict, config_to_dict
from gid_cuda.engine.checkpoint import load_checkpoint
from gid_cuda.engine.run import Progress
from gid_cuda.engine.run_lock import RunLock
from gid_cuda.errors import UserError
from gid_cuda.files import write_text
from gid_cuda.plain_yaml import dump_yaml

_FILES = ("config.yaml", "log.jsonl", "run.json", "last.pt", "best.pt", "metrics.json")
_AFTER_LAST = ("best.pt", "metrics.json")  # never written before the first last.pt

# What decides the shape of the weights, of the optimizer's state, or the order of the images.
_SAME_ON_RESUME = (
    "seed", "model", "teacher", "distill", "input", "train.optimizer", "train.batch_size", "train.accumulate",
    "data.labeled_fraction", "data.unlabeled.batch_size", "data.group_by_aspect",
)  # fmt: skip
_MAY_DIFFER = ("score_thresh", "nms_thresh", "detections_per_img")


def check_folder(config: Config, *, resume: bool, overwrite: bool) -> None:
    """Before anything is built: refuses a folder that holds a run, unless told what to do with it."""
    folder = config.output
    if resume and overwrite:
        raise UserError("resume and overwrite exclude each other: continue the run in the folder, or begin it anew")
    if folder.exists() and not folder.is_dir():
        raise UserError(f"output: {folder} is a file, expected a folder")
    used = [name for name in _FILES if (folder / name).exists()]
    if used and not resume and not overwrite:
        raise UserError(
            f"output: {folder} already holds a run ({', '.join(used)}): continue it with --resume, begin anew with "
            "--overwrite, or name another folder with output=..."
        )
    results = [name for name in used if name in _AFTER_LAST]
    if resume and results and not (folder / "last.pt").exists():  # killed before the first checkpoint, a run has none
        raise UserError(
            f"output: {folder} holds {' and '.join(results)} but no last.pt, so there is nothing to go on from: begin "
            "anew with --overwrite, or name another folder with output=..."
        )
    needed = {
        "model.weights": config.model.weights if overwrite else None,
        "teacher.weights": config.teacher.weights if config.teacher and config.distill else None,
    }
    for key, weights in needed.items():
        if weights is not None and Path(weights).resolve().parent == folder.resolve():
            raise UserError(f"{key}: {weights} lies in this run's own output folder: choose another output")


def open_folder(config: Config, lock: RunLock, *, overwrite: bool) -> Path:
    """Once everything is built: the folder, cleared of an earlier run where told so, with this run's config.yaml."""
    folder = config.output
    try:
        folder.mkdir(parents=True, exist_ok=True)
        lock.take()  # where the folder is new
        for name in _FILES:  # what was being written when an earlier start was killed
            (folder / f".{name}.part").unlink(missing_ok=True)
        if overwrite:
            for name in _FILES:
                (folder / name).unlink(missing_ok=True)
            shutil.rmtree(folder / "tensorboard", ignore_errors=True)
        write_text(folder / "config.yaml", dump_yaml(config_to_dict(config)))
    except OSError as error:
        raise UserError(f"output: {folder} cannot be written ({error.strerror})") from None
    return folder


def resume_content(config: Config, classes: list[str]) -> dict[str, Any] | None:
    """What last.pt holds; None where there is none yet. Raises UserError where it was made by another config."""
    path = config.output / "last.pt"
    if not path.exists():
        return None
    try:
        content = load_checkpoint(path)
    except UserError as error:
        best = config.output / "best.pt"
        or_best = f"; model.weights={best} with another output begins with the best weights" if best.exists() else ""
        raise UserError(f"{error}; begin anew with --overwrite or another output{or_best}") from None
    if "resume" not in content:
        raise UserError(f"{path} has no training state, so it cannot be resumed: give it as model.weights instead")
    if missing := [name for name in ("model", "classes", "config", "step", "metrics") if name not in content]:
        raise UserError(f"{path} has no {missing[0]}: it is damaged; begin anew with --overwrite or another output")
    if content["classes"] != classes:
        raise UserError(
            f"{path} was trained on the classes {', '.join(content['classes'])} and the data has {', '.join(classes)}: "
            "resume needs the same data; begin anew with --overwrite or another output"
        )
    # By way of the schema: keys that there were not yet when it was stored have their defaults.
    stored = config_from_dict(content["config"], name=f"config inside {path}")
    then, now = (_leaves_and_switches(config) for config in (stored, config))
    for key in sorted(then.keys() | now.keys()):
        if _must_match(key) and _what_counts(key, then.get(key)) != _what_counts(key, now.get(key)):
            raise UserError(
                f"{path} was trained with {key} {_say(then.get(key))} and the config says {_say(now.get(key))}: "
                "resume needs both the same; begin anew with --overwrite or another output"
            )
    return content


def adopt_best(folder: Path, progress: Progress) -> Progress:
    """When a run goes on: the best is what best.pt holds. That may be later than last.pt, after which a run that was
    killed begins again; without a best.pt that can be read, the next evaluation writes one."""
    try:
        best = load_checkpoint(folder / "best.pt")
        progress.best_ap, progress.best_step = float(best["metrics"]["AP"] or 0.0), int(best["step"])
    except (UserError, KeyError, TypeError, ValueError):
        progress.best_ap, progress.best_step = -1.0, 0
    return progress


def write_metrics(folder: Path, metrics: dict[str, Any]) -> None:
    write_text(folder / "metrics.json", json.dumps(metrics, indent=2) + "\n")


def _must_match(key: str) -> bool:
    return key.startswith(_SAME_ON_RESUME) and not key.endswith(_MAY_DIFFER)


def _what_counts(key: str, value: Any) -> Any:
    """A weights file may have moved; but with weights fewer layers are trained than from scratch."""
    return value is not None if key.endswith("weights") else value


def _leaves(value: Any, path: str = "") -> Iterator[tuple[str, Any]]:
    """({"model": {"norm": "live"}}) -> ("model.norm", "live"); a section that is switched off is a leaf."""
    if not isinstance(value, dict):
        yield path, value
        return
    for key, inner in value.items():
        yield from _leaves(inner, f"{path}.{key}".lstrip("."))


def _leaves_and_switches(config: Config) -> dict[str, Any]:
    """Leaves by path, and of a section that can be switched off whether it is on, which sorts before its leaves."""
    values = config_to_dict(config)
    switches = {name: "on" if values[name] is not None else None for name in ("distill", "teacher")}
    return {**dict(_leaves(values)), **switches}


def _say(value: Any) -> str:
    return "none" if value is None else str(value)
