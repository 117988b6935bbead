"""Batches of one orientation: which images they hold, in which order, and that nothing but their mixture changes."""

from __future__ import annotations

import itertools
from pathlib import Path

import numpy as np
import pytest
import torch
from data_helpers import CocoSet, picture

from gid_cuda.data import Batch, UnlabeledImages, build_loader, build_training, images
from gid_cuda.data.sampler import Draw, GroupedSampler, TrainSampler, window_length

Batches = list[list[Draw]]


def take(
    upright: list[bool], count: int, *, size: int = 4, window: int = 0, seed: int = 5, start: int = 0
) -> Batches:
    """upright: of each image, whether it is portrait. window 0: the batches without grouping."""
    draws = TrainSampler(len(upright), size, seed, start, 0.5)
    known = np.array(upright)
    grouped = GroupedSampler(draws, lambda indices: known[list(indices)], window) if window else draws
    return list(itertools.islice(grouped, count))


def orientations(batches: Batches, upright: list[bool]) -> list[list[bool]]:
    return [[upright[index] for index, _ in batch] for batch in batches]


def windows(batches: Batches, length: int) -> list[Batches]:
    return [batches[i : i + length] for i in range(0, len(batches), length)]


def flat(batches: Batches) -> list[Draw]:
    return [draw for batch in batches for draw in batch]


MIXED = [i % 3 == 0 for i in range(50)]


@pytest.mark.parametrize("upright", [True, False])
def test_a_set_of_one_orientation_is_left_as_it_is(upright: bool) -> None:
    alike = [upright] * 23
    assert take(alike, 40, window=5) == take(alike, 40)
    assert take(MIXED, 40, window=12) != take(MIXED, 40)


def test_a_window_has_its_draws_and_at_most_one_batch_that_mixes() -> None:
    plain, grouped = take(MIXED, 120), take(MIXED, 120, window=12)
    mixing = 0
    for before, after in zip(windows(plain, 12), windows(grouped, 12), strict=True):
        assert sorted(flat(before)) == sorted(flat(after)) and {len(batch) for batch in after} == {4}
        mixed = [batch for batch in orientations(after, MIXED) if len(set(batch)) > 1]
        assert len(mixed) <= 1
        assert all(batch == sorted(batch) for batch in mixed)  # portraits last: its parts mix less
        mixing += len(mixed)
    assert 0 < mixing and sum(len(set(batch)) > 1 for batch in orientations(plain, MIXED)) > 90


def test_every_image_is_shown_in_every_epoch() -> None:
    """Exactly once where the windows are epochs, otherwise at most a window away from where it would have been."""
    upright, window = MIXED[:48], window_length((48, 4))
    assert window == 12
    for epoch in windows(take(upright, 60, window=window), window):
        assert sorted(index for index, _ in flat(epoch)) == list(range(48))
    shown = np.bincount([index for index, _ in flat(take(MIXED, 12 * 25, window=12))])
    assert shown.tolist() == [24] * 50  # 1200 draws, 24 epochs


def test_the_draws_of_an_orientation_keep_their_order_in_a_batch_and_its_flips() -> None:
    place = {draw: i for i, draw in enumerate(flat(take(MIXED, 12)))}
    for batch in take(MIXED, 12, window=12):
        for upright in (True, False):
            own = [place[draw] for draw in batch if MIXED[draw[0]] == upright]
            assert own == sorted(own)


def test_batches_of_a_window_are_shuffled_by_seed_and_window() -> None:
    upright = MIXED[:48]  # a window is an epoch, so that nothing but the shuffle decides where its 4 batches go

    def portraits(seed: int) -> list[list[bool]]:
        kinds = [all(batch) for batch in orientations(take(upright, 240, window=12, seed=seed), upright)]
        return [kinds[i : i + 12] for i in range(0, 240, 12)]

    found = portraits(5)
    assert found == portraits(5) != portraits(6)
    assert len({tuple(kinds) for kinds in found}) > 10
    assert min(sum(kinds[i] for kinds in found) for i in range(12)) > 0  # in no place of a window are there none


@pytest.mark.parametrize("start", [1, 11, 12, 13, 40])
def test_it_goes_on_exactly_from_any_step(start: int) -> None:
    assert take(MIXED, 30, window=12, start=start) == take(MIXED, start + 30, window=12)[start:]


@pytest.mark.parametrize(
    ("sets", "length"),
    [([(118_000, 16)], 64), ([(300, 16)], 18), ([(5, 16)], 1), ([(118_000, 16), (40, 4)], 10), ([(40, 4), (9, 3)], 3)],
)
def test_a_window_is_no_longer_than_an_epoch(sets: list[tuple[int, int]], length: int) -> None:
    assert window_length(*sets) == length


def test_an_image_is_twice_in_a_window_at_most() -> None:
    window = window_length((len(MIXED), 4))
    for batches in windows(take(MIXED, 20 * window, window=window), window):
        assert max(np.bincount([index for index, _ in flat(batches)])) <= 2


def test_batches_that_are_joined_agree() -> None:
    """Labelled and unlabelled images: half of either are portrait, and both windows are an epoch."""
    labelled, others = [i % 2 == 0 for i in range(64)], [i < 64 for i in range(128)]
    window = window_length((64, 4), (128, 8))
    pairs = zip(
        orientations(take(labelled, 160, size=4, window=window), labelled),
        orientations(take(others, 160, size=8, window=window), others),
        strict=True,
    )
    assert all(len({*one, *other}) == 1 for one, other in pairs)


@pytest.fixture
def coco(tmp_path: Path) -> CocoSet:
    """Twelve images, every third of them higher than wide, with a box each."""
    made = CocoSet(tmp_path / "twelve")
    for i in range(12):
        size = (12, 20) if i % 3 == 0 else (20, 12)
        made.box(made.image(f"{i:02d}.png", *size), [1, 2, 5, 6], [1, 4, 7][i % 3])
    return made


def load(data: object, count: int, **more: object) -> list[Batch]:
    options = {"batch_size": 4, "workers": 0, "train": True, "seed": 5, "hflip": 0.5, "group_window": 3} | more
    return list(itertools.islice(build_loader(data, **options), count))  # type: ignore[arg-type]


@pytest.mark.parametrize("workers", [0, 2])
def test_the_loader_groups(coco: CocoSet, workers: int) -> None:
    data = coco.build()
    batches, start = load(data, 12), 4
    for batch in batches:  # 4 of 12 are portrait: exactly a batch an epoch
        assert len({image.shape for image in batch.images}) == 1
    for one, other in zip(batches[start:], load(data, 12 - start, workers=workers, start_step=start), strict=True):
        assert one.image_ids == other.image_ids
        assert all(torch.equal(a, b) for a, b in zip(one.images, other.images, strict=True))
    plain = load(data, 12, group_window=0)
    assert any(len({image.shape for image in batch.images}) == 2 for batch in plain)
    evaluated = list(build_loader(data, batch_size=4, workers=0, train=False, group_window=3))
    assert [key for batch in evaluated for key in batch.image_ids] == data.image_ids


@pytest.mark.parametrize("parts", [1, 2])
def test_processes_share_the_batches_of_one(coco: CocoSet, parts: int) -> None:
    data = coco.build()
    for k, whole in enumerate(load(data, 9)):
        first, second = (load(data, 9, rank=rank, processes=2, parts=parts)[k].image_ids for rank in (0, 1))
        together = first + second if parts == 1 else [first[0], second[0], first[1], second[1]]
        assert together == whole.image_ids


def test_no_file_is_opened_whose_size_is_known(coco: CocoSet, monkeypatch: pytest.MonkeyPatch) -> None:
    coco.image("12.png", 16, 16)  # a square counts as portrait
    whole = coco.build()
    labelled, rest = build_training(coco.config(labeled_fraction=0.5, unlabeled={"batch_size": 2}))
    assert rest is not None
    monkeypatch.setattr(images, "_open", lambda path: pytest.fail(f"{path} was opened"))
    for part in (whole, labelled, rest):
        names = [int(part.path(i).stem) for i in range(len(part))]
        assert part.portrait(range(len(part))).tolist() == [name % 3 == 0 for name in names]
    assert rest.portrait([4, 1]).tolist() == [int(rest.path(i).stem) % 3 == 0 for i in (4, 1)]


def test_sizes_that_no_annotations_tell_are_read_once(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """Of the files that are asked for. Squares count as portraits, and so does what cannot be read."""
    files = [tmp_path / f"{i}.png" for i in range(5)]
    for file, size in zip(files, [(8, 6), (6, 8), (7, 7), (9, 4), (9, 4)], strict=True):
        picture(*size, seed=0).save(file)
    files[3].write_bytes(b"broken")
    opened, before = [], images._open
    monkeypatch.setattr(images, "_open", lambda path: (opened.append(path), before(path))[1])
    found = UnlabeledImages(files)
    assert opened == []
    assert found.portrait([1, 0, 1]).tolist() == [True, False, True] and opened == [files[1], files[0]]
    assert found.portrait([2, 3, 0]).tolist() == [True, True, False] and found.portrait([3]).tolist() == [True]
    assert opened == [files[i] for i in (1, 0, 2, 3)]
