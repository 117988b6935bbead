"""Small data sets written by the tests: COCO and VOC layout from one description."""

from __future__ import annotations

import json
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

import numpy as np
from PIL import Image

from gid_cuda.config import DataConfig
from gid_cuda.data import DetectionDataset, build_dataset

NAMES = ["cat", "dog", "bird"]


def picture(width: int, height: int, seed: int) -> Image.Image:
    pixels = np.random.default_rng(seed).integers(0, 256, (height, width, 3), dtype=np.uint8)
    return Image.fromarray(pixels)


@dataclass
class CocoSet:
    """A COCO data set under `root` that a test bends before it is written."""

    root: Path
    images: list[dict[str, Any]] = field(default_factory=list)
    annotations: list[Any] = field(default_factory=list)
    categories: list[Any] = field(default_factory=lambda: [{"id": 3 * i + 1, "name": n} for i, n in enumerate(NAMES)])

    def image(self, name: str, width: int = 40, height: int = 30, key: int | None = None) -> int:
        key = 10 + len(self.images) if key is None else key
        path = self.root / "images" / name
        path.parent.mkdir(parents=True, exist_ok=True)
        picture(width, height, key).save(path)
        self.images.append({"id": key, "file_name": name, "width": width, "height": height})
        return key

    def box(self, image: int, xywh: Any, category: Any = 1, **more: Any) -> None:
        entry = {"id": len(self.annotations) + 100, "image_id": image, "category_id": category, "bbox": xywh}
        self.annotations.append(entry | more)

    def config(self, **more: Any) -> DataConfig:
        split = {"annotations": "instances.json", "images": "images"}
        return DataConfig(format="coco", root=self.root, train=split, val=split, **more)

    def write(self) -> None:
        (self.root / "images").mkdir(parents=True, exist_ok=True)
        content = {"images": self.images, "annotations": self.annotations, "categories": self.categories}
        (self.root / "instances.json").write_text(json.dumps(content))

    def build(self, part: str = "train", **more: Any) -> DetectionDataset:
        self.write()
        return build_dataset(self.config(**more), part)  # type: ignore[arg-type]


@dataclass
class VocSet:
    """A VOC data set under `root`."""

    root: Path

    def __post_init__(self) -> None:
        for folder in ("JPEGImages", "Annotations", "ImageSets/Main"):
            (self.root / folder).mkdir(parents=True, exist_ok=True)

    def xml(self, name: str, text: str | bytes) -> None:
        data = text.encode() if isinstance(text, str) else text
        (self.root / "Annotations" / f"{name}.xml").write_bytes(data)

    def image(
        self, name: str, objects: list[tuple[Any, ...]], size: tuple[int, int] | None = (40, 30), suffix: str = ".png"
    ) -> None:
        """objects: (class, xmin, ymin, xmax, ymax) or with a sixth value, the difficult flag."""
        picture(40, 30, len(name)).save(self.root / "JPEGImages" / f"{name}{suffix}")
        parts = [f"<size><width>{size[0]}</width><height>{size[1]}</height></size>"] if size else []
        for label, x1, y1, x2, y2, *difficult in objects:
            corners = f"<xmin>{x1}</xmin><ymin>{y1}</ymin><xmax>{x2}</xmax><ymax>{y2}</ymax>"
            flag = f"<difficult>{difficult[0]}</difficult>" if difficult else ""
            parts.append(f"<object><name>{label}</name>{flag}<bndbox>{corners}</bndbox></object>")
        self.xml(name, f"<annotation>{''.join(parts)}</annotation>")

    def split(self, name: str, lines: list[str]) -> None:
        (self.root / "ImageSets" / "Main" / f"{name}.txt").write_text("\n".join(lines) + "\n")

    def config(self, **more: Any) -> DataConfig:
        return DataConfig(format="voc", root=self.root, train={"split": "train"}, val={"split": "val"}, **more)

    def build(self, part: str = "train", **more: Any) -> DetectionDataset:
        return build_dataset(self.config(**more), part)  # type: ignore[arg-type]
