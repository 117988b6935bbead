"""One run on many processes, started by torchrun: who does what, and how they end together.

    torchrun --nproc-per-node 8 scripts/train.py --cfg configs/retina.yaml

Each process has one GPU (or a share of the CPU) and its part of every batch; gradients are averaged by
DistributedDataParallel. The rules:

- train.batch_size is the images of a step over all processes and accumulation parts, and train.lr goes with it. The
  number of processes changes neither: 1 x 16 and 4 x 4 images are the same step, of the same images, sizes and flips,
  with the same gradient (but for rounding, and for what sampling and live batch norm do).
- Only rank 0 writes: the run's folder, its log, the terminal.
- What is wrong is told once: the first process to fail speaks, and the others end with it.

Without torchrun there is one process, and nothing here does anything.
"""

from __future__ import annotations

import atexit
import inspect
import os
import sys
import time
from collections.abc import Callable, Iterator, Mapping, Sequence
from contextlib import AbstractContextManager, contextmanager, nullcontext, suppress
from datetime import timedelta
from typing import Any, TypeVar

import torch
import torch.distributed as dist
from torch import Tensor, nn
from torch.nn.parallel import DistributedDataParallel

from gid_cuda.errors import UserError
from gid_cuda.normalisers import process_count

T = TypeVar("T")

_NEEDED = ("RANK", "WORLD_SIZE", "LOCAL_RANK", "MASTER_ADDR", "MASTER_PORT")
_LONGEST_WAIT = timedelta(minutes=30)  # for the slowest process; that one has died is seen at once
_LAST_MOMENT = 0.2  # seconds
_LOST = ("Connection closed by peer", "Connection reset", "Broken pipe", "Connection refused", "gloo")


def rank() -> int:
    return dist.get_rank() if process_count() > 1 else 0


def is_main() -> bool:
    """The process that writes and speaks."""
    return rank() == 0


def local_rank() -> int:
    """Which process of this machine, and so which of its GPUs."""
    return int(os.environ["LOCAL_RANK"]) if dist.is_initialized() and "LOCAL_RANK" in os.environ else 0


@contextmanager
def processes() -> Iterator[None]:
    """Around all that a process does: joins the processes that torchrun started, and leaves them at the end.

    An error that ends one of them ends all: the first raises it, the others exit in silence. Does nothing without
    torchrun, or where torch.distributed has been initialised already.
    """
    if dist.is_initialized() or not any(name in os.environ for name in ("RANK", "WORLD_SIZE")):
        yield
        return
    store = _join()
    atexit.unregister(last_moment)  # once, however often this is entered
    atexit.register(last_moment)
    try:
        yield
    except BaseException as error:
        _leave_after(error, store)
        raise
    dist.destroy_process_group()


def last_moment() -> None:
    """The last that a process with gloo does: it gives gloo's threads the time to let go of their tensors.

    They do so after those who wait for the work have gone on, and need the interpreter for it. Where that is ending
    by then, the forced end of the thread ends the process by SIGABRT, after a complete run, too (pytorch issue 190489).
    Destroying the group does not wait for them where DistributedDataParallel has been used, and nothing tells when they
    are through: this is time given, of which they need next to none.
    """
    with suppress(KeyboardInterrupt):
        time.sleep(_LAST_MOMENT)


def _join() -> dist.Store:
    missing = [name for name in _NEEDED if name not in os.environ]
    if missing:
        raise UserError(
            f"many processes are started by torchrun, which sets {', '.join(_NEEDED)}; here {', '.join(missing)} "
            "is missing: start with torchrun, or unset RANK and WORLD_SIZE for one process"
        )
    shared, number, count = next(dist.rendezvous("env://"))
    store = dist.PrefixStore(f"gid_cuda/{_attempt()}/{count}", shared)
    # Small things of the host go by gloo, so that nothing waits for a GPU to say a word.
    backend = "cpu:gloo,cuda:nccl" if torch.cuda.is_available() and dist.is_nccl_available() else "gloo"
    dist.init_process_group(backend, store=store, rank=number, world_size=count, timeout=_LONGEST_WAIT)
    if torch.cuda.is_available() and local_rank() < torch.cuda.device_count():
        torch.cuda.set_device(local_rank())
    return dist.PrefixStore("end", store)


def _attempt() -> str:
    """torchrun's store outlives the processes that it restarts: the addresses of the dead must not be found again.

    Where the processes make a new store each time (TORCH_DISABLE_SHARE_RDZV_TCP_STORE, which some ways of starting
    torchrun do not heed), a machine that has joined later counts fewer restarts."""
    torchruns = os.environ.get("TORCHELASTIC_USE_AGENT_STORE") == "True"
    return os.environ.get("TORCHELASTIC_RESTART_COUNT", "0") if torchruns else "0"


def _leave_after(error: BaseException, store: dist.Store) -> None:
    """Raises what is to be told instead of `error`, SystemExit where another process has told it; else returns."""
    first = True  # to be told, if that cannot be found out
    with suppress(Exception):
        first = store.add("told", 1) == 1
    if "nccl" not in dist.get_backend_config():  # NCCL's waits for kernels that may never end; the exit closes it too
        dist.destroy_process_group()
    if not first:
        codes = {SystemExit: getattr(error, "code", 1), KeyboardInterrupt: getattr(error, "status", 130), UserError: 2}
        sys.exit(next((code for kind, code in codes.items() if isinstance(error, kind)), 1))
    if isinstance(error, dist.DistError) or (isinstance(error, RuntimeError) and any(x in str(error) for x in _LOST)):
        raise UserError(
            "another process of this run has ended, so all end: torchrun with --max-restarts starts them again from "
            "the last checkpoint, else --resume does"
        ) from None


def barrier() -> None:
    """Waits on the host until every process is here."""
    if process_count() > 1:
        dist.all_reduce(torch.zeros(1))


@contextmanager
def first_of_each_machine() -> Iterator[None]:
    """One process of each machine goes ahead, the others follow when it is through: for what is written where all can
    see it, and for mistakes that all would tell alike."""
    if local_rank() > 0:
        barrier()
    yield
    if local_rank() == 0:
        barrier()


def on_main(work: Callable[[], T]) -> T:
    """Rank 0 does it, every process gets the result."""
    if process_count() == 1:
        return work()
    box: list[Any] = [work() if is_main() else None]
    dist.broadcast_object_list(box, src=0, device=torch.device("cpu"))
    return box[0]


def gathered(value: T) -> list[T]:
    """On rank 0 the values of all processes in their order, elsewhere nothing."""
    if process_count() == 1:
        return [value]
    box: list[Any] | None = [None] * process_count() if is_main() else None
    dist.gather_object(value, box, dst=0)
    return box or []


def any_process(flag: bool) -> bool:
    """Has one of them raised it? For decisions that all must take in the same step."""
    if process_count() == 1:
        return flag
    raised = torch.tensor([float(flag)])
    dist.all_reduce(raised, op=dist.ReduceOp.MAX)
    return bool(raised.item())


def terms_of_all(parts: Sequence[Mapping[str, Tensor]]) -> list[dict[str, Tensor]]:
    """Scalars by name, one mapping a part of the batch -> those of all processes, rank by rank, on every process.

    A loss is a process's share (see `global_normalisers`): the mean over them is that of the whole batch. Nothing waits
    for the device.
    """
    if process_count() == 1:
        return [dict(part) for part in parts]
    names = list(parts[0])
    own = torch.stack([part[name].detach().float() for part in parts for name in names])
    every = own.new_empty(process_count() * len(own))
    dist.all_gather_into_tensor(every, own)
    return [dict(zip(names, row.unbind(), strict=True)) for row in every.view(-1, len(names))]


def ids_of_all(parts: Sequence[Sequence[int]]) -> list[list[int]]:
    """Image ids, one list a part -> those of all processes in the order of `terms_of_all`."""
    if process_count() == 1:
        return [list(part) for part in parts]
    own = torch.tensor([list(part) for part in parts], dtype=torch.int64)
    every = [torch.empty_like(own) for _ in range(process_count())]
    dist.all_gather(every, own)
    return torch.cat(every).tolist()


def wrap(module: nn.Module) -> nn.Module:
    """In DistributedDataParallel where there are processes. All parameters must get a gradient in each backward."""
    if not dist.is_initialized():
        return module
    # Buffers are not broadcast: frozen ones are equal, running statistics are brought together when they are needed.
    known = inspect.signature(DistributedDataParallel).parameters
    name = "forward_sync_buffers" if "forward_sync_buffers" in known else "broadcast_buffers"  # its name before 2.15
    return DistributedDataParallel(module, gradient_as_bucket_view=True, **{name: False})


def accumulating(module: nn.Module, *, last: bool) -> AbstractContextManager[Any]:
    """Around forward and backward of one part of a batch: gradients go between the processes with the last alone."""
    if isinstance(module, DistributedDataParallel) and not last:
        return module.no_sync()
    return nullcontext()


def running_statistics(module: nn.Module) -> list[Tensor]:
    """Live batch norm's: what training changes besides the parameters."""
    norms = [m for m in module.modules() if isinstance(m, nn.modules.batchnorm._BatchNorm)]
    return [b for m in norms for b in (m.running_mean, m.running_var) if b is not None]


def average_over_processes(buffers: Sequence[Tensor]) -> None:
    """Running statistics are of each process's images; before they are used or saved, all take the mean, in place."""
    if process_count() == 1 or not buffers:
        return
    flat = torch.cat([buffer.float() for buffer in buffers])
    dist.all_reduce(flat)
    for buffer, mean in zip(buffers, (flat / process_count()).split([len(b) for b in buffers]), strict=True):
        buffer.copy_(mean)


def check_batch(batch_size: int, accumulate: int, key: str = "train.batch_size") -> None:
    """UserError where a batch cannot be cut into parts of one size. key: where its size stands in the config."""
    count = process_count()
    if batch_size % (count * accumulate):
        by = f"{count} processes" + (f" x train.accumulate {accumulate}" if accumulate > 1 else "")
        raise UserError(
            f"{key} {batch_size} is the images of a step over all processes and cannot be cut into equal "
            f"parts for {by}: make it a multiple of {count * accumulate}"
        )
