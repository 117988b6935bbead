"""`data.train` and `data.val` in a config file: one section or a list of them."""

from __future__ import annotations

from pathlib import Path

import pytest

from gid_cuda.config import SplitConfig, config_from_dict, config_to_dict, load_config
from gid_cuda.errors import UserError

JOINED = """
output: runs/x
data:
  format: voc
  root: VOCdevkit
  train:
    - {root: VOC2007, split: trainval}
    - {root: VOC2012, split: trainval, one_based: none}
  val: {root: VOC2007, split: test}
train: {steps: 10}
"""


@pytest.fixture
def joined(tmp_path: Path) -> Path:
    path = tmp_path / "joined.yaml"
    path.write_text(JOINED)
    return path


def test_a_list_and_a_single_section(joined: Path) -> None:
    data = load_config(joined, ["data.val.one_based=true"]).data
    assert data.train == [
        SplitConfig(root=Path("VOC2007"), split="trainval"),
        SplitConfig(root=Path("VOC2012"), split="trainval"),
    ]
    assert data.val == SplitConfig(root=Path("VOC2007"), split="test", one_based=True)


def test_the_shipped_voc_configs_keep_nothing_of_coco() -> None:
    """They build on COCO's, and a single section would be merged with it."""
    configs = sorted((Path(__file__).parents[2] / "configs" / "voc").glob("*.yaml"))
    assert configs
    for path in configs:
        data = load_config(path).data
        sets = [split for part in (data.train, data.val) for split in (part if isinstance(part, list) else [part])]
        assert [(str(s.root), s.split) for s in sets] == [
            ("VOC2007", "trainval"), ("VOC2012", "trainval"), ("VOC2007", "test")
        ]  # fmt: skip
        assert all(split.images is None and split.annotations is None for split in sets)


def test_the_resolved_config_gives_the_same_again(joined: Path) -> None:
    config = load_config(joined)
    assert config_from_dict(config_to_dict(config), name="again") == config


def test_a_config_stored_before_there_were_lists(joined: Path) -> None:
    """What checkpoints hold: every default of then written out."""
    stored = config_to_dict(load_config(joined, ["data.train=null", "data.train.split=trainval", "data.root=~/voc"]))
    before = {"annotations": None, "images": None, "split": "trainval"}
    stored["data"]["train"] = dict(before)
    assert config_from_dict(stored, name="old").data.train == SplitConfig(split="trainval")


def test_overrides_and_inheritance(joined: Path) -> None:
    """A list replaces, and is replaced, as a whole; the keys of a single section are merged."""
    child = joined.with_name("child.yaml")
    child.write_text("base: joined.yaml\ndata: {train: {split: train}, val: [{split: a}, {split: b}]}\n")
    data = load_config(child).data
    assert data.train == SplitConfig(split="train") and data.val == [SplitConfig(split="a"), SplitConfig(split="b")]
    listed = load_config(child, ["data.train=[{split: x}, {split: y, root: ~/voc}]"]).data.train
    assert listed == [SplitConfig(split="x"), SplitConfig(split="y", root=Path("~/voc").expanduser())]
    assert load_config(joined, ["data.train={split: z}"]).data.train == SplitConfig(split="z")


@pytest.mark.parametrize(
    ("override", "told"),
    [
        ("data.val.splitt=x", "unknown key data.val.splitt; did you mean data.val.split?"),
        ("data.train=[{}, {splitt: x}]", "unknown key data.train[1].splitt; did you mean data.train[1].split?"),
        ("data.train=[{}, {zzz: x}]", "data.train[1].zzz; data.train[1] knows root, format, annotations,"),
        ("data.train=[{split: 7}]", "data.train[0].split has the number 7, expected text (for text write it in quotes"),
        ("data.train=[{format: yolo}]", "data.train[0].format has the text 'yolo', expected one of 'coco', 'voc'"),
        ("data.val.format=generated", "data.val.format has the text 'generated', expected one of 'coco', 'voc'"),
        ("data.val.one_based=1", "data.val.one_based has the number 1, expected true or false"),
        ("data.train=[trainval]", "data.train[0] has the text 'trainval', expected a section with keys of its own"),
        ("data.train=trainval", "data.train has the text 'trainval', expected a section with keys of its own or"),
        ("data.train=[]", "expected a section with keys of its own or a list with at least 1"),
        ("data.train.split=x", "'split': 'trainval'}, {'root': 'VOC2..., not a section: give the whole list"),
        ("data.format=generated", "data.train or data.val names files, but data.format is generated"),
    ],
)  # fmt: skip
def test_a_wrong_value_is_told_in_one_sentence(joined: Path, override: str, told: str) -> None:
    with pytest.raises(UserError) as caught:
        load_config(joined, [override])
    text = str(caught.value)
    assert told in text and "\n" not in text
    assert text.startswith((f"override {override!r}: ", f"{joined}: "))
