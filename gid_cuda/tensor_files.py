"""Files of tensors, read without running anything that they hold, and without unpacking what is packed.

A .pt file from a stranger can still make torch's own reader ask for any amount of memory; a .safetensors file cannot.
"""

from __future__ import annotations

import zipfile
from collections.abc import Mapping
from pathlib import Path
from typing import Any

import torch
from torch import Tensor

from gid_cuda.errors import UserError

SAFETENSORS = ".safetensors"


def load_plain(path: Path) -> Any:
    """What torch.save wrote, tensors and plain containers alone, on the CPU.

    Raises whatever a damaged, foreign or hostile file leads torch to; ValueError for a packed one: torch.save never
    packs, and a few MB of file could unpack to more than there is memory.
    """
    with open(path, "rb") as file:
        is_archive = file.read(4) == b"PK\x03\x04"  # what torch goes by; else the file is of before torch 1.6
    if is_archive:
        with zipfile.ZipFile(path) as archive:
            entries = archive.infolist()
        packed = any(entry.compress_type != zipfile.ZIP_STORED for entry in entries)
        if packed or sum(entry.file_size for entry in entries) > path.stat().st_size:
            raise ValueError("its parts are packed, which torch.save never does, and may unpack to any size")
    return torch.load(path, map_location="cpu", weights_only=True)


def load_safetensors(path: Path) -> dict[str, Tensor]:
    """A .safetensors file: tensors by name and nothing else. UserError where the package that reads it is missing."""
    try:
        from safetensors.torch import load_file
    except ImportError:
        raise UserError(f"{path}: to read {SAFETENSORS} files, pip install safetensors") from None
    return load_file(path, device="cpu")


def plain_state(path: Path, state: Mapping[Any, Any]) -> dict[str, Any]:
    """A state dict from a file as a plain dict: what pickle may hang on it beside (its _metadata) stays behind.

    UserError for keys that are no text and tensors that no layer has: sparse, complex, or without content.
    """
    for key, value in state.items():
        odd = isinstance(value, Tensor) and (value.layout != torch.strided or value.is_complex() or value.is_meta)
        if not isinstance(key, str) or odd:
            what = "is no name" if not isinstance(key, str) else "is sparse, complex, or without content"
            raise UserError(f"{path} holds no weights of a detector: its {str(key)[:80]!r} {what}; give another file")
    return dict(state)


def class_names(path: Path, names: Any) -> list[str]:
    """The class names that a checkpoint holds. UserError where they are no list of names fit to be printed."""
    if not isinstance(names, (list, tuple)) or not all(isinstance(n, str) and n and n.isprintable() for n in names):
        raise UserError(f"{path} has no printable names as its classes, but {str(names)[:80]!a}: give another file")
    return list(names)
