"""A detector with just enough to be distilled, and outputs made by hand or at random."""

from __future__ import annotations

from collections.abc import Callable

import torch
from torch import Tensor
from torch.nn.functional import binary_cross_entropy_with_logits, smooth_l1_loss

from gid_cuda.detectors.outputs import BoxCoder, Detector, DetectorOutputs, GeneralInstances

CODER = BoxCoder("distances")


class FakeDetector(Detector):
    """Assigns a GI to every anchor with IoU >= 0.5; losses as RetinaNet's."""

    def assign(self, instances: GeneralInstances, outputs: DetectorOutputs) -> Tensor:
        a, b = instances.boxes[:, :, None], outputs.anchors
        sides = (torch.minimum(a[..., 2:], b[:, 2:]) - torch.maximum(a[..., :2], b[:, :2])).clamp(min=0)
        inter = sides.prod(dim=-1)
        union = (a[..., 2:] - a[..., :2]).prod(dim=-1) + (b[:, 2:] - b[:, :2]).prod(dim=-1) - inter
        return ((inter >= 0.5 * union) & instances.valid[..., None]).any(dim=1)

    def response_losses(
        self, student: DetectorOutputs, teacher: DetectorOutputs, mask: Tensor
    ) -> tuple[Tensor, Tensor]:
        t, s = teacher.logits.detach().float(), student.logits.float()
        target = t.sigmoid()
        cross = binary_cross_entropy_with_logits(s, target, reduction="none")
        entropy = binary_cross_entropy_with_logits(t, target, reduction="none")
        reg = smooth_l1_loss(student.deltas.float(), teacher.deltas.detach().float(), reduction="none", beta=0.1)
        masked = mask[..., None]
        return torch.where(masked, cross - entropy, 0.0).sum(), torch.where(masked, reg, 0.0).sum()


def exact_outputs(
    boxes: Tensor,
    logits: Tensor,
    features: list[Tensor] | None = None,
    size: tuple[int, int] = (256, 256),
    present: Tensor | None = None,
) -> DetectorOutputs:
    """Outputs whose predicted boxes are exactly `boxes` (R, 4), the same in each image; logits (B, R, C).

    features: one level of stride 8, zeros if not given. present (B, R) bool: the others have no size, so that they are
    never chosen.
    """
    batch = len(logits)
    if features is None:
        features = [torch.zeros(batch, 1, size[0] // 8, size[1] // 8, device=logits.device)]
    deltas = torch.full((batch, len(boxes), 4), 0.5, device=logits.device)  # half the anchor's size from its centre
    if present is not None:
        deltas = deltas * present[..., None]
    sizes = torch.tensor(size, device=logits.device).expand(batch, 2)
    return DetectorOutputs(features, [8], logits, deltas, CODER, boxes, sizes)


def quarters(values: Tensor, logits: Tensor | None = None, present: Tensor | None = None) -> DetectorOutputs:
    """Four 40 x 40 boxes, one in the middle of each quarter of a 256 x 256 image, each on features that do not vary.

    values (B, 4, Ch): the features of each quarter, so every value of the RoIAlign of box i is values[:, i].
    """
    batch, _, channels = values.shape
    maps = values.transpose(1, 2).reshape(batch, channels, 2, 2)  # quarters in reading order
    features = maps.repeat_interleave(16, dim=2).repeat_interleave(16, dim=3)
    corner = torch.tensor([[44.0, 44], [172, 44], [44, 172], [172, 172]], device=values.device)
    logits = torch.zeros(batch, 4, 1, device=values.device) if logits is None else logits
    return exact_outputs(torch.cat([corner, corner + 40], dim=1), logits, [features], present=present)


def random_outputs(
    batch: int = 2,
    classes: int = 3,
    channels: int = 4,
    *,
    seed: int,
    dtype: torch.dtype = torch.float32,
    grad: bool = False,
    device: str = "cpu",
) -> DetectorOutputs:
    """Two levels (strides 8 and 32) of a 128 x 160 padded batch; anchors of several sizes on a grid.

    Anchors do not depend on the seed, so that outputs of different seeds fit together.
    """
    make = torch.Generator().manual_seed(seed)

    def draw(*shape: int, mean: float = 0.0, std: float = 1.0) -> Tensor:
        return (mean + std * torch.randn(shape, generator=make)).to(device, dtype).requires_grad_(grad)

    every_size = torch.tensor([6.0, 20.0, 48.0, 300.0])
    y, x, side = torch.meshgrid(torch.arange(12.0, 128, 20), torch.arange(8.0, 160, 30), every_size, indexing="ij")
    center, half = torch.stack([x, y], dim=-1).reshape(-1, 2), side.reshape(-1, 1) / 2
    anchors = torch.cat([center - half, center + half], dim=1).to(device)
    return DetectorOutputs(
        features=[draw(batch, channels, 16, 20), draw(batch, channels, 4, 5)],
        strides=[8, 32],
        logits=draw(batch, len(anchors), classes),
        deltas=draw(batch, len(anchors), 4, mean=0.5, std=0.1),
        coder=CODER,
        anchors=anchors,
        image_sizes=torch.tensor([[128, 160], [100, 150]]).repeat(batch, 1)[:batch].to(device),
    )


def random_targets(batch: int, *, seed: int, device: str = "cpu") -> list[dict[str, Tensor] | None]:
    """Two boxes of 48 pixels and a large one in the first image, None for the second, none in the third, and so on."""
    make = torch.Generator().manual_seed(seed)
    result: list[dict[str, Tensor] | None] = []
    for image in range(batch):
        corner = torch.rand(3, 2, generator=make) * torch.tensor([[100.0, 60], [100, 60], [0, 0]])
        boxes = torch.cat([corner, corner + torch.tensor([[48.0], [48], [100]])], dim=1)[: 0 if image % 3 else 3]
        result.append(None if image % 3 == 1 else {"boxes": boxes.to(device)})
    return result


def leaves(outputs: DetectorOutputs) -> list[Tensor]:
    """What gradients may flow to."""
    return [*outputs.features, outputs.logits, outputs.deltas]


def captured(step: Callable[[], list[Tensor]]) -> tuple[torch.cuda.CUDAGraph, list[Tensor]]:
    """The CUDA graph of a call of `step`, and what it will write to; fails where the host would wait for the device."""
    stream = torch.cuda.Stream()
    with torch.cuda.stream(stream):
        step()
    stream.synchronize()
    torch.cuda.set_sync_debug_mode("error")
    try:
        graph = torch.cuda.CUDAGraph()
        with torch.cuda.graph(graph):
            results = step()
    finally:
        torch.cuda.set_sync_debug_mode("default")
    return graph, results
