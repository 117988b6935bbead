"""Reads Pascal VOC layout: JPEGImages, Annotations and ImageSets/Main under one root."""

from __future__ import annotations

import math
import sys
from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path
from xml.etree.ElementTree import Element, TreeBuilder
from xml.parsers import expat

from gid_cuda.data.classes import check_selection, nearest, unknown_class
from gid_cuda.data.folders import ImageFolder, require_file, require_folder
from gid_cuda.data.images import UnreadableImage, image_size
from gid_cuda.data.records import DIFFICULT, OBJECT, BoxTable, Flaws, Records, make_records, number
from gid_cuda.data.sources import Source
from gid_cuda.errors import UserError

_ADVICE = "VOC layout is JPEGImages, Annotations and ImageSets/Main under data.root; point elsewhere with data.root=..."


@dataclass(slots=True)
class _Annotation:
    """One XML file."""

    size: tuple[int, int] | None  # width, height; None where the file does not tell
    objects: list[tuple[str, tuple[float, float, float, float], bool]]  # class, corners as they stand, difficult


@dataclass
class VocSplit:
    """The annotations of one split by image name; None where there is no such file."""

    source: Source
    file: Path
    annotations: Path  # their folder
    images: dict[str, _Annotation | None]
    flaws: Flaws

    def class_names(self) -> set[str]:
        """Of all objects that have a usable one."""
        return {name for image in self.images.values() if image for name, _, _ in image.objects if name}


def scan_voc(source: Source) -> VocSplit:
    """Reads the XML files of a split; images are looked for by `voc_records`."""
    if source.split is None:
        raise UserError(f"{source.key}.split is not set: format voc needs a name of ImageSets/Main, without .txt")
    root = source.root
    for folder in (root, root / "Annotations", root / "ImageSets" / "Main"):
        require_folder(folder, "VOC data set", _ADVICE)
    file = root / "ImageSets" / "Main" / f"{source.split}.txt"
    require_file(file, "VOC split", _ADVICE)
    flaws = Flaws(f"{file.name} of {root.name}")
    return VocSplit(source, file, root / "Annotations", _images(file, root / "Annotations", flaws), flaws)


def voc_classes(found: set[str], wanted: list[str] | None, where: Sequence[Path]) -> list[str]:
    """`wanted`, checked against the names `found` in all splits; where none are wanted, those names, sorted."""
    folders = " and ".join(dict.fromkeys(map(str, where)))
    if wanted is None:
        if not found:
            raise UserError(f"no object of the splits has a name in {folders}: check data.train.split")
        return sorted(found)
    check_selection(wanted)
    for name in wanted:
        # VOC has no list of its classes: one without any object is allowed, unless it looks like another one misspelt
        if name not in found and nearest(name, sorted(found - set(wanted))):
            raise unknown_class(name, sorted(found), folders)
    return wanted


def voc_records(split: VocSplit, classes: list[str]) -> Records:
    """The boxes of one split. Image ids are 1..N in the split's order, category ids 1..C.

    Coordinates are taken as they stand. With `one_based` they are those of the original VOC, which counts pixels from 1
    and includes the last one: (xmin, ymin, xmax, ymax) becomes (xmin-1, ymin-1, xmax, ymax).
    """
    images = split.source.root / (split.source.images or "JPEGImages")
    named_by = f" ({split.source.key}.images)" if split.source.images else ""  # perhaps by a base config
    require_folder(images, f"VOC images{named_by}", _ADVICE)
    folder, flaws = ImageFolder(images, split.file), split.flaws
    labels = {name: label for label, name in enumerate(classes)}
    by_stem = folder.stems()
    files: list[str] = []
    sizes: list[tuple[int, int]] = []
    table = BoxTable()
    for name, image in split.images.items():
        if image is None:
            continue
        file = by_stem.get(name, f"{name}.jpg")
        if not folder.has(file):
            flaws.add(f"image missing from {images}, skipped", file)
            continue
        try:
            sizes.append(image.size or image_size(images / file))
        except UnreadableImage as error:
            flaws.add("unreadable image, skipped", str(error))
            continue
        _add_objects(image, len(files), labels, split, table, name)
        files.append(file)
    if not files:
        raise UserError(
            f"none of the {len(split.images)} images of the VOC split can be used: looked in {images} for"
            f" {next(iter(split.images))}.jpg and the others, and in {split.annotations} for their .xml"
        )
    return make_records(
        classes=classes,
        category_ids=list(range(1, len(classes) + 1)),
        folder=images,
        files=files,
        image_ids=range(1, len(files) + 1),
        sizes=sizes,
        table=table,
        flaws=flaws,
    )


def _add_objects(
    image: _Annotation, index: int, labels: dict[str, int], split: VocSplit, table: BoxTable, where: str
) -> None:
    shift = 1 if split.source.one_based else 0
    for name, (x1, y1, x2, y2), difficult in image.objects:
        if not name:
            split.flaws.add("object without a printable name, skipped", f"in {where}.xml")
        elif name in labels:  # else left out by wish
            kind = DIFFICULT if difficult else OBJECT
            table.add(index, (x1 - shift, y1 - shift, x2, y2), labels[name], math.nan, kind)


def _images(file: Path, folder: Path, flaws: Flaws) -> dict[str, _Annotation | None]:
    """What the images named in the split's file have, in its order."""
    annotations = ImageFolder(folder, file)
    try:
        lines = file.read_text(encoding="utf-8-sig").splitlines()
    except (OSError, UnicodeDecodeError) as error:
        raise UserError(f"the VOC split {file} cannot be read as text ({error})") from None
    images: dict[str, _Annotation | None] = {}
    for line in filter(None, map(str.strip, lines)):
        name = line
        if not annotations.has(f"{name}.xml"):  # splits of one class say 1, 0 or -1 after the name
            first, *flag = line.rsplit(None, 1)
            name = first if flag in (["-1"], ["0"], ["1"]) else line
        if name in images:
            flaws.add("image named twice by the split, skipped", name)
        elif annotations.has(f"{name}.xml"):
            images[name] = _annotation(parse_xml(folder / f"{name}.xml"))
        else:
            images[name] = None
            flaws.add(f"image without {folder.name}/NAME.xml, skipped", name)
    if not images:
        raise UserError(f"the VOC split {file} names no images: the data set is empty; give another as split")
    return images


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
    except UserError:
        raise
    except (expat.ExpatError, LookupError, ValueError) as error:  # the latter two: of the encoding that it declares
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


def _size(tree: Element) -> tuple[int, int] | None:
    """(width, height); None where the file does not tell."""
    width, height = (number(_text(tree.find("size"), side)) for side in ("width", "height"))
    return (int(width), int(height)) if 0 < width < 2**31 and 0 < height < 2**31 else None


def _annotation(tree: Element) -> _Annotation:
    """What is used of a file: the trees of VOC 07+12 together would take some hundred MB."""
    objects = []
    for thing in tree.findall("object"):
        corner = thing.find("bndbox")
        x1, y1, x2, y2 = (number(_text(corner, key)) for key in ("xmin", "ymin", "xmax", "ymax"))
        objects.append((sys.intern(_name(thing)), (x1, y1, x2, y2), number(_text(thing, "difficult")) == 1))
    return _Annotation(_size(tree), objects)
