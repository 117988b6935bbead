"""How long a call takes, by its median over many runs, its inputs not in the caches."""

from __future__ import annotations

import itertools
import math
import statistics
import time
from collections.abc import Callable, Sequence
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

import torch

from gid_cuda.timing import Timer

Call = Callable[[], Any]

LEAST_RUNS = 3
MOST_RUNS_CUDA = 200
ROUNDS = 2  # all contenders in turn, this many times: what else the machine does then hits all of them
_COPY_BYTES = {"cpu": 1 << 28, "cuda": 1 << 30}
_DEFAULT_CACHE = 1 << 25


@dataclass
class Timing:
    """Seconds of each run; on CUDA those of the device, and host_s is how long the host takes to launch the call."""

    times: list[float] = field(default_factory=list)
    host_s: float | None = None

    @property
    def median(self) -> float:
        return statistics.median(self.times)

    @property
    def iqr(self) -> float:
        """Distance between the quartiles; 0 of a single run."""
        if len(self.times) < 2:
            return 0.0
        first, _, third = statistics.quantiles(self.times, n=4, method="inclusive")
        return third - first


def rotating(call: Callable[..., Any], inputs: Sequence[tuple[Any, ...]]) -> Call:
    """A call without arguments that takes the next of the input sets each time, so that none is in a cache still."""
    turns = itertools.cycle(inputs)
    return lambda: call(*next(turns))


def time_calls(calls: Sequence[Call], device: torch.device, seconds: float) -> list[Timing]:
    """Each call's timing over about `seconds` of runs, the calls taking turns; what has to be compiled is compiled."""
    timings = [Timing() for _ in calls]
    measure = _cuda_times if device.type == "cuda" else _cpu_times
    for _ in range(ROUNDS):
        for call, timing in zip(calls, timings, strict=True):
            times, host = measure(call, device, seconds / ROUNDS)
            timing.times += times
            timing.host_s = host
    return timings


def _cpu_times(call: Call, device: torch.device, seconds: float) -> tuple[list[float], None]:
    timer = Timer("call()", globals={"call": call}, num_threads=torch.get_num_threads())
    least = math.ceil(LEAST_RUNS / ROUNDS)
    times = timer.blocked_autorange(min_run_time=seconds).times
    while len(times) < least:
        start = time.perf_counter()
        call()
        times.append(time.perf_counter() - start)
    return times, None


def _cuda_times(call: Call, device: torch.device, seconds: float) -> tuple[list[float], float]:
    """By device events. Between two runs the device reads a buffer larger than its L2 cache: nothing of the inputs
    stays there, and it is busy until the host has launched the next run, so the events see the device's time alone."""
    buffer = torch.ones(cache_bytes(device) // 2, device=device)  # of 4 bytes each: twice the cache
    call()
    torch.cuda.synchronize(device)
    host = _host_seconds(call, device)
    fill = _event_seconds(lambda: buffer.sum(), device)
    fills = max(1, min(100, math.ceil(1.5 * host / fill)))
    once = _event_seconds(call, device)
    runs = max(LEAST_RUNS, min(MOST_RUNS_CUDA, int(seconds / (once + fills * fill))))
    events = []
    for _ in range(runs):
        for _ in range(fills):
            buffer.sum()
        start, end = torch.cuda.Event(enable_timing=True), torch.cuda.Event(enable_timing=True)
        start.record()
        call()
        end.record()
        events.append((start, end))
    torch.cuda.synchronize(device)
    return [start.elapsed_time(end) / 1e3 for start, end in events], host


def _host_seconds(call: Call, device: torch.device) -> float:
    times = []
    for _ in range(3):
        torch.cuda.synchronize(device)
        start = time.perf_counter()
        call()
        times.append(time.perf_counter() - start)
    torch.cuda.synchronize(device)
    return statistics.median(times)


def _event_seconds(call: Call, device: torch.device) -> float:
    start, end = torch.cuda.Event(enable_timing=True), torch.cuda.Event(enable_timing=True)
    call()
    start.record()
    call()
    end.record()
    torch.cuda.synchronize(device)
    return max(1e-6, start.elapsed_time(end) / 1e3)


def copy_bandwidth(device: torch.device, seconds: float, size: int | None = None) -> float:
    """Bytes a second that copying one large tensor into another moves, bytes read and bytes written both counted."""
    size = size or _COPY_BYTES[device.type]
    pairs = [(torch.ones(size // 4, device=device), torch.ones(size // 4, device=device)) for _ in range(2)]
    (timing,) = time_calls([rotating(lambda target, source: target.copy_(source), pairs)], device, seconds)
    return 2 * size / timing.median


def cache_bytes(device: torch.device) -> int:
    """Size of the last cache before memory: the L2 of a GPU, the L3 of a processor (32 MiB where nothing tells)."""
    if device.type == "cuda":
        return torch.cuda.get_device_properties(device).L2_cache_size
    sizes = [_kilobytes(path) for path in Path("/sys/devices/system/cpu/cpu0/cache").glob("index*/size")]
    return 1024 * max(sizes) if sizes else _DEFAULT_CACHE


def _kilobytes(path: Path) -> int:
    text = path.read_text().strip()
    return int(text[:-1]) * {"K": 1, "M": 1024}[text[-1]]
