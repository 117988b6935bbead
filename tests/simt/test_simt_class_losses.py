"""class_losses' CUDA kernels and its gradient's, emulated, against the reference in float64."""

from __future__ import annotations

from dataclasses import dataclass, replace

import pytest
import torch
from emulator import TYPES, spoil
from torch import Tensor

from gid_cuda import reference

NAN = float("nan")
RTOL = {torch.float32: 1e-5, torch.float16: 1e-3, torch.bfloat16: 5e-3}  # one rounding to the type, and little more


@dataclass
class Case:
    logits: Tensor
    matched: Tensor | None
    labels: Tensor | None
    teacher: Tensor | None
    mask: Tensor | None
    soft_focal: bool = False

    def double(self) -> tuple:
        teacher = None if self.teacher is None else self.teacher.double()
        return self.logits.double(), self.matched, self.labels, teacher, self.mask

    def arguments(self) -> tuple:
        images, count, classes = self.logits.shape
        slots = 0 if self.labels is None else self.labels.shape[1]
        teacher_type = 0 if self.teacher is None else TYPES[self.teacher.dtype]
        tensors = self.logits, self.matched, self.labels, teacher_type, self.teacher, self.mask
        return TYPES[self.logits.dtype], *tensors, images, count, classes, slots, self.soft_focal


def forward(kernels, seed: int, case: Case, focal: Tensor | None = None) -> tuple[Tensor, Tensor]:
    images, count = case.logits.shape[:2]
    partial, sums = torch.empty(2 * images * count), (torch.empty(images), torch.empty(images))
    spoil(partial, *sums)
    kernels("class_losses").call("class_losses", seed, *case.arguments(), focal, partial, *sums)
    return sums


def backward(kernels, seed: int, case: Case, grad_focal: Tensor | None, grad_response: Tensor | None) -> Tensor:
    """As the .cu file does it: a part without a gradient is a part that is not there."""
    case = replace(case, matched=case.matched if grad_focal is not None else None)
    case = replace(case, mask=case.mask if grad_response is not None else None)
    gradient = torch.empty_like(case.logits)
    spoil(gradient)
    arguments = (*case.arguments(), grad_focal, grad_response, gradient)
    kernels("class_losses").call("class_losses_backward", seed, *arguments)
    return gradient


def make_case(shape: tuple[int, int, int], dtype: torch.dtype, teacher_dtype: torch.dtype | None = None) -> Case:
    """Mostly confident background; some rows of other logits; objects, rows between the thresholds; masked rows side by
    side, some of which the task leaves out. NaN wherever nothing is to be read."""
    generator = torch.Generator().manual_seed(sum(shape))
    images, count, classes = shape
    logits = torch.randn(shape, generator=generator) - 6
    logits[torch.rand(images, count, generator=generator) < 0.15] += 7
    teacher = torch.randn(shape, generator=generator) * 4 - 3
    chance = torch.rand(images, count, generator=generator)
    matched = torch.randint(0, 5, (images, count), generator=generator).where(chance < 0.1, -1)
    matched = matched.masked_fill(chance > 0.9, -2)
    matched[-1, : count // 3] = -2  # packs and more without anything to do
    labels = torch.randint(0, classes, (images, 5), generator=generator)
    mask = (torch.rand(images, count, generator=generator) < 0.1) & (torch.arange(count) % 7 < 4)
    logits[(matched < -1) & ~mask] = NAN
    teacher[~mask] = NAN
    return Case(logits.to(dtype), matched, labels, teacher.to(teacher_dtype or dtype), mask)


def check_gradient(gradient: Tensor, expected: Tensor, mask: Tensor | None) -> None:
    """Masked rows learn from the difference of two probabilities, others from numbers that are mostly tiny."""
    masked = mask if mask is not None else torch.zeros(gradient.shape[:2], dtype=torch.bool)
    for rows, atol in ((masked, 5e-7), (~masked, 6e-8 if gradient.dtype == torch.float16 else 1e-20)):
        own = gradient[rows].double()
        torch.testing.assert_close(own, expected[rows], rtol=RTOL[gradient.dtype], atol=atol)


def check(kernels, case: Case, seed: int) -> None:
    grads = torch.linspace(0.5, 2.0, len(case.logits)), torch.linspace(-1.0, 3.0, len(case.logits))
    sums = forward(kernels, seed, case)
    expected = reference.class_losses(*case.double(), soft_focal=case.soft_focal)
    for own, other in zip(sums, expected, strict=True):
        torch.testing.assert_close(own.double(), other, rtol=5e-6, atol=1e-6)
    gradient = backward(kernels, seed, case, *grads)
    expected = reference.class_losses_backward(*grads, *case.double(), case.soft_focal)
    check_gradient(gradient, expected, case.mask)


# One class, fewer than a pack holds, packs that reach into the next row, images that start off a 16-byte boundary;
# several blocks an image; a row that is a block by itself.
SHAPES = [(2, 1100, 1), (3, 333, 3), (3, 41, 7), (2, 450, 80), (2, 371, 91), (1, 3, 17001)]


@pytest.mark.parametrize("dtype", TYPES, ids=str)
@pytest.mark.parametrize("shape", SHAPES, ids=str)
def test_equals_reference(kernels, shape, dtype):
    check(kernels, make_case(shape, dtype), seed=1)


@pytest.mark.parametrize("dtype", TYPES, ids=str)
def test_images_off_a_boundary_where_every_row_tells(kernels, dtype):
    """Blocks longer than their threads take at once: also the first thread's later packs have to know their rows."""
    generator = torch.Generator().manual_seed(0)
    shape = images, count, classes = (16, 701, 3)
    logits = (torch.randn(shape, generator=generator) - 6).to(dtype)
    matched = torch.randint(-2, 2, (images, count), generator=generator)
    labels = torch.randint(0, classes, (images, 2), generator=generator)
    check(kernels, Case(logits, matched, labels, None, None), seed=3)


@pytest.mark.parametrize("dtypes", [(0, 2), (1, 0), (2, 1)], ids=str)
def test_soft_focal_and_a_teacher_of_another_type(kernels, dtypes):
    of_student, of_teacher = [list(TYPES)[number] for number in dtypes]
    check(kernels, replace(make_case((2, 150, 20), of_student, of_teacher), soft_focal=True), seed=2)


@pytest.mark.parametrize("seed", range(3))
def test_any_order_of_threads(kernels, seed):
    case, grads = make_case((2, 420, 41), torch.bfloat16), (torch.tensor([1.0, 2.0]), torch.tensor([3.0, 0.1]))
    first, second = [forward(kernels, number, case) for number in (seed, seed + 10)]
    assert torch.equal(first[0], second[0]) and torch.equal(first[1], second[1])
    assert torch.equal(backward(kernels, seed, case, *grads), backward(kernels, seed + 10, case, *grads))


def test_parts_that_are_not_there(kernels):
    """Then nothing is read for them: what only they would read is NaN here."""
    case = make_case((2, 250, 80), torch.float32)
    grads = torch.tensor([1.0, 2.0]), torch.tensor([3.0, -0.5])
    task, response = forward(kernels, 0, case)

    only_task = replace(case, teacher=None, mask=None, logits=case.logits.clone())
    only_task.logits[case.matched < -1] = NAN
    own = forward(kernels, 0, only_task)
    torch.testing.assert_close(own[0], task)
    assert torch.equal(own[1], torch.zeros(2))
    gradient = backward(kernels, 0, only_task, grads[0], None)
    expected = reference.class_losses_backward(grads[0], None, *only_task.double(), False)
    check_gradient(gradient, expected, None)

    only_response = replace(case, matched=None, labels=None, logits=case.logits.clone())
    only_response.logits[~case.mask] = NAN
    own = forward(kernels, 0, only_response)
    assert torch.equal(own[0], torch.zeros(2))
    torch.testing.assert_close(own[1], response)
    own = forward(kernels, 0, replace(only_response, labels=case.labels), focal=torch.tensor([5.0, 7.0]))
    assert own[0].tolist() == [5.0, 7.0]
    torch.testing.assert_close(own[1], response)
    gradient = backward(kernels, 0, replace(case, logits=only_response.logits), None, grads[1])
    expected = reference.class_losses_backward(None, grads[1], *only_response.double(), False)
    check_gradient(gradient, expected, case.mask)

    neither = backward(kernels, 0, replace(case, logits=torch.full_like(case.logits, NAN)), None, None)
    assert torch.equal(neither, torch.zeros_like(case.logits))


@pytest.mark.parametrize("dtype", TYPES, ids=str)
def test_nothing_to_learn(kernels, dtype):
    """Images without labels and without masked rows: no number is read, zeros everywhere."""
    case = make_case((2, 90, 11), dtype)
    case = replace(case, logits=torch.full_like(case.logits, NAN), matched=torch.full_like(case.matched, -2))
    case = replace(case, mask=torch.zeros_like(case.mask))
    focal, response = forward(kernels, 0, case)
    assert torch.equal(focal, torch.zeros(2)) and torch.equal(response, torch.zeros(2))
    gradient = backward(kernels, 0, case, torch.ones(2), torch.ones(2))
    assert torch.equal(gradient, torch.zeros_like(case.logits))


@pytest.mark.parametrize("soft_focal", [False, True])
def test_student_that_equals_the_teacher(kernels, soft_focal):
    case = make_case((2, 60, 13), torch.float32)
    case = replace(case, teacher=case.logits, soft_focal=soft_focal)
    _, response = forward(kernels, 0, case)
    gradient = backward(kernels, 0, case, None, torch.ones(2))
    assert torch.equal(response, torch.zeros(2)) and torch.equal(gradient, torch.zeros_like(gradient))


def test_no_ground_truth(kernels):
    """Labels of no slot: all rows are background. Labels that are no class, rows matched to no slot: likewise."""
    case = make_case((2, 50, 6), torch.float32)
    case = replace(case, matched=case.matched.clamp(max=-1))
    check(kernels, replace(case, labels=torch.zeros(2, 0, dtype=torch.int64)), seed=0)
    expected = forward(kernels, 0, case)
    matched = case.matched.clone()
    matched[:, 0], matched[:, 1] = 99, 1
    case.logits[:, :2] = -3.0
    expected = forward(kernels, 0, replace(case, matched=torch.where(matched >= 0, -1, matched)))
    own = forward(kernels, 0, replace(case, matched=matched, labels=torch.tensor([[0, 99, -3]] * 2)))
    assert torch.equal(own[0], expected[0])


def test_extreme_logits(kernels):
    """Each in a row of its own, as background and as an object's class; neither loss nor gradient overflows."""
    values = torch.tensor([3e38, -3e38, 1e4, -1e4, 90.0, -90.0, 20.0, -20.0, 2.0, -2.0, 1e-30, 0.0, -0.0])
    logits = torch.full((2, len(values), 8), -4.0)
    logits[:, :, 3] = values
    matched = torch.stack([torch.full_like(values, -1), torch.zeros_like(values)]).long()
    case = Case(logits, matched, torch.full((2, 1), 3), logits.flip(1), matched == 0)
    check(kernels, case, seed=0)
    odd = replace(case, logits=case.logits.clone())
    odd.logits[0, 4, 1] = -float("inf")
    odd.logits[0, 5, 2], odd.logits[0, 6, 2] = NAN, -NAN
    focal, _ = forward(kernels, 0, odd)
    assert focal.isnan().tolist() == [True, False]
    gradient = backward(kernels, 0, odd, torch.ones(2), None)
    assert gradient.isnan().nonzero().tolist() == [[0, 5, 2], [0, 6, 2]] and gradient[0, 4, 1] == 0


@pytest.mark.parametrize("shape", [(0, 5, 3), (2, 0, 3), (2, 5, 0)], ids=str)
def test_empty(kernels, shape):
    images, count = shape[:2]
    matched, labels = torch.full((images, count), -1), torch.zeros(images, 2, dtype=torch.int64)
    case = Case(torch.zeros(shape), matched, labels, torch.zeros(shape), torch.ones(images, count, dtype=torch.bool))
    focal, response = forward(kernels, 0, case)
    assert torch.equal(focal, torch.zeros(images)) and torch.equal(response, torch.zeros(images))
    assert backward(kernels, 0, case, torch.ones(images), torch.ones(images)).shape == shape
