"""Config files made to harm, or damaged: refused in one sentence, soon, and without running anything."""

from __future__ import annotations

import time
from pathlib import Path

import pytest
import yaml

from gid_cuda.config import config_to_dict, load_config
from gid_cuda.config_file import read_text
from gid_cuda.errors import UserError
from gid_cuda.experiment.schema import read_matrix
from gid_cuda.plain_yaml import dump_yaml, parse_yaml

GOOD = "output: runs/x\ndata: {format: generated, root: data}\ntrain: {steps: 3}\n"


@pytest.mark.parametrize(
    ("more", "told"),
    [
        (
            "seed: !!python/object/apply:os.system ['touch sprung']",
            "line 4: the tag !!python/object.* is not sup",
        ),
        ("seed: !!python/name:os.system", "the tag !!python/name:os.system is not supported, write the plain value"),
        ("seed: !!binary aGk=", "the tag !!binary is not supported"),
        ("seed: !!set {a, b}", "the tag !!set is not supported"),
        ("seed: !!set\n  - ", "the tag !!set is not supported"),
        ("seed: !!map 3", "the tag !!map is not supported"),
        ("seed: !!omap [a: 1]", "the tag !!omap is not supported"),
        ("!!merge seed: {a: 1}", "the tag !!merge is not supported"),
        ("seed: !<str> 3", "the tag str is not supported"),
        ("seed: !!int ''", "line 4: '' is not of the type that its tag says"),
        ("seed: !!int 0x" + "f" * 4000, "0xfff.* is not of the type that its tag says"),
        ("seed: !!int 0b" + "1" * 15000, "is not of the type that its tag says"),
        ("seed: !!int 1" + ":59" * 3000, "is not of the type that its tag says"),
        ("seed: !!int 012", "'012' is not of the type that its tag says"),
        ("seed: !!null 3", "'3' is not of the type that its tag says"),
        ("seed: !!bool x", "'x' is not of the type that its tag says"),
        ("seed: !!float " + "x" * 5000, "is not of the type that its tag says"),
        ("seed: " + "9" * 4000, "seed has a number of over 100 digits"),
        ('output: "\\UFFFFFFFF"', "cannot be read as YAML"),
        ("---\nseed: 3", "line 4: cannot be read as YAML: expected a single document in the stream, but found another"),
        ("seed: !" + "x" * 5000 + "!y 3", "cannot be read as YAML: while parsing a node, found undefined tag handle"),
        ("a: &a [x, x]\nb: &b [*a, *a]\nc: [*b, *b]", "aliases .* are not supported"),
        ('device: "\\ud800"', r"device has the control character '\\ud800'"),
        ('output: "a\\0b"', r"output has the control character '\\x00'"),
        ('"a\\e[31mred": 1', r"has the control character '\\x1b'"),
        ('base: "a\\0b"', r"base has the control character"),
        ("seed: " + "[" * 40 + "]" * 40, "is nested too deeply: at most 32 levels"),
        ("seed: " + "{a: " * 40 + "1" + "}" * 40, "is nested too deeply: at most 32 levels"),
        ("seed: " + "[" * 600 + "]" * 600, "nested too deeply"),
        ("seed: " + "{a: " * 100_000, "nested too deeply"),
        ("seed: " + "9" * 5000, "cannot be read as YAML: Exceeds the limit"),
        ("? " + "k" * 5000 + "\n: 1", "unknown key kkkkk"),
        ("? " + "k" * 5000 + '\n: {a: "\\e"}', r"kkk\.\.\. has the control character"),
        ("kk: 1\n" * 2, "line 5: the key kk is there twice"),
        ("# " + "x" * (1 << 20), "is larger than 1 MiB"),
    ],
)
def test_refused_in_one_sentence(tmp_path: Path, monkeypatch: pytest.MonkeyPatch, more: str, told: str) -> None:
    monkeypatch.chdir(tmp_path)
    file = tmp_path / "c.yaml"
    file.write_text((GOOD if not more.startswith("output") else "") + more + "\n")
    with pytest.raises(UserError, match=told) as raised:
        load_config(file)
    assert len(str(raised.value)) < 1000 and str(raised.value).replace("\n", "").isprintable()
    with pytest.raises(UserError):
        read_matrix(file)
    assert [path.name for path in tmp_path.iterdir()] == ["c.yaml"]


def test_an_endless_file_is_not_read_to_its_end(tmp_path: Path) -> None:
    (tmp_path / "c.yaml").write_text("base: /dev/zero\n")
    with pytest.raises(UserError, match="/dev/zero is larger than 1 MiB"):
        load_config(tmp_path / "c.yaml")


def test_a_long_chain_of_bases(tmp_path: Path) -> None:
    for index in range(2000):
        (tmp_path / f"{index}.yaml").write_text(f"base: {index + 1}.yaml\n")
    with pytest.raises(UserError, match="more than 32 files follow each other"):
        load_config(tmp_path / "0.yaml")


def test_an_override_of_many_keys(tmp_path: Path) -> None:
    (tmp_path / "c.yaml").write_text(GOOD)
    with pytest.raises(UserError, match=r"'a\.a\..* is no override") as raised:
        load_config(tmp_path / "c.yaml", [".".join("a" * 100_000) + "=1"])
    assert len(str(raised.value)) < 200


def test_many_mistakes_are_told_soon(tmp_path: Path) -> None:
    (tmp_path / "c.yaml").write_text(GOOD + "".join(f"k{index}: 1\n" for index in range(3000)))
    start = time.process_time()
    with pytest.raises(UserError, match="and 2995 more"):
        load_config(tmp_path / "c.yaml")
    assert time.process_time() - start < 20


@pytest.mark.parametrize(
    "text", ["1e999", "no", "012", "12:30", ".5", "~", "", "none", "2001-01-01", "x: y", "0x1", "é #"]
)
def test_a_text_that_looks_like_something_else_is_that_text_in_a_written_config(tmp_path: Path, text: str) -> None:
    file = tmp_path / "c.yaml"
    value = {"output": text, "classes": [text, 1e-5, 1e300, 3, True, None]}
    file.write_text(dump_yaml(value), encoding="utf-8")
    assert parse_yaml(read_text(file), "c.yaml") == value
    older = yaml.safe_load(dump_yaml(value))
    assert older["output"] == text and older["classes"][0] == text


def test_what_is_there_twice_is_written_twice() -> None:
    """As aliases, it could not be read again."""
    classes = ["a", "b"]
    value = {"classes": classes, "data": {"classes": classes}}
    assert parse_yaml(dump_yaml(value), "c.yaml") == value


@pytest.mark.parametrize(
    ("text", "value"),
    [("180_000", 180_000), ("-0", 0), ("!!float 3", 3.0), ("1e-3", 1e-3), ("0x1F", "0x1F"), ("", None)],
)
def test_what_is_a_number(text: str, value: object) -> None:
    assert repr(parse_yaml(f"a: {text}", "c.yaml")) == repr({"a": value})


def test_a_run_folder_named_like_a_number_is_opened_again(tmp_path: Path) -> None:
    file = tmp_path / "c.yaml"
    file.write_text(GOOD)
    config = load_config(file, ["output='1e999'"])  # hypothesis found it
    file.write_text(dump_yaml(config_to_dict(config)))
    assert load_config(file) == config
