"""Two images with boxes, and the same random numbers for every test."""

from __future__ import annotations

from typing import Any

import pytest
import torch
import torchvision
from torch import Tensor


@pytest.fixture
def images() -> list[Tensor]:
    return [torch.rand(3, 70, 110), torch.rand(3, 96, 64)]


@pytest.fixture
def targets() -> list[dict[str, Tensor]]:
    return [
        {"boxes": torch.tensor([[10.0, 12, 50, 60], [30, 5, 100, 40]]), "labels": torch.tensor([2, 0])},
        {"boxes": torch.tensor([[5.0, 20, 60, 90]]), "labels": torch.tensor([1])},
    ]


@pytest.fixture(autouse=True)
def _seeded() -> None:
    torch.manual_seed(0)


@pytest.fixture
def downloads(monkeypatch: pytest.MonkeyPatch) -> dict[str, Any]:
    """url -> state dict, in place of the network."""
    states: dict[str, Any] = {}

    monkeypatch.setattr(torchvision.models._api, "load_state_dict_from_url", lambda url, **options: states[url])
    return states
