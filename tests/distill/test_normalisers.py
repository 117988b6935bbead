"""One batch on two processes weighs as it does on one."""

from __future__ import annotations

import os
from collections.abc import Callable
from dataclasses import replace
from pathlib import Path

import pytest
import torch
import torch.distributed as dist
from torch import Tensor, nn

from gid_cuda.detectors.outputs import DetectorOutputs
from gid_cuda.distill import GID
from gid_cuda.engine.distributed import last_moment
from gid_cuda.normalisers import global_normalisers

from .fakes import FakeDetector, random_outputs


class Student(nn.Module):
    """A detector of two parameters, so that there are gradients to compare, and the criterion."""

    def __init__(self) -> None:
        super().__init__()
        self.features_scale = nn.Parameter(torch.tensor(0.9))
        self.logits_scale = nn.Parameter(torch.tensor(1.1))
        self.gid = GID(4, 4, output_size=3)

    def forward(self, images: slice) -> dict[str, Tensor]:
        teacher, student = part(random_outputs(batch=4, seed=0), images), part(random_outputs(batch=4, seed=1), images)
        student.features = [x * self.features_scale for x in student.features]
        student.logits = student.logits * self.logits_scale
        losses, _ = self.gid(teacher, student, FakeDetector())
        return losses


def part(outputs: DetectorOutputs, images: slice) -> DetectorOutputs:
    """Some images of the batch. The last two have one and no instance, so that the parts are unlike."""
    deltas = outputs.deltas.clone()
    deltas[2, :-1] = deltas[3] = 0
    return replace(
        outputs,
        features=[x[images] for x in outputs.features],
        logits=outputs.logits[images],
        deltas=deltas[images],
        image_sizes=outputs.image_sizes[images],
    )


def one_process(images: slice) -> tuple[dict[str, Tensor], list[Tensor]]:
    student = Student()
    losses = student(images)
    gradients = torch.autograd.grad(sum(losses.values()), list(student.parameters()))
    return {name: loss.detach() for name, loss in losses.items()}, list(gradients)


HALVES = slice(0, 2), slice(2, 4)


def pretend(patch: pytest.MonkeyPatch, all_reduce: Callable[[Tensor], object]) -> None:
    patch.setattr(dist, "is_initialized", lambda: True)
    patch.setattr(dist, "get_world_size", lambda: 2)
    patch.setattr(dist, "all_reduce", all_reduce)


def test_two_halves_are_the_whole(monkeypatch: pytest.MonkeyPatch) -> None:
    whole_losses, whole_gradients = one_process(slice(0, 4))
    seen: list[Tensor] = []
    pretend(monkeypatch, lambda counts: seen.append(counts.clone()))
    for half in HALVES:
        one_process(half)
    assert len(seen) == 2 and not torch.equal(*seen)  # one call a step, in each process
    pretend(monkeypatch, lambda counts: counts.copy_(seen[0] + seen[1]))
    results = [one_process(half) for half in HALVES]
    for name, whole in whole_losses.items():
        torch.testing.assert_close(sum(losses[name] for losses, _ in results) / 2, whole)
    for whole, *halves in zip(whole_gradients, *(gradients for _, gradients in results), strict=True):
        torch.testing.assert_close(sum(halves) / 2, whole)


def test_values() -> None:
    assert [x.item() for x in global_normalisers(torch.tensor(7), torch.tensor(0))] == [7, 1]


def test_values_of_two_processes(monkeypatch: pytest.MonkeyPatch) -> None:
    pretend(monkeypatch, lambda counts: counts.add_(torch.tensor([1, 3, 0])))
    found = global_normalisers(torch.tensor(0), torch.tensor(3), torch.tensor(0))
    assert [x.item() for x in found] == [0.5, 3, 0.5]  # N / W; where N is 0, anything above 0


def _process(rank: int, folder: str) -> None:
    os.environ.setdefault("GLOO_SOCKET_IFNAME", "lo")
    dist.init_process_group("gloo", init_method=f"file://{folder}/store", rank=rank, world_size=2)
    student = nn.parallel.DistributedDataParallel(Student())
    sum(student(HALVES[rank]).values()).backward()
    torch.save([p.grad for p in student.module.parameters()], f"{folder}/{rank}.pt")
    dist.destroy_process_group()
    last_moment()


@pytest.mark.slow
def test_two_real_processes(tmp_path: Path) -> None:
    torch.multiprocessing.spawn(_process, args=(str(tmp_path),), nprocs=2)
    _, expected = one_process(slice(0, 4))
    for rank in (0, 1):
        for found, whole in zip(torch.load(tmp_path / f"{rank}.pt"), expected, strict=True):
            torch.testing.assert_close(found, whole)
