"""Odd values and texts that the targets share."""

from __future__ import annotations

import os
from pathlib import Path
from typing import Any

from hypothesis import strategies as st
from PIL import Image

from gid_cuda.data.records import Records

LETTERS = st.sampled_from([*"ab.$/\\-_ \n\t\0\x1b\x7f\x85\u202e\ud800\udfffé日", "..", "~", "//", "C:", "%", "{", "<"])
TEXT = st.one_of(
    st.lists(LETTERS, max_size=8).map("".join),
    st.sampled_from(["none", "null", "true", "1e999", "nan", "-inf", "1_0", "a" * 300]),
)
NUMBER = st.one_of(
    st.integers(-3, 60),
    st.integers(-(2**70), 2**70),
    st.floats(),
    st.sampled_from([2**31, 2**63, 10**400, -0.0, 1e308]),
)
SCALAR = st.one_of(st.none(), st.booleans(), NUMBER, TEXT)
ANYTHING: st.SearchStrategy[Any] = st.recursive(
    SCALAR, lambda inner: st.lists(inner, max_size=4) | st.dictionaries(TEXT, inner, max_size=3), max_leaves=8
)


def mostly(usual: st.SearchStrategy[Any]) -> st.SearchStrategy[Any]:
    """Now and then anything else."""
    return st.integers(0, 7).flatmap(lambda draw: ANYTHING if draw == 0 else usual)


def images(folder: Path) -> Path:
    """A folder of two images, and one beside it that is not to be reached."""
    (folder / "images" / "sub").mkdir(parents=True)
    for name in ("images/a.png", "images/sub/b.png", "outside.png"):
        Image.new("RGB", (40, 30)).save(folder / name)
    (folder / "images" / "link.png").symlink_to(folder / "outside.png")
    return folder / "images"


NAMES = ["a.png", "sub/b.png", "./a.png", "../outside.png", "link.png", "sub/../a.png", "sub", "", "a.png/x", "/", "a"]


def check_records(records: Records, folder: Path) -> None:
    """What a reader may return at all."""
    count = len(records.files)
    assert count == len(records.sizes) == len(records.image_ids) == len(records.offsets) - 1 > 0
    assert records.offsets[0] == 0 and records.offsets[-1] == len(records.boxes) and (records.offsets[1:] >= 0).all()
    assert ((0 <= records.labels) & (records.labels < len(records.classes))).all()
    assert all(name.isprintable() for name in records.classes) and all(note.isprintable() for note in records.notes)
    root = os.path.realpath(folder)
    for index in range(count):
        path = os.path.realpath(records.path(index))
        assert os.path.isfile(path) and os.path.commonpath([path, root]) == root
        width, height = records.sizes[index].tolist()
        boxes = records.boxes[records.offsets[index] : records.offsets[index + 1]]
        assert ((boxes >= 0) & (boxes[:, 2:] > boxes[:, :2]).all(1, keepdims=True)).all()
        assert (boxes[:, 2] <= width).all() and (boxes[:, 3] <= height).all()
