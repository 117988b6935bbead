"""Builds the two libraries of gid_cuda; everything else about the package stands in pyproject.toml."""

from __future__ import annotations

import sys
from pathlib import Path

from setuptools import Extension, setup

sys.path.insert(0, str(Path(__file__).resolve().parent))

from build_tools.compile import BuildLibraries  # noqa: E402

setup(
    ext_modules=[Extension("gid_cuda._C", []), Extension("gid_cuda._C_cuda", [], optional=True)],
    cmdclass={"build_ext": BuildLibraries},
)
