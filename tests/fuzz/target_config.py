"""load_config: a UserError, or a config that is the same after it was written and read again."""

from __future__ import annotations

import json
from collections.abc import Callable
from pathlib import Path
from typing import Any

from hypothesis import given
from hypothesis import strategies as st
from odd import ANYTHING, TEXT
from pydantic import BaseModel

from gid_cuda import config_file
from gid_cuda.config import Config, config_to_dict, load_config
from gid_cuda.errors import UserError
from gid_cuda.experiment.schema import MatrixConfig, read_matrix
from gid_cuda.plain_yaml import dump_yaml

_GOOD = {"output": "runs/x", "data": {"format": "generated", "root": "data"}, "train": {"steps": 3}}
_TOKENS = [
    *"[]{}:,-?|>&*!%@`'\"#\n~=",
    "\n  ",
    ": ",
    "- ",
    "!!binary ",
    "!!int ",
    "!!bool ",
    "!!set ",
    "!!map ",
    "!!str ",
    "!!seq ",
    "!!float ",
    "!!null ",
    "!!omap ",
    "!<tag:yaml.org,2002:int> ",
    "!%0a",
    "<<: ",
    "!!python/name:os.system ",
    "!!timestamp ",
    "&a ",
    "*a",
    "---\n",
    "...\n",
    "%YAML 1.2\n",
    '"\\e"',
    '"\\ud800"',
    '"\\0"',
    "base",
    "output",
    "data",
    "train",
    "steps",
    "distill",
    "none",
    "1e5",
    "0x1",
    "0x" + "f" * 4000,
    "9" * 4000,
    "1:59",
    ".nan",
    "1" * 30,
    "[" * 40,
    "a: " * 40,
    "{a: " * 40,
]
PATHS = [".".join(map(str, path)) for path in config_file._all_keys(Config)]


def make(folder: Path) -> Callable[[], None]:
    file = folder / "c.yaml"
    override = st.tuples(st.sampled_from(PATHS) | TEXT, ANYTHING.map(json.dumps) | TEXT).map("=".join)
    structured = st.dictionaries(st.sampled_from(PATHS), ANYTHING, max_size=4).map(_nested)
    text = st.lists(st.sampled_from(_TOKENS), max_size=30).map("".join)

    @given(
        st.one_of(structured.map(json.dumps), text, text.map(lambda t: json.dumps(_GOOD) + t)),
        st.lists(override, max_size=2),
    )
    def target(content: str, overrides: list[str]) -> None:
        file.write_bytes(content.encode("utf-8", "surrogatepass"))
        _refused_or(lambda: read_matrix(file), MatrixConfig)
        config = _refused_or(lambda: load_config(file, overrides), Config)
        if isinstance(config, Config):
            file.write_text(dump_yaml(config_to_dict(config)), encoding="utf-8")
            assert load_config(file) == config

    return target


def _nested(flat: dict[str, Any]) -> dict[str, Any]:
    """Values by dotted path -> sections, those of _GOOD filled in where they are not replaced as a whole."""
    raw: dict[str, Any] = json.loads(json.dumps(_GOOD))
    for path, value in flat.items():
        section, keys = raw, path.split(".")
        for key in keys[:-1]:
            section[key] = section[key] if isinstance(section.get(key), dict) else {}
            section = section[key]
        section[keys[-1]] = value
    return raw


def _refused_or(read: Callable[[], BaseModel], kind: type[BaseModel]) -> BaseModel | None:
    try:
        value = read()
    except UserError as error:
        assert str(error).strip() and len(str(error)) < 4000
        return None
    assert isinstance(value, kind)
    return value
