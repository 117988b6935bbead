"""Weights for detectors: torchvision's by name, or a file; every mismatch is one sentence that says what to do."""

from __future__ import annotations

from collections.abc import Iterable, Mapping, Sequence
from pathlib import Path
from typing import TYPE_CHECKING, Any

import torch
import torchvision
from torch import Tensor
from torchvision.models import WeightsEnum

from gid_cuda.detectors.outputs import Detector
from gid_cuda.errors import UserError, reason
from gid_cuda.plain_yaml import check_plain
from gid_cuda.tensor_files import SAFETENSORS, class_names, load_plain, load_safetensors, plain_state

if TYPE_CHECKING:
    from gid_cuda.config import InputConfig, ModelConfig

State = Mapping[str, Tensor]

_TORCHVISION_INPUT = {"mean": (0.485, 0.456, 0.406), "std": (0.229, 0.224, 0.225)}  # of all of torchvision's weights
# Of a config's model section.
_SHAPE_KEYS = ("detector", "options", "variant", "backbone", "fpn_channels", "head_depth", "anchor_sizes")
_COUNTER = ".num_batches_tracked"  # live batch norm has it, frozen has not; each loads the other's weights


def imagenet_state(backbone: str) -> State:
    """torchvision's IMAGENET1K_V1 weights of a classification network, those that its detectors start from."""
    return torchvision_state(torchvision.models.get_model_weights(backbone)["IMAGENET1K_V1"])


def torchvision_state(weights: WeightsEnum) -> State:
    """The state dict behind one of torchvision's names, from its cache or downloaded."""
    try:
        return weights.get_state_dict(progress=False, check_hash=True, map_location="cpu", weights_only=True)
    except Exception as error:  # no network, no space, a broken file in the cache: all are mended the same way
        folder = Path(torch.hub.get_dir()) / "checkpoints"
        raise UserError(
            f"could not get torchvision's weights {weights} ({reason(error)}): "
            f"download {weights.url} by other means and place it in {folder}"
        ) from error


def check_torchvision_input(what: str, input: InputConfig) -> None:
    """torchvision's weights expect ImageNet's mean and std; others are refused rather than silently worse."""
    _check_input(what, _TORCHVISION_INPUT, input)


def load_file(detector: Detector, model: ModelConfig, input: InputConfig, classes: Sequence[str]) -> list[str]:
    """A checkpoint of this package, or a bare state dict as torchvision's models have it (.safetensors: that alone).

    Returns notes."""
    path = Path(str(model.weights))
    state, checkpoint = _read_file(path)
    config = _section(checkpoint, "config")
    check_plain(config, f"config inside {path}")
    _check_model(path, _section(config, "model"), model)
    _check_input(path, _section(config, "input"), input)
    theirs = checkpoint.get("classes")
    if theirs is None:
        _check_class_count(path, state, detector)
        load_state(detector, state, path)
        return [f"weights: {path}, a state dict without class names: taken to be in the data set's order"]
    theirs = class_names(path, theirs)
    _check_classes(path, theirs, classes)
    load_state(detector, state, path)
    if theirs == list(classes):
        return [f"weights: {path}"]
    if not detector.class_rows:
        raise UserError(
            f"weights: {path} has the classes in the order {listed(theirs)}, and this detector cannot bring them into "
            f"another: set data.classes to that order"
        )
    matches = [theirs.index(name) for name in classes]
    detector.load_state_dict(gather_classes(detector.state_dict(), detector, matches, len(classes)))
    return [f"weights: {path}, its classes brought into the data set's order by name"]


def _read_file(path: Path) -> tuple[State, Mapping[str, Any]]:
    """(state dict, the checkpoint around it or {})."""
    if path.is_dir():
        raise UserError(f"weights: {path} is a folder: give a file, such as {path / 'best.pt'}")
    if not path.exists():
        raise UserError(f"weights: no such file: {path}: give the best.pt of a finished run, or train that one first")
    try:
        content = load_safetensors(path) if path.suffix == SAFETENSORS else load_plain(path)
    except UserError:
        raise
    except Exception as error:  # what a broken file raises depends on where it breaks
        raise UserError(
            f"weights: {path} cannot be read as a PyTorch file of plain tensors ({reason(error)}): "
            "it may be truncated or of another kind; copy it again or give the best.pt of a run"
        ) from error
    checkpoint = content if isinstance(content, Mapping) and isinstance(content.get("model"), Mapping) else {}
    state = checkpoint.get("model", content)
    if not isinstance(state, Mapping) or not any(isinstance(value, Tensor) for value in state.values()):
        hint = ""
        if isinstance(content, Mapping) and "state_dict" in content:
            hint = ", or convert it first if mmdetection made it: scripts/convert_checkpoint.py"
        raise UserError(
            f"weights: {path} is neither a checkpoint of this package nor a state dict: give the best.pt of a run{hint}"
        )
    return plain_state(path, state), checkpoint


def _check_model(path: Path, theirs: Mapping[str, Any], ours: ModelConfig) -> None:
    """What the checkpoint's own config says; other anchors would fit every tensor and still be wrong."""
    theirs = {"variant": "torchvision", **theirs} if theirs else theirs  # older checkpoints know of no other
    keys = [key for key in _SHAPE_KEYS if key in theirs and theirs[key] != getattr(ours, key)]
    if keys:
        made, wanted = [f"{key} {_shown(theirs[key])}" for key in keys], [f"{key} {getattr(ours, key)}" for key in keys]
        raise UserError(
            f"weights: {path} was made with {listed(made)}, and this config has {listed(wanted)}: "
            "set the config to what the weights were made with"
        )


def _check_input(what: Path | str, theirs: Mapping[str, Any], ours: InputConfig) -> None:
    for key in ("mean", "std"):
        made, wanted = theirs.get(key), getattr(ours, key)
        if made is not None and not _near(made, wanted):
            raise UserError(
                f"weights: {what} was trained with input.{key} {_shown(made)}, and this config has {list(wanted)}: "
                f"set input.{key} to that of the weights (teacher and student share it)"
            )


def _near(made: Any, wanted: Sequence[float]) -> bool:
    """made: whatever the file has there."""
    if not isinstance(made, (list, tuple)) or not all(isinstance(value, (int, float)) for value in made):
        return False
    return len(made) == len(wanted) and all(abs(a - b) <= 1e-6 for a, b in zip(made, wanted, strict=True))


def _shown(value: Any) -> str:
    return str(list(value) if isinstance(value, tuple) else value)[:80]


def _check_classes(path: Path, theirs: Sequence[str], ours: Sequence[str]) -> None:
    if sorted(theirs) == sorted(ours):
        return
    differences = ""
    if gone := [name for name in theirs if name not in ours]:
        differences += f", only the weights have {listed(gone)}"
    if new := [name for name in ours if name not in theirs]:
        differences += f", only the data has {listed(new)}"
    raise UserError(
        f"weights: {path} was trained on {len(theirs)} classes and the data has {len(ours)}{differences}: "
        "use weights trained on this data set, or set data.classes to theirs"
    )


def _check_class_count(path: Path, state: State, detector: Detector) -> None:
    """A bare state dict has no names; its number of classes shows in the bias."""
    for rows in detector.class_rows:
        key = f"{rows.layer}.bias"
        if key not in state or state[key].numel() % (rows.anchors * rows.each):
            return  # another architecture, which `load_state` reports
        count = state[key].numel() // (rows.anchors * rows.each)
        if count != detector.num_classes + rows.background:
            hint = ""
            if count == 91:
                hint = ", or weights: coco if these are torchvision's"
            elif count == detector.num_classes + 1:
                hint = "; if its first is background, as in torchvision's own training, leave that row out of the file"
            raise UserError(
                f"weights: {path} has {count - rows.background} classes and the data has {detector.num_classes}: "
                f"use weights trained on this data set{hint}"
            )


def gather_classes(state: State, detector: Detector, matches: Sequence[int | None], count: int) -> State:
    """The state dict with our classes' rows: `matches` has one of its `count` classes for each of ours.

    Both are counted without background. None keeps the detector's own row.
    """
    gathered, current = dict(state), detector.state_dict()
    kept = [index for index, row in enumerate(matches) if row is not None]
    taken = [row for row in matches if row is not None]
    for rows in detector.class_rows:
        first = int(rows.background)
        ours, theirs = list(range(first)) + [k + first for k in kept], list(range(first)) + [t + first for t in taken]
        for key in (f"{rows.layer}.weight", f"{rows.layer}.bias"):
            own = current[key].unflatten(0, (rows.anchors, len(matches) + first, rows.each)).clone()
            own[:, ours] = state[key].unflatten(0, (rows.anchors, count + first, rows.each))[:, theirs]
            gathered[key] = own.flatten(0, 2)
    return gathered


def load_state(detector: Detector, state: State, what: Path | str) -> None:
    """load_state_dict; what does not fit is told by name."""
    try:
        detector.load_state_dict(state)
    except RuntimeError as error:
        own = {key: tuple(value.shape) for key, value in detector.state_dict().items() if not key.endswith(_COUNTER)}
        given = {key: tuple(getattr(value, "shape", ())) for key, value in state.items() if not key.endswith(_COUNTER)}
        kinds = {
            "missing": [key for key in own if key not in given],
            "unexpected": [key for key in given if key not in own],
            "of another shape": [f"{k} {given[k]} not {own[k]}" for k in own if k in given and own[k] != given[k]],
        }
        told = [f"{len(keys)} tensors {kind} ({listed(keys, most=2)})" for kind, keys in kinds.items() if keys]
        raise UserError(
            f"weights: {what} does not fit this detector, {'; '.join(told)}: "
            "set backbone, fpn_channels, head_depth or options to what the weights were made with"
        ) from error


def _section(config: Mapping[str, Any], name: str) -> Mapping[str, Any]:
    section = config.get(name)
    return section if isinstance(section, Mapping) else {}


def listed(names: Iterable[str], most: int = 8) -> str:
    names = list(names)
    return ", ".join(names[:most]) + (f" and {len(names) - most} more" if len(names) > most else "")
