"""Reads COCO layout: any annotation file with `images`, `annotations` and `categories`, and a folder of images."""

from __future__ import annotations

import json
import math
from pathlib import Path
from typing import Any

from gid_cuda.data.classes import check_selection, unknown_class
from gid_cuda.data.folders import ImageFolder, require_file, require_folder
from gid_cuda.data.images import UnreadableImage, image_size
from gid_cuda.data.records import CROWD, OBJECT, BoxTable, Flaws, Records, make_records, number
from gid_cuda.errors import UserError

ELSEWHERE = (
    "point elsewhere with data.root=..., or annotations or images of that split, or take configs/demo.yaml, "
    "which needs no download"
)


def read_coco(annotations: Path, images: Path, classes: list[str] | None = None) -> Records:
    """The boxes of an annotation file, with labels in the order of its categories, or of `classes` where given.

    Boxes are taken in stored pixels, (x, y, width, height); what is wrong with single images or boxes is counted in
    the notes and skipped. UserError where nothing sensible can be read at all.
    """
    require_file(annotations, "COCO annotations", ELSEWHERE)
    require_folder(images, "COCO images", ELSEWHERE)
    content = _load(annotations)
    flaws = Flaws(annotations.name)
    names = _categories(content["categories"], annotations)
    if classes is not None:
        check_selection(classes)
        ids = {name: number for number, name in names.items()}
        for name in classes:
            if name not in ids:
                raise unknown_class(name, list(ids), annotations)
        kept_ids = [ids[name] for name in classes]
    else:
        kept_ids = list(names)
    folder = ImageFolder(images, annotations)
    index, files, sizes, absent = _images(content["images"], folder, annotations, flaws)
    labels = {category: label for label, category in enumerate(kept_ids)}
    return make_records(
        classes=[names[category] for category in kept_ids],
        category_ids=kept_ids,
        folder=images,
        files=files,
        image_ids=list(index),
        sizes=sizes,
        table=_boxes(content["annotations"], index, absent, labels, set(names), flaws),
        flaws=flaws,
    )


def _load(path: Path) -> dict[str, list[Any]]:
    try:
        with open(path, encoding="utf-8-sig") as file:
            content = json.load(file)
    except OSError as error:
        raise UserError(f"the COCO annotations {path} cannot be read ({error.strerror})") from None
    except (ValueError, RecursionError) as error:
        raise UserError(f"{path} is not a readable JSON file ({error}): download or export it again") from None
    if not isinstance(content, dict):
        raise UserError(f"{path} holds a {type(content).__name__}, not COCO annotations: an object is expected")
    for key in ("images", "annotations", "categories"):
        if not isinstance(content.get(key), list):
            raise UserError(
                f"{path} has no list {key!r}: COCO annotations need images, annotations and categories"
                " (a file of results alone does not do)"
            )
    return content


def _integer(value: object) -> int | None:
    """An id or a size; some exporters write 7.0. None where it is none."""
    if isinstance(value, bool) or not isinstance(value, (int, float)):
        return None
    return int(value) if -(2**62) < value < 2**62 and value == int(value) else None


def _categories(entries: list[Any], path: Path) -> dict[int, str]:
    names: dict[int, str] = {}
    taken: set[str] = set()
    for entry in entries:
        key, name = (_integer(entry.get("id")), entry.get("name")) if isinstance(entry, dict) else (None, None)
        if key is None or not (isinstance(name, str) and name and name.isprintable()):
            raise UserError(f"{path} has a category without an integer id and a printable name: {str(entry)[:80]!a}")
        if key in names or name in taken:
            raise UserError(f"two categories of {path} have id {key} or name {name!r}: make each unique")
        names[key] = name
        taken.add(name)
    if not names:
        raise UserError(f"{path} has no categories: name the classes in its list 'categories'")
    return names


def _images(
    entries: list[Any], folder: ImageFolder, path: Path, flaws: Flaws
) -> tuple[dict[int, int], list[str], list[tuple[int, int]], set[int]]:
    """Index by image id, file names, sizes; and the ids of images that are listed but cannot be used."""
    index: dict[int, int] = {}
    files: list[str] = []
    sizes: list[tuple[int, int]] = []
    absent: set[int] = set()
    if not entries:
        raise UserError(f"{path} lists no images: the data set is empty; give another file as annotations")
    for entry in entries:
        key, name = (_integer(entry.get("id")), entry.get("file_name")) if isinstance(entry, dict) else (None, None)
        if key is None or not isinstance(name, str):
            raise UserError(f"{path} has an image without an integer id and a file_name: {str(entry)[:80]!a}")
        if key in index or key in absent:
            flaws.add("image with the id of an earlier one, skipped", f"id {key}, {name}")
            continue
        if not folder.has(name):
            absent.add(key)
            flaws.add(f"image missing from {folder.folder}, skipped", name)
            continue
        width, height = _integer(entry.get("width")) or 0, _integer(entry.get("height")) or 0
        if not (0 < width < 2**31 and 0 < height < 2**31):
            try:
                width, height = image_size(folder.folder / name)
            except UnreadableImage as error:
                absent.add(key)
                flaws.add("unreadable image, skipped", str(error))
                continue
        index[key] = len(files)
        files.append(name)
        sizes.append((width, height))
    if not files:
        raise UserError(
            f"none of the {len(entries)} images of {path} can be used: looked in {folder.folder} for"
            f" {entries[0]['file_name']!r} and the others; {ELSEWHERE}"
        )
    return index, files, sizes, absent


def _boxes(
    entries: list[Any], index: dict[int, int], absent: set[int], labels: dict[int, int], known: set[int], flaws: Flaws
) -> BoxTable:
    table = BoxTable()
    for position, entry in enumerate(entries):
        if not isinstance(entry, dict):
            flaws.add("annotation that is not an object, skipped", f"annotation {position}")
            continue
        image, category, box = _integer(entry.get("image_id")), _integer(entry.get("category_id")), entry.get("bbox")
        example = f"annotation {entry.get('id', position)}"
        if image is None or image not in index:
            which = "missing or unreadable" if image in absent else "not listed"
            flaws.add(f"box of an image that is {which}, skipped", f"{example}, image {entry.get('image_id')!r:.40}")
        elif category is None or category not in known:
            flaws.add("box of an unknown category, skipped", f"{example}, category {entry.get('category_id')!r:.40}")
        elif category not in labels:  # not among the config's classes: left out by wish
            continue
        elif not isinstance(box, list) or len(box) != 4:
            flaws.add("annotation without four box coordinates, skipped", example)
        else:
            x, y, w, h = (number(value) for value in box)
            area = number(entry.get("area", math.nan))
            kind = CROWD if number(entry.get("iscrowd")) == 1 else OBJECT
            table.add(index[image], (x, y, x + w, y + h), labels[category], area, kind)
    return table
