"""The PEP 517 backend: setuptools', which also asks for the CUDA compiler packages where no CUDA toolkit fits."""

from __future__ import annotations

from setuptools import build_meta
from setuptools.build_meta import *  # noqa: F403
