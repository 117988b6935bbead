"""What a detector costs: parameters, FLOPs and latency; and the table of teacher against student."""

from __future__ import annotations

from dataclasses import dataclass

import torch
from torch.utils.flop_counter import FlopCounterMode

from gid_cuda.config import InputConfig
from gid_cuda.detectors.outputs import Detector
from gid_cuda.engine.setup import count_parameters
from gid_cuda.export.student import Model
from gid_cuda.timing import Timer


@dataclass
class Cost:
    """parameters: count. flops: of one image, a multiply-add is two. seconds: of `predict`, one image, the median."""

    parameters: int
    flops: int
    seconds: float


@dataclass
class Row:
    """One line of the table. ap: percent, None where it is not known."""

    name: str
    cost: Cost
    ap: float | None


def input_size(config: InputConfig) -> tuple[int, int]:
    """(height, width) of the largest image that evaluation gives the network, in landscape format, before padding."""
    return min(config.min_size[-1], config.max_size), config.max_size


@torch.no_grad()
def cost(detector: Detector, config: InputConfig, device: torch.device, *, min_run_time: float = 1.0) -> Cost:
    """One image of `input_size` through `predict`: resizing, network and removal of duplicates.

    FLOPs are of convolutions and matrix products, as torch.utils.flop_counter counts. min_run_time: seconds.
    """
    detector = detector.to(device).eval()
    image = torch.rand(3, *input_size(config), generator=torch.Generator().manual_seed(0)).to(device)
    with FlopCounterMode(display=False) as counter:
        detector.predict([image])
    timer = Timer(
        "detector.predict([image])",
        globals={"detector": detector, "image": image},
        num_threads=torch.get_num_threads(),
    )
    seconds = timer.blocked_autorange(min_run_time=min_run_time).median
    return Cost(count_parameters(detector), counter.get_total_flops(), seconds)


def rows(student: Model, teacher: Model | None, device: torch.device, *, min_run_time: float = 1.0) -> list[Row]:
    """The teacher first, measured at the student's input size."""
    size = student.config.input
    models = [("teacher", teacher), ("student", student)]
    return [
        Row(name, cost(model.detector, size, device, min_run_time=min_run_time), model.ap)
        for name, model in models
        if model is not None
    ]


def table(lines: list[Row]) -> str:
    """Markdown that reads well in a terminal, too. With a teacher, how many times as much it costs."""
    head = ["", "parameters", "FLOPs", "latency", "AP"]
    body = [_cells(row) for row in lines]
    if len(lines) == 2:
        large, small = lines[0].cost, lines[1].cost
        pairs = [(large.parameters, small.parameters), (large.flops, small.flops), (large.seconds, small.seconds)]
        body.append(["teacher / student", *(f"{a / b:.2f}x" if b else "-" for a, b in pairs), ""])
    widths = [max(len(row[i]) for row in [head, *body]) for i in range(len(head))]
    rule = ["-" * widths[0], *("-" * (width - 1) + ":" for width in widths[1:])]
    cells = [
        [row[0].ljust(widths[0]), *(cell.rjust(width) for cell, width in zip(row[1:], widths[1:], strict=True))]
        for row in [head, *body]
    ]
    return "\n".join("| " + " | ".join(row) + " |" for row in [cells[0], rule, *cells[1:]])


def _cells(row: Row) -> list[str]:
    return [
        row.name,
        f"{row.cost.parameters / 1e6:.2f} M",
        f"{row.cost.flops / 1e9:.2f} G",
        f"{row.cost.seconds * 1e3:.1f} ms",
        "-" if row.ap is None else f"{row.ap:.1f}",
    ]
