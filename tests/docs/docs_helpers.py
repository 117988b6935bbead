"""The pages as tests see them: their commands, and scripts that are run, or only asked what they make of a command."""

from __future__ import annotations

import argparse
import json
import re
import runpy
import shlex
import shutil
import sys
from pathlib import Path
from typing import Any

import pytest
from PIL import Image

from gid_cuda.config import GeneratedConfig
from gid_cuda.data.generated import generate

ROOT = Path(__file__).parents[2]
DOCS = ROOT / "docs"
PAGES = sorted(DOCS.rglob("*.md"))

FEW_DRAWN = [
    "data.generated.width=96", "data.generated.height=64", "data.generated.train_images=4",
    "data.generated.val_images=2",
]  # fmt: skip
FEW_UNLABELED = ["data.labeled_fraction=0.5", "data.unlabeled.batch_size=1"]
FEW = [
    "data.workers=0", "input.min_size=[64]", "input.max_size=96",
    "model.backbone=mobilenet_v3_small", "model.backbone_weights=none", "model.norm=live", "model.fpn_channels=16",
    "model.head_depth=1", "train.batch_size=2", "train.accumulate=1", "train.steps=2", "train.milestones=[]",
    "train.warmup_steps=1", "train.log_every=1", "train.eval_every=0", "train.checkpoint_every=0", "device=cpu",
]  # fmt: skip
FEW_OF_THE_TEACHER = [
    "teacher.backbone=mobilenet_v3_small", "teacher.fpn_channels=16", "teacher.head_depth=1", "teacher.norm=live",
]  # fmt: skip


def prose(page: Path) -> str:
    """Without what stands between fences."""
    return re.sub(r"^```.*?^```", "", page.read_text(encoding="utf-8"), flags=re.MULTILINE | re.DOTALL)


def commands(page: Path) -> list[list[str]]:
    """The lines of indented blocks that call a script or torchrun, as a shell would split them, in the page's order.

    A variable that an earlier line of the page has set is put in.
    """
    variables: dict[str, str] = {}
    found = []
    for line in re.findall(r"^    (\S.*)$", prose(page), re.MULTILINE):
        if setting := re.fullmatch(r'([A-Z]+)="(.*)"', line):
            variables[setting[1]] = setting[2]
        elif line.startswith(("scripts/", "torchrun ")):
            found.append(shlex.split(re.sub(r"\$([A-Z]+)", lambda name: variables[name[1]], line)))
    return found


class Parsed(BaseException):
    """Raised in place of what a script does once it has understood its arguments. No script catches it."""


def call(monkeypatch: pytest.MonkeyPatch, words: list[str]) -> int:
    """A command of a page in this process -> its exit status."""
    monkeypatch.setattr(sys, "argv", words)
    try:
        runpy.run_path(str(ROOT / words[0]), run_name="__main__")
    except SystemExit as ended:
        return ended.code if isinstance(ended.code, int) else int(ended.code is not None)
    return 0


def understood(monkeypatch: pytest.MonkeyPatch, words: list[str]) -> argparse.Namespace:
    """The arguments as the script takes them; the test fails where it does not know one."""

    def stop(parse: Any) -> Any:
        def parse_and_stop(*arguments: Any, **named: Any) -> None:
            raise Parsed(parse(*arguments, **named))

        return parse_and_stop

    with monkeypatch.context() as patch:
        for name in ("parse_args", "parse_intermixed_args"):
            patch.setattr(argparse.ArgumentParser, name, stop(getattr(argparse.ArgumentParser, name)))
        with pytest.raises(Parsed) as parsed:
            call(patch, words)
    return parsed.value.args[0]


def write_coco(folder: Path) -> None:
    """train.json, val.json and one folder of images: drawn ones, moved to where a user has theirs."""
    drawn = generate(
        GeneratedConfig(train_images=2, val_images=2, width=96, height=64),
        folder.parent / "drawn",
    )
    (folder / "images").mkdir(parents=True)
    for part in ("train", "val"):
        content = json.loads((drawn / f"{part}.json").read_text())
        for image in content["images"]:
            name = f"{part}-{image['file_name']}"
            shutil.copy(drawn / part / image["file_name"], folder / "images" / name)
            image["file_name"] = name
        (folder / f"{part}.json").write_text(json.dumps(content))


def write_voc(folder: Path) -> None:
    """Splits `trainval` and `test`, of two pictures with a box each."""
    for name in ("JPEGImages", "Annotations", "ImageSets/Main"):
        (folder / name).mkdir(parents=True)
    for split, name in (("trainval", "a"), ("trainval", "b"), ("test", "c"), ("test", "d")):
        Image.new("RGB", (96, 64), (90, 120, 40)).save(folder / "JPEGImages" / f"{name}.jpg")
        with open(folder / "ImageSets/Main" / f"{split}.txt", "a") as names:
            names.write(f"{name}\n")
        (folder / "Annotations" / f"{name}.xml").write_text(
            f"<annotation><filename>{name}.jpg</filename><size><width>96</width><height>64</height></size><object>"
            "<name>nut</name><bndbox><xmin>8</xmin><ymin>8</ymin><xmax>60</xmax><ymax>50</ymax></bndbox></object>"
            "</annotation>"
        )
