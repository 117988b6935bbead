"""The two small data sets that the tests bend."""

from __future__ import annotations

from pathlib import Path

import pytest
from data_helpers import CocoSet, VocSet


@pytest.fixture
def coco(tmp_path: Path) -> CocoSet:
    """Two images, three boxes, three classes; nothing wrong with it."""
    made = CocoSet(tmp_path / "coco")
    first, second = made.image("a.png"), made.image("sub/b.png", 50, 20)
    made.box(first, [2, 3, 10, 12], 4, area=77)
    made.box(second, [0, 0, 50, 20], 7)
    made.box(first, [20.5, 1, 9.25, 20], 1)
    return made


@pytest.fixture
def voc(tmp_path: Path) -> VocSet:
    """Train: image a with a dog and a cat; val: image b with a bird, and a cat that is difficult."""
    made = VocSet(tmp_path / "voc")
    made.image("a", [("dog", 2, 3, 12, 15), ("cat", 20.5, 1, 29.75, 21)])
    made.image("b", [("bird", 1, 1, 40, 30), ("cat", 5, 6, 17, 18, 1)])
    made.split("train", ["a"])
    made.split("val", ["b"])
    return made
