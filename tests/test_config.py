"""A config file: inheritance, overrides, YAML's traps, and one sentence for each mistake."""

from __future__ import annotations

import re
import typing
from collections.abc import Iterator
from pathlib import Path

import pytest
from pydantic import BaseModel

from gid_cuda import config_file
from gid_cuda.config import Config, config_from_dict, config_to_dict, load_config
from gid_cuda.errors import UserError

FOLDER = Path(__file__).parents[1] / "configs"
CONFIGS = sorted(path for path in FOLDER.rglob("*.yaml") if path.parent.name not in ("base", "experiments"))
PLAIN = """
output: runs/x
data: {format: generated, root: somewhere}
train: {steps: 10, batch_size: 8}
"""
DISTILLED = """
base: plain.yaml
teacher: {weights: teacher.pt, backbone: resnet101}
distill: {top_k: 5}
"""


@pytest.fixture
def plain(tmp_path: Path) -> Path:
    path = tmp_path / "plain.yaml"
    path.write_text(PLAIN)
    return path


@pytest.fixture
def distilled(plain: Path) -> Path:
    path = plain.with_name("distilled.yaml")
    path.write_text(DISTILLED)
    return path


def message(path: Path, *overrides: str) -> str:
    with pytest.raises(UserError) as caught:
        load_config(path, overrides)
    return str(caught.value)


@pytest.mark.parametrize("path", CONFIGS, ids=lambda path: str(path.relative_to(FOLDER).with_suffix("")))
def test_every_shipped_config_is_valid(path: Path) -> None:
    assert isinstance(load_config(path), Config)


def test_base_is_merged_key_by_key_and_lists_are_replaced(plain: Path) -> None:
    child = plain.with_name("child.yaml")
    child.write_text("base: plain.yaml\ninput: {min_size: [600]}\ntrain: {lr: 0.5}")
    grandchild = plain.with_name("grandchild.yaml")
    grandchild.write_text("base: child.yaml\ninput: {min_size: [100, 200], max_size: 300}")
    config = load_config(grandchild)
    assert (config.train.steps, config.train.lr) == (10, 0.5)
    assert (config.input.min_size, config.input.max_size) == ([100, 200], 300)


def test_base_is_relative_to_its_file(plain: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    (plain.parent / "sub").mkdir()
    child = plain.parent / "sub" / "child.yaml"
    child.write_text("base: ../plain.yaml")
    monkeypatch.chdir("/")
    assert load_config(child) == load_config(plain)


def test_overrides(distilled: Path) -> None:
    config = load_config(
        distilled, ["train.lr=1e-3", "input.min_size=[64, 96]", "distill.top_k=7", "model.weights=a b.pt", "train.lr=2"]
    )
    assert config.train.lr == 2.0 and config.input.min_size == [64, 96] and config.model.weights == "a b.pt"
    assert config.distill is not None and config.distill.top_k == 7


@pytest.mark.parametrize("text", ["none", "null", "~", ""])
def test_distillation_is_switched_off(distilled: Path, text: str) -> None:
    assert load_config(distilled, [f"distill={text}"]).distill is None
    off = distilled.with_name("off.yaml")
    off.write_text(f"base: distilled.yaml\ndistill: {text}\n")
    assert load_config(off).distill is None


def test_a_section_is_switched_on_by_an_empty_mapping_or_by_a_key_of_it(distilled: Path) -> None:
    off = distilled.with_name("off.yaml")
    off.write_text("base: distilled.yaml\ndistill: none\n")
    for override, top_k in [("distill={}", 10), ("distill.top_k=3", 3)]:
        config = load_config(off, [override])
        assert config.distill is not None and config.distill.top_k == top_k
    assert load_config(distilled, ["distill=none", "distill={}"]).distill is not None


def test_no_key_goes_into_what_an_earlier_override_switches_off(distilled: Path) -> None:
    text = message(distilled, "distill=none", "distill.top_k=3")
    assert text == (
        "override 'distill.top_k=3' sets a key of distill, which override 'distill=none' before it switches off: "
        "leave out one of them"
    )
    assert load_config(distilled, ["distill.top_k=3", "distill=none"]).distill is None


def test_none_is_text_where_the_schema_has_it_and_null_where_it_has_that(distilled: Path) -> None:
    config = load_config(distilled, ["distill.adapt=none", "model.weights=none", "train.clip_grad_norm=none"])
    assert config.distill is not None and config.distill.adapt == "none"
    assert config.model.weights is None and config.train.clip_grad_norm is None


def test_the_home_folder(distilled: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("HOME", "/home/me")
    config = load_config(distilled, ["output=~/runs/x", "data.root=~/coco", "model.weights=~/a.pt"])
    assert (str(config.output), str(config.data.root)) == ("/home/me/runs/x", "/home/me/coco")
    assert config.model.weights == "/home/me/a.pt"


def test_yaml_means_what_it_looks_like(plain: Path) -> None:
    plain.write_text(PLAIN.replace("steps: 10", "steps: 180_000, lr: 1e-3, weight_decay: 1.e-4, amp: off"))
    config = load_config(plain, ['data.classes=[no, yes, off, 012, 12:30, "1", 2020-01-01, null_island]'])
    assert (config.train.steps, config.train.lr, config.train.weight_decay) == (180_000, 1e-3, 1e-4)
    assert config.train.amp == "off"
    assert config.data.classes == ["no", "yes", "off", "012", "12:30", "1", "2020-01-01", "null_island"]


def test_the_resolved_config_is_plain_and_gives_the_same_again(distilled: Path) -> None:
    config = load_config(distilled)
    assert config_from_dict(config_to_dict(config), name="again") == config


@pytest.mark.parametrize(
    ("override", "told"),
    [
        ("train.leer=3", "unknown key train.leer; did you mean train.lr?"),
        ("data.worker=3", "unknown key data.worker; did you mean data.workers?"),
        ("lr=3", "unknown key lr; did you mean train.lr?"),
        ("distil=none", "unknown key distil; did you mean distill?"),
        ("model.wiggle=3", "unknown key model.wiggle; model knows detector, options, backbone, weights"),
        ("quux.x=3", "unknown key quux; the file knows output, seed"),
        ("train.steps=ten", "train.steps has the text 'ten', expected a whole number"),
        ("train.steps=1e3", "train.steps has the number 1000.0, expected a whole number"),
        ("train.steps=true", "train.steps has the truth value true, expected a whole number"),
        ("train.steps=0", "train.steps has the number 0, expected a number above 0"),
        ("train.steps=", "train.steps has nothing, expected a whole number"),
        ("train.lr='0.1'", "train.lr has the text '0.1', expected a number"),
        ("seed=-1", "seed has the number -1, expected a number at least 0"),
        ("seed=99999999999999999999", "seed has the number 99999999999999999999, expected a number below 92233720368"),
        ("input.min_size=[]", "input.min_size has the list [], expected a list with at least 1"),
        ("train.lr=.inf", "train.lr has the number inf, expected a finite number"),
        ("train.lr=.nan", "train.lr has the number nan, expected a finite number"),
        ("data.hflip=1.5", "data.hflip has the number 1.5, expected a number at most 1"),
        ("data.one_based=yes", "data.one_based has the text 'yes', expected true or false"),
        ("data.classes=[a, 1]", "data.classes[1] has the number 1, expected text (for text write it in quotes: '1')"),
        ("data.classes=[true]", "data.classes[0] has the truth value true, expected text (for text write it in quotes"),
        ("data.classes=[1.10]", "data.classes[0] has the number 1.1, expected text (for text write it in quotes)"),
        ("output=1e999", "has the number inf, expected text (for text write it in quotes, and all in quotes for the"),
        ("output = 12.50", """for the shell: "output='12.50'")"""),
        ("model.weights=True", """for the shell: "model.weights='True'")"""),
        ("data.classes=cat", "data.classes has the text 'cat', expected a list"),
        ("train=5", "train has the number 5, expected a section with keys of its own"),
        ("train.milestones={a: 1}", "train.milestones has a section, expected a list"),
        ("input.mean=[1, 2]", "input.mean[2] is missing"),
        ("input.mean=[1, 2, 3, 4]", "input.mean has the list [1, 2, 3, 4], expected a list of 3 values"),
        ("model.backbone=resnet9", "model.backbone has the text 'resnet9', expected one of 'resnet18', 'resnet34'"),
        ("distill.kinds=bad", "distill.kinds has the text 'bad', expected one of 'all', 'ground_truth' or a list"),
        ("distill.kinds=[bad]", "distill.kinds[0] has the text 'bad', expected one of 'positive', 'semi-positive'"),
        ("train.accumulate=3", "train.batch_size 8 cannot be cut into train.accumulate 3 equal parts"),
        ("teacher=none", "distill is set but teacher is not"),
        ("data.train.images=photos", "data.format is generated, which reads none: set data.format=coco"),
        ("teacher.weights=none", "teacher.weights is missing"),
        ("teacher.anchor_sizes=[1, 2, 3, 4, 5]", "teacher.anchor_sizes is [1, 2, 3, 4, 5] and model.anchor_sizes is"),
    ],
)
def test_a_wrong_value_is_told_in_one_sentence(distilled: Path, override: str, told: str) -> None:
    text = message(distilled, override)
    assert told in text
    assert "\n" not in text
    assert text.startswith((f"override {override!r}: ", f"{distilled}: "))


def test_the_quotes_that_an_error_asks_for_are_the_mend(plain: Path, tmp_path: Path) -> None:
    asked_for = re.search(r'for the shell: "(.*)"\)', message(plain, "output=1e999"))
    assert asked_for and str(load_config(plain, [asked_for[1]]).output) == "1e999"
    path = tmp_path / "mine.yaml"
    path.write_text(f"base: {plain}\noutput: 1e999\n")
    assert message(path).endswith("mine.yaml: output has the number inf, expected text (for text write it in quotes)")


def test_what_is_no_yaml_is_told_to_be_none(tmp_path: Path) -> None:
    path = tmp_path / "README.md"
    path.write_text("# A heading\n\n**bold** words\n")
    assert "README.md, line 3: cannot be read as YAML: " in message(path)


@pytest.mark.parametrize(
    ("override", "told"),
    [
        ("train.lr", "'train.lr' is no override: write key.path=value"),
        ("=3", "'=3' is no override"),
        ("train..lr=3", "'train..lr=3' is no override"),
        ("train.lr =3 =4", "train.lr has the text '3 =4', expected a number"),
        ("train.steps.x=3", "override 'train.steps.x=3': train.steps is the number 10, not a section"),
        ("train.lr=[1", "override 'train.lr=[1', line 1: cannot be read as YAML: "),
    ],
)
def test_a_wrong_override(plain: Path, override: str, told: str) -> None:
    assert told in message(plain, override)


def test_teacher_and_student_of_different_kinds() -> None:
    """There is one kind in the schema as yet, so the check is reached around it."""
    config = load_config(CONFIGS[0].parent / "demo.yaml")
    other = config.teacher.model_copy(update={"detector": "other"})
    with pytest.raises(ValueError, match="teacher.detector is other and model.detector is retinanet: .*same kind"):
        config.model_copy(update={"teacher": other})._distillation_needs_both()
    assert "teacher.detector has the text 'other'" in message(CONFIGS[0].parent / "demo.yaml", "teacher.detector=other")


def test_errors_name_the_file_that_the_value_stands_in(distilled: Path) -> None:
    plain = distilled.with_name("plain.yaml")
    plain.write_text(PLAIN.replace("steps: 10", "steps: ten"))
    assert message(distilled).startswith(f"{plain}: train.steps has the text 'ten'")


def test_several_errors_are_a_line_each_and_not_too_many(plain: Path) -> None:
    text = message(plain, *(f"train.unknown{i}=1" for i in range(8)))
    assert len(text.splitlines()) == 6 and text.endswith("and 3 more")
    assert all("unknown key train.unknown" in line for line in text.splitlines()[:5])


def test_a_missing_key_is_named(plain: Path) -> None:
    plain.write_text("output: x\ndata: {format: coco, root: y}\ntrain: {}\n")
    assert message(plain) == f"{plain}: train.steps is missing"


@pytest.mark.parametrize(
    ("text", "told"),
    [
        ("a: [1\nb: 2\n", r"x\.yaml, line 2: .*"),
        ("a: 1\nb: 2\na: 3\n", r"x\.yaml, line 3: the key a is there twice"),
        ("a: 1\n1: 2\n", r"x\.yaml, line 2: the key 1 is not text"),
        ("a: 1\n[1, 2]: 3\n", r"x\.yaml, line 2: the key \.\.\. is not text"),
        ("a: &x {b: 1}\nc: *x\n", r"x\.yaml, line 2: aliases .* not supported, use base:"),
        ("a: !!python/object/apply:os.system [echo]\n", r"x\.yaml, line 1: the tag !!python.* is not supported"),
        ("a: 1\n\tb: 2\n", r"x\.yaml, line 2: "),
        ("a: \x00", r"x\.yaml: cannot be read as YAML"),
        ("[" * 1000, r"x\.yaml: cannot be read as YAML: nested too deeply"),
        ("", r"x\.yaml: a config file holds `key: value` pairs, this one holds nothing"),
        ("- 1\n- 2\n", r"x\.yaml: a config file holds .* the list \[1, 2\]"),
        ("base: [a, b]\n", r"x\.yaml: base has the list .* expected the path of one other config file"),
        ("base: gone.yaml\n", r"config file .*gone\.yaml \(base: of .*x\.yaml\) cannot be read: No such file"),
        ("base: x.yaml\n", r"x\.yaml: base: goes round in a circle"),
        ("base: y.yaml\n", r"x\.yaml: base: goes round in a circle"),
    ],
)
def test_a_file_that_is_no_config(tmp_path: Path, text: str, told: str) -> None:
    path = tmp_path / "x.yaml"
    path.write_text(text)
    path.with_name("y.yaml").write_text("base: x.yaml\n")
    assert re.search(told, message(path))
    assert "\n" not in message(path)


def test_files_that_cannot_be_read(tmp_path: Path) -> None:
    gone = tmp_path / "gone.yaml"
    assert message(gone) == f"config file {gone} cannot be read: No such file or directory"
    assert "Is a directory" in message(tmp_path)
    (tmp_path / "latin.yaml").write_bytes("output: Fähre".encode("latin-1"))
    assert message(tmp_path / "latin.yaml").endswith("is not UTF-8 text")


def test_the_sections_that_are_switched_off_are_those_that_may_be_none() -> None:
    """Of the schema; models of one's own and lists of sections apart."""

    def optional(model: type[BaseModel], path: tuple[str, ...] = ()) -> Iterator[tuple[str, ...]]:
        for name, field in model.model_fields.items():
            parts = typing.get_args(field.annotation) or (field.annotation,)
            sections = [p for p in parts if isinstance(p, type) and issubclass(p, BaseModel)]
            if sections and type(None) in parts:
                yield (*path, name)
            for section in sections:
                yield from optional(section, (*path, name))

    assert set(optional(Config)) == config_file.SWITCHED


@pytest.mark.parametrize("override", ["distill.top_k=1001", "distill.canonical_size=0.5", "distill.canonical_size=1e6"])
def test_numbers_that_nobody_can_mean(override: str) -> None:
    """Relations are K x K numbers an image; no image has a side of a million pixels."""
    with pytest.raises(UserError, match=rf"{override.partition('=')[0]} has the number .*, expected a number"):
        load_config(Path(__file__).parents[1] / "configs" / "demo.yaml", [override])
