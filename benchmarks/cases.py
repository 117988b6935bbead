"""A case is one piece of work at one size; its contenders do it in different ways, on the same inputs, in one run."""

from __future__ import annotations

import contextlib
import math
from collections.abc import Callable, Iterator, Sequence
from dataclasses import dataclass, field
from functools import lru_cache
from typing import Any, Literal

import torch
from torch import Tensor

from benchmarks.machine import available_bytes
from benchmarks.timing import Timing, cache_bytes, rotating, time_calls

Role = Literal["ours", "variant", "pytorch", "compile", "instead"]
Comparison = Callable[[Any, Any], str]

LEAST_SETS, MOST_SETS = 2, 32
_USABLE = 0.8  # of the memory that is free: the rest is what the estimates leave out


class DiffersError(Exception):
    """A contender's result is not ours though it should be."""


@dataclass(frozen=True)
class Contender:
    """One way to do the work.

    role:      "ours"; "variant", another kernel of ours, to choose by; "pytorch", the plain version; "compile", the
               same under torch.compile; "instead", what a user would take from torch or torchvision
    call:      takes one input set
    compare:   (our result, this one's) -> what was found, in words; raises DiffersError. None: it computes something
               else, which `note` says
    binding:   a difference is a fault; else it is told alone, as rounding, or seeing fewer boxes, may choose others
    temporary: bytes that it takes beside inputs and outputs, roughly; more than there is, and it is left out
    """

    role: Role
    name: str
    call: Callable[..., Any]
    compare: Comparison | None = None
    binding: bool = True
    note: str = ""
    temporary: int = 0


@dataclass(frozen=True)
class Case:
    """operator: the name that --only takes. work: what of it is done ("forward"). sizes: for tables, e.g. {"B": 2}.

    make(seed) gives an input set, of about input_bytes. moved: bytes that must be moved at least; counted: in words.
    absent: the usual contender that there is none of, and why.
    """

    operator: str
    work: str
    sizes: dict[str, int]
    dtype: str
    make: Callable[[int], tuple[Any, ...]]
    input_bytes: int
    moved: Callable[..., int]
    counted: str
    contenders: list[Contender]
    absent: str = ""

    @property
    def title(self) -> str:
        return f"{self.operator}, {self.work}: {', '.join(f'{k}={v}' for k, v in self.sizes.items())}, {self.dtype}"


@dataclass
class Results:
    """differing: contenders whose result is not ours though it should be, a line each; skipped: what did not run."""

    rows: list[dict[str, Any]] = field(default_factory=list)
    skipped: list[str] = field(default_factory=list)
    differing: list[str] = field(default_factory=list)


def run_case(
    case: Case,
    device: torch.device,
    *,
    seconds: float,
    bandwidth: float,
    results: Results,
    most_sets: int = MOST_SETS,
) -> None:
    """Compare, then time, the contenders of a case; a row each, or a line in `skipped`.

    seconds: of runs, a contender. bandwidth: what shares are of, bytes a second. most_sets: inputs in turn.
    """
    if any(contender.role == "compile" for contender in case.contenders):
        torch._dynamo.reset()  # what was compiled for the case before counts as another shape of the same function
    if device.type == "cuda":
        torch.cuda.empty_cache()
    free = available_bytes(device)
    if free is not None and LEAST_SETS * case.input_bytes > _USABLE * free:
        need = LEAST_SETS * case.input_bytes
        results.skipped.append(f"{case.title}: its inputs need {gigabytes(need)}, {gigabytes(free)} are free")
        return
    if case.absent:
        results.skipped.append(f"{case.title}, {case.absent}")
    inputs = _input_sets(case, device, free, most_sets)
    with _exact_convolutions():
        running, checks = _compared(case, device, inputs[0], results)
    timings = time_calls([rotating(contender.call, inputs) for contender in running], device, seconds)
    moved = case.moved(*inputs[0])
    for contender, check, timing in zip(running, checks, timings, strict=True):
        results.rows.append(_row(case, contender, timing, check, moved, bandwidth, len(inputs)))


@contextlib.contextmanager
def _exact_convolutions() -> Iterator[None]:
    """Without TF32, torch's default on CUDA, whose ten bits would hide what two contenders differ by."""
    before = torch.backends.cudnn.allow_tf32
    torch.backends.cudnn.allow_tf32 = False
    try:
        yield
    finally:
        torch.backends.cudnn.allow_tf32 = before


def _input_sets(case: Case, device: torch.device, free: int | None, most: int) -> list[tuple[Any, ...]]:
    """As many as outgrow the cache twice, as far as memory and `most` allow."""
    sets = math.ceil(2 * cache_bytes(device) / max(1, case.input_bytes))
    if free is not None:
        sets = min(sets, int(0.5 * _USABLE * free / max(1, case.input_bytes)))
    return [case.make(seed) for seed in range(max(LEAST_SETS, min(most, sets)))]


def _compared(
    case: Case, device: torch.device, inputs: tuple[Any, ...], results: Results
) -> tuple[list[Contender], list[str]]:
    """The contenders that run here, and what the comparison of each with ours (the first) said."""
    running, checks = [], []
    expected = None
    for contender in case.contenders:
        title = f"{case.title}, {contender.name}"
        free = available_bytes(device)
        if free is not None and contender.temporary > _USABLE * free:
            results.skipped.append(f"{title}: needs about {gigabytes(contender.temporary)}, {gigabytes(free)} are free")
            continue
        try:
            result = contender.call(*inputs)
        except torch.OutOfMemoryError:
            results.skipped.append(f"{title}: out of memory")
            continue
        except Exception as problem:
            if contender.role != "compile":
                raise
            # torch.compile has no common error for what it cannot do, or for a missing compiler.
            results.skipped.append(f"{title}: {type(problem).__name__}: {str(problem).strip().splitlines()[0][:200]}")
            continue
        check = ""
        if contender.role == "ours":
            expected = result
        elif contender.compare is not None and expected is not None:
            try:
                check = contender.compare(expected, result)
            except DiffersError as difference:
                check = f"DIFFERS: {difference}"
                if contender.binding:
                    results.differing.append(f"{title}: {difference}")
        running.append(contender)
        checks.append(check)
    return running, checks


def _row(
    case: Case, contender: Contender, timing: Timing, check: str, moved: int, bandwidth: float, sets: int
) -> dict[str, Any]:
    return {
        "operator": case.operator,
        "work": case.work,
        "sizes": case.sizes,
        "dtype": case.dtype,
        "role": contender.role,
        "contender": contender.name,
        "median_s": timing.median,
        "iqr_s": timing.iqr,
        "runs": len(timing.times),
        "host_s": timing.host_s,
        "moved_bytes": moved,
        "counted": case.counted,
        # What was not compared computes something else, and moves other bytes.
        "bandwidth_share": moved / timing.median / bandwidth if check or contender.role == "ours" else None,
        "input_sets": sets,
        "check": check,
        "note": contender.note,
    }


def compiled(function: Callable[..., Any]) -> Callable[..., Any]:
    """The function under torch.compile, for the one shape it is called with. That begins with the first call: much is
    imported for it, which who leaves torch.compile out shall not wait for."""
    made: list[Callable[..., Any]] = []

    def call(*inputs: Any, **options: Any) -> Any:
        if not made:
            made.append(torch.compile(function, dynamic=False))
        return made[0](*inputs, **options)

    return call


def without_gradient(function: Callable[..., Any]) -> Callable[..., Any]:
    def forward(*inputs: Any) -> Any:
        with torch.no_grad():
            return function(*inputs)

    return forward


def with_gradient(function: Callable[..., Any]) -> Callable[..., Any]:
    """function and its gradient to those inputs that ask for one: returns the outputs, then the gradients."""

    def forward_and_backward(*inputs: Any) -> tuple[Tensor, ...]:
        outputs = [output for output in tensors(function(*inputs)) if output.requires_grad]
        leaves = [tensor for tensor in tensors(inputs) if tensor.requires_grad]
        cotangents = [cotangent(output.shape, output.dtype, output.device) for output in outputs]
        return (*[o.detach() for o in outputs], *torch.autograd.grad(outputs, leaves, cotangents))

    return forward_and_backward


@lru_cache(maxsize=8)
def cotangent(shape: torch.Size, dtype: torch.dtype, device: torch.device) -> Tensor:
    """What the gradient starts from: not all ones, which would hide what is wrong within an output. One for a sum."""
    if not shape:
        return torch.ones((), dtype=dtype, device=device)
    generator = torch.Generator(device).manual_seed(0)
    return torch.randn(shape, generator=generator, dtype=torch.float32, device=device).to(dtype)


def tensors(values: Any) -> Iterator[Tensor]:
    """All tensors in nested sequences, in their order."""
    if isinstance(values, Tensor):
        yield values
    elif isinstance(values, Sequence) and not isinstance(values, str):
        for value in values:
            yield from tensors(value)


def close(tolerance: float) -> Comparison:
    """Every tensor within `tolerance` of the largest magnitude in it; integers and bools equal."""

    def compare(ours: Any, theirs: Any) -> str:
        worst = 0.0
        for a, b in zip(tensors(ours), tensors(theirs), strict=True):
            if not a.is_floating_point():
                unequal = int((a != b).sum())
                if unequal:
                    raise DiffersError(f"{unequal} of {a.numel()} integers are not ours")
                continue
            a, b = a.detach().float(), b.detach().float()
            scale = float(a.abs().amax().clamp(min=1e-30)) if a.numel() else 1.0
            off = float((a - b).abs().amax()) / scale if a.numel() else 0.0
            if math.isnan(off):
                raise DiffersError("NaN")
            worst = max(worst, off)
        if worst > tolerance:
            raise DiffersError(f"off by {worst:.1e} of the largest value, {tolerance:.0e} allowed")
        return f"equal within {worst:.0e}" if worst else "equal"

    return compare


def slots_agree(ours: Any, theirs: Any) -> str:
    """How many of the chosen boxes are the same; never an error, as the other looks at a part of the boxes only."""
    same = int((ours[0] == theirs[0]).sum())
    return f"{same} of {ours[0].numel()} slots as ours"


def byte_count(*values: Any) -> int:
    """Bytes of all tensors in nested sequences."""
    return sum(tensor.numel() * tensor.element_size() for tensor in tensors(values))


def gigabytes(count: int) -> str:
    return f"{count / 1e9:.1f} GB"


def dtype_name(dtype: torch.dtype) -> str:
    return str(dtype).removeprefix("torch.")
