"""read_coco: a UserError, or records that keep their promises."""

from __future__ import annotations

import json
from collections.abc import Callable
from pathlib import Path
from typing import Any

from hypothesis import given
from hypothesis import strategies as st
from odd import ANYTHING, NAMES, NUMBER, TEXT, check_records, images, mostly

from gid_cuda.data.coco import read_coco
from gid_cuda.engine.inference import coco_ids
from gid_cuda.errors import UserError

_ID = mostly(st.integers(0, 4))
_IMAGE = st.fixed_dictionaries(
    {"id": _ID, "file_name": mostly(st.sampled_from(NAMES[:2]) | st.sampled_from(NAMES) | TEXT)},
    optional={"width": mostly(st.just(40)), "height": mostly(st.just(30))},
)
_BOX = st.lists(mostly(st.integers(0, 40) | NUMBER), min_size=4, max_size=4)
_ANNOTATION = st.fixed_dictionaries(
    {"image_id": _ID, "category_id": _ID, "bbox": mostly(_BOX)},
    optional={"id": ANYTHING, "area": mostly(NUMBER), "iscrowd": mostly(st.integers(0, 1))},
)
_CATEGORY = st.fixed_dictionaries({"id": _ID, "name": mostly(st.sampled_from(["cat", "dog"]) | TEXT)})
_CONTENT = st.fixed_dictionaries(
    {
        "images": mostly(st.lists(mostly(_IMAGE), min_size=1, max_size=4)),
        "annotations": mostly(st.lists(mostly(_ANNOTATION), max_size=6)),
        "categories": mostly(st.lists(mostly(_CATEGORY), min_size=1, max_size=3)),
    }
)


def make(folder: Path) -> Callable[[], None]:
    pictures, file = images(folder), folder / "instances.json"

    @given(mostly(_CONTENT), st.none() | st.lists(st.sampled_from(["cat", "dog"]), max_size=2), st.data())
    def target(content: Any, classes: list[str] | None, data: st.DataObject) -> None:
        text = json.dumps(content)
        if data.draw(st.integers(0, 9)) == 0:  # damaged
            at, odd = (
                data.draw(st.integers(0, len(text))),
                data.draw(st.sampled_from(["[" * 2000, "9" * 5000, "\0", "", '"', "}"])),
            )
            text = text[:at] + odd + text[at + data.draw(st.integers(0, 9)) :]
        file.write_text(text, encoding="utf-8")
        for read in (
            lambda: check_records(read_coco(file, pictures, classes), pictures),
            lambda: coco_ids(file, [Path("a.png")], ["cat"]),
        ):
            try:
                read()
            except UserError as error:
                assert str(error)

    return target
