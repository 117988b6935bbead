"""box_losses' CUDA kernels and its gradient's, emulated, against the reference."""

from __future__ import annotations

from dataclasses import dataclass, replace

import pytest
import torch
from emulator import TYPES, spoil
from torch import Tensor

from gid_cuda import reference

NAN = float("nan")
RTOL = {torch.float32: 1e-5, torch.float16: 1e-3, torch.bfloat16: 5e-3}  # one rounding to the type, and little more
WEIGHTS, BETA = (10.0, 9.0, 5.0, 4.0), 0.3


@dataclass
class Case:
    deltas: Tensor
    matched: Tensor | None
    boxes: Tensor | None
    anchors: Tensor | None
    teacher: Tensor | None
    mask: Tensor | None

    def double(self) -> tuple:
        teacher = None if self.teacher is None else self.teacher.double()
        return self.deltas.double(), self.matched, self.boxes, self.anchors, teacher, self.mask

    def arguments(self) -> tuple:
        teacher_type = 0 if self.teacher is None else TYPES[self.teacher.dtype]
        tensors = self.deltas, self.matched, self.boxes, self.anchors, teacher_type, self.teacher, self.mask
        slots = 0 if self.boxes is None else self.boxes.shape[1]
        return TYPES[self.deltas.dtype], *tensors, torch.tensor(WEIGHTS), BETA, *self.deltas.shape[:2], slots


def forward(kernels, seed: int, case: Case) -> tuple[Tensor, Tensor]:
    images, count = case.deltas.shape[:2]
    partial, sums = torch.empty(2 * images * count), (torch.empty(images), torch.empty(images))
    spoil(partial, *sums)
    kernels("box_losses").call("box_losses", seed, *case.arguments(), partial, *sums)
    return sums


def backward(kernels, seed: int, case: Case, grad_l1: Tensor | None, grad_response: Tensor | None) -> Tensor:
    """As the .cu file does it: a part without a gradient is a part that is not there."""
    case = replace(case, matched=case.matched if grad_l1 is not None else None)
    case = replace(case, mask=case.mask if grad_response is not None else None)
    gradient = torch.empty_like(case.deltas)
    spoil(gradient)
    kernels("box_losses").call("box_losses_backward", seed, *case.arguments(), grad_l1, grad_response, gradient)
    return gradient


def random_boxes(generator: torch.Generator, *shape: int) -> Tensor:
    corner = torch.rand(*shape, 2, generator=generator) * 150
    return torch.cat([corner, corner + 5 + torch.rand(*shape, 2, generator=generator) * 60], dim=-1)


def make_case(
    images: int, count: int, slots: int, dtype: torch.dtype, teacher_dtype: torch.dtype | None = None
) -> Case:
    """NaN wherever nothing is to be read."""
    generator = torch.Generator().manual_seed(count)
    chance = torch.rand(images, count, generator=generator)
    matched = torch.randint(0, slots, (images, count), generator=generator).where(chance < 0.2, -1)
    matched = matched.masked_fill(chance > 0.9, -2)
    mask = torch.rand(images, count, generator=generator) < 0.2
    deltas, teacher = torch.randn(2, images, count, 4, generator=generator).mul(0.5).to(dtype).unbind(0)
    teacher = teacher.to(teacher_dtype or dtype)
    teacher[:, : count // 2, 1] = deltas[:, : count // 2, 1].to(teacher.dtype)  # a difference of (nearly) nothing
    deltas, teacher = deltas.clone(), teacher.clone()
    deltas[(matched < 0) & ~mask], teacher[~mask] = NAN, NAN
    anchors = random_boxes(generator, count)
    anchors[~(matched >= 0).any(dim=0)] = NAN
    return Case(deltas, matched, random_boxes(generator, images, slots), anchors, teacher, mask)


def check_gradient(gradient: Tensor, expected: Tensor) -> None:
    torch.testing.assert_close(gradient.double(), expected.double(), rtol=RTOL[gradient.dtype], atol=1e-6)


# An odd number of rows in one block, in several.
@pytest.mark.parametrize("dtypes", [(0, 0), (1, 1), (2, 2), (0, 2), (2, 0), (1, 2)], ids=str)
@pytest.mark.parametrize(("images", "count", "slots"), [(3, 301, 4), (2, 2313, 7)])
def test_equals_reference(kernels, images, count, slots, dtypes):
    case = make_case(images, count, slots, *[list(TYPES)[number] for number in dtypes])
    grads = torch.linspace(0.5, 2.0, images), torch.linspace(-1.0, 3.0, images)
    for own, other in zip(forward(kernels, 1, case), reference.box_losses(*case.double(), BETA, WEIGHTS), strict=True):
        torch.testing.assert_close(own.double(), other, rtol=5e-6, atol=1e-6)
    expected = reference.box_losses_backward(*grads, *case.double(), BETA, WEIGHTS)
    check_gradient(backward(kernels, 1, case, *grads), expected)


@pytest.mark.parametrize("seed", range(3))
def test_any_order_of_threads(kernels, seed):
    case, grads = make_case(2, 1500, 5, torch.bfloat16), (torch.tensor([1.0, 2.0]), torch.tensor([3.0, 0.1]))
    first, second = [forward(kernels, number, case) for number in (seed, seed + 10)]
    assert torch.equal(first[0], second[0]) and torch.equal(first[1], second[1])
    assert torch.equal(backward(kernels, seed, case, *grads), backward(kernels, seed + 10, case, *grads))


def test_parts_that_are_not_there(kernels):
    """Then nothing is read for them: what only they would read is NaN here."""
    case = make_case(2, 333, 3, torch.float32)
    grads = torch.tensor([1.0, 2.0]), torch.tensor([3.0, -0.5])
    task, response = forward(kernels, 0, case)

    only_task = replace(case, teacher=None, mask=None, deltas=case.deltas.clone())
    only_task.deltas[case.matched < 0] = NAN
    own = forward(kernels, 0, only_task)
    assert torch.equal(own[0], task) and torch.equal(own[1], torch.zeros(2))
    expected = reference.box_losses_backward(grads[0], None, *only_task.double(), BETA, WEIGHTS)
    check_gradient(backward(kernels, 0, replace(case, deltas=only_task.deltas), grads[0], None), expected)

    only_response = replace(case, matched=None, boxes=None, anchors=None, deltas=case.deltas.clone())
    only_response.deltas[~case.mask] = NAN
    own = forward(kernels, 0, only_response)
    assert torch.equal(own[0], torch.zeros(2)) and torch.equal(own[1], response)
    expected = reference.box_losses_backward(None, grads[1], *only_response.double(), BETA, WEIGHTS)
    check_gradient(backward(kernels, 0, replace(case, deltas=only_response.deltas), None, grads[1]), expected)

    neither = backward(kernels, 0, replace(case, deltas=torch.full_like(case.deltas, NAN)), None, None)
    assert torch.equal(neither, torch.zeros_like(case.deltas))


def test_deltas_that_are_right(kernels):
    """Exactly the target's, exactly the teacher's: no loss, and no gradient either."""
    anchors = torch.tensor([[0.0, 0.0, 4.0, 8.0], [2.0, 2.0, 10.0, 6.0]])
    matched, mask = torch.tensor([[0, 1]]), torch.tensor([[True, True]])
    case = Case(torch.zeros(1, 2, 4), matched, anchors[None].clone(), anchors, torch.zeros(1, 2, 4), mask)
    l1, response = forward(kernels, 0, case)
    assert l1.item() == 0 and response.item() == 0
    assert torch.equal(backward(kernels, 0, case, torch.ones(1), torch.ones(1)), torch.zeros(1, 2, 4))


def test_no_ground_truth(kernels):
    """Boxes of no slot, and rows matched to no slot."""
    case = make_case(2, 50, 2, torch.float32)
    case = replace(case, deltas=torch.full_like(case.deltas, NAN), mask=torch.zeros_like(case.mask))
    for slots, matched in ((0, case.matched.clamp(max=-1)), (2, torch.full_like(case.matched, 2))):
        empty = replace(case, boxes=case.boxes[:, :slots].clone(), matched=matched)
        assert torch.equal(forward(kernels, 0, empty)[0], torch.zeros(2))
        gradient = backward(kernels, 0, empty, torch.ones(2), torch.ones(2))
        assert torch.equal(gradient, torch.zeros_like(gradient))


@pytest.mark.parametrize(("images", "count"), [(0, 5), (2, 0)])
def test_empty(kernels, images, count):
    matched, mask = torch.zeros(images, count, dtype=torch.int64), torch.ones(images, count, dtype=torch.bool)
    deltas, boxes, anchors = torch.zeros(images, count, 4), torch.ones(images, 2, 4), torch.ones(count, 4)
    case = Case(deltas, matched, boxes, anchors, deltas, mask)
    l1, response = forward(kernels, 0, case)
    assert torch.equal(l1, torch.zeros(images)) and torch.equal(response, torch.zeros(images))
    assert backward(kernels, 0, case, torch.ones(images), torch.ones(images)).shape == deltas.shape
