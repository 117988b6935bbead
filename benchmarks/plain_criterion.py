"""The whole criterion in plain PyTorch: what `gid_cuda.distill.GID` computes at its defaults for a RetinaNet.

Written by the paper's equations, beside the package's own code, so that the comparison of the losses means something.
"""

from __future__ import annotations

from collections.abc import Sequence
from functools import partial
from typing import Literal

import torch
import torch.nn.functional as F
from torch import Tensor

from benchmarks import plain
from benchmarks.cases import compiled
from benchmarks.inputs import STRIDES
from gid_cuda import reference

TOP_K, NMS_IOU, MIN_SIZE = 10, 0.3, 10.0
LAMBDA_FEATURE, LAMBDA_RELATION, ALPHA = 5e-4, 40.0, 0.1
ASSIGN_IOU, DELTAS_BETA = 0.5, 0.1

Heads = tuple[Tensor, Tensor, Tensor, Tensor, Tensor, Tensor]
"""teacher_logits, student_logits, teacher_deltas, student_deltas, anchors, image_sizes: see `inputs.Scene`."""


class PlainCriterion:
    """Eqs. 1-8, as one call. Three kinds:

    exact:       every step by `gid_cuda.reference`, the response losses over all boxes under a mask
    torchvision: choice by the 3000 best boxes and torchvision's suppression, crops by torchvision's roi_align;
                 the response losses of the masked boxes alone, taken out by index
    compiled:    as torchvision, but all that is plain PyTorch before, between and after its operators under
                 torch.compile, which fuses the mask into the losses, where an index would break its graph
    """

    def __init__(self, kind: Literal["exact", "torchvision", "compiled"]) -> None:
        self.exact, by_index = kind == "exact", kind == "torchvision"
        self.candidates, self.fill, self.losses = _candidates, _fill, partial(_losses, by_index=by_index)
        if kind == "compiled":
            self.candidates, self.fill, self.losses = compiled(_candidates), compiled(_fill), compiled(self.losses)

    def __call__(
        self,
        heads: Heads,
        teacher_features: Sequence[Tensor],
        student_features: Sequence[Tensor],
        weight: Tensor,
        bias: Tensor,
    ) -> Tensor:
        """(4,) the weighted losses, in the order of `gid_cuda.distill.LOSS_NAMES`. weight, bias: f_adapt's."""
        with torch.no_grad():
            boxes, counts = self._choose(heads)
            teacher_crops = self._crops(teacher_features, boxes, counts)
        student_crops = self._crops(student_features, boxes, counts)
        return self.losses(heads, boxes, counts, teacher_crops, student_crops, weight, bias)

    def _choose(self, heads: Heads) -> tuple[Tensor, Tensor]:
        """The general instances' boxes (B, K, 4) and counts (B,)."""
        if self.exact:
            scores, boxes = plain.decoded_gi_score(*heads)
            return self.fill(boxes, *reference.topk_nms(boxes, scores, TOP_K, NMS_IOU, min_size=MIN_SIZE))
        boxes, *best = self.candidates(heads)
        return self.fill(boxes, *plain.nms_of_best(*best, TOP_K, NMS_IOU))

    def _crops(self, features: Sequence[Tensor], boxes: Tensor, counts: Tensor) -> Tensor:
        if self.exact:
            return reference.multilevel_roi_align(features, boxes, counts, strides=STRIDES).float()
        return plain.crops_by_level(features, boxes, counts, STRIDES).float()


def _candidates(heads: Heads) -> tuple[Tensor, Tensor, Tensor, Tensor]:
    scores, boxes = plain.decoded_gi_score(*heads)
    return boxes, *plain.best_boxes(boxes, scores, MIN_SIZE)


def _fill(boxes: Tensor, indices: Tensor, counts: Tensor) -> tuple[Tensor, Tensor]:
    chosen = boxes.gather(1, indices.clamp(min=0)[..., None].expand(-1, -1, 4))
    return torch.where(indices[..., None] >= 0, chosen, 0.0), counts


def _losses(
    heads: Heads,
    boxes: Tensor,
    counts: Tensor,
    teacher_crops: Tensor,
    student_crops: Tensor,
    weight: Tensor,
    bias: Tensor,
    *,
    by_index: bool,
) -> Tensor:
    """Eqs. 4-8 from the instances' boxes (B, K, 4) and counts (B,) and both models' crops (B, K, Ch, P, P) on."""
    teacher_logits, student_logits, teacher_deltas, student_deltas, anchors, _ = heads
    valid = torch.arange(boxes.shape[1], device=boxes.device) < counts[:, None]
    adapted = F.conv2d(student_crops.flatten(0, 1), weight, bias).unflatten(0, boxes.shape[:2])
    adapted = torch.where(valid[:, :, None, None, None], adapted, 0.0)
    feature = (teacher_crops - adapted).square().sum() / counts.sum().clamp(min=1)
    mask = _assigned(boxes, valid, anchors)
    response = _response_by_index if by_index else _response_under_mask
    cls, reg = response(student_logits, teacher_logits, student_deltas, teacher_deltas, mask)
    return torch.stack(
        [
            LAMBDA_FEATURE * feature,
            LAMBDA_RELATION * _relation(teacher_crops.flatten(2), adapted.flatten(2), counts),
            ALPHA * cls / mask.sum().clamp(min=1),
            reg / mask.sum().clamp(min=1),
        ]
    )


def _relation(teacher: Tensor, student: Tensor, counts: Tensor) -> Tensor:
    """Eq. 6 over vectors (B, K, D)."""
    pairs = (counts * (counts - 1)).clamp(min=1).float()
    normalised = []
    for x in (teacher, student):
        distances = reference.pairwise_distance(x, counts)
        mean = (distances.sum(dim=(1, 2)) / pairs)[:, None, None]
        normalised.append(torch.where(mean > 0, distances / torch.where(mean > 0, mean, 1.0), 0.0))
    of_images = F.smooth_l1_loss(*normalised, reduction="none").sum(dim=(1, 2)) / pairs
    return of_images.sum() / (counts >= 2).sum().clamp(min=1)


def _assigned(boxes: Tensor, valid: Tensor, anchors: Tensor) -> Tensor:
    """Eq. 7, (B, R) bool: RetinaNet's matcher with the instances as ground truth."""
    iou = reference.box_iou(boxes[:, :, None], anchors)
    best = iou.amax(dim=2, keepdim=True)
    return (((iou >= ASSIGN_IOU) | ((iou == best) & (best > 0))) & valid[..., None]).any(dim=1)


def _response_under_mask(
    student_logits: Tensor, teacher_logits: Tensor, student_deltas: Tensor, teacher_deltas: Tensor, mask: Tensor
) -> tuple[Tensor, Tensor]:
    """Eq. 8's two sums: cross-entropy less the teacher's entropy, and smooth L1."""
    outside = ~mask[..., None]
    student, teacher = (logits.float().masked_fill(outside, 0.0) for logits in (student_logits, teacher_logits))
    soft = teacher.sigmoid()
    cls = F.binary_cross_entropy_with_logits(student, soft, reduction="none")
    cls = cls - F.binary_cross_entropy_with_logits(teacher, soft, reduction="none")
    deltas = (deltas.float().masked_fill(outside, 0.0) for deltas in (student_deltas, teacher_deltas))
    return cls.sum(), F.smooth_l1_loss(*deltas, reduction="sum", beta=DELTAS_BETA)


def _response_by_index(
    student_logits: Tensor, teacher_logits: Tensor, student_deltas: Tensor, teacher_deltas: Tensor, mask: Tensor
) -> tuple[Tensor, Tensor]:
    cls = plain.response_of_rows(student_logits, teacher_logits, mask)
    return cls.sum(), plain.smooth_l1_of_rows(student_deltas, teacher_deltas, mask, DELTAS_BETA).sum()
