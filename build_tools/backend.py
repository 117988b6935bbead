"""The PEP 517 backend: setuptools', which also asks for the CUDA compiler packages where no CUDA toolkit fits.

`python -m build_tools.backend` prints the packages that it would ask for: those who build without isolation, where pip
does not ask, can install them first.
"""

from __future__ import annotations

from setuptools import build_meta
from setuptools.build_meta import *  # noqa: F403

from build_tools import cuda, host

host.check_setuptools()  # before any hook of it reads pyproject.toml


def get_requires_for_build_wheel(config_settings: dict | None = None) -> list[str]:
    return [*build_meta.get_requires_for_build_wheel(config_settings), *cuda_requirements()]


def get_requires_for_build_editable(config_settings: dict | None = None) -> list[str]:
    return [*build_meta.get_requires_for_build_editable(config_settings), *cuda_requirements()]


def cuda_requirements() -> list[str]:
    """The CUDA compiler packages where they are of use: CUDA kernels wanted, torch with CUDA, no compiler that fits."""
    torch_cuda = host.import_torch().version.cuda
    if cuda.hindrance(torch_cuda) or cuda.find_toolkit(torch_cuda, host.compiler())[0]:
        return []
    return cuda.compiler_packages(torch_cuda)


if __name__ == "__main__":
    for requirement in cuda_requirements():
        print(requirement)
