"""What a file of mmdetection's holds: tensors, class names, and the settings in its config text, read, never run."""

from __future__ import annotations

import ast
import re
from collections.abc import Iterator, Mapping
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

from torch import Tensor

from gid_cuda.errors import UserError, reason
from gid_cuda.tensor_files import class_names, load_plain, plain_state

_COUNTER = ".num_batches_tracked"
_MAX_VALUES = 100_000  # of a config text, names replaced by what they stand for; mmdetection's have some hundreds


@dataclass
class MMDetectionFile:
    """state: tensors by mmdetection's names, without batch norm's counters. classes: None where the file has none.

    settings: what the file's config text says of the model, by path ("backbone.style"); empty where there is no text.
    """

    path: Path
    state: dict[str, Tensor]
    classes: list[str] | None = None
    settings: dict[str, Any] = field(default_factory=dict)


def read_mmdetection(path: Path) -> MMDetectionFile:
    """Raises UserError: no such file, unreadable, or nothing of mmdetection's."""
    content = _load(path)
    state = content.get("state_dict") if isinstance(content, Mapping) else None
    if not isinstance(state, Mapping) or not all(isinstance(value, Tensor) for value in state.values()) or not state:
        raise UserError(
            f"{path} is no checkpoint of mmdetection, which would have its weights under state_dict: give the .pth "
            "file of a training run or of mmdetection's model zoo"
        )
    meta = content.get("meta")
    meta = meta if isinstance(meta, Mapping) else {}
    text = meta.get("cfg", meta.get("config"))  # 3.x, 2.x
    return MMDetectionFile(
        path=path,
        state={key: value for key, value in plain_state(path, state).items() if not key.endswith(_COUNTER)},
        classes=_classes(path, meta),
        settings=_settings(text) if isinstance(text, str) else {},
    )


def _load(path: Path) -> Any:
    if not path.is_file():
        raise UserError(f"{path} is no file: give a checkpoint of mmdetection")
    try:
        return load_plain(path)
    except Exception as error:  # what a broken file raises depends on where it breaks
        if found := re.search(r"nsupported (?:global: )?GLOBAL ([\w.]+)", str(error)):
            raise UserError(
                f"{path} holds more than tensors and plain values ({found[1]}), which could run code: if you trust it, "
                f"keep what is needed, where mmdetection is installed, by c = torch.load(..., weights_only=False); "
                f"torch.save({{k: c[k] for k in ('meta', 'state_dict')}}, 'small.pth'), and convert small.pth"
            ) from None
        raise UserError(
            f"{path} cannot be read as a PyTorch file ({reason(error)}): it may be truncated or of another kind; "
            "copy it again"
        ) from None


def _classes(path: Path, meta: Mapping[str, Any]) -> list[str] | None:
    """3.x: meta.dataset_meta.classes (first CLASSES); 2.x: meta.CLASSES. A single class may stand there as text."""
    data = meta.get("dataset_meta")
    for holder in (data if isinstance(data, Mapping) else {}, meta):
        for key in ("classes", "CLASSES"):
            names = holder.get(key)
            names = [names] if isinstance(names, str) else names
            if isinstance(names, (list, tuple)) and names and all(isinstance(name, str) for name in names):
                return class_names(path, names)
    return None


def _settings(text: str) -> dict[str, Any]:
    """The assignment to `model` in a config's text, flat: {"neck.num_outs": 5, ...}.

    With the data_preprocessor that stands beside it, or what is img_norm_cfg in 2.x, as its data_preprocessor.
    """
    values: dict[str, Any] = {}
    left = iter(range(_MAX_VALUES))
    try:
        for line in ast.parse(text).body:
            if isinstance(line, ast.Assign) and isinstance(line.targets[0], ast.Name):
                values[line.targets[0].id] = _plain(line.value, values, left)
    except (SyntaxError, ValueError, RecursionError, MemoryError, StopIteration):
        return {}
    model, pixels, normalisation = (values.get(key) for key in ("model", "data_preprocessor", "img_norm_cfg"))
    if not isinstance(model, dict):
        return {}
    if not isinstance(pixels, dict) and isinstance(normalisation, dict):
        pixels = {"bgr_to_rgb": normalisation.get("to_rgb", True), **normalisation}
    if isinstance(pixels, dict):
        model.setdefault("data_preprocessor", pixels)
    return dict(_flat(model))


def _plain(node: ast.expr, values: Mapping[str, Any], left: Iterator[int]) -> Any:
    """Numbers, texts, lists, dicts and earlier names; None for everything else.

    left: one is taken for each value, StopIteration when there are none: a = dict(x=1), b = dict(x=a, y=a) and so on
    would double with every line."""
    next(left)
    if isinstance(node, ast.Constant):
        return node.value
    if isinstance(node, (ast.List, ast.Tuple)):
        return [_plain(item, values, left) for item in node.elts]
    if isinstance(node, ast.Dict):
        keys = [_plain(key, values, left) if key else None for key in node.keys]
        return {str(key): _plain(value, values, left) for key, value in zip(keys, node.values, strict=True)}
    if isinstance(node, ast.Call) and isinstance(node.func, ast.Name) and node.func.id == "dict":
        return {word.arg: _plain(word.value, values, left) for word in node.keywords if word.arg}
    if isinstance(node, ast.UnaryOp) and isinstance(node.op, ast.USub):
        value = _plain(node.operand, values, left)
        return -value if isinstance(value, (int, float)) else None
    return _copy(values.get(node.id), left) if isinstance(node, ast.Name) else None


def _copy(value: Any, left: Iterator[int]) -> Any:
    next(left)
    if isinstance(value, dict):
        return {key: _copy(inner, left) for key, inner in value.items()}
    return [_copy(inner, left) for inner in value] if isinstance(value, list) else value


def _flat(section: Mapping[str, Any], before: str = "") -> list[tuple[str, Any]]:
    items: list[tuple[str, Any]] = []
    for key, value in section.items():
        items += _flat(value, f"{before}{key}.") if isinstance(value, Mapping) else [(f"{before}{key}", value)]
    return items
