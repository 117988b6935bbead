"""`data.group_by_aspect` in training: less padding, labelled and unlabelled images of one orientation, exact resume."""

from __future__ import annotations

import itertools
from collections.abc import Sequence
from pathlib import Path
from statistics import mean
from types import SimpleNamespace

import pytest
import torch
from engine_helpers import distilled_config, plain_config
from torchvision.models.detection.image_list import ImageList

from gid_cuda.config import Config, GeneratedConfig
from gid_cuda.data import Batch
from gid_cuda.data.generated import generate
from gid_cuda.engine.batches import padding_share, step_batches, to_device
from gid_cuda.engine.run import Run
from gid_cuda.engine.setup import build_data, build_run
from gid_cuda.engine.trainer import train
from gid_cuda.errors import UserError

ONE_SIZE = ["input.min_size=[64]"]
UNLABELED = ["data.labeled_fraction=0.5", "model.norm=frozen"]


@pytest.fixture(scope="module")
def mixed(tmp_path_factory: pytest.TempPathFactory) -> list[str]:
    """Overrides for a set of which half the images are 96x64 and half 64x96 pixels."""
    root = tmp_path_factory.mktemp("mixed")
    shapes = ((96, 64), (64, 96))
    folders = [generate(GeneratedConfig(train_images=12, val_images=2, width=w, height=h), root) for w, h in shapes]
    sets = ", ".join(f"{{root: {folder}, annotations: train.json, images: train}}" for folder in folders)
    val = f"[{{root: {folders[0]}, annotations: val.json, images: val}}]"
    return ["data.format=coco", f"data.train=[{sets}]", f"data.val={val}"]


def first_batches(config: Config, count: int) -> tuple[Run, list[Batch]]:
    sets = build_data(config.data)
    run = build_run(config, sets.train.classes)
    log = SimpleNamespace(aside=pytest.fail)
    return run, list(itertools.islice(step_batches(config, run, sets, log), count))  # type: ignore[arg-type]


def upright(batch: Batch) -> list[bool]:
    return [image.shape[1] > image.shape[2] for image in batch.images]


def test_padding(data: Path, mixed: Sequence[str], tmp_path: Path) -> None:
    """4 of 24 images a step, and a window of 6 steps, which is an epoch: the 12 portraits are three whole batches."""
    share = {}
    for grouped in (True, False):
        more = [*ONE_SIZE, "train.batch_size=4", f"data.group_by_aspect={str(grouped).lower()}"]
        config = plain_config(data, tmp_path / "run", *mixed, *more)
        run, batches = first_batches(config, 12)
        share[grouped] = mean(padding_share(to_device(config, run, batch)[0]) for batch in batches)
    assert share[True] == 0 and share[False] > 0.2  # in a batch that mixes a third: 96 x 64 of 96 x 96 pixels


def test_share_of_padding() -> None:
    images = ImageList(torch.zeros(2, 3, 10, 20), [(10, 15), (5, 20)])
    assert padding_share(images) == 1 - 250 / 400


@pytest.mark.parametrize(("labelled", "unlabelled"), [(2, 4), (4, 2)])
def test_unlabelled_images_are_of_the_orientation_of_the_labelled(
    labelled: int, unlabelled: int, data: Path, teacher: Path, mixed: Sequence[str], tmp_path: Path
) -> None:
    sizes = [f"train.batch_size={labelled}", f"data.unlabeled.batch_size={unlabelled}"]
    config = distilled_config(data, tmp_path / "run", teacher, *mixed, *UNLABELED, *sizes)
    _, batches = first_batches(config, 30)
    assert all(len(batch.images) == 6 and batch.unlabeled == unlabelled for batch in batches)
    alike = sum(len(set(upright(batch))) == 1 for batch in batches)
    # A window is 3 steps, an epoch of the larger batches. Of labelled and of unlabelled images one in it may mix.
    assert alike > 15  # shuffled each for itself, a third
    _, batches = first_batches(config.model_copy(update={"data": ungrouped(config)}), 30)
    assert sum(len(set(upright(batch))) == 1 for batch in batches) < 5


def ungrouped(config: Config) -> object:
    return config.data.model_copy(update={"group_by_aspect": False})


def test_a_set_of_one_orientation_gives_the_same_batches(data: Path, tmp_path: Path) -> None:
    found = [
        [batch.image_ids for batch in first_batches(plain_config(data, tmp_path / "run", *more), 9)[1]]
        for more in ([], ["data.group_by_aspect=false"])
    ]
    assert found[0] == found[1]


def test_a_run_goes_on_with_its_batches(data: Path, teacher: Path, mixed: Sequence[str], tmp_path: Path) -> None:
    sizes = ["train.batch_size=4", "data.unlabeled.batch_size=4"]
    config = distilled_config(data, tmp_path / "run", teacher, *mixed, *UNLABELED, *sizes)
    sets = build_data(config.data)
    run = build_run(config, sets.train.classes)

    def images(step: int, count: int) -> list[list[torch.Tensor]]:
        run.progress.step = step
        batches = step_batches(config, run, sets, SimpleNamespace(aside=pytest.fail))  # type: ignore[arg-type]
        return [batch.images for batch in itertools.islice(batches, count)]

    whole = images(0, 9)
    for step in (2, 3, 4):  # a window is 3 steps
        for one, other in zip(whole[step:], images(step, 9 - step), strict=True):
            assert all(torch.equal(a, b) for a, b in zip(one, other, strict=True))


def test_resume_needs_the_same_order(data: Path, tmp_path: Path) -> None:
    train(plain_config(data, tmp_path / "run", "train.steps=1"))
    with pytest.raises(UserError, match="was trained with data.group_by_aspect True and the config says False"):
        train(plain_config(data, tmp_path / "run", "data.group_by_aspect=false"), resume=True)
