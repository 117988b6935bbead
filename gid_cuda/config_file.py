"""From a config file to a plain dict, and from a failed check to sentences. What the keys mean is in `config.py`."""

from __future__ import annotations

import difflib
import re
import types
from collections.abc import Iterator
from pathlib import Path
from typing import Annotated, Any, Union, get_args, get_origin

from pydantic import BaseModel, ValidationError

from gid_cuda.errors import UserError
from gid_cuda.plain_yaml import MAX_DEPTH, KeyPath, dotted, parse_yaml, short

MAX_ERRORS_SHOWN = 5
MAX_SIZE = 1 << 20  # bytes of a file; ours have a few thousand

Origins = dict[KeyPath, str]
"""Where the value at a key path was written: a file, or the override as typed."""
_OVERRIDE = "override "  # before an override as typed


def read_text(path: Path) -> str:
    """A file of at most MAX_SIZE bytes, which may be a pipe; larger ones are refused. OSError, UnicodeDecodeError."""
    with open(path, "rb") as file:
        data = file.read(MAX_SIZE + 1)
    if len(data) > MAX_SIZE:
        raise UserError(f"{path} is larger than {MAX_SIZE >> 20} MiB: it is no config file; give another")
    return data.decode("utf-8")


def read_config_file(path: Path, came_from: tuple[Path, ...] = ()) -> tuple[dict[str, Any], Origins]:
    """The file as a dict, merged over its `base:` (a path relative to the file), and where each value was written."""
    if len(came_from) >= MAX_DEPTH:
        raise UserError(f"{path}: more than {MAX_DEPTH} files follow each other by base:")
    if path.resolve() in came_from:
        chain = " -> ".join(str(p) for p in (*came_from, path.resolve()))
        raise UserError(f"{path}: base: goes round in a circle ({chain})")
    try:
        text = read_text(path)
    except OSError as error:
        named_by = f" (base: of {came_from[-1]})" if came_from else ""
        raise UserError(f"config file {path}{named_by} cannot be read: {error.strerror}") from None
    except UnicodeDecodeError:
        raise UserError(f"config file {path} is not UTF-8 text") from None
    raw = parse_yaml(text, str(path))
    if not isinstance(raw, dict):
        raise UserError(f"{path}: a config file holds `key: value` pairs, this one holds {describe(raw)}")
    base = raw.pop("base", None)
    merged: dict[str, Any] = {}
    origins: Origins = {}
    if isinstance(base, str):
        merged, origins = read_config_file(path.parent / base, (*came_from, path.resolve()))
    elif base is not None:
        raise UserError(f"{path}: base has {describe(base)}, expected the path of one other config file")
    merge(merged, raw, origins, str(path))
    return merged, origins


def merge(into: dict[str, Any], new: dict[str, Any], origins: Origins, source: str, path: KeyPath = ()) -> None:
    """Mappings are merged key by key, everything else (lists too) is replaced; in place."""
    for key, value in new.items():
        origins[(*path, key)] = source
        if isinstance(value, dict) and value:
            if not isinstance(into.get(key), dict):
                into[key] = {}
            merge(into[key], value, origins, source, (*path, key))
        elif value != {} or not isinstance(into.get(key), dict):  # `distill: {}` switches on, and clears nothing
            into[key] = {} if value == {} else value  # its own: what is merged later stays out of `new`


# Sections that are off where they are none; another one, such as data.train, is then what it is by default.
SWITCHED = {("distill",), ("teacher",), ("data", "unlabeled")}


def apply_override(raw: dict[str, Any], override: str, origins: Origins) -> None:
    """`key.path=value`, the value read as YAML; in place. A section that a file switches off (`none`) goes on again.

    UserError for what an earlier override switches off: which of the two is meant?
    """
    name, equals, text = override.partition("=")
    keys = name.strip().split(".")
    if not equals or not all(keys) or any(key != key.strip() for key in keys) or len(keys) > MAX_DEPTH:
        raise UserError(f"{short(repr(override))} is no override: write key.path=value, for example train.lr=0.02")
    value = parse_yaml(text, f"override {override!r}")
    section: Any = raw
    for depth, key in enumerate(keys[:-1], start=1):
        if section.get(key) is None or section[key] == "none":
            earlier = origins.get(tuple(keys[:depth]), "")
            if tuple(keys[:depth]) in SWITCHED and earlier.startswith(_OVERRIDE):
                raise UserError(
                    f"{_OVERRIDE}{override!r} sets a key of {'.'.join(keys[:depth])}, which {earlier} before it "
                    "switches off: leave out one of them"
                )
            section[key] = {}
        section = section[key]
        if not isinstance(section, dict):
            hint = ": give the whole list" if isinstance(section, list) else ""
            where = ".".join(keys[:depth])
            raise UserError(f"override {override!r}: {where} is {describe(section)}, not a section{hint}")
    nested: Any = value
    for key in reversed(keys):
        nested = {key: nested}
    merge(raw, nested, origins, f"{_OVERRIDE}{override!r}")


def none_to_null(raw: dict[str, Any], schema: type[BaseModel]) -> None:
    """`key: none` means null wherever the schema allows null; in place."""
    for key, value in raw.items():
        annotation = schema.model_fields[key].annotation if key in schema.model_fields else None
        if value == "none" and type(None) in get_args(annotation):
            raw[key] = None
        elif section := _section(annotation):
            for part in value if isinstance(value, list) else [value]:
                if isinstance(part, dict):
                    none_to_null(part, section)


def explain(error: ValidationError, raw: dict[str, Any], origins: Origins, schema: type[BaseModel], name: str) -> str:
    """One sentence an error; the first few errors, a line each. `name` stands in where no place is known."""
    by_path: dict[KeyPath, list[Any]] = {}
    for item in error.errors():
        path, _ = _resolve(item["loc"], raw)
        by_path.setdefault(item["loc"] if item["type"] == "missing" else path, []).append(item)
    # A union gives errors for each of its members: the deepest one is about what the user meant.
    above = {path[:length] for path in by_path for length in range(1, len(path))}
    deepest = [path for path in by_path if path not in above]
    lines = [
        f"{_origin(path, origins, name)}: {_sentence(by_path[path], path, raw, schema, origins)}"
        for path in deepest[:MAX_ERRORS_SHOWN]
    ]
    if len(deepest) > MAX_ERRORS_SHOWN:
        lines.append(f"and {len(deepest) - MAX_ERRORS_SHOWN} more")
    return "\n".join(lines)


def describe(value: Any) -> str:
    """A value as a user wrote it, with its type where that may surprise."""
    if value is None:
        return "nothing"
    if isinstance(value, bool):
        return f"the truth value {str(value).lower()}"
    if isinstance(value, str):
        return f"the text {short(repr(value))}"
    if isinstance(value, dict):
        return "a section"
    return f"the list {short(str(value))}" if isinstance(value, list) else f"the number {short(str(value))}"


def _resolve(loc: KeyPath, raw: Any) -> tuple[KeyPath, Any]:
    """pydantic's location without what is not in the file (the names of union members), and the value there."""
    path: KeyPath = ()
    for key in loc:
        if isinstance(raw, dict) and key in raw or isinstance(raw, list) and isinstance(key, int) and key < len(raw):
            raw, path = raw[key], (*path, key)
        elif isinstance(key, int):
            break
    return path, raw


def _origin(path: KeyPath, origins: Origins, name: str) -> str:
    while path and path not in origins:
        path = path[:-1]
    return origins.get(path, name)


_EXPECTED = {
    "int_type": "a whole number",
    "int_parsing_size": "a smaller number",
    "float_type": "a number",
    "string_type": "text",
    "bool_type": "true or false",
    "list_type": "a list",
    "dict_type": "a section with keys of its own",
    "tuple_type": "a list",
    "path_type": "a path",
    "model_type": "a section with keys of its own",
    "finite_number": "a finite number",
}


def _sentence(items: list[Any], path: KeyPath, raw: Any, schema: type[BaseModel], origins: Origins) -> str:
    kind, key = items[0]["type"], dotted(path)
    if kind == "extra_forbidden":
        return f"unknown key {short(key)}{_nearest(path, schema)}"
    if kind == "missing":
        return f"{key} is missing"
    if kind == "value_error":
        return str(items[0]["ctx"]["error"])
    _, value = _resolve(path, raw)
    hint = _in_quotes(path, value, origins) if kind == "string_type" and isinstance(value, int | float) else ""
    return f"{key} has {describe(value)}, expected {' or '.join(dict.fromkeys(map(_expected, items)))}{hint}"


def _in_quotes(path: KeyPath, value: bool | int | float, origins: Origins) -> str:
    """How to write as text what YAML took for a number or a truth value, where it is known how it was typed."""
    key = dotted(path)
    typed = re.fullmatch(rf"{_OVERRIDE}' *{re.escape(key)} *= *([-+.\w]+) *'", origins.get(path, ""))
    if typed:  # a shell takes one pair of quotes away
        return f""" (for text write it in quotes, and all in quotes for the shell: "{key}='{typed[1]}'")"""
    # Of a list or a file the parsed value is all there is: 1.10 has become 1.1, and True is true.
    example = f": '{value}'" if type(value) is int else ""
    return f" (for text write it in quotes{example})"


def _expected(item: Any) -> str:
    kind, context = item["type"], item.get("ctx", {})
    if kind == "literal_error":
        return "one of " + context["expected"].replace(" or ", ", ")
    if kind == "too_long":
        return f"a list of {context['max_length']} values"
    if kind == "too_short":
        return f"a list with at least {context['min_length']}"
    bounds = {"greater_than": ("gt", "above"), "greater_than_equal": ("ge", "at least"),
              "less_than_equal": ("le", "at most"), "less_than": ("lt", "below")}  # fmt: skip
    if kind in bounds:
        name, word = bounds[kind]
        return f"a number {word} {context[name]}"
    return _EXPECTED.get(kind, item["msg"][:1].lower() + item["msg"][1:])


def _section(annotation: Any) -> type[BaseModel] | None:
    """The schema class behind `X`, `list[X]` or a union with one of them; None for a plain value."""
    options = get_args(annotation) if get_origin(annotation) in (Union, types.UnionType) else (annotation,)
    options = [get_args(o)[0] if get_origin(o) is Annotated else o for o in options]
    options = [get_args(o)[0] if get_origin(o) is list else o for o in options]
    classes = [o for o in options if get_origin(o) is None and isinstance(o, type)]  # Python 3.10: list[int] is a type
    return next((c for c in classes if issubclass(c, BaseModel)), None)


def _all_keys(schema: type[BaseModel], path: KeyPath = ()) -> Iterator[KeyPath]:
    for name, info in schema.model_fields.items():
        yield (*path, name)
        if section := _section(info.annotation):
            yield from _all_keys(section, (*path, name))


def _nearest(path: KeyPath, schema: type[BaseModel]) -> str:
    """A hint: the nearest key of the same section, else one of another section, else what there is."""
    section = tuple(key for key in path[:-1] if not isinstance(key, int))  # the schema knows no places in lists
    siblings = {keys[-1]: (*path[:-1], keys[-1]) for keys in _all_keys(schema) if keys[:-1] == section}
    for cutoff, known in [(0.6, siblings), (0.75, {keys[-1]: keys for keys in reversed(list(_all_keys(schema)))})]:
        if match := difflib.get_close_matches(str(path[-1]), known, n=1, cutoff=cutoff):
            return f"; did you mean {dotted(known[match[0]])}?"
    return f"; {dotted(path[:-1]) or 'the file'} knows " + ", ".join(siblings)
