"""Which GPUs there are, and whether the CUDA kernels that were built run on them."""

from __future__ import annotations

from collections.abc import Iterable
from dataclasses import dataclass

import torch

from gid_cuda import _library
from gid_cuda.errors import UserError

OLDEST_OF_CUDA_13 = (7, 5)


@dataclass(frozen=True)
class Gpu:
    name: str
    capability: tuple[int, int]  # (9, 0): architecture 9.0


def visible_gpus() -> list[Gpu]:
    return [_gpu(i) for i in range(torch.cuda.device_count())] if torch.cuda.is_available() else []


def _gpu(device: int | torch.device) -> Gpu:
    return Gpu(torch.cuda.get_device_name(device), torch.cuda.get_device_capability(device))


def require_kernels(device: torch.device) -> None:
    """UserError where the CUDA kernels are loaded and have no code for this GPU: no call of one would return.

    Where they are not loaded at all, plain PyTorch takes their place.
    """
    if device.type != "cuda" or _library.cuda_missing_reason() is not None:
        return
    gpu = _gpu(device)
    if not covered(gpu):
        why = _not_built_for([gpu], visible_gpus())
        raise UserError(f"gid_cuda's CUDA kernels do not run on the {gpu.name}: {why}, or take device cpu")


def cuda_hindrance(gpus: list[Gpu]) -> str | None:
    """Why no CUDA kernel runs here, or not on every one of the GPUs, and what mends it; None where all is well."""
    if reason := _library.cuda_missing_reason():
        return reason
    if not gpus:
        return "torch sees no GPU; `nvidia-smi` lists those that the driver sees, CUDA_VISIBLE_DEVICES may hide them"
    missing = [gpu for gpu in gpus if not covered(gpu)]
    return _not_built_for(missing, gpus) if missing else None


def _not_built_for(missing: list[Gpu], gpus: list[Gpu]) -> str:
    """And what mends it for all GPUs: a build for those that are missing alone would leave the others without."""
    told = f"none were built for architecture {architectures(missing)}"
    cuda = str(_library.build_info()["cuda"])
    oldest = OLDEST_OF_CUDA_13 if int(cuda.split(".")[0]) >= 13 else (0, 0)
    if any(gpu.capability < oldest for gpu in missing):
        since = ".".join(map(str, oldest))
        return f"{told}, and CUDA {cuda} builds for {since} and later alone; choose GPUs with CUDA_VISIBLE_DEVICES"
    possible = [gpu for gpu in gpus if gpu.capability >= oldest]
    command = f'TORCH_CUDA_ARCH_LIST="{architectures(possible)}+PTX" {_library.BUILD_COMMAND}'
    return f"{told}; run `{command}` in the source folder"


def architectures(gpus: Iterable[Gpu]) -> str:
    return " ".join(f"{major}.{minor}" for major, minor in sorted({gpu.capability for gpu in gpus}))


def covered(gpu: Gpu) -> bool:
    """True where the kernels that were built have code for this GPU."""
    return covers(_library.build_info()["architectures"], gpu.capability)


def covers(built_for: list[str], capability: tuple[int, int]) -> bool:
    """True where kernels built for these architectures ("8.0", "9.0a", "9.0+PTX") run on a GPU of this capability."""
    for entry in built_for:
        number, _, ptx = entry.partition("+")
        built = tuple(int(part) for part in number.rstrip("af").split("."))
        within = built[0] == capability[0] and built[1] <= capability[1]  # of the same generation, not older
        if number.endswith("a"):  # code for one architecture alone; with f for its family, PTX as well
            runs = built == capability
        else:
            runs = within or (bool(ptx) and not number.endswith("f") and built <= capability)
        if runs:
            return True
    return False
