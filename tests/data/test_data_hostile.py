"""Data sets made to harm: bombs, names that lead elsewhere, what a terminal would obey."""

from __future__ import annotations

import io
import os
import struct
import time
import zlib
from pathlib import Path

import numpy as np
import pytest
from data_helpers import CocoSet, VocSet
from PIL import Image

from gid_cuda.data import build_dataset
from gid_cuda.data.classes import check_selection
from gid_cuda.data.images import UnreadableImage, image_size, read_image
from gid_cuda.data.voc import parse_xml
from gid_cuda.engine.inference import coco_ids
from gid_cuda.errors import UserError


def _chunk(kind: bytes, data: bytes) -> bytes:
    return struct.pack(">I", len(data)) + kind + data + struct.pack(">I", zlib.crc32(kind + data))


def png(width: int, height: int, *more: bytes) -> bytes:
    """A header of that size, `more` chunks, and next to no pixels."""
    header = _chunk(b"IHDR", struct.pack(">IIBBBBB", width, height, 8, 2, 0, 0, 0))
    pixels = _chunk(b"IDAT", zlib.compress(b"\0" * 100))
    return b"\x89PNG\r\n\x1a\n" + header + b"".join(more) + pixels + _chunk(b"IEND", b"")


def saved(kind: str) -> bytearray:
    stream = io.BytesIO()
    Image.new("P" if kind == "GIF" else "RGB", (16, 16)).save(stream, kind)
    return bytearray(stream.getvalue())


def jpeg(width: int, height: int) -> bytes:
    data = saved("JPEG")
    at = data.find(b"\xff\xc0") + 5
    data[at : at + 4] = struct.pack(">HH", height, width)
    return bytes(data)


def gif(width: int, height: int) -> bytes:
    """A small screen with a larger picture on it."""
    data = saved("GIF")
    at = data.find(b"\x2c", 13) + 5
    data[at : at + 4] = struct.pack("<HH", width, height)
    return bytes(data)


BOMBS = {
    "png": (png(60000, 60000), "3600000000"),
    "png just above the limit": (png(10000, 10000), "100000000"),
    "png of one row": (png(89_478_486, 1), "89478486"),
    "jpeg": (jpeg(65535, 65535), "4294836225"),
    "gif": (gif(65535, 65535), "4294836225"),
}


@pytest.mark.parametrize("kind", BOMBS)
def test_a_decompression_bomb_is_never_decoded(tmp_path: Path, monkeypatch: pytest.MonkeyPatch, kind: str) -> None:
    def decode(*_: object) -> None:
        raise AssertionError("decoded")

    Image.init()  # else PIL's plugins are imported by the first file that is opened, and one of them decodes its own
    monkeypatch.setattr(Image.Image, "load", decode)
    data, pixels = BOMBS[kind]
    (tmp_path / "x.img").write_bytes(data)
    for read in (read_image, image_size):
        with pytest.raises(UnreadableImage, match=rf"x\.img: has {pixels} pixels, and at most 89478485 are read"):
            read(tmp_path / "x.img")


def test_the_bound_holds_where_another_library_has_lifted_that_of_pil(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(Image, "MAX_IMAGE_PIXELS", None)
    (tmp_path / "x.png").write_bytes(png(60000, 60000))
    with pytest.raises(UnreadableImage, match=r"x\.png: has 60000x60000 pixels, and at most 89478485 are read"):
        read_image(tmp_path / "x.png")


def test_a_line_is_no_image(tmp_path: Path) -> None:
    """Scaled to at most 1333 pixels it would have no row left, which torch refuses in the middle of a step."""
    Image.new("RGB", (5000, 1)).save(tmp_path / "x.png")
    with pytest.raises(UnreadableImage, match=r"x\.png: is 5000x1 pixels, one side over 200 times the other"):
        read_image(tmp_path / "x.png")


def test_a_text_within_an_image_does_not_unpack_to_any_size(tmp_path: Path) -> None:
    (tmp_path / "x.png").write_bytes(png(4, 4, _chunk(b"zTXt", b"a\0\0" + zlib.compress(b"\0" * (64 << 20)))))
    with pytest.raises(UnreadableImage, match=r"x\.png: .*too large"):
        read_image(tmp_path / "x.png")


def test_a_pipe_is_not_waited_for(tmp_path: Path) -> None:
    os.mkfifo(tmp_path / "x.png")
    for read in (read_image, image_size):
        with pytest.raises(UnreadableImage, match=r"x\.png: no regular file"):
            read(tmp_path / "x.png")


def test_the_name_of_an_image_forges_no_line(tmp_path: Path) -> None:
    path = tmp_path / "a\x1b[2J\nerror: all is lost.png"
    path.write_bytes(b"no image")
    with pytest.raises(UnreadableImage, match="not an image") as raised:
        read_image(path)
    assert str(raised.value).isprintable() and r"a\x1b[2J\nerror" in str(raised.value)


_LAUGHS = '<!DOCTYPE l [<!ENTITY a "ha"><!ENTITY b "&a;&a;&a;">]><l>&b;</l>'


@pytest.mark.parametrize(
    "xml",
    [
        _LAUGHS.encode(),
        ('<?xml version="1.0" encoding="utf-16"?>' + _LAUGHS).encode("utf-16"),
        b'<!DOCTYPE l [<!ENTITY a SYSTEM "file:///etc/passwd">]><l>&a;</l>',
        b'<!DOCTYPE l SYSTEM "http://127.0.0.1/x.dtd"><l/>',
        b'<!DOCTYPE l [<!ENTITY % a SYSTEM "file:///etc/passwd"> %a;]><l/>',
    ],
)
def test_xml_with_a_document_type_is_refused(tmp_path: Path, xml: bytes) -> None:
    (tmp_path / "a.xml").write_bytes(xml)
    with pytest.raises(UserError, match=r"a\.xml declares a document type"):
        parse_xml(tmp_path / "a.xml")


@pytest.mark.parametrize("encoding", ["nonesuch", "shift_jis", "zlib", "idna", "utf-7", "undefined", "punycode"])
def test_xml_in_an_encoding_that_cannot_be_read(tmp_path: Path, encoding: str) -> None:
    (tmp_path / "a.xml").write_text(f'<?xml version="1.0" encoding="{encoding}"?><annotation/>')
    with pytest.raises(UserError, match=r"a\.xml is not readable XML"):
        parse_xml(tmp_path / "a.xml")


def test_xml_nested_deeply_is_read_for_what_it_is(voc: VocSet) -> None:
    voc.xml("b", "<annotation>" + "<object>" * 50_000 + "</object>" * 50_000 + "</annotation>")
    assert "object without a printable name" in voc.build("val").notes[0]


@pytest.mark.parametrize("name", ["../Annotations/b", "/etc/passwd", "..\\b", "a\0"])
def test_a_voc_split_may_not_lead_out_of_its_folders(voc: VocSet, name: str) -> None:
    voc.split("train", ["a", name])
    with pytest.raises(UserError, match="leads out of the image folder"):
        voc.build()


@pytest.mark.parametrize("place", ["Annotations/c.xml", "JPEGImages/c.jpg"])
def test_links_of_a_voc_set_may_not_lead_out_of_its_folders(voc: VocSet, tmp_path: Path, place: str) -> None:
    voc.image("c", [("dog", 2, 3, 12, 15)], suffix=".jpg")
    (voc.root / place).rename(tmp_path / "elsewhere")
    (voc.root / place).symlink_to(tmp_path / "elsewhere")
    voc.split("train", ["a", "c"])
    with pytest.raises(UserError, match="leads out of the image folder"):
        voc.build()


def test_a_line_of_blanks_takes_no_quadratic_time(voc: VocSet) -> None:
    voc.split("train", ["a", "x" + " " * 200_000 + "y"])
    start = time.process_time()
    assert "without Annotations/NAME.xml" in voc.build().notes[0]
    assert time.process_time() - start < 10  # once: minutes


def _coco_text(**parts: str) -> str:
    usual = {
        "images": '[{"id": 1, "file_name": "a.png", "width": 40, "height": 30}]',
        "annotations": "[]",
        "categories": '[{"id": 1, "name": "cat"}]',
    }
    return "{" + ", ".join(f'"{key}": {value}' for key, value in (usual | parts).items()) + "}"


@pytest.mark.parametrize("depth", [400, 960, 980, 100_000])
@pytest.mark.parametrize("part", ["images", "annotations", "categories"])
def test_json_nested_deeply(coco: CocoSet, depth: int, part: str) -> None:
    coco.write()
    text = _coco_text(**{part: "[" * depth + "]" * depth})
    (coco.root / "instances.json").write_text(text)
    with pytest.raises(UserError):
        build_dataset(coco.config(), "train")
    with pytest.raises(UserError):
        coco_ids(coco.root / "instances.json", [Path("a.png")], ["cat", "dog"])


@pytest.mark.parametrize("value", ["Infinity", "1e400", "NaN", "9" * 5000, "[]", "null"])
def test_ids_that_are_no_numbers(tmp_path: Path, value: str) -> None:
    (tmp_path / "x.json").write_text(_coco_text(images=f'[{{"id": {value}, "file_name": "a.png"}}]'))
    with pytest.raises(UserError, match=r"x\.json is no COCO annotation file"):
        coco_ids(tmp_path / "x.json", [Path("a.png")], ["cat"])


@pytest.mark.filterwarnings("error")
def test_an_area_beyond_float32_is_not_taken(coco: CocoSet) -> None:
    coco.box(10, [1, 1, 5, 5], 1, area=1e300)
    assert np.isfinite(coco.build().records.areas).all()


def test_notes_are_one_printable_line(coco: CocoSet) -> None:
    coco.images.append({"id": 77, "file_name": "\x1b[31m\nall is well\u202e.png", "width": 3, "height": 3})
    notes = coco.build().notes
    assert notes and all(note.isprintable() for note in notes)


def test_a_class_name_with_control_characters_is_refused(coco: CocoSet) -> None:
    coco.categories.append({"id": 50, "name": "\x1b[31mcat"})
    with pytest.raises(UserError, match="printable name") as raised:
        coco.build()
    assert str(raised.value).isprintable()


def test_many_categories_take_no_quadratic_time(coco: CocoSet) -> None:
    coco.categories[:] = [{"id": index, "name": f"c{index}"} for index in range(100_000)]
    coco.images.append({"id": 77, "file_name": "gone.png"})
    start = time.process_time()
    with pytest.raises(UserError, match=r"which .* does not have; it has c0, .*, c99 and 99900 more"):
        coco.build(classes=["c1", "zebra" * 100])
    with pytest.raises(UserError, match="names 'c5' twice"):
        check_selection([f"c{index}" for index in range(100_000)] + ["c5"])
    assert time.process_time() - start < 10  # once: minutes


def test_an_id_beyond_64_bits_is_refused(coco: CocoSet) -> None:
    coco.images.append({"id": 2**70, "file_name": "a.png"})
    with pytest.raises(UserError, match="without an integer id"):
        coco.build()
