"""Weights for detectors: torchvision's by name, or a file; every mismatch is one sentence that says what to do."""

from __future__ import annotations

from collections.abc import Iterable, Mapping, Sequence
from pathlib import Path
from typing import TYPE_CHECKING, Any

import torch
import torchvision
from torch import Tensor, nn
from torchvision.models import WeightsEnum
from torchvision.models.detection import RetinaNet_ResNet50_FPN_Weights
from torchvision.ops.misc import FrozenBatchNorm2d

from gid_cuda.errors import UserError

if TYPE_CHECKING:
    from gid_cuda.config import InputConfig, ModelConfig

TORCHVISION_MEAN = (0.485, 0.456, 0.406)  # what torchvision's weights were trained with
TORCHVISION_STD = (0.229, 0.224, 0.225)

_NOT_A_CLASS = {"__background__", "n/a"}  # rows of torchvision's 91 that name nothing
_COUNTER = ".num_batches_tracked"  # live batch norm has it, frozen has not; both load each other
_DESIGN_KEYS = ("detector", "backbone", "fpn_channels", "head_depth", "anchor_sizes")  # of a config's model section

State = dict[str, Tensor]


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
            f"could not get torchvision's weights {weights} ({_reason(error)}): download {weights.url} by other means "
            f"and place it in {folder}"
        ) from error


def load_coco(detector: nn.Module, model: ModelConfig, classes: Sequence[str]) -> list[str]:
    """torchvision's COCO weights; class rows are gathered by name, those of other classes stay newly initialised."""
    enum = RetinaNet_ResNet50_FPN_Weights.COCO_V1
    needed = {"backbone": "resnet50", "fpn_channels": 256, "head_depth": 4, "anchor_sizes": [32, 64, 128, 256, 512]}
    other = [f"{key} {getattr(model, key)}" for key, value in needed.items() if getattr(model, key) != value]
    if other:
        raise UserError(
            f"weights: coco exists for {_listed(f'{key} {value}' for key, value in needed.items())} alone, and this config has "
            f"{_listed(other)}: change that, give a checkpoint file, or use backbone_weights: imagenet"
        )
    names = [name.casefold() for name in enum.meta["categories"]]
    rows = {name: row for row, name in enumerate(names) if name not in _NOT_A_CLASS}
    matches = [rows.get(name.casefold()) for name in classes]
    state = _gather_rows(torchvision_state(enum), detector, matches, len(names))
    _load(detector, state, "weights: coco", made_with={}, wanted={})
    _absorb_zero_eps(detector)
    new = [name for name, row in zip(classes, matches, strict=True) if row is None]
    notes = [f"weights: coco, {len(classes) - len(new)} of {len(classes)} classes taken over by name"]
    return notes + ([f"weights: coco has no class {_listed(new)}: initialised anew"] if new else [])


def load_file(detector: nn.Module, model: ModelConfig, input: InputConfig, classes: Sequence[str]) -> list[str]:
    """A checkpoint of this package, or a bare state dict as torchvision's models have it."""
    path = Path(model.weights or "")
    state, checkpoint = _read_file(path)
    config = checkpoint.get("config")
    config = config if isinstance(config, Mapping) else {}
    made_with = config.get("model")
    made_with = made_with if isinstance(made_with, Mapping) else {}
    wanted = {key: getattr(model, key) for key in _DESIGN_KEYS}
    notes = [f"weights: {path}"]
    own_classes = checkpoint.get("classes")
    if own_classes is not None:
        _check_classes(path, list(own_classes), list(classes))
        if list(own_classes) != list(classes):
            matches = [list(own_classes).index(name) for name in classes]
            state = _gather_rows(state, detector, matches, len(classes))
            notes.append(f"weights: {path} has its classes in another order: rows sorted by name")
    else:
        _check_class_count(path, state, detector, len(classes))
    _check_normalisation(path, config.get("input"), input)
    if made_with.get("anchor_sizes", wanted["anchor_sizes"]) != wanted["anchor_sizes"]:
        raise UserError(
            f"weights: {path} was trained with anchor_sizes {made_with['anchor_sizes']}, and this config has "
            f"{wanted['anchor_sizes']}: set anchor_sizes to those of the weights"
        )
    _load(detector, state, f"weights: {path}", made_with, wanted)
    return notes


def check_torchvision_normalisation(what: str, input: InputConfig) -> None:
    """torchvision's weights expect ImageNet's mean and std; anything else is refused rather than silently worse."""
    _check_normalisation(what, {"mean": TORCHVISION_MEAN, "std": TORCHVISION_STD}, input)


def _read_file(path: Path) -> tuple[State, dict[str, Any]]:
    """(state dict, the checkpoint around it or {})."""
    if path.is_dir():
        raise UserError(f"weights: {path} is a folder: give a file, such as {path / 'best.pt'}")
    if not path.exists():
        raise UserError(
            f"weights: no such file: {path}: give the checkpoint of a finished run (best.pt in its output folder) or coco"
        )
    try:
        content = torch.load(path, map_location="cpu", weights_only=True)
    except Exception as error:  # what a broken file raises depends on where it breaks
        raise UserError(
            f"weights: {path} cannot be read as a PyTorch file of plain tensors ({_reason(error)}): "
            "it may be truncated or something else; copy or train it again"
        ) from error
    checkpoint = content if isinstance(content, dict) and isinstance(content.get("model"), Mapping) else {}
    state = checkpoint.get("model", content)
    if not isinstance(state, Mapping) or not any(isinstance(value, Tensor) for value in state.values()):
        raise UserError(
            f"weights: {path} holds neither a checkpoint (model, classes, config) nor a state dict: give best.pt or last.pt of a run"
        )
    return state, checkpoint


def _check_classes(path: Path, theirs: list[str], ours: list[str]) -> None:
    if set(theirs) == set(ours) and len(theirs) == len(ours):
        return
    differences = []
    if gone := [name for name in theirs if name not in ours]:
        differences.append(f"only the weights have {_listed(gone)}")
    if new := [name for name in ours if name not in theirs]:
        differences.append(f"only the data has {_listed(new)}")
    raise UserError(
        f"weights: {path} was trained on {len(theirs)} classes and the data has {len(ours)}"
        f"{''.join(f', {difference}' for difference in differences)}: use weights trained on this data set, "
        "or set data.classes to theirs"
    )


def _check_class_count(path: Path, state: State, detector: nn.Module, count: int) -> None:
    """A bare state dict has no names; its number of classes shows in the bias."""
    bias = state.get("head.classification_head.cls_logits.bias")
    if bias is None or bias.numel() % detector.anchors_per_cell:
        return  # another architecture, which `_load` reports
    theirs = bias.numel() // detector.anchors_per_cell
    if theirs != count:
        hint = " (torchvision's COCO weights: say weights: coco instead)" if theirs == 91 else ""
        raise UserError(
            f"weights: {path} has {theirs} classes and the data has {count}: use weights trained on this data set{hint}"
        )


def _check_normalisation(what: object, theirs: Any, ours: InputConfig) -> None:
    theirs = theirs if isinstance(theirs, Mapping) else {}
    for key in ("mean", "std"):
        made, wanted = theirs.get(key), getattr(ours, key)
        if made is not None and any(abs(a - b) > 1e-6 for a, b in zip(made, wanted, strict=True)):
            raise UserError(
                f"weights: {what} was trained with input.{key} {list(made)}, and this config has {list(wanted)}: "
                f"set input.{key} to that of the weights (teacher and student share it)"
            )


def _gather_rows(state: State, detector: nn.Module, matches: Sequence[int | None], count: int) -> State:
    """The state dict with the class rows that `matches` names, one a class of ours; None keeps the detector's own.

    Rows of the last layer go by anchor, then class: (anchors * count, ...).
    """
    state = dict(state)
    kept = [index for index, row in enumerate(matches) if row is not None]
    rows = [row for row in matches if row is not None]
    for key, own in detector.head.classification_head.cls_logits.state_dict(prefix=detector.class_prefix).items():
        source = state[key].unflatten(0, (-1, count))
        own = own.clone().unflatten(0, (-1, len(matches)))
        own[:, kept] = source[:, rows]
        state[key] = own.flatten(0, 1)
    return state


def _load(detector: nn.Module, state: State, what: str, made_with: Mapping[str, Any], wanted: Mapping[str, Any]) -> None:
    """load_state_dict; what does not fit is told by name, with the setting that it was made with where that is known."""
    try:
        detector.load_state_dict(state)
        return
    except RuntimeError as error:
        cause = error
    differing = [f"{key}: {made_with[key]}" for key in _DESIGN_KEYS if made_with.get(key, wanted.get(key)) != wanted.get(key)]
    if differing:
        raise UserError(
            f"{what} does not fit this detector: it was made with {_listed(differing)}; set the config to that"
        ) from cause
    own = {key: value.shape for key, value in detector.state_dict().items() if not key.endswith(_COUNTER)}
    given = {key: getattr(value, "shape", None) for key, value in state.items() if not key.endswith(_COUNTER)}
    shapes = [f"{k} {tuple(given[k] or ())} instead of {tuple(own[k])}" for k in own if k in given and own[k] != given[k]]
    parts = {"missing": [k for k in own if k not in given], "unexpected": [k for k in given if k not in own], "of another shape": shapes}
    told = [f"{len(keys)} tensors {kind} ({_listed(keys, most=2)})" for kind, keys in parts.items() if keys]
    raise UserError(
        f"{what} does not fit this detector: {'; '.join(told)}; set backbone, fpn_channels and head_depth to what it was trained with"
    ) from cause


def _absorb_zero_eps(detector: nn.Module) -> None:
    """torchvision's COCO_V1 weights go with eps = 0 in their frozen batch norms (its `overwrite_eps`).

    Subtracting eps from the variance has the same effect, and the state dict alone still says everything.
    """
    for layer in detector.modules():
        if isinstance(layer, FrozenBatchNorm2d | nn.BatchNorm2d):
            layer.running_var -= layer.eps


def _reason(error: Exception) -> str:
    lines = str(error).strip().splitlines()
    return lines[0][:200] if lines else type(error).__name__


def _listed(names: Iterable[str], most: int = 8) -> str:
    names = list(names)
    rest = f" and {len(names) - most} more" if len(names) > most else ""
    return ", ".join(names[:most]) + rest
