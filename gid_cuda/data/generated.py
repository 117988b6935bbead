"""The generated data set: drawn once, written to disk in COCO layout, and found there by the next run."""

from __future__ import annotations

import hashlib
import json
import os
import tempfile
from pathlib import Path
from typing import Any

import numpy as np
from PIL import Image

from gid_cuda.config import GeneratedConfig
from gid_cuda.data.scenes import CLASSES, draw_scene
from gid_cuda.errors import UserError

_VERSION = 2  # of the pictures; a change in scenes.py that alters them raises it, so that no run finds the old ones
_OURS = ("generated-", "unfinished-")  # what this module writes
_SMALLEST = 48  # pixels; below it shapes of ten pixels have no room


def generate(config: GeneratedConfig, root: Path) -> Path:
    """Returns the folder with `train.json`, `val.json`, `train/` and `val/`; writes it where it is not there yet.

    The folder is written under another name and renamed when complete, so a folder that is found is a whole one, and
    two runs that start at once do not disturb each other.
    """
    if min(config.width, config.height) < _SMALLEST:
        raise UserError(
            f"data.generated asks for images of {config.width}x{config.height} pixels: at least"
            f" {_SMALLEST}x{_SMALLEST} are needed"
        )
    parameters = {"version": _VERSION, **config.model_dump()}
    digest = hashlib.sha256(json.dumps(parameters, sort_keys=True).encode()).hexdigest()[:12]
    folder = root / f"generated-{digest}"
    if folder.is_dir():
        return folder
    _check_free(root)
    try:
        root.mkdir(parents=True, exist_ok=True)
        with tempfile.TemporaryDirectory(prefix="unfinished-", dir=root, ignore_cleanup_errors=True) as name:
            work = Path(name) / "set"
            for part, count in enumerate((config.train_images, config.val_images)):
                _write_part(work, ("train", "val")[part], part, count, config)
            try:
                os.rename(work, folder)
            except OSError:
                if not folder.is_dir():  # else another run was faster, with the same pictures
                    raise
    except OSError as error:
        raise UserError(
            f"the generated data set cannot be written to {root} ({error.strerror}):"
            " choose another place with data.root=..."
        ) from None
    return folder


def _check_free(root: Path) -> None:
    """Whoever names their own data set, and not its format, wants no drawn pictures in it, and no training on them."""
    others = [p.name for p in root.iterdir() if not p.name.startswith((".", *_OURS))] if root.is_dir() else []
    if others:
        raise UserError(
            f"data.root {root} holds other files ({others[0]}), but data.format is generated: set data.format=coco or"
            " data.format=voc to train on them, or name another folder for pictures to be drawn"
        )


def _write_part(work: Path, name: str, part: int, count: int, config: GeneratedConfig) -> None:
    (work / name).mkdir(parents=True)
    images: list[dict[str, Any]] = []
    annotations: list[dict[str, Any]] = []
    for i in range(count):
        # a generator of its own for each picture: any of them can be drawn again alone
        scene = draw_scene(config.width, config.height, np.random.default_rng([config.seed % 2**64, part, i]))
        file_name = f"{i:06d}.jpg"
        Image.fromarray(scene.pixels).save(work / name / file_name, quality=92)
        images.append({"id": i + 1, "file_name": file_name, "width": config.width, "height": config.height})
        for (x1, y1, x2, y2), label, area in zip(
            scene.boxes.tolist(), scene.labels.tolist(), scene.areas.tolist(), strict=True
        ):
            annotations.append(
                {
                    "id": len(annotations) + 1,
                    "image_id": i + 1,
                    "category_id": label + 1,
                    "bbox": [x1, y1, x2 - x1, y2 - y1],
                    "area": area,
                    "iscrowd": 0,
                }
            )
    categories = [{"id": label + 1, "name": name} for label, name in enumerate(CLASSES)]
    content = {"images": images, "annotations": annotations, "categories": categories}
    (work / f"{name}.json").write_text(json.dumps(content))
