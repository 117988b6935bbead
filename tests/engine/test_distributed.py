"""The step of four images by two processes is the step of one: gradients, logged values, what evaluation finds."""

from __future__ import annotations

import time
from pathlib import Path
from typing import Any

import distributed_cases as cases
import pytest
import torch
from launched import free_port, of_torchrun
from zygote import PATIENCE

from gid_cuda.data.sampler import positions
from gid_cuda.engine import distributed
from gid_cuda.engine.distributed import processes
from gid_cuda.engine.draws import draws_of_step, process_seed
from gid_cuda.errors import UserError

pytestmark = pytest.mark.usefixtures("one_thread")

Results = tuple[dict[str, Any], list[dict[str, Any]]]
ROUNDINGS = 4  # times the largest one that was measured in a few tries; 1.5 times is what has been seen

@pytest.fixture(scope="module")
def results(one_thread: None, data: Path, teacher: Path, tmp_path_factory: pytest.TempPathFactory) -> Results:
    """(by one process, by each of two)."""
    folder = tmp_path_factory.mktemp("processes")
    two = torch.multiprocessing.spawn(cases.process, args=(free_port(), data, teacher, folder), nprocs=2, join=False)
    deadline = time.monotonic() + 3 * PATIENCE
    while not two.join(timeout=1):
        if time.monotonic() > deadline:
            for process in two.processes:
                process.kill()
            pytest.fail("the two processes do not come to an end")
    alone = cases.everything(data, teacher, folder)
    for name, found in cases.roundings(data, teacher, folder).items():
        alone[name]["rounding"] = found
    return alone, [torch.load(folder / f"{rank}.pt", weights_only=False) for rank in (0, 1)]


def assert_same_gradients(alone: dict[str, Any], shared: list[dict[str, Any]]) -> None:
    """But for float32's rounding, whose size one process shows for each parameter."""
    assert len(alone["gradients"]) > 20
    scale = max(float(gradient.abs().max()) for gradient in alone["gradients"])
    assert scale > 1e-3 and max(alone["rounding"]) < 1e-5 * scale  # rounding, and no other choice of instances
    for result in shared:
        for found, expected, away in zip(result["gradients"], alone["gradients"], alone["rounding"], strict=True):
            least = torch.finfo(torch.float32).eps * float(expected.abs().max())
            torch.testing.assert_close(found, expected, rtol=0, atol=ROUNDINGS * max(away, least))


@pytest.mark.slow
@pytest.mark.parametrize("case", cases.CASES)
def test_gradients_and_values(case: str, results: Results) -> None:
    alone, shared = results[0][case], [result[case] for result in results[1]]
    assert_same_gradients(alone, shared)
    for result in shared:
        assert result["values"] == pytest.approx(alone["values"], rel=1e-4, abs=1e-6)


@pytest.mark.slow
@pytest.mark.parametrize("case", cases.CASES)
def test_each_process_has_its_images_of_every_part(case: str, results: Results) -> None:
    alone, (first, second) = results[0][case], [result[case] for result in results[1]]
    places = ([0, 2], [1, 3]) if case == "gid_accumulated" else ([0, 1], [2, 3])
    assert (list(first["sizes"]), list(second["sizes"])) == places
    assert {**first["sizes"], **second["sizes"]} == alone["sizes"] and len(set(alone["sizes"].values())) > 1


@pytest.mark.slow
@pytest.mark.parametrize("case", cases.EMPTY)
def test_a_process_without_any_instance(case: str, results: Results) -> None:
    """It neither hangs nor drops out."""
    name = f"{case}, second half empty"
    assert_same_gradients(results[0][name], [result[name] for result in results[1]])
    whole = results[0][case]["gradients"]
    assert any(not torch.allclose(a, b) for a, b in zip(whole, results[0][name]["gradients"], strict=True))


@pytest.mark.slow
@pytest.mark.parametrize("case", cases.UNLABELLED)
def test_a_process_without_any_labelled_image(case: str, results: Results) -> None:
    name = f"{case}, unlabelled"
    assert_same_gradients(results[0][name], [result[name] for result in results[1]])


@pytest.mark.slow
def test_evaluation_is_shared_out(results: Results) -> None:
    """Four images in batches of one, two and three; three images: every one once, on rank 0 in their order."""
    alone, (first, second) = results[0]["evaluation"], [result["evaluation"] for result in results[1]]
    assert first == alone
    assert len(alone["found"][0]["image_ids"]) == 4 and len(alone["found"][0]["results"]) > 4
    assert len(alone["some"]["image_ids"]) == 3
    assert second["metrics"] == alone["metrics"] and alone["metrics"]["images"] == 4
    assert all(found == {"results": [], "image_ids": [], "unreadable": []} for found in second["found"])


@pytest.mark.slow
def test_parameters_that_a_process_does_not_use_take_part(results: Results) -> None:
    for result in results[1]:
        found = result["parts in use"]
        assert found["always"].tolist() == [2, 2, 2] and found["sometimes"].tolist() == [1, 1, 1]
        assert found["never"] is None or not found["never"].any()


@pytest.mark.slow
def test_live_batch_norm_is_brought_together(results: Results) -> None:
    assert all(result["running statistics"]["mean"].tolist() == [2, 2] for result in results[1])
    assert results[0]["running statistics"]["mean"].tolist() == [1, 1]


@pytest.mark.slow
def test_the_average_of_live_batch_norm_is_brought_together(results: Results) -> None:
    """Which an evaluation of averaged weights uses: the same on all processes, of the images of all."""
    for result, first, second in [(results[0], 0.0, 4.0), *[(shared, 0.5, 5.0) for shared in results[1]]]:
        decay = 2 / 11  # of the second update
        found = result["averaged weights"]
        assert len(found["average"]) > 10 and all(value == [second] for value in found["student"])
        for value in found["average"]:
            assert value == pytest.approx([decay * first + (1 - decay) * second])


def test_shares_of_a_batch() -> None:
    assert [positions(8, 1, rank, 2) for rank in (0, 1)] == [[0, 1, 2, 3], [4, 5, 6, 7]]
    assert [positions(8, 2, rank, 2) for rank in (0, 1)] == [[0, 1, 4, 5], [2, 3, 6, 7]]
    assert sorted(place for rank in range(3) for place in positions(18, 2, rank, 3)) == list(range(18))


def test_a_batch_that_cannot_be_shared_out(monkeypatch: Any) -> None:
    distributed.check_batch(6, 3)
    monkeypatch.setattr(distributed, "process_count", lambda: 4)
    distributed.check_batch(16, 2)
    with pytest.raises(UserError, match="batch_size 12 .*4 processes x train.accumulate 2: make it a multiple of 8"):
        distributed.check_batch(12, 2)


def test_torchruns_variables_are_missing(monkeypatch: Any) -> None:
    for name in ("LOCAL_RANK", "MASTER_ADDR", "MASTER_PORT", "RANK"):
        monkeypatch.delenv(name, raising=False)
    monkeypatch.setenv("WORLD_SIZE", "2")
    with pytest.raises(UserError, match="RANK, LOCAL_RANK, MASTER_ADDR, MASTER_PORT is missing"), processes():
        pass


def test_a_process_that_is_left_behind_says_what_to_do(monkeypatch: Any) -> None:
    for name, value in of_torchrun(0, 1, free_port()).items():
        monkeypatch.setenv(name, value)
    with pytest.raises(UserError, match="^another process of this run has ended, .* --max-restarts .* --resume does$"):
        with processes():
            raise RuntimeError("[pair.cc:547] Connection closed by peer [127.0.0.1]:20481")


def test_a_machine_that_joins_later_meets_the_others(monkeypatch: Any) -> None:
    """Where torchrun makes a new store each time it counts other restarts than they do."""
    monkeypatch.setenv("TORCHELASTIC_USE_AGENT_STORE", "True")
    monkeypatch.setenv("TORCH_DISABLE_SHARE_RDZV_TCP_STORE", "1")  # not heeded
    found = []
    for restarts in ("0", "1"):
        monkeypatch.setenv("TORCHELASTIC_RESTART_COUNT", restarts)
        found.append(distributed._attempt())
    assert len(set(found)) == 2  # one store for all: the dead must not be found in it
    monkeypatch.setenv("TORCHELASTIC_USE_AGENT_STORE", "False")
    later = distributed._attempt()
    monkeypatch.setenv("TORCHELASTIC_RESTART_COUNT", "0")
    assert distributed._attempt() == later


def test_a_step_s_draws_depend_on_seed_step_and_place_alone() -> None:
    def draws(seed: int, step: int, first: int, count: int) -> list[float]:
        torch.rand(step + first)  # whatever else was drawn
        before = torch.get_rng_state()
        with draws_of_step(seed, step, first):
            found = [torch.empty(1).uniform_().item() for _ in range(count)]
        assert torch.equal(before, torch.get_rng_state())
        return found

    whole = draws(1, 5, 0, 20)
    assert draws(1, 5, 0, 10) + draws(1, 5, 10, 10) == whole and len(set(whole)) == 20
    assert not set(whole) & {*draws(2, 5, 0, 20), *draws(1, 6, 0, 20)}
    assert process_seed(7, 0) == 7 and len({process_seed(seed, rank) for seed in (7, 8) for rank in range(8)}) == 16
