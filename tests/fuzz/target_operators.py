"""The operators: TypeError or ValueError for what does not fit, else the reference's result; and nothing read beside.

Tensors lie in the middle of a larger buffer of NaN (or of huge integers): what an operator reads beside them shows in
its result, and what it writes there is looked for. Sizes are small, strides are anything.
"""

from __future__ import annotations

from collections.abc import Callable
from pathlib import Path
from typing import Any

import torch
from hypothesis import given
from hypothesis import strategies as st
from torch import Tensor

from gid_cuda import ops, reference

Arguments = dict[str, Any]
_MARGIN = 64
_FLOATS = [torch.float32, torch.float32, torch.float16, torch.bfloat16]
_USUAL = [0.0, 1.0, -1.0, 0.5, 3.25, 10.0, 17.0, 40.0, -6.0]
_ODD = [float("nan"), float("inf"), -float("inf"), 3e38, -3e38, 1e-45, -0.0, 65504.0, 1e9]
_ANYTHING = [
    None,
    1.5,
    "x",
    [],
    (1,),
    -1,
    2**62,
    2**70,
    True,
    float("nan"),
    torch.zeros(2),
    torch.zeros(1, 2, 4).double(),
    torch.zeros(2, 3, 4, device="meta"),
    torch.zeros(1, 1, 4).to_sparse(),
    torch.zeros(2, dtype=torch.int64),
]


class Draw:
    """Draws arguments, and keeps the buffers that they lie in."""

    def __init__(self, data: st.DataObject) -> None:
        self._data = data
        self.buffers: list[tuple[Tensor, int, Any]] = []
        self.odd = self.pick([False, False, True])  # values that no network gives: their results are not compared

    def pick(self, values: list[Any]) -> Any:
        return self._data.draw(st.sampled_from(values))

    def tensor(self, shape: tuple[int, ...], dtype: torch.dtype, values: list[Any]) -> Tensor:
        """Contiguous, expanded, transposed in memory, or every second one of the elements."""
        layout = self.pick(["plain", "plain", "expanded", "transposed", "strided"]) if shape else "plain"
        own = (1, *shape[1:]) if layout == "expanded" else shape
        own = (*own[:-1], own[-1] * 2) if layout == "strided" else own
        own = own[::-1] if layout == "transposed" else own
        count = int(torch.Size(own).numel())
        outside = float("nan") if dtype.is_floating_point else dtype == torch.bool or 2**40
        buffer = torch.full((count + 2 * _MARGIN,), outside, dtype=dtype)
        seed = self._data.draw(st.integers(0, 2**32))
        chosen = torch.randint(len(values), (count,), generator=torch.Generator().manual_seed(seed))
        value = buffer[_MARGIN : _MARGIN + count].copy_(torch.tensor(values).to(dtype)[chosen]).view(own)
        self.buffers.append((buffer, count, outside))
        if layout == "expanded":
            return value.expand(shape)
        if layout == "transposed":
            return value.permute(*reversed(range(len(shape))))
        return value[..., ::2] if layout == "strided" else value

    def floats(self, *shape: int, dtype: torch.dtype = torch.float32) -> Tensor:
        return self.tensor(shape, dtype, _USUAL + _ODD if self.odd else _USUAL)

    def boxes(self, *shape: int) -> Tensor:
        return self.floats(*shape, 4)

    def counts(self, images: int, slots: int) -> Tensor | None:
        return self.pick([None, self.tensor((images,), torch.int64, [0, 1, slots, -1, slots + 1, 2**62, -(2**62)])])

    def check_margins(self) -> None:
        for buffer, count, outside in self.buffers:
            for margin in (buffer[:_MARGIN], buffer[_MARGIN + count :]):
                assert bool((margin != margin).all() if outside != outside else (margin == outside).all())


def _scores(draw: Draw, b: int, r: int, c: int) -> Arguments:
    dtype = draw.pick(_FLOATS)
    sizes = draw.pick([None, draw.tensor((b, 2), torch.int64, [0, 8, 40, -1, 2**40])])
    logits = {f"{who}_logits": draw.floats(b, r, c, dtype=dtype) for who in ("teacher", "student")}
    return {**logits, "teacher_boxes": draw.boxes(b, r), "student_boxes": draw.boxes(b, r), "image_sizes": sizes}


def _decoded(draw: Draw, b: int, r: int, c: int) -> Arguments:
    plain = _scores(draw, b, r, c)
    deltas = {"teacher_deltas": plain.pop("teacher_boxes"), "student_deltas": plain.pop("student_boxes")}
    return {**plain, **deltas, "anchors": draw.boxes(r), "distances": draw.pick([True, False])}


def _nms(draw: Draw, b: int, r: int, c: int) -> Arguments:
    groups = draw.pick([None, draw.tensor((b, r), torch.int64, [0, 1, -1, 2**62])])
    return {
        "boxes": draw.boxes(b, r),
        "scores": draw.floats(b, r),
        "k": draw.pick([0, 1, 3, r, r + 5]),
        "groups": groups,
        "iou_threshold": draw.pick([0.0, 0.3, 1.0]),
        "min_size": draw.pick([0.0, 2.0, float("inf")]),
    }


def _align(draw: Draw, b: int, k: int, c: int) -> Arguments:
    dtype, levels = draw.pick(_FLOATS), draw.pick([1, 2, 5])
    features = [draw.floats(b, c, draw.pick([1, 3, 7]), draw.pick([1, 5]), dtype=dtype) for _ in range(levels)]
    return {
        "features": features,
        "boxes": draw.boxes(b, k),
        "counts": draw.counts(b, k),
        "strides": [2**i for i in range(levels)],
        "output_size": draw.pick([1, 2, 7]),
        "sampling_ratio": draw.pick([2, 1, 0, -1]),
        "aligned": draw.pick([True, False]),
        "canonical_level": draw.pick([4, 0, -60, 60]),
    }


def _distance(draw: Draw, b: int, k: int, d: int) -> Arguments:
    return {"x": draw.floats(b, k, d, dtype=draw.pick(_FLOATS)), "counts": draw.counts(b, k)}


def _match(draw: Draw, b: int, r: int, n: int) -> Arguments:
    return {
        "boxes": draw.boxes(b, n),
        "counts": draw.counts(b, n),
        "anchors": draw.boxes(r),
        "high": draw.pick([0.5, 0.7, 0.0, 1.0]),
        "low": 0.0,
        "low_quality": draw.pick([True, False]),
    }


def _classes(draw: Draw, b: int, r: int, c: int) -> Arguments:
    n, dtype = draw.pick([0, 1, 3]), draw.pick(_FLOATS)
    return {
        "logits": draw.floats(b, r, c, dtype=dtype),
        "labels": draw.tensor((b, n), torch.int64, [0, c - 1, c, -1, 2**62]),
        "matched": draw.tensor((b, r), torch.int64, [-2, -1, 0, n - 1, n, 2**62, -(2**62)]),
        "teacher_logits": draw.floats(b, r, c, dtype=draw.pick(_FLOATS)),
        "mask": draw.tensor((b, r), torch.bool, [True, False]),
        "kind": draw.pick(["bce", "focal"]),
    }


def _boxes(draw: Draw, b: int, r: int, n: int) -> Arguments:
    return {
        "deltas": draw.boxes(b, r).to(draw.pick(_FLOATS)),
        "boxes": draw.boxes(b, n),
        "anchors": draw.boxes(r),
        "matched": draw.tensor((b, r), torch.int64, [-2, -1, 0, n - 1, n, 2**62, -(2**62)]),
        "teacher_deltas": draw.boxes(b, r),
        "mask": draw.tensor((b, r), torch.bool, [True, False]),
        "beta": draw.pick([0.1, 1e-30, float("inf")]),
    }


_MAKERS: dict[str, Callable[[Draw, int, int, int], Arguments]] = {
    "gi_score": _scores,
    "decoded_gi_score": _decoded,
    "topk_nms": _nms,
    "multilevel_roi_align": _align,
    "pairwise_distance": _distance,
    "match_anchors": _match,
    "class_losses": _classes,
    "box_losses": _boxes,
}
_GRADIENT = {
    "multilevel_roi_align": "features",
    "pairwise_distance": "x",
    "class_losses": "logits",
    "box_losses": "deltas",
}


def make(folder: Path) -> Callable[[], None]:
    @given(st.sampled_from(sorted(_MAKERS)), st.data())
    def target(name: str, data: st.DataObject) -> None:
        draw = Draw(data)
        sizes = [data.draw(st.sampled_from([1, 2, 3, 0, 9])) for _ in range(3)]
        arguments = _MAKERS[name](draw, *sizes)
        spoilt = draw.pick([None, None, *arguments])
        if spoilt is not None:
            arguments[spoilt] = draw.pick(_ANYTHING)
        try:
            result = _call(name, arguments)
        except (TypeError, ValueError) as error:
            assert str(error) and (spoilt is not None or 0 in sizes), error
            return
        draw.check_margins()
        if not draw.odd and spoilt is None:
            _compare(name, arguments, result)

    return target


def _call(name: str, arguments: Arguments) -> Any:
    """With its gradient, where it has one."""
    arguments, key = dict(arguments), _GRADIENT.get(name, "")
    inputs = arguments.get(key)
    leaves = [
        x for x in (inputs if isinstance(inputs, list) else [inputs]) if isinstance(x, Tensor) and x.is_floating_point()
    ]
    leaves = [x.detach().requires_grad_() for x in leaves]
    if leaves:
        arguments[key] = leaves if isinstance(inputs, list) else leaves[0]
    result = getattr(ops, name)(**arguments)
    if leaves:
        total = sum(part.float().sum() for part in (result if isinstance(result, tuple) else (result,)))
        torch.autograd.grad(total, leaves, allow_unused=True)
    return result


def _compare(name: str, arguments: Arguments, result: Any) -> None:
    plain = dict(arguments)
    if "kind" in plain:
        plain["soft_focal"] = plain.pop("kind") == "focal"
    try:
        expected = getattr(reference, name)(**plain)
    except (IndexError, RuntimeError):  # an index beyond the boxes: the operator has no host that could look at it
        return
    for one, other in zip(*((x if isinstance(x, tuple) else (x,)) for x in (result, expected)), strict=True):
        tolerance = 1e-4 if one.dtype in (torch.float32, torch.int64) else 8 * torch.finfo(one.dtype).eps
        torch.testing.assert_close(
            one.detach().double(), other.detach().double(), rtol=tolerance, atol=tolerance, equal_nan=True
        )
