"""Checkpoint files: plain containers and tensors, written so that a crash never leaves half a file.

    {"format": 1, "model": the detector's state dict, "classes": names, "config": the resolved config as plain values,
     "step": steps done, "metrics": the latest evaluation or None,
     "resume": optimizer, scaler, distillation layers, random states ... (last.pt alone)}

With train.ema_decay, "model" is the averaged weights, which were evaluated, so that whatever reads a checkpoint gets
these; those that training goes on with are "resume": {"ema": {"student": a state dict, "updates": steps averaged}}.
"""

from __future__ import annotations

import contextlib
import os
import random
from collections.abc import Mapping
from pathlib import Path
from typing import Any

import numpy as np
import torch

from gid_cuda.config import Config, config_from_dict
from gid_cuda.detectors.build import build_detector
from gid_cuda.detectors.outputs import Detector
from gid_cuda.detectors.own import Builder
from gid_cuda.errors import UserError, reason
from gid_cuda.tensor_files import SAFETENSORS, class_names, load_plain, plain_state

FORMAT = 1


def save_checkpoint(path: Path, content: dict[str, Any]) -> None:
    """Write `content` to `path` in one move: what was there stays readable until the new file is whole on the disk.

    Raises UserError where the disk refuses; the old file is then still there.
    """
    part = path.with_name(f".{path.name}.part")
    try:
        with open(part, "wb") as file:
            torch.save({"format": FORMAT, **content}, file)
            file.flush()
            os.fsync(file.fileno())
        os.replace(part, path)
        _sync_folder(path.parent)
    except (OSError, RuntimeError) as error:  # torch's zip writer turns a full disk into a RuntimeError
        kept = "the checkpoint that was there is intact" if path.exists() else "nothing was written"
        raise UserError(f"checkpoint {path} could not be written ({reason(_refusal(error))}); {kept}") from None
    finally:
        with contextlib.suppress(OSError):  # most often it has been moved
            part.unlink()


def _refusal(error: Exception) -> Exception:
    """What the disk has said: torch's zip writer hides it behind a remark of its own on some position in the file."""
    at: BaseException | None = error
    while at is not None:
        if isinstance(at, OSError):
            return at
        at = at.__cause__ or at.__context__
    return error


def _sync_folder(folder: Path) -> None:
    """The renaming itself must reach the disk, too."""
    descriptor = os.open(folder, os.O_RDONLY)
    try:
        os.fsync(descriptor)
    finally:
        os.close(descriptor)


def load_checkpoint(path: str | Path) -> dict[str, Any]:
    """The content of a checkpoint that `save_checkpoint` wrote, on the CPU; nothing in it is executed.

    Raises UserError: no such file, truncated, or something else than a checkpoint of this project.
    """
    path = Path(path)
    if path.is_dir():
        raise UserError(f"checkpoint {path} is a folder: give a file, such as {path / 'best.pt'}")
    if not path.is_file():
        raise UserError(f"checkpoint {path} does not exist")
    try:
        # Only a later torch than some reads weights by that name; they are no checkpoint to any.
        content = None if path.suffix == SAFETENSORS else load_plain(path)
    except Exception as error:  # torch raises half a dozen types for a file that is damaged or not its own
        raise UserError(
            f"checkpoint {path} cannot be read: it is damaged or no checkpoint ({reason(error)})"
        ) from None
    kind = content.get("format") if isinstance(content, dict) else None
    if not isinstance(kind, int) or kind != FORMAT:
        raise UserError(f"{path} is no checkpoint of gid_cuda (format {FORMAT}): scripts/train.py did not write it")
    _check_parts(path, content)
    return content


def _check_parts(path: Path, content: dict[str, Any]) -> None:
    """What stands in the file under the names of a checkpoint's parts may still be anything."""
    for name in ("model", "config", "resume"):
        if name in content and not isinstance(content[name], Mapping):
            raise UserError(f"{path} has a {type(content[name]).__name__} as its {name}: it is damaged; give another")
    if "model" in content:
        content["model"] = plain_state(path, content["model"])
    if (ema := content.get("resume", {}).get("ema")) is not None:
        content["resume"]["ema"] = _average(path, ema)
    if "classes" in content:
        content["classes"] = class_names(path, content["classes"])
    step = content.get("step", 0)
    if isinstance(step, bool) or not isinstance(step, int) or step < 0:
        raise UserError(f"{path} has {str(step)[:40]!a} as its step: it is damaged; give another")
    if not _are_metrics(content.get("metrics")):
        raise UserError(f"{path} has something else than an evaluation's numbers as its metrics: give another")


def _are_metrics(value: Any) -> bool:
    """None, or names with numbers; what has no number is None, and what is told by class has a level of its own."""
    if value is None:
        return True
    if not isinstance(value, Mapping):
        return False
    by_class = value.get("per_class", {})
    flat = [(name, entry) for name, entry in value.items() if name not in ("per_class", "unreadable")]
    if not isinstance(by_class, Mapping) or not isinstance(value.get("unreadable", []), list):
        return False
    return all(isinstance(k, str) and isinstance(v, int | float | None) for k, v in (*flat, *by_class.items()))


def _average(path: Path, ema: Any) -> dict[str, Any]:
    """The part that `train.ema_decay` adds, checked."""
    updates, student = (ema.get(key) for key in ("updates", "student")) if isinstance(ema, Mapping) else (None, None)
    if type(updates) is not int or updates < 0 or not isinstance(student, Mapping):
        raise UserError(f"{path} has no weights and count of steps as its resume.ema: it is damaged; give another")
    return {"updates": updates, "student": plain_state(path, student)}


def load_detector(path: str | Path, adapter: Builder | None = None) -> tuple[Detector, Config, list[str]]:
    """A trained detector in eval mode on the CPU, its config and its class names.

    The checkpoint alone suffices, but for a user's own detector, which `adapter` builds."""
    content = load_checkpoint(path)
    if missing := [name for name in ("model", "classes", "config") if name not in content]:
        raise UserError(f"{path} has no {missing[0]}, which a checkpoint of a run has: give its best.pt or last.pt")
    config = config_from_dict(content["config"], name=f"config inside {path}")
    untrained = config.model.model_copy(update={"weights": None, "backbone_weights": None})  # all weights are in here
    detector = build_detector(untrained, config.input, content["classes"], adapter=adapter)
    try:
        detector.load_state_dict(content["model"])
    except RuntimeError as error:
        raise UserError(f"{path}: its weights do not fit its own config ({reason(error)})") from None
    return detector.eval(), config, content["classes"]


def random_states() -> dict[str, Any]:
    """Every generator that training draws from, as plain values."""
    numpy = np.random.get_state(legacy=False)
    numpy["state"]["key"] = torch.from_numpy(numpy["state"]["key"].astype(np.int64))  # a checkpoint holds no arrays
    return {
        "torch": torch.get_rng_state(),
        "cuda": torch.cuda.get_rng_state_all() if torch.cuda.is_available() else [],
        "python": random.getstate(),
        "numpy": numpy,
    }


def set_random_states(states: dict[str, Any]) -> None:
    """Undo `random_states`. GPUs that were not there when it was saved keep their state."""
    torch.set_rng_state(states["torch"])
    if torch.cuda.is_available():
        for device, state in enumerate(states["cuda"][: torch.cuda.device_count()]):
            torch.cuda.set_rng_state(state, device)
    random.setstate(states["python"])
    generator = states["numpy"]["state"]
    key = generator["key"].numpy().astype(np.uint32)
    np.random.set_state({**states["numpy"], "state": {**generator, "key": key}})
