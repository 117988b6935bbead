"""scan_voc and voc_records: a UserError, or records that keep their promises."""

from __future__ import annotations

from collections.abc import Callable
from pathlib import Path
from xml.sax.saxutils import escape

from hypothesis import given
from hypothesis import strategies as st
from odd import NAMES, NUMBER, TEXT, check_records, images, mostly

from gid_cuda.data.sources import Source
from gid_cuda.data.voc import scan_voc, voc_classes, voc_records
from gid_cuda.errors import UserError

_TEXT = mostly(st.sampled_from(["cat", "dog"]) | TEXT).map(lambda value: escape(str(value)))
_NUMBER = mostly(st.integers(0, 40) | NUMBER).map(lambda value: escape(str(value)))


def _element(name: str, inner: st.SearchStrategy[str]) -> st.SearchStrategy[str]:
    """Mostly once; not there, or twice."""
    once = inner.map(lambda text: f"<{name}>{text}</{name}>")
    return st.sampled_from([1, 1, 1, 1, 1, 0, 2]).flatmap(lambda n: st.tuples(*[once] * n).map("".join))


def _all(*parts: st.SearchStrategy[str]) -> st.SearchStrategy[str]:
    return st.tuples(*parts).map("".join)


_BOX = _all(*(_element(key, _NUMBER) for key in ("xmin", "ymin", "xmax", "ymax")))
_OBJECT = _all(_element("name", _TEXT), _element("difficult", _NUMBER), _element("bndbox", _BOX))
_SIZE = _all(*(_element(key, st.just(value) | _NUMBER) for key, value in (("width", "40"), ("height", "30"))))
_BODY = _all(_element("size", _SIZE), _element("object", _OBJECT), _element("object", _OBJECT))
_HEAD = st.sampled_from(
    [
        "",
        "",
        "",
        "",
        '<?xml version="1.0" encoding="shift_jis"?>',
        '<?xml version="1.0" encoding="zlib"?>',
        '<?xml version="1.1"?>',
        '<!DOCTYPE a [<!ENTITY b "bb">]>',
        "<!-- c -->",
        '<?xml version="1.0" encoding="utf-16"?>',
    ]
)


def make(folder: Path) -> Callable[[], None]:
    pictures = images(folder)
    for name in ("Annotations/sub", "ImageSets/Main"):
        (folder / name).mkdir(parents=True)
    source = Source("data.train", "voc", folder, images=Path("images"), split="train")
    names = st.sampled_from([*(name.removesuffix(".png") for name in NAMES), "a 1", "a  -1", "a b"]) | TEXT

    @given(_HEAD, _BODY, _BODY, st.lists(names, max_size=4), st.integers(0, 12), st.booleans())
    def target(head: str, first: str, second: str, lines: list[str], cut: int, one_based: bool) -> None:
        for name, body in (("a", first), ("sub/b", second), ("link", second)):
            text = f"{head}<annotation>{body}</annotation>"
            text = text[: len(text) - 40] if cut == 0 else text  # truncated
            (folder / "Annotations" / f"{name}.xml").write_bytes(text.encode("utf-8", "surrogatepass"))
        split = "\n".join(["a", *lines])
        (folder / "ImageSets" / "Main" / "train.txt").write_bytes(split.encode("utf-8", "surrogatepass"))
        try:
            scanned = scan_voc(source)
            classes = voc_classes(scanned.class_names(), None, [scanned.annotations])
            check_records(voc_records(scanned, classes), pictures)
        except UserError as error:
            assert str(error)

    return target
