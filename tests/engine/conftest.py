from __future__ import annotations

from collections.abc import Iterator
from pathlib import Path

import pytest
from engine_helpers import plain_config
from zygote import Zygote

from gid_cuda.data import build_dataset


@pytest.fixture(scope="session")
def data(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """The tiny generated data set, written once."""
    root = tmp_path_factory.mktemp("data")
    build_dataset(plain_config(root, root).data, "train")
    return root


@pytest.fixture(scope="session")
def teacher(data: Path, tmp_path_factory: pytest.TempPathFactory) -> Path:
    """The checkpoint of a teacher of three steps."""
    from gid_cuda.engine.trainer import train  # at the top a missing package would stop the tests of other folders too

    output = tmp_path_factory.mktemp("teacher") / "run"
    train(plain_config(data, output, "model.fpn_channels=24", "seed=1"))
    return output / "best.pt"


@pytest.fixture(scope="session")
def whole_session_zygote(tmp_path_factory: pytest.TempPathFactory) -> Iterator[Zygote]:
    zygote = Zygote(tmp_path_factory.mktemp("processes"))
    yield zygote
    zygote.close()


@pytest.fixture
def zygote(whole_session_zygote: Zygote) -> Iterator[Zygote]:
    """Starts real processes quickly, and ends those that a test leaves."""
    yield whole_session_zygote
    whole_session_zygote.end_all()


@pytest.fixture(scope="module")
def one_thread() -> Iterator[None]:
    """As in the processes that tests start: two threads sum in another order, and bits differ."""
    import torch

    before = torch.get_num_threads()
    torch.set_num_threads(1)
    yield
    torch.set_num_threads(before)
