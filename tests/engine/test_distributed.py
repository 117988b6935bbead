"""The step of four images by two processes is the step of one: gradients, logged values, what evaluation finds."""

from __future__ import annotations

import socket
from pathlib import Path
from typing import Any

import distributed_cases as cases
import pytest
import torch

Pair = tuple[dict[str, Any], list[dict[str, Any]]]


def free_port() -> int:
    with socket.socket() as one:
        one.bind(("127.0.0.1", 0))
        return one.getsockname()[1]


@pytest.fixture(scope="module")
def results(data: Path, teacher: Path, tmp_path_factory: pytest.TempPathFactory) -> Pair:
    """(by one process, by each of two)."""
    folder = tmp_path_factory.mktemp("processes")
    torch.multiprocessing.spawn(cases.process, args=(free_port(), data, teacher, folder), nprocs=2)
    alone = cases.everything(data, teacher, folder)
    return alone, [torch.load(folder / f"{rank}.pt", weights_only=False) for rank in (0, 1)]


def assert_same_gradients(alone: dict[str, Any], shared: list[dict[str, Any]]) -> None:
    assert len(alone["gradients"]) > 20
    scale = max(gradient.abs().max() for gradient in alone["gradients"])
    assert scale > 1e-3
    for result in shared:
        for found, expected in zip(result["gradients"], alone["gradients"], strict=True):
            torch.testing.assert_close(found, expected, rtol=1e-4, atol=1e-6 * float(scale))


@pytest.mark.parametrize("case", cases.CASES)
def test_gradients_and_values(case: str, results: Pair) -> None:
    alone, shared = results[0][case], [result[case] for result in results[1]]
    assert_same_gradients(alone, shared)
    for result in shared:
        assert result["values"] == pytest.approx(alone["values"], rel=1e-4, abs=1e-6)


@pytest.mark.parametrize("case", cases.CASES)
def test_each_process_has_its_images_of_every_part(case: str, results: Pair) -> None:
    alone, (first, second) = results[0][case], [result[case] for result in results[1]]
    places = ([0, 2], [1, 3]) if case == "gid_accumulated" else ([0, 1], [2, 3])
    assert (list(first["sizes"]), list(second["sizes"])) == places
    assert {**first["sizes"], **second["sizes"]} == alone["sizes"] and len(set(alone["sizes"].values())) > 1


@pytest.mark.parametrize("case", ["retinanet", "fcos", "fcos_torchvision", "gid", "fine_grained"])
def test_a_process_without_any_instance(case: str, results: Pair) -> None:
    """It neither hangs nor drops out."""
    name = f"{case}, second half empty"
    assert_same_gradients(results[0][name], [result[name] for result in results[1]])
    whole = results[0][case]["gradients"]
    assert any(not torch.allclose(a, b) for a, b in zip(whole, results[0][name]["gradients"], strict=True))


@pytest.mark.parametrize("case", ["retinanet", "retinanet_torchvision", "fcos", "fcos_torchvision", "gid"])
def test_a_process_without_any_labelled_image(case: str, results: Pair) -> None:
    name = f"{case}, unlabelled"
    assert_same_gradients(results[0][name], [result[name] for result in results[1]])


def test_evaluation_is_shared_out(results: Pair) -> None:
    """Four images in batches of one, two and three; three images: every one once, on rank 0 in their order."""
    alone, (first, second) = results[0]["evaluation"], [result["evaluation"] for result in results[1]]
    assert first == alone
    assert len(alone["found"][0]["image_ids"]) == 4 and len(alone["found"][0]["results"]) > 4
    assert len(alone["some"]["image_ids"]) == 3
    assert second["metrics"] == alone["metrics"] and alone["metrics"]["images"] == 4
    assert all(found == {"results": [], "image_ids": [], "unreadable": []} for found in second["found"])
