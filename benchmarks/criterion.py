"""The case of the whole criterion, decoding included, forward and backward."""

from __future__ import annotations

from typing import Any

import torch
from torch import Tensor

from benchmarks.cases import Case, Contender, close, dtype_name, with_gradient
from benchmarks.inputs import STRIDES, level_shapes, make_scene, pyramid, retinanet_anchors
from benchmarks.plain import PRE_NMS
from benchmarks.plain_criterion import TOP_K, Heads, PlainCriterion
from gid_cuda.detectors import RetinaNet
from gid_cuda.detectors.backbones import fpn_backbone
from gid_cuda.detectors.outputs import BoxCoder, DetectorOutputs
from gid_cuda.distill import GID, LOSS_NAMES

_PRE_NMS_NOTE = f"sees the {PRE_NMS} best boxes of an image, not all"
CHANNELS = 256  # of both pyramids
_PLAIN_COPIES = 16  # float32 tensors of the logits' shape that the plain version holds at once


def criterion(images: int, classes: int, dtype: torch.dtype, size: tuple[int, int], device: torch.device) -> Case:
    """Both models' outputs for images of `size` (height, width) -> losses -> gradients to the student and f_adapt."""
    anchors = retinanet_anchors(size, device)
    gid = GID(CHANNELS, CHANNELS, top_k=TOP_K)
    assert gid.adapt is not None
    with torch.no_grad():  # off the identity that it starts as, which would hide mistakes
        gid.adapt.weight += 0.01 * torch.randn(gid.adapt.weight.shape, generator=torch.Generator().manual_seed(0))
    # Assignment and response losses are RetinaNet's; its network, which does not run here, may be small.
    detector = RetinaNet(fpn_backbone("mobilenet_v3_small", channels=8, norm="live"), classes, head_depth=1)
    gid, detector = gid.to(device), detector.to(device)

    def make(seed: int) -> tuple[Any, ...]:
        scene = make_scene(images, classes, anchors, size, dtype, seed)
        generator = torch.Generator(device).manual_seed(seed)
        teacher = pyramid(images, CHANNELS, size, dtype, generator)
        student = [x + 0.3 * y for x, y in zip(teacher, pyramid(images, CHANNELS, size, dtype, generator), strict=True)]
        heads = (
            scene.teacher_logits,
            scene.student_logits.requires_grad_(),
            scene.teacher_deltas,
            scene.student_deltas.requires_grad_(),
            scene.anchors,
            scene.image_sizes,
        )
        return heads, teacher, [x.requires_grad_() for x in student], gid.adapt.weight, gid.adapt.bias

    def ours(heads: Heads, teacher: list[Tensor], student: list[Tensor], weight: Tensor, bias: Tensor) -> Tensor:
        outputs = [
            DetectorOutputs(features, STRIDES, logits, deltas, BoxCoder("deltas"), *heads[4:])
            for features, logits, deltas in ((teacher, heads[0], heads[2]), (student, heads[1], heads[3]))
        ]
        losses, _ = gid(*outputs, detector)
        return torch.stack([losses[name] for name in LOSS_NAMES])

    rows = images * len(anchors)
    elements = rows * classes
    cells = images * CHANNELS * sum(rows * columns for rows, columns in level_shapes(size))
    heads_bytes = rows * (2 * classes + 8) * dtype.itemsize
    gradient_bytes = (rows * (classes + 4) + cells) * dtype.itemsize
    same = close(1e-4 if dtype == torch.float32 else 2e-2)
    plain_bytes = 4 * _PLAIN_COPIES * elements
    return Case(
        operator="criterion",
        work="forward + backward",
        sizes={"B": images, "R": len(anchors), "C": classes, "K": TOP_K, "Ch": CHANNELS},
        dtype=dtype_name(dtype),
        make=make,
        input_bytes=heads_bytes + 2 * cells * dtype.itemsize,
        moved=lambda *inputs: heads_bytes + gradient_bytes,
        counted="heads of both models read once, gradients of logits, deltas and features written once",
        contenders=[
            Contender("ours", "gid_cuda", with_gradient(ours)),
            Contender("pytorch", "PyTorch", with_gradient(PlainCriterion("exact")), same, temporary=plain_bytes),
            Contender(
                "compile",
                "torch.compile, top-3000 + torchvision",
                with_gradient(PlainCriterion("compiled")),
                same,
                binding=False,
                note=_PRE_NMS_NOTE,
                temporary=plain_bytes // 2,
            ),
            Contender(
                "instead",
                "PyTorch, top-3000 + torchvision",
                with_gradient(PlainCriterion("torchvision")),
                same,
                binding=False,
                note=_PRE_NMS_NOTE,
                temporary=plain_bytes,
            ),
        ],
    )
