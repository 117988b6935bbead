"""The configuration reference, from the schema in gid_cuda/config.py and the comments that stand there.

A key's comment is what stands beside it or, without a blank line, above it.
"""

from __future__ import annotations

import ast
import html
import inspect
import io
import json
import re
import textwrap
import tokenize
from collections.abc import Iterator
from typing import Any

from gid_cuda import config as schema_module
from gid_cuda.config import Config

INTRODUCTION = """\
# Configuration

One YAML file describes one run; this page is made from its schema, `gid_cuda/config.py`. `base: FILE` (relative to the
file that says so) takes from another file what this one leaves out: sections are merged key by key, lists and values
are replaced. Every key can also be given on the command line, as in `train.lr=0.02`, and then counts instead of the
file's. `none` switches off a section that may be off. A key that is not listed here is refused, and the nearest known
one named.

The resolved file, with every default written out, is `config.yaml` in the run's folder.
"""

_NAMES = {"integer": "whole number", "number": "number", "boolean": "`true` or `false`", "string": "text"}
_BOUNDS = (
    ("minimum", "{} or more"),
    ("exclusiveMinimum", "above {}"),
    ("maximum", "at most {}"),
    ("exclusiveMaximum", "below {}"),
)


def page() -> str:
    """The page in Markdown."""
    root = Config.model_json_schema(mode="validation")
    parts = [INTRODUCTION]
    sections = list(_sections("", "Config", root, root["$defs"]))
    headings = {path for path, _, _ in sections}
    for path, name, schema in sections:
        parts += _section(path, schema, _meanings(name, schema, root["$defs"]), headings)
    return "\n".join(parts) + "\n"


def keys() -> list[tuple[str, str]]:
    """(dotted key, its comment) of every key, in the order of the page."""
    root = Config.model_json_schema(mode="validation")
    return [
        (_dotted(path, key), meaning)
        for path, name, schema in _sections("", "Config", root, root["$defs"])
        for key, meaning in _meanings(name, schema, root["$defs"]).items()
    ]


def anchors() -> set[str]:
    """The places on the page: every key by its dotted name."""
    return {key for key, _ in keys()}


def _sections(
    path: str, name: str, schema: dict[str, Any], known: dict[str, Any]
) -> Iterator[tuple[str, str, dict[str, Any]]]:
    """(dotted path, class, schema) of a section and of those in it. What stands in two places is described once."""
    seen: set[str] = set()
    waiting = [(path, name, schema)]
    while waiting:
        path, name, schema = waiting.pop(0)
        if name in seen:
            continue
        seen.add(name)
        yield path, name, schema
        inner = [(_dotted(path, key), _reference(value)) for key, value in schema["properties"].items()]
        waiting = [(where, ref, known[ref]) for where, ref in inner if ref is not None] + waiting


def _meanings(name: str, schema: dict[str, Any], known: dict[str, Any]) -> dict[str, str]:
    """Of each key of a class: its comment, or how the docstring of the section that it is begins."""
    found = {}
    for key, value in schema["properties"].items():
        section = known.get(_reference(value) or "", {})
        described = " ".join(section.get("description", "").split())
        begin = re.split(r";|(?<=[\w`)])\.(?=\s+[A-Z]|$)", described)[0]
        found[key] = _comments(name).get(key) or begin
    return found


def _section(path: str, schema: dict[str, Any], meanings: dict[str, str], headings: set[str]) -> Iterator[str]:
    title = f"## `{path}` {{ #{path} }}" if path else "## The file { #the-file }"
    yield f"{title}\n"
    if described := schema.get("description"):
        yield f"{' '.join(described.split())}\n"
    yield "| key | value | default | |\n|---|---|---|---|"
    required = schema.get("required", [])
    for key, value in schema["properties"].items():
        dotted = _dotted(path, key)
        default = "required" if key in required else _default(value)
        kind = _kind(value, _dotted(path, key))
        place = "" if dotted in headings else f'<a id="{dotted}"></a>'
        row = (f"{place}`{key}`", kind, default, _as_text(meanings[key]))
        yield "| " + " | ".join(cell.replace("|", "\\|") for cell in row) + " |"
    yield ""


def _as_text(comment: str) -> str:
    """A comment for a cell: what looks like a tag, or like emphasis, is none."""
    words = re.split(r"(`[^`]*`)", comment)
    return "".join(w if w.startswith("`") else html.escape(w, quote=False).replace("*", "\\*") for w in words)


def _dotted(path: str, key: str) -> str:
    return f"{path}.{key}" if path else key


def _reference(value: dict[str, Any]) -> str | None:
    """The class of a key that is a section, or may be one, or a list of one."""
    for part in (value, *value.get("anyOf", ())):
        if "$ref" in part:
            return part["$ref"].rpartition("/")[2]
    return None


# Sections that stand in two places, by the place that describes them.
_DESCRIBED_AT = {"ModelConfig": "model", "SplitConfig": "data.train"}


def _kind(value: dict[str, Any], dotted: str) -> str:
    """What a key takes, in words."""
    if "anyOf" in value:
        words = dict.fromkeys(_kind(part, dotted) for part in value["anyOf"] if part.get("type") != "null")
        return " or ".join([*words, *(["`none`"] if {"type": "null"} in value["anyOf"] else [])])
    if "$ref" in value:
        place = _DESCRIBED_AT.get(value["$ref"].rpartition("/")[2], dotted)
        return f"section [{place}](#{place})"
    if "enum" in value or "const" in value:
        return ", ".join(f"`{choice}`" for choice in value.get("enum", [value.get("const")]))
    if value.get("type") == "array":
        if "prefixItems" in value:
            return f"list of {len(value['prefixItems'])}: {_kind(value['prefixItems'][0], dotted)}"
        return f"list: {_kind(value['items'], dotted)}"
    if value.get("type") == "object":
        return f"names with {_kind(value['additionalProperties'], dotted)}"
    if value.get("format") == "path":
        return "path"
    if value.get("type") == "integer" and value.get("exclusiveMinimum") == 0:
        value = {**value, "exclusiveMinimum": None, "minimum": 1}
    if (value.get("minimum"), value.get("maximum")) == (0, 1) and value["type"] == "number":
        return "number from 0 to 1"
    bounds = [text.format(_number(value[name])) for name, text in _BOUNDS if value.get(name) is not None]
    return ", ".join([_NAMES[value["type"]], *bounds])


def _number(value: float) -> str:
    return "2^63" if value == 2**63 else f"{value:g}"


def _default(value: dict[str, Any]) -> str:
    default = value.get("default")
    if isinstance(default, dict) and _reference(value):
        return ""  # the defaults of its keys
    return f"`{'none' if default is None else json.dumps(default) if not isinstance(default, str) else default}`"


def _comments(name: str) -> dict[str, str]:
    """The comment of each key of a class of the schema."""
    source = textwrap.dedent(inspect.getsource(getattr(schema_module, name)))
    (definition,) = ast.parse(source).body
    assert isinstance(definition, ast.ClassDef)
    beside, alone = _comment_lines(source)
    found = {}
    for field in definition.body:
        if not isinstance(field, ast.AnnAssign) or not isinstance(field.target, ast.Name):
            continue
        above, line = [], field.lineno - 1
        while line in alone:
            above.insert(0, alone[line])
            line -= 1
        lines = range(field.lineno, (field.end_lineno or field.lineno) + 1)
        found[field.target.id] = " ".join([*above, *(beside[line] for line in lines if line in beside)])
    return found


def _comment_lines(source: str) -> tuple[dict[int, str], dict[int, str]]:
    """Comments by line: those beside code, and those with a line of their own."""
    beside, alone = {}, {}
    for token in tokenize.generate_tokens(io.StringIO(source).readline):
        if token.type == tokenize.COMMENT:
            where = alone if token.line.strip().startswith("#") else beside
            where[token.start[0]] = token.string.lstrip("# ").rstrip()
    return beside, alone
