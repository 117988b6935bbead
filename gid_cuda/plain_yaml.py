"""YAML text to plain values, and back.

Numbers are decimal alone, `1e-3` and `180_000` among them, and `no`, `off`, `012`, `0x1F` and `12:30` are the text that
they look like (a class may be called `no`, and `amp: off` is no truth value). PyYAML's own rules differ.
"""

from __future__ import annotations

import re
from typing import Any

import yaml

from gid_cuda.errors import UserError

MAX_DEPTH = 32  # sections within sections; ours have four
MAX_INT = 10**100  # Python writes no number of over 4300 digits; a key's own bound is lower, and told for that key

KeyPath = tuple[Any, ...]
_TAG_PREFIX = "tag:yaml.org,2002:"  # which a file writes as !!
_TAGS = {
    yaml.MappingNode: [_TAG_PREFIX + "map"],
    yaml.SequenceNode: [_TAG_PREFIX + "seq"],
    yaml.ScalarNode: [_TAG_PREFIX + name for name in ("str", "int", "float", "bool", "null")],
}
"""What a config is made of. PyYAML's constructors of other tags, or of these on another node, may raise anything."""

_PATTERNS = {  # what each looks like, and the characters that it may begin with
    "bool": (r"true|True|TRUE|false|False|FALSE", "tTfF"),
    "null": (r"~|null|Null|NULL|", ["~", "n", "N", ""]),
    "int": (r"[-+]?(0|[1-9][0-9_]*)", "-+0123456789"),
    "float": (
        r"[-+]?(\.[0-9]+|[0-9]+(\.[0-9]*)?([eE][-+]?[0-9]+)|[0-9]+\.[0-9]*)|[-+]?\.(inf|Inf|INF)|\.(nan|NaN|NAN)",
        "-+.0123456789",
    ),
}


class _Loader(yaml.SafeLoader):
    """Safe (no Python objects), scalars as above, no repeated keys, no aliases (they can blow up a small file)."""

    yaml_implicit_resolvers: dict[str, list[tuple[str, re.Pattern[str]]]] = {}

    def compose_node(self, parent: yaml.Node | None, index: Any) -> yaml.Node | None:
        if self.check_event(yaml.AliasEvent):
            raise yaml.MarkedYAMLError(
                problem="aliases (*name) are not supported, use base: for shared settings",
                problem_mark=self.peek_event().start_mark,
            )
        node = super().compose_node(parent, index)
        if node is not None and node.tag not in _TAGS[type(node)]:
            tag = short(node.tag.replace(_TAG_PREFIX, "!!", 1))
            problem = f"the tag {tag} is not supported, write the plain value"
            raise yaml.MarkedYAMLError(problem=problem, problem_mark=node.start_mark)
        if isinstance(node, yaml.ScalarNode) and not _fits(node):
            problem = f"{short(node.value)!r} is not of the type that its tag says, write the plain value"
            raise yaml.MarkedYAMLError(problem=problem, problem_mark=node.start_mark)
        return node

    def construct_mapping(self, node: yaml.MappingNode, deep: bool = False) -> dict[Any, Any]:
        seen = set()
        for key, _ in node.value:
            if not isinstance(key, yaml.ScalarNode) or key.tag != _TAG_PREFIX + "str":
                shown = short(key.value) if isinstance(key, yaml.ScalarNode) else "..."
                problem = f"the key {shown} is not text"
                raise yaml.MarkedYAMLError(problem=problem, problem_mark=key.start_mark)
            if key.value in seen:
                problem = f"the key {short(key.value)} is there twice"
                raise yaml.MarkedYAMLError(problem=problem, problem_mark=key.start_mark)
            seen.add(key.value)
        return super().construct_mapping(node, deep)


def _fits(node: yaml.ScalarNode) -> bool:
    """False where an explicit tag turns a text into what the text alone would not be: !!int 0x1F, !!null 3."""
    name = node.tag.removeprefix(_TAG_PREFIX)
    kinds = ("float", "int") if name == "float" else (name,)
    return name == "str" or any(re.fullmatch(_PATTERNS[kind][0], node.value) for kind in kinds)


class _Dumper(yaml.SafeDumper):
    """Quotes a text that we or YAML 1.1 take for something else: 1e9 (a number to us), no (false in 1.1)."""

    def ignore_aliases(self, data: Any) -> bool:
        return True  # a list that is there twice is written twice: aliases are not read


for _name, (_pattern, _first) in _PATTERNS.items():
    for _side in (_Loader, _Dumper):
        _side.add_implicit_resolver(_TAG_PREFIX + _name, re.compile(f"^(?:{_pattern})$"), list(_first))


def dump_yaml(value: dict[str, Any]) -> str:
    """Plain values -> YAML text that `parse_yaml` reads as the same values, and a reader of YAML 1.1 too."""
    return yaml.dump(value, Dumper=_Dumper, sort_keys=False)


def parse_yaml(text: str, where: str) -> Any:
    """YAML text -> plain values; `where` names the text in errors."""
    try:
        value = yaml.load(text, Loader=_Loader)  # a SafeLoader
    except yaml.MarkedYAMLError as error:
        line = f", line {error.problem_mark.line + 1}" if error.problem_mark else ""
        if type(error) is yaml.MarkedYAMLError:  # a sentence of ours
            raise UserError(f"{where}{line}: {_one_line(error.problem)}") from None
        told = _one_line(", ".join(filter(None, (error.context, error.problem))))
        raise UserError(f"{where}{line}: cannot be read as YAML: {told}") from None
    except (yaml.YAMLError, RecursionError, ValueError, OverflowError) as error:
        # ValueError: an int of over 4300 digits; OverflowError: "\UFFFFFFFF"
        reason = "nested too deeply" if isinstance(error, RecursionError) else _one_line(str(error))
        raise UserError(f"{where}: cannot be read as YAML: {reason}") from None
    check_plain(value, where)
    return value


def check_plain(value: Any, where: str, path: KeyPath = ()) -> None:
    """UserError for what no config has: other objects (a set, a tensor), deep nesting, control characters in a text."""
    at = f"{where}: {short(dotted(path))}" if path else where
    if len(path) > MAX_DEPTH:
        raise UserError(f"{where}: {short(dotted(path))} is nested too deeply: at most {MAX_DEPTH} levels are read")
    if isinstance(value, dict):
        for key, inner in value.items():
            if not isinstance(key, str):
                raise UserError(f"{at}: the key {str(key)[:60]!r} is not text")
            check_plain(key, at)
            check_plain(inner, where, (*path, key))
    elif isinstance(value, (list, tuple)):
        for index, inner in enumerate(value):
            check_plain(inner, where, (*path, index))
    elif isinstance(value, str):
        if found := _CONTROL.search(value):
            raise UserError(f"{at} has the control character {found[0]!a} in a text: take it out")
    elif isinstance(value, int) and not -MAX_INT <= value <= MAX_INT:
        raise UserError(f"{at} has a number of over 100 digits: nothing here is as large")
    elif not isinstance(value, (bool, int, float, type(None))):
        raise UserError(f"{at} has a {type(value).__name__}, expected text, a number, true, false, a list or a section")


# What YAML allows in a file; written as an escape ("\\e", "\\ud800") it allows all, and no file can be so named.
_CONTROL = re.compile("[^\t\n\r\x20-\x7e\x85\xa0-\ud7ff\ue000-\ufffd\U00010000-\U0010ffff]")


def dotted(path: KeyPath) -> str:
    """("data", "classes", 0) -> data.classes[0]"""
    return "".join(f"[{k}]" if isinstance(k, int) else f".{k}" for k in path).lstrip(".")


def short(text: str) -> str:
    return text if len(text) <= 60 else text[:57] + "..."


def _one_line(text: str) -> str:
    """PyYAML's words, which quote the file at any length."""
    line = " ".join(text.split())
    return line if len(line) <= 300 else line[:297] + "..."
