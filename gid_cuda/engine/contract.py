"""Do student and teacher keep what `Detector` promises, and do they fit each other? Asked before the first step.

Two images go through both as in training. A detector of the package passes; a user's own is told in one sentence what
it gives and what was expected. What the detector itself raises is not caught.
"""

from __future__ import annotations

from collections.abc import Iterator, Sequence
from contextlib import contextmanager
from dataclasses import replace

import torch
from torch import Tensor

from gid_cuda.detectors.outputs import Detector, DetectorOutputs, GeneralInstances, ImageList, Target
from gid_cuda.distill import check_anchors
from gid_cuda.distill.checks import check_outputs
from gid_cuda.engine.contract_rules import Rules
from gid_cuda.errors import UserError

_INSTANCES = 10


@torch.no_grad()
def check_contract(
    student: Detector,
    teacher: Detector | None,
    images: ImageList,
    targets: Sequence[Target],
    raw: Sequence[Tensor],
    classes: int,
) -> None:
    """UserError with one sentence for the first rule that is broken. Weights, buffers, modes and torch's random state
    are afterwards as they were.

    images, targets: two images as in training, with their targets. raw: the same as `predict` takes them.
    """
    devices = [images.tensors.device] if images.tensors.is_cuda else []
    with torch.random.fork_rng(devices):
        with _unchanged(student):
            ours = _check_student(Rules("model", student), images, targets, raw, classes)
        if teacher is None:
            return
        with _unchanged(teacher):
            theirs = _check_teacher(Rules("teacher", teacher), images, raw, classes)
    try:
        check_outputs(theirs, ours, teacher.out_channels, student.out_channels)
        check_anchors(theirs, ours)
    except ValueError as error:
        raise UserError(f"model and teacher do not fit together: {error}") from None


def _check_student(
    rules: Rules, images: ImageList, targets: Sequence[Target], raw: Sequence[Tensor], classes: int
) -> DetectorOutputs:
    """All of the contract; its outputs in eval mode with targets."""
    student = rules.detector
    rules.attributes(classes)
    student.train()
    outputs = student(images, targets)
    rules.outputs(outputs, images)
    rules.losses(outputs.losses, "some", "in train mode where targets are given")
    student.eval()
    outputs = student(images, targets)
    rules.outputs(outputs, images)
    rules.losses(outputs.losses, "some", "in eval mode where targets are given")
    rules.losses(student(images, [targets[0], None]).losses, "some", "where one target is None")
    rules.losses(student(images, [None, None]).losses, "zero", "where all targets are None")
    rules.losses(student(images).losses, "none", "where no targets are given")
    with torch.autocast(images.tensors.device.type, enabled=False):  # as GID does
        _check_responses(rules, outputs)
    _check_predict(rules, raw)
    return outputs


def _check_teacher(rules: Rules, images: ImageList, raw: Sequence[Tensor], classes: int) -> DetectorOutputs:
    """Of a teacher, targets, assignment and response losses are never asked for."""
    rules.attributes(classes)
    rules.detector.eval()
    outputs = rules.detector(images)
    rules.outputs(outputs, images)
    rules.losses(outputs.losses, "none", "where no targets are given")
    _check_predict(rules, raw)
    return outputs


def _check_responses(rules: Rules, outputs: DetectorOutputs) -> None:
    """`assign` and `response_losses`, with ten anchors as the instances of the first image and none in the second."""
    mask = rules.detector.assign(_instances(outputs), outputs)
    rules.tensor(mask, "assign's result", outputs.logits.shape[:2], [torch.bool], outputs.logits)
    if mask[1].any():
        rules.broken(
            f"marks {int(mask[1].sum())} boxes in assign for an image without instances, expected none: slots beyond "
            "counts (instances.valid) take no part"
        )
    if not mask[0].any():
        rules.broken("marks nothing in assign for instances that are anchors of its own, expected some of its boxes")
    with torch.enable_grad():
        leaves = [outputs.logits.detach().clone().requires_grad_(), outputs.deltas.detach().clone().requires_grad_()]
        student = replace(outputs, logits=leaves[0], deltas=leaves[1])
        teacher = replace(outputs, logits=1.5 * outputs.logits + 0.1, deltas=1.5 * outputs.deltas + 0.1)
        losses = rules.detector.response_losses(student, teacher, mask)
        if not isinstance(losses, tuple | list) or len(losses) != 2:
            rules.broken(f"returns a {type(losses).__name__} from response_losses, expected the pair (cls, reg)")
        for what, loss, leaf in zip(("cls", "reg"), losses, leaves, strict=True):
            _check_response(rules, f"response_losses' {what}", loss, leaf, mask)
    every_other = mask & (mask.flatten().cumsum(0).view_as(mask) % 2 == 0)
    parts = [rules.detector.response_losses(student, teacher, part) for part in (every_other, mask & ~every_other)]
    for what, loss, one, other in zip(("cls", "reg"), losses, *parts, strict=True):
        if every_other.any() and not torch.isclose(one + other, loss, rtol=1e-2, atol=1e-4):
            rules.broken(
                f"gives response_losses' {what} {loss.item():g} for a mask and {one.item():g} and {other.item():g} for "
                "its halves, expected a sum over the masked boxes: what it is divided by is not the detector's to say"
            )


def _check_response(rules: Rules, name: str, loss: Tensor, leaf: Tensor, mask: Tensor) -> None:
    """A sum over the masked boxes, from which gradient reaches the student's predictions there and nowhere else."""
    rules.tensor(loss, name, (), [torch.float32], leaf)
    if not loss.isfinite():
        rules.broken(f"gives {name} {loss.item():g}, expected a finite number")
    inputs = "deltas" if name.endswith("reg") else "logits"
    gradient = None
    if loss.requires_grad:
        (gradient,) = torch.autograd.grad(loss, leaf, retain_graph=True, allow_unused=True)
    if gradient is None:
        rules.broken(f"gives {name} without a gradient to the student's {inputs}, expected one")
    if not gradient.isfinite().all():
        rules.broken(f"gives {name} with a gradient that is not finite, expected finite numbers")
    if gradient[~mask].any():
        rules.broken(f"gives {name} with a gradient to boxes outside the mask, expected a sum over the masked boxes")


def _instances(outputs: DetectorOutputs) -> GeneralInstances:
    anchors, batch = outputs.anchors, len(outputs.logits)
    count = min(_INSTANCES, len(anchors))
    chosen = torch.arange(count, device=anchors.device) * len(anchors) // count
    first = torch.arange(batch, device=anchors.device) == 0
    return GeneralInstances(
        boxes=torch.where(first[:, None, None], anchors[chosen], 0.0),
        scores=torch.where(first[:, None], torch.ones_like(chosen, dtype=torch.float32), 0.0),
        indices=torch.where(first[:, None], chosen, -1),
        counts=torch.where(first, count, 0),
    )


def _check_predict(rules: Rules, raw: Sequence[Tensor]) -> None:
    """Two images of different sizes."""
    height, width = raw[1].shape[-2:]
    found = rules.detector.predict([raw[0], raw[1][:, : -(-3 * height // 4), : -(-3 * width // 4)]])
    if not isinstance(found, list) or len(found) != 2:
        size = f"{len(found)} entries" if isinstance(found, list) else f"a {type(found).__name__}"
        rules.broken(f"gives {size} from predict for 2 images, expected a list of one dict an image")
    for entry in found:
        missing = [key for key in ("boxes", "scores", "labels") if not isinstance(entry, dict) or key not in entry]
        if missing:
            rules.broken(f"gives no {missing[0]} from predict, expected a dict of boxes, scores and labels an image")
        boxes, scores, labels = entry["boxes"], entry["scores"], entry["labels"]
        count = len(scores) if isinstance(scores, Tensor) and scores.dim() == 1 else "N"
        rules.tensor(scores, "predict's scores", (count,), _SCORES)
        rules.tensor(boxes, "predict's boxes", (count, 4), _SCORES)
        rules.tensor(labels, "predict's labels", (count,), [torch.int64])
        if not boxes.isfinite().all():
            rules.broken("gives boxes from predict that are not finite, expected pixels")
        if (boxes[:, 2:] < boxes[:, :2]).any():
            wrong = boxes[(boxes[:, 2:] < boxes[:, :2]).any(dim=1)][0]
            rules.broken(f"gives the box {_first(wrong)} from predict, expected x1, y1, x2, y2 with x1 <= x2, y1 <= y2")
        if not ((scores >= 0) & (scores <= 1)).all() or (scores.diff() > 0).any():
            rules.broken(f"gives the scores {_first(scores)} from predict, expected them in 0 to 1, descending")
        if not ((labels >= 0) & (labels < rules.detector.num_classes)).all():
            rules.broken(
                f"gives the labels {_first(labels.unique())} from predict, expected 0 to "
                f"{rules.detector.num_classes - 1}, without background"
            )


_SCORES = (torch.float32, torch.float16, torch.bfloat16)


def _first(values: Tensor) -> str:
    shown = ", ".join(f"{value:g}" for value in values[:6].tolist())
    return shown + (" ..." if len(values) > 6 else "")


@contextmanager
def _unchanged(detector: Detector) -> Iterator[None]:
    """Buffers (batch norm counts what it sees) and the mode of each module are given back."""
    buffers = [(name, buffer.clone()) for name, buffer in detector.named_buffers()]
    training = [(module, module.training) for module in detector.modules()]
    try:
        yield
    finally:
        now = dict(detector.named_buffers())
        for name, buffer in buffers:
            if name in now and now[name].shape == buffer.shape:
                now[name].copy_(buffer)
        for module, mode in training:
            module.training = mode
