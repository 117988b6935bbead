"""Reads Pascal VOC layout: JPEGImages, Annotations and ImageSets/Main under one root."""

from __future__ import annotations

import math
import re
from collections.abc import Iterator
from pathlib import Path
from typing import Literal
from xml.etree.ElementTree import Element, TreeBuilder
from xml.parsers import expat

from gid_cuda.config import DataConfig, SplitConfig
from gid_cuda.data.classes import check_selection, nearest, unknown_class
from gid_cuda.data.folders import ImageFolder, require_file, require_folder
from gid_cuda.data.images import UnreadableImage, image_size
from gid_cuda.data.records import DIFFICULT, OBJECT, BoxTable, Flaws, Records, make_records, number
from gid_cuda.errors import UserError

_ADVICE = "VOC layout is JPEGImages, Annotations and ImageSets/Main under data.root; point elsewhere with data.root=..."


def read_voc(config: DataConfig, part: Literal["train", "val"]) -> Records:
    """The boxes of one split. Image ids are 1..N in the split's order, category ids 1..C.

    Without `data.classes` the classes are the sorted names of all objects of the train and the val split, so that both
    parts number them alike. Coordinates are taken as they stand. With `one_based` they are those of the original VOC,
    which counts pixels from 1 and includes the last one: (xmin, ymin, xmax, ymax) becomes (xmin-1, ymin-1, xmax, ymax).
    """
    split: SplitConfig = getattr(config, part)
    if split.split is None:
        raise UserError(f"data.{part}.split is not set: format voc needs a name of ImageSets/Main, without .txt")
    root = config.root
    for folder in (root, root / "Annotations", root / "ImageSets" / "Main"):
        require_folder(folder, "VOC data set", _ADVICE)
    images = root / (split.images or "JPEGImages")
    require_folder(images, "VOC images", _ADVICE)
    split_file = _split_file(root, split.split)
    flaws = Flaws(f"{split_file.name} of {root.name}")
    trees = _trees(root, split.split, flaws)
    other = config.val if part == "train" else config.train
    classes = _classes(config, trees, other)
    return _records(root, ImageFolder(images, split_file), trees, classes, config.one_based, flaws)


def _split_file(root: Path, split: str) -> Path:
    path = root / "ImageSets" / "Main" / f"{split}.txt"
    require_file(path, "VOC split", _ADVICE)
    return path


def _trees(root: Path, split: str, flaws: Flaws) -> dict[str, Element | None]:
    """The annotations of a split by image name; None where there is no such file."""
    path = _split_file(root, split)
    annotations = ImageFolder(root / "Annotations", path)
    try:
        lines = path.read_text(encoding="utf-8-sig").splitlines()
    except (OSError, UnicodeDecodeError) as error:
        raise UserError(f"the VOC split {path} cannot be read as text ({error})") from None
    trees: dict[str, Element | None] = {}
    for line in filter(None, map(str.strip, lines)):
        name = line
        if not annotations.has(f"{name}.xml"):  # splits of one class say 1, 0 or -1 after the name
            name = re.sub(r"\s+(-1|0|1)$", "", line)
        if name in trees:
            flaws.add("image named twice by the split, skipped", name)
        elif annotations.has(f"{name}.xml"):
            trees[name] = parse_xml(annotations.folder / f"{name}.xml")
        else:
            trees[name] = None
            flaws.add(f"image without {annotations.folder.name}/NAME.xml, skipped", name)
    if not trees:
        raise UserError(f"the VOC split {path} names no images: the data set is empty; give another as split")
    return trees


def parse_xml(path: Path) -> Element:
    """The root element. UserError for broken XML, and for any document type: entities can expand without bound."""

    def refuse(*_: object) -> None:
        raise UserError(f"{path} declares a document type (<!DOCTYPE), which annotations do not need: remove it")

    builder = TreeBuilder()
    parser = expat.ParserCreate()
    parser.buffer_text = True
    parser.StartDoctypeDeclHandler = refuse
    parser.StartElementHandler = builder.start
    parser.EndElementHandler = builder.end
    parser.CharacterDataHandler = builder.data
    try:
        parser.Parse(path.read_bytes(), True)
    except expat.ExpatError as error:
        raise UserError(f"{path} is not readable XML ({error}): mend it, or take its image out of the split") from None
    except OSError as error:
        raise UserError(f"the VOC annotation {path} cannot be read ({error.strerror})") from None
    return builder.close()


def _text(element: Element | None, key: str) -> str:
    return (element.findtext(key) or "").strip() if element is not None else ""


def _name(thing: Element) -> str:
    """The class; empty where it has none that could be printed in one line."""
    name = _text(thing, "name")
    return name if name.isprintable() else ""


def _names(trees: dict[str, Element | None]) -> Iterator[str]:
    for tree in trees.values():
        if tree is not None:
            yield from filter(None, (_name(thing) for thing in tree.findall("object")))


def _classes(config: DataConfig, trees: dict[str, Element | None], other: SplitConfig) -> list[str]:
    found = set(_names(trees))
    if other.split is not None:
        found |= set(_names(_trees(config.root, other.split, Flaws(""))))
    where = config.root / "Annotations"
    if config.classes is None:
        if not found:
            raise UserError(f"no object of the splits has a name in {where}: check data.train.split")
        return sorted(found)
    check_selection(config.classes)
    for name in config.classes:
        # VOC has no list of its classes: one without any object is allowed, unless it looks like another one misspelt
        if name not in found and nearest(name, sorted(found - set(config.classes))):
            raise unknown_class(name, sorted(found), where)
    return config.classes


def _records(
    root: Path,
    folder: ImageFolder,
    trees: dict[str, Element | None],
    classes: list[str],
    one_based: bool,
    flaws: Flaws,
) -> Records:
    labels = {name: label for label, name in enumerate(classes)}
    by_stem = folder.stems()
    files: list[str] = []
    sizes: list[tuple[int, int]] = []
    table = BoxTable()
    for name, tree in trees.items():
        if tree is None:
            continue
        file = by_stem.get(name, f"{name}.jpg")
        if not folder.has(file):
            flaws.add(f"image missing from {folder.folder}, skipped", file)
            continue
        try:
            sizes.append(_size(tree) or image_size(folder.folder / file))
        except UnreadableImage as error:
            flaws.add("unreadable image, skipped", str(error))
            continue
        _objects(tree, len(files), labels, one_based, table, flaws, name)
        files.append(file)
    if not files:
        raise UserError(
            f"none of the {len(trees)} images of the VOC split can be used: looked in {folder.folder} for"
            f" {next(iter(trees))}.jpg and the others, and in {root / 'Annotations'} for their .xml"
        )
    return make_records(
        classes=classes,
        category_ids=list(range(1, len(classes) + 1)),
        folder=folder.folder,
        files=files,
        image_ids=range(1, len(files) + 1),
        sizes=sizes,
        table=table,
        flaws=flaws,
    )


def _size(tree: Element) -> tuple[int, int] | None:
    """(width, height); None where the file does not tell."""
    width, height = (number(_text(tree.find("size"), side)) for side in ("width", "height"))
    return (int(width), int(height)) if 0 < width < 2**31 and 0 < height < 2**31 else None


def _objects(
    tree: Element, image: int, labels: dict[str, int], one_based: bool, table: BoxTable, flaws: Flaws, where: str
) -> None:
    for thing in tree.findall("object"):
        name = _name(thing)
        if not name:
            flaws.add("object without a printable name, skipped", f"in {where}.xml")
        elif name in labels:  # else left out by wish
            corner = thing.find("bndbox")
            x1, y1, x2, y2 = (number(_text(corner, key)) for key in ("xmin", "ymin", "xmax", "ymax"))
            kind = DIFFICULT if number(_text(thing, "difficult")) == 1 else OBJECT
            shift = 1 if one_based else 0
            table.add(image, (x1 - shift, y1 - shift, x2, y2), labels[name], math.nan, kind)
