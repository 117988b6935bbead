"""Which GPUs there are, and whether the CUDA kernels that were built run on them."""

from __future__ import annotations

from collections.abc import Iterable
from dataclasses import dataclass

import torch

from gid_cuda import _library
from gid_cuda.errors import UserError


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
    if why := cuda_hindrance([gpu]):
        raise UserError(f"gid_cuda's CUDA kernels do not run on the {gpu.name}: {why}, or take device cpu")


def cuda_hindrance(gpus: list[Gpu]) -> str | None:
    """Why no CUDA kernel runs here, or not on every one of the GPUs, and what mends it; None where all is well."""
    if reason := _library.cuda_missing_reason():
        return reason
    if not gpus:
        return "torch sees no GPU; `nvidia-smi` lists those that the driver sees, CUDA_VISIBLE_DEVICES may hide them"
    if all(covered(gpu) for gpu in gpus):
        return None
    return (
        f"none were built for architecture {architectures(gpu for gpu in gpus if not covered(gpu))}; run "
        f'`TORCH_CUDA_ARCH_LIST="{architectures(gpus)}" {_library.BUILD_COMMAND}` in the source folder'
    )


def architectures(gpus: Iterable[Gpu]) -> str:
    return " ".join(f"{major}.{minor}" for major, minor in sorted({gpu.capability for gpu in gpus}))


def covered(gpu: Gpu) -> bool:
    """True where the kernels that were built have code for this GPU."""
    return covers(_library.build_info()["architectures"], gpu.capability)


def covers(built_for: list[str], capability: tuple[int, int]) -> bool:
    """True where kernels built for these architectures ("8.0", "9.0a", "9.0+PTX") run on a GPU of this capability."""
    for entry in built_for:
        number, _, ptx = entry.partition("+")
        special = number[-1] in "af"  # code for one architecture alone
        built = tuple(int(part) for part in number.rstrip("af").split("."))
        if built == capability or (ptx and not special and built <= capability):
            return True
        if not special and built[0] == capability[0] and built[1] <= capability[1]:
            return True
    return False
