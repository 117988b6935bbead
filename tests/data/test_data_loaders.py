"""Loaders: order and flips are a function of seed and position, whatever the workers; broken files are told."""

from __future__ import annotations

import itertools
import pickle
import subprocess
import sys
from pathlib import Path

import pytest
import torch
from data_helpers import CocoSet

from gid_cuda.data import Batch, DetectionDataset, Sample, UnreadableImage, build_loader
from gid_cuda.data.loaders import mirror
from gid_cuda.errors import UserError


@pytest.fixture
def data(tmp_path: Path) -> DetectionDataset:
    """Seven images of different sizes; image i has i boxes."""
    made = CocoSet(tmp_path / "seven")
    for i in range(7):
        key = made.image(f"{i}.png", 20 + i, 12 + i)
        for j in range(i):
            made.box(key, [j, 1, 5, 6], [1, 4, 7][j % 3])
    return made.build()


def take(data: DetectionDataset, count: int, **more: object) -> list[Batch]:
    options = {"batch_size": 3, "workers": 0, "train": True, "seed": 5, "hflip": 0.5} | more
    return list(itertools.islice(build_loader(data, **options), count))  # type: ignore[arg-type]


def same(left: Batch, right: Batch) -> bool:
    return (
        left.image_ids == right.image_ids
        and left.paths == right.paths
        and left.unreadable == right.unreadable
        and all(torch.equal(a, b) for a, b in zip(left.images, right.images, strict=True))
        and all(
            torch.equal(a["boxes"], b["boxes"]) and torch.equal(a["labels"], b["labels"])
            for a, b in zip(left.targets, right.targets, strict=True)
        )
    )


def test_batches(data: DetectionDataset) -> None:
    batches = take(data, 9)
    for batch in batches:
        assert len(batch.images) == len(batch.targets) == len(batch.image_ids) == len(batch.paths) == 3
        for image, target, key in zip(batch.images, batch.targets, batch.image_ids, strict=True):
            assert image.dtype == torch.uint8 and image.shape == (3, 2 + key, 10 + key)
            assert target["boxes"].shape == (key - 10, 4) and target["labels"].shape == (key - 10,)


def test_each_epoch_has_every_image_once_in_another_order(data: DetectionDataset) -> None:
    order = [key for batch in take(data, 7) for key in batch.image_ids]  # 21 draws: three epochs
    epochs = [order[:7], order[7:14], order[14:]]
    assert all(sorted(epoch) == data.image_ids for epoch in epochs)
    assert epochs[0] != epochs[1] != epochs[2]


@pytest.mark.parametrize("start", [1, 2, 3, 8])
def test_start_step_continues_exactly(data: DetectionDataset, start: int) -> None:
    whole, rest = take(data, start + 4), take(data, 4, start_step=start)
    assert all(same(left, right) for left, right in zip(whole[start:], rest, strict=True))


def test_worker_count_does_not_matter(data: DetectionDataset) -> None:
    here = take(data, 8)
    for start in (0, 3):
        away = take(data, 8 - start, workers=2, start_step=start)
        assert all(same(left, right) for left, right in zip(here[start:], away, strict=True))


def test_seed_matters_and_the_global_generator_is_left_alone(data: DetectionDataset) -> None:
    torch.manual_seed(3)
    before = torch.get_rng_state()
    one = take(data, 7)
    assert torch.equal(torch.get_rng_state(), before)
    torch.manual_seed(4)
    assert all(same(left, right) for left, right in zip(one, take(data, 7), strict=True))
    other = take(data, 7, seed=6)
    assert [b.image_ids for b in one] != [b.image_ids for b in other]
    assert take(data, 1, seed=-1)[0].images


def test_flips_are_drawn_at_random_and_only_where_asked_for(data: DetectionDataset) -> None:
    plain = {data[i].image_id: data[i] for i in range(len(data))}

    def flipped(hflip: float) -> list[bool]:
        found = []
        for batch in take(data, 14, hflip=hflip):
            for image, target, key in zip(batch.images, batch.targets, batch.image_ids, strict=True):
                turned = mirror(plain[key])
                found.append(torch.equal(image, turned.image))
                expected = turned if found[-1] else plain[key]
                assert torch.equal(image, expected.image) and torch.equal(target["boxes"], expected.boxes)
        return found

    assert not any(flipped(0.0)) and all(flipped(1.0))
    assert 0 < sum(flipped(0.5)) < 42
    by_image = list(zip(*[iter(flipped(0.5))] * 7, strict=True))
    assert len(set(by_image)) > 1  # drawn anew in each epoch


def test_mirror_moves_boxes() -> None:
    image = torch.arange(2 * 3 * 10, dtype=torch.uint8).reshape(2, 3, 10)
    boxes = torch.tensor([[1.0, 0.0, 4.0, 2.0], [0.0, 1.0, 10.0, 3.0]])
    sample = Sample(image, boxes, torch.tensor([0, 1]), 1, "")
    turned = mirror(sample)
    assert turned.boxes.tolist() == [[6, 0, 9, 2], [0, 1, 10, 3]]
    assert torch.equal(turned.image[..., 6:9], image[..., 1:4].flip(-1))
    assert mirror(turned).boxes.tolist() == boxes.tolist()


def test_evaluation_goes_once_in_order(data: DetectionDataset) -> None:
    loader = build_loader(data, batch_size=3, workers=0, train=False, hflip=1.0)
    for _ in range(2):
        batches = list(loader)
        assert [batch.image_ids for batch in batches] == [[10, 11, 12], [13, 14, 15], [16]]
        assert torch.equal(batches[0].images[1], data[1].image)
    assert len(loader) == 3


@pytest.mark.parametrize("workers", [0, 2])
def test_unreadable_images(data: DetectionDataset, workers: int) -> None:
    """In training the next readable image stands in; in evaluation the image is left out."""
    for i in (2, 3):
        data.path(i).write_bytes(b"broken")
    batches = take(data, 7, workers=workers)
    order = [key for batch in batches for key in batch.image_ids]
    assert len(order) == 21 and {12, 13}.isdisjoint(order) and order.count(14) == 9
    told = {text for batch in batches for text in batch.unreadable}
    assert {text.split(": ")[0] for text in told} == {str(data.path(2)), str(data.path(3))}
    evaluated = list(build_loader(data, batch_size=2, workers=workers, train=False))
    assert [batch.image_ids for batch in evaluated] == [[10, 11], [], [14, 15], [16]]
    assert [len(batch.unreadable) for batch in evaluated] == [0, 2, 0, 0]


@pytest.mark.parametrize("workers", [0, 1])
def test_nothing_readable(data: DetectionDataset, workers: int) -> None:
    """The sentence arrives as it was, not inside the traceback of a worker."""
    for i in range(7):
        data.path(i).write_bytes(b"broken")
    with pytest.raises(UserError, match="^7 images in a row could not be decoded, the last one being .*: not an") as e:
        take(data, 1, workers=workers)
    assert "\n" not in str(e.value)


def test_data_sets_and_errors_travel_to_other_processes(data: DetectionDataset) -> None:
    again = pickle.loads(pickle.dumps(data))
    assert torch.equal(again[3].image, data[3].image) and again.classes == data.classes
    error = pickle.loads(pickle.dumps(UnreadableImage("x: y")))
    assert isinstance(error, UserError) and str(error) == "x: y"


@pytest.mark.cuda
@pytest.mark.skipif(not torch.cuda.is_available(), reason="no GPU")
def test_pinned(data: DetectionDataset) -> None:
    batch = take(data, 1, pin_memory=True)[0]
    assert all(image.is_pinned() for image in batch.images)
    assert same(batch, take(data, 1)[0])


@pytest.mark.parametrize("train", [True, False])
def test_a_batch_comes_from_its_worker_in_three_tensors(data: DetectionDataset, train: bool) -> None:
    """Each tensor that another process sends takes a file handle, of which there are about a thousand."""
    (batch, *_), (expected, *_) = (take(data, 1, workers=workers, batch_size=6, train=train) for workers in (1, 0))
    assert same(batch, expected)
    for tensors in (
        batch.images,
        [target["boxes"] for target in batch.targets],
        [target["labels"] for target in batch.targets],
    ):
        assert len({tensor.untyped_storage().data_ptr() for tensor in tensors}) == 1
        assert all(tensor.is_shared() and tensor.is_contiguous() for tensor in tensors)


def test_a_batch_without_images_is_packed_too() -> None:
    empty = Batch(unreadable=["one.jpg: broken"])
    again = pickle.loads(pickle.dumps(empty))
    assert same(again, empty) and again.images == [] and again.targets == []


def test_a_program_that_fails_does_not_wait_for_its_loaders(tmp_path: Path) -> None:
    """They heed no SIGTERM, which Python sends them at its end before it waits for them."""
    program = f"""
from pathlib import Path
from gid_cuda.config import GeneratedConfig
from gid_cuda.data import DetectionDataset, build_loader
from gid_cuda.data.coco import read_coco
from gid_cuda.data.generated import generate
folder = generate(GeneratedConfig(train_images=2, val_images=1, width=64, height=48), Path({str(tmp_path)!r}))
images = DetectionDataset(read_coco(folder / "train.json", folder / "train", None))
batches = iter(build_loader(images, batch_size=1, workers=2, train=True))
next(batches)
raise RuntimeError("out of memory")
"""
    run = subprocess.run([sys.executable, "-c", program], capture_output=True, text=True, timeout=100)
    assert run.returncode == 1 and run.stderr.rstrip().endswith("RuntimeError: out of memory")
