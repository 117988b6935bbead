"""Inputs as a RetinaNet in training gives them: few objects, many background boxes that both models are sure of."""

from __future__ import annotations

import math
from collections.abc import Sequence
from dataclasses import dataclass

import torch
from torch import Tensor
from torchvision.models.detection.anchor_utils import AnchorGenerator

from benchmarks import plain
from gid_cuda import reference

STRIDES = [8, 16, 32, 64, 128]
OBJECTS = 12  # ground-truth boxes an image
BACKGROUND = -4.6  # RetinaNet's bias at the start, and where background stays: a probability of 0.01
NEAR = 0.5  # IoU from which a box predicts the object


@dataclass(frozen=True)
class Scene:
    """A batch of B images of `size` (height, width) through both heads.

    logits (B, R, C) and deltas (B, R, 4) in the asked type, anchors (R, 4) float32, image_sizes (B, 2) int64;
    objects (B, N, 4) float32 xyxy, labels (B, N) int64, counts (B,) int64.
    """

    teacher_logits: Tensor
    student_logits: Tensor
    teacher_deltas: Tensor
    student_deltas: Tensor
    anchors: Tensor
    image_sizes: Tensor
    objects: Tensor
    labels: Tensor
    counts: Tensor


def make_scene(
    images: int, classes: int, anchors: Tensor, size: tuple[int, int], dtype: torch.dtype, seed: int
) -> Scene:
    """anchors (R, 4), on the device that the scene shall be on."""
    device = anchors.device
    generator = torch.Generator(device).manual_seed(seed)
    objects = random_boxes(images, OBJECTS, size, generator)
    labels = torch.randint(classes, (images, OBJECTS), generator=generator, device=device)
    logits = [torch.empty((images, len(anchors), classes), dtype=dtype, device=device) for _ in range(2)]
    deltas = [torch.empty((images, len(anchors), 4), dtype=dtype, device=device) for _ in range(2)]
    for image in range(images):  # one by one: the float32 in between are as large as all the rest
        nearest, near = _nearest(objects[image], anchors)
        at = labels[image][nearest[near]]
        offsets = torch.where(near[:, None], _encode(objects[image][nearest], anchors), 0.0)
        background = _noise((len(anchors), classes), generator) + BACKGROUND
        for model, (surety, spread) in enumerate(((1.0, 0.05), (-0.5, 0.15))):  # teacher, student
            own = background + 0.5 * _noise(background.shape, generator)
            own[near, at] = surety + _noise(at.shape, generator)
            logits[model][image] = own
            deltas[model][image] = offsets + spread * _noise(offsets.shape, generator)
    return Scene(
        *logits,
        *deltas,
        anchors=anchors,
        image_sizes=torch.tensor([size] * images, device=device),
        objects=objects,
        labels=labels,
        counts=torch.full((images,), OBJECTS, device=device),
    )


def gi_boxes(images: int, anchors: Tensor, size: tuple[int, int], seed: int) -> tuple[Tensor, Tensor]:
    """Boxes (B, R, 4) and scores (B, R) float32 as the choice of instances sees them, from a scene of eight classes."""
    scene = make_scene(images, 8, anchors, size, torch.float32, seed)
    boxes = [plain.decode(deltas, anchors) for deltas in (scene.teacher_deltas, scene.student_deltas)]
    scores, chosen = reference.gi_score(scene.teacher_logits, scene.student_logits, *boxes, scene.image_sizes)
    return chosen.contiguous(), scores.contiguous()


def retinanet_anchors(size: tuple[int, int], device: torch.device) -> Tensor:
    """torchvision's RetinaNet's, (R, 4): three scales and three ratios on the five levels of a (height, width)."""
    sizes = [(s, int(s * 2 ** (1 / 3)), int(s * 2 ** (2 / 3))) for s in (32, 64, 128, 256, 512)]
    generator = AnchorGenerator(tuple(sizes), ((0.5, 1.0, 2.0),) * len(sizes))
    generator.set_cell_anchors(torch.float32, device)
    grids = level_shapes(size)
    return torch.cat(generator.grid_anchors(grids, [[size[0] // rows, size[1] // columns] for rows, columns in grids]))


def scattered_anchors(count: int, size: tuple[int, int], device: torch.device) -> Tensor:
    """(count, 4) anchors anywhere in the image, for a number of boxes that no image size gives."""
    return random_boxes(1, count, size, torch.Generator(device).manual_seed(1))[0]


def random_boxes(images: int, count: int, size: tuple[int, int], generator: torch.Generator) -> Tensor:
    """(images, count, 4) xyxy within (height, width): side lengths from 24 to 512 pixels, evenly in the logarithm."""
    device = generator.device
    span = torch.rand((images, count, 2), generator=generator, device=device)
    limits = torch.tensor([size[1], size[0]], dtype=torch.float32, device=device)
    sides = torch.minimum(24.0 * (512 / 24) ** span, limits)
    corner = torch.rand((images, count, 2), generator=generator, device=device) * (limits - sides)
    return torch.cat([corner, corner + sides], dim=2)


def pyramid(
    images: int, channels: int, size: tuple[int, int], dtype: torch.dtype, generator: torch.Generator
) -> list[Tensor]:
    """Five feature maps (B, channels, H_l, W_l)."""
    shapes = level_shapes(size)
    return [_noise((images, channels, *shape), generator).to(dtype) for shape in shapes]


def level_shapes(size: tuple[int, int]) -> list[tuple[int, int]]:
    """Rows and columns of each level: every one half of the one before, rounded up."""
    return [(math.ceil(size[0] / stride), math.ceil(size[1] / stride)) for stride in STRIDES]


def _encode(boxes: Tensor, anchors: Tensor) -> Tensor:
    size, target = anchors[:, 2:] - anchors[:, :2], boxes[:, 2:] - boxes[:, :2]
    center = (anchors[:, :2] + anchors[:, 2:]) / 2
    return torch.cat([((boxes[:, :2] + boxes[:, 2:]) / 2 - center) / size, (target / size).log()], dim=1)


def _nearest(objects: Tensor, anchors: Tensor) -> tuple[Tensor, Tensor]:
    """For each anchor (R,) the object with the largest IoU, and whether it is NEAR."""
    best, nearest = reference.box_iou(objects[:, None], anchors[None]).max(dim=0)
    return nearest, best >= NEAR


def _noise(shape: Sequence[int], generator: torch.Generator) -> Tensor:
    return torch.randn(shape, generator=generator, device=generator.device)
