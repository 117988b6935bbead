"""The types that detectors, distillation and engine share. This module needs torch alone.

A detector joins by subclassing `Detector`; everything that distillation knows of it is here.
"""

from __future__ import annotations

import math
from collections.abc import Sequence
from dataclasses import dataclass, field
from typing import Any, Literal, Protocol

import torch
from torch import Tensor, nn

Target = dict[str, Tensor]
"""Ground truth of one image: boxes (N, 4) float32 xyxy pixels, labels (N,) int64 in 0..C-1."""

Family = Literal["anchor-free", "anchor-based", "two-stage"]
"""What a detector predicts from: points; anchors; or anchors in its first stage, whose boxes a second stage refines."""

_MAX_LOG_SCALE = math.log(1000.0 / 16)  # R-CNN's clamp: keeps exp() of an untrained head finite


class ImageList(Protocol):
    """torchvision's `ImageList`: `tensors` (B, 3, H, W) and `image_sizes`, B pairs of height, width before padding."""

    tensors: Tensor
    image_sizes: list[tuple[int, int]]


@dataclass(frozen=True)
class BoxCoder:
    """How a detector encodes boxes against its anchors.

    kind:    "deltas" (R-CNN's dx, dy, dw, dh) or "distances" (FCOS's l, t, r, b in units of the anchor's size).
    weights: what the four deltas are divided by before use; torchvision's `BoxCoder.weights`.
    """

    kind: Literal["deltas", "distances"]
    weights: tuple[float, float, float, float] = (1.0, 1.0, 1.0, 1.0)

    def decode(self, deltas: Tensor, anchors: Tensor) -> Tensor:
        """deltas (..., R, 4) against anchors (R, 4) xyxy pixels -> boxes (..., R, 4) xyxy pixels, float32.

        Differentiable. Operation order follows torchvision's coders, so that results agree to the last digits.
        """
        deltas, anchors = deltas.float(), anchors.float()
        size = anchors[:, 2:] - anchors[:, :2]
        if self.weights != (1.0, 1.0, 1.0, 1.0):  # by column: a tensor of weights would be a copy that waits
            deltas = torch.stack([d / w for d, w in zip(deltas.unbind(-1), self.weights, strict=True)], dim=-1)
        if self.kind == "distances":
            center = 0.5 * (anchors[:, :2] + anchors[:, 2:])
            return torch.cat([center - deltas[..., :2] * size, center + deltas[..., 2:] * size], dim=-1)
        center = anchors[:, :2] + 0.5 * size
        new_center = deltas[..., :2] * size + center
        half = 0.5 * (torch.exp(deltas[..., 2:].clamp(max=_MAX_LOG_SCALE)) * size)
        return torch.cat([new_center - half, new_center + half], dim=-1)


@dataclass
class DetectorOutputs:
    """What one forward pass of a detector gives. B images, R predicted boxes an image, C classes, L levels.

    features:    L tensors (B, Ch, H_l, W_l), the FPN maps, finest first
    strides:     L ints, pixels; nominal powers of two, used for RoIAlign only
    logits:      (B, R, C) before sigmoid; C = classes of the data set, no background; RPN objectness has C = 1
    deltas:      (B, R, 4) regression head output, encoded by `coder`
    coder:       see `BoxCoder`
    anchors:     (R, 4) xyxy pixels of the padded batch, float32
    image_sizes: (B, 2) height, width before padding, int64
    losses:      task losses by name; empty where no targets were given
    """

    features: list[Tensor]
    strides: list[int]
    logits: Tensor
    deltas: Tensor
    coder: BoxCoder
    anchors: Tensor
    image_sizes: Tensor
    losses: dict[str, Tensor] = field(default_factory=dict)
    _boxes: Tensor | None = field(default=None, init=False, repr=False, compare=False)

    @property
    def boxes(self) -> Tensor:
        """(B, R, 4) decoded boxes, xyxy pixels of the padded batch, float32, detached; decoded when first asked for.

        Selection does not ask: it decodes in the pass that chooses, unless they are there already."""
        if self._boxes is None:
            self._boxes = self.coder.decode(self.deltas.detach(), self.anchors)
        return self._boxes


@dataclass
class GeneralInstances:
    """The general instances (GIs) of a batch: K slots an image, all detached (paper, section 3.1).

    boxes:   (B, K, 4) float32 xyxy pixels, 0 in empty slots
    scores:  (B, K) float32 GI scores (eq. 1), 0 in empty slots
    indices: (B, K) int64, which of the R predicted boxes; -1 = empty. Slots are filled from the front.
    counts:  (B,) int64, filled slots of each image
    """

    boxes: Tensor
    scores: Tensor
    indices: Tensor
    counts: Tensor

    @property
    def valid(self) -> Tensor:
        """(B, K) bool, which slots hold an instance."""
        slots = torch.arange(self.indices.shape[1], device=self.counts.device)
        return slots < self.counts[:, None]


@dataclass(frozen=True)
class ClassRows:
    """Where the classes lie in the rows of a layer's weight and bias, for weights whose classes stand in another order.

    Rows go by anchor, then class, then the `each` numbers that a class has. background: class 0 of the layer is none
    of the data set's.
    """

    layer: str
    anchors: int = 1
    each: int = 1
    background: bool = False


class Detector(nn.Module):
    """The adapter between a detector and everything else; `gid_cuda.detectors.RetinaNet` is one.

    num_classes:  C of the data set, without background
    out_channels: Ch of the FPN maps in `DetectorOutputs.features`
    transform:    torchvision's `GeneralizedRCNNTransform` (normalise, resize, pad). The trainer applies the student's
                  once a step, outside both detectors; `predict` applies the detector's own.
    weight_notes: what was loaded, gathered by name or initialised anew, one line each; shown when a run starts
    class_rows:   the layers whose rows belong to classes; without, weights of another order of classes are refused
    family:       see `Family`; some methods of distillation are for some families. All but "anchor-free" order their
                  anchors by level, row, column, then the anchors of that cell
    """

    num_classes: int
    out_channels: int
    transform: nn.Module
    weight_notes: Sequence[str] = ()
    class_rows: Sequence[ClassRows] = ()
    family: Family = "anchor-free"

    def forward(self, images: ImageList, targets: Sequence[Target | None] | None = None) -> DetectorOutputs:
        """One pass: features, heads and task losses together.

        images: `ImageList`, already normalised, resized and padded.
        targets: B dicts in those pixels; `None` for one image marks it unlabelled: it is left out of the task losses
            and of their normalisers. Losses are computed exactly where targets are given, in train or eval mode.
        """
        raise NotImplementedError

    def assign(self, instances: GeneralInstances, outputs: DetectorOutputs) -> Tensor:
        """The paper's F (eq. 7): this detector's own label assignment with the GIs in place of ground truth.

        Returns (B, R) bool. Empty slots take no part.
        """
        raise NotImplementedError

    def response_losses(
        self, student: DetectorOutputs, teacher: DetectorOutputs, mask: Tensor
    ) -> tuple[Tensor, Tensor]:
        """(cls, reg): float32 sums over the masked boxes (over C; over the 4 deltas), not normalised (eq. 8).

        mask: (B, R) bool. Gradient goes to the student's logits and deltas alone. May put the same task losses with
        another way back into student.losses.
        """
        raise NotImplementedError

    def predict(self, images: Sequence[Tensor]) -> list[dict[str, Any]]:
        """Raw images (3, H, W) in [0, 1] -> per image {boxes (N, 4), scores (N,), labels (N,)}, boxes in its pixels."""
        raise NotImplementedError
