from __future__ import annotations

import functools
from collections.abc import Callable
from pathlib import Path

import pytest
from emulator import Library, build


@pytest.fixture(scope="session")
def kernels(pytestconfig: pytest.Config, tmp_path_factory: pytest.TempPathFactory) -> Callable[[str], Library]:
    """kernels("gi_score"): the library of kernels/gi_score.cpp, compiled if it has changed since the last session."""
    cache = getattr(pytestconfig, "cache", None)
    folder = Path(cache.mkdir("simt")) if cache else tmp_path_factory.mktemp("simt")
    return functools.lru_cache(maxsize=None)(lambda name: Library(build(name, folder)))
