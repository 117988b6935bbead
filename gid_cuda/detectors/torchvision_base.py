"""What the adapters over torchvision's detectors share: one transform, anchors in float32, predictions in eval mode."""

from __future__ import annotations

from collections.abc import Sequence
from typing import Any, ClassVar

import torch
from torch import Tensor
from torchvision.models.detection.anchor_utils import AnchorGenerator

from gid_cuda.detectors import dense_losses
from gid_cuda.detectors.outputs import Detector, DetectorOutputs, ImageList, Target

CPU = torch.device("cpu")


class TorchvisionDetector(Detector):
    """Base of the adapters, to be subclassed together with torchvision's model, whose state-dict keys stay as they are.

    networks: names of the submodules that hold the bulk of the work between images and losses; `compile` takes them.
    """

    networks: ClassVar[tuple[str, ...]]

    def detect(self, images: ImageList) -> list[dict[str, Tensor]]:
        """Detections of a transformed batch: boxes in its pixels, scores, labels 0..C-1. Called in eval mode."""
        raise NotImplementedError

    @torch.no_grad()
    def predict(self, images: Sequence[Tensor]) -> list[dict[str, Any]]:
        """Detections of raw images, as torchvision's model gives them in eval mode, also if this one is in training.

        images: (3, H, W) in [0, 1], sizes may differ; brought to the detector's device.
        Returns per image {boxes (N, 4) xyxy in its pixels, scores (N,) descending, labels (N,) in 0..C-1}.
        """
        if not images:
            return []
        if self.training:
            in_training = [module for module in self.modules() if module.training]  # some may be kept from it
            self.eval()
            try:
                return self.predict(images)
            finally:
                for module in in_training:
                    module.training = True
        device = next(self.parameters()).device
        batch, _ = self.transform([image.to(device) for image in images])
        detections = self.detect(batch)
        return self.transform.postprocess(detections, batch.image_sizes, [tuple(image.shape[-2:]) for image in images])

    def compile(self, *args: Any, **kwargs: Any) -> None:
        """torch.compile, with its arguments, of `networks`. In place: state-dict keys stay as they are."""
        for name in self.networks:
            self.get_submodule(name).compile(*args, **kwargs)


class ExactAnchors(AnchorGenerator):
    """Anchors of the very sizes given, on the nominal strides; torchvision's own are rounded to whole pixels, and lie
    as far apart as the padded image divided by the map has it.

    sizes: pixels, several a level. strides: pixels, one a level. Each size at the ratios 1:2, 1:1 and 2:1.
    """

    def __init__(self, sizes: Sequence[Sequence[float]], strides: Sequence[int]) -> None:
        super().__init__(tuple(tuple(level) for level in sizes), ((0.5, 1.0, 2.0),) * len(sizes))
        self.strides = list(strides)

    def generate_anchors(
        self,
        scales: Sequence[float],
        aspect_ratios: Sequence[float],
        dtype: torch.dtype = torch.float32,
        device: torch.device = CPU,
    ) -> Tensor:
        """(A, 4) around the origin, ratio by ratio, and in each of them size by size."""
        size = torch.as_tensor(scales, dtype=dtype, device=device)
        root = torch.as_tensor(aspect_ratios, dtype=dtype, device=device).sqrt()[:, None]
        width, height = (1 / root * size).flatten(), (root * size).flatten()
        return torch.stack([-width, -height, width, height], dim=1) / 2

    def grid_anchors(self, grid_sizes: list[list[int]], strides: list[list[Tensor]]) -> list[Tensor]:
        """Per level (H_l * W_l * A, 4). strides: torchvision's, which the nominal ones stand in for."""
        return super().grid_anchors(grid_sizes, [[stride, stride] for stride in self.strides])


def grid_anchors(generator: AnchorGenerator, images: ImageList, features: Sequence[Tensor]) -> Tensor:
    """(R, 4) float32, all levels. The generator's own forward takes the features' type; bfloat16 is off by pixels."""
    height, width = images.tensors.shape[-2:]
    grids = [list(feature.shape[-2:]) for feature in features]
    steps = [[height // rows, width // columns] for rows, columns in grids]
    generator.set_cell_anchors(torch.float32, images.tensors.device)
    return torch.cat(generator.grid_anchors(grids, steps))


def sizes_tensor(images: ImageList) -> Tensor:
    """`DetectorOutputs.image_sizes`, (B, 2) int64 on the images' device."""
    sizes = torch.tensor([[int(height), int(width)] for height, width in images.image_sizes], dtype=torch.int64)
    return dense_losses.to_device(sizes, images.tensors.device)


def check_targets_fit(targets: Sequence[Target | None], outputs: DetectorOutputs) -> None:
    """ValueError unless there is an entry for each image, and in each a label for each box (N, 4)."""
    if len(targets) != len(outputs.logits):
        raise ValueError(f"targets has {len(targets)} entries for {len(outputs.logits)} images: give one an image")
    for index, target in enumerate(targets):
        if target is None:
            continue
        boxes, labels = target["boxes"].shape, target["labels"].shape
        if boxes[1:] != (4,) or labels != boxes[:1]:  # where labels are too few, padding would make them up
            raise ValueError(
                f"targets[{index}] has boxes {tuple(boxes)} and labels {tuple(labels)}, not (N, 4) and (N,)"
            )


def empty_sum(x: Tensor) -> Tensor:
    """A float32 zero with zero gradient to x (x * 0 would be NaN where x is infinite)."""
    return x.flatten()[:0].float().sum()
