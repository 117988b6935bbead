"""The work in plain PyTorch and torchvision, as its contenders do it where `gid_cuda.reference` is not enough."""

from __future__ import annotations

from collections.abc import Sequence

import torch
import torch.nn.functional as F
from torch import Tensor
from torchvision.ops import batched_nms, roi_align

from gid_cuda import reference
from gid_cuda.detectors.outputs import BoxCoder

decode = BoxCoder("deltas").decode  # deltas (..., R, 4) against anchors (R, 4) -> boxes (..., R, 4) float32
PRE_NMS = 3000  # boxes an image that torchvision's suppression gets to see


def decoded_gi_score(
    teacher_logits: Tensor,
    student_logits: Tensor,
    teacher_deltas: Tensor,
    student_deltas: Tensor,
    anchors: Tensor,
    image_sizes: Tensor,
) -> tuple[Tensor, Tensor]:
    """Both models' boxes, then GI scores and the chosen boxes, clipped: (B, R) and (B, R, 4)."""
    boxes = (decode(teacher_deltas, anchors), decode(student_deltas, anchors))
    return reference.gi_score(teacher_logits, student_logits, *boxes, image_sizes)


def best_boxes(boxes: Tensor, scores: Tensor, min_size: float) -> tuple[Tensor, Tensor, Tensor]:
    """The PRE_NMS best boxes of each image with both sides >= min_size: boxes (B, n, 4), scores (B, n), indices."""
    large = ((boxes[..., 2:] - boxes[..., :2]) >= min_size).all(dim=2)
    best, indices = scores.masked_fill(~large, -torch.inf).topk(min(PRE_NMS, scores.shape[1]), dim=1)
    return boxes.gather(1, indices[..., None].expand(-1, -1, 4)), best, indices


def nms_of_best(boxes: Tensor, scores: Tensor, indices: Tensor, k: int, iou: float) -> tuple[Tensor, Tensor]:
    """torchvision's suppression image by image; the first k of each as `topk_nms` gives them.

    boxes (B, n, 4), scores (B, n) descending, indices (B, n): which of all boxes these are.
    """
    images, count = scores.shape
    image = torch.arange(images, device=boxes.device).repeat_interleave(count)
    kept = torch.zeros(images * count, dtype=torch.bool, device=boxes.device)
    kept[batched_nms(boxes.flatten(0, 1), scores.flatten(), image, iou)] = True
    kept = kept.view(images, count) & (scores > -torch.inf)
    place = torch.where(kept, torch.arange(count, device=boxes.device), count)
    first = place.topk(min(k, count), dim=1, largest=False).values
    found = first < count
    chosen = torch.where(found, indices.gather(1, first.clamp(max=count - 1)), -1)
    return F.pad(chosen, (0, k - chosen.shape[1]), value=-1), found.sum(dim=1)


def top_then_nms(boxes: Tensor, scores: Tensor, k: int, iou: float, min_size: float = 0.0) -> tuple[Tensor, Tensor]:
    """What a user would write in place of `topk_nms`."""
    return nms_of_best(*best_boxes(boxes, scores, min_size), k, iou)


def crops_by_level(
    features: Sequence[Tensor], boxes: Tensor, counts: Tensor, strides: Sequence[int], bins: int = 10, ratio: int = 2
) -> Tensor:
    """multilevel_roi_align by torchvision's roi_align, level after level: (B, K, Ch, P, P); it has no bfloat16."""
    images, slots = boxes.shape[:2]
    image = torch.arange(images, device=boxes.device).repeat_interleave(slots)
    rois = torch.cat([image[:, None].float(), boxes.flatten(0, 1)], dim=1)
    filled = torch.arange(slots, device=boxes.device) < counts[:, None]
    levels = reference.roi_levels(boxes, strides, 224.0, 4).masked_fill(~filled, -1).flatten()
    crops = torch.zeros((images * slots, features[0].shape[1], bins, bins), device=boxes.device)
    for level, feature in enumerate(features):
        mine = (levels == level).nonzero()[:, 0]
        crops = crops.index_copy(
            0, mine, roi_align(feature.float(), rois[mine], bins, 1 / strides[level], ratio, aligned=True)
        )
    return crops.to(features[0].dtype).unflatten(0, (images, slots))


def response_of_rows(student: Tensor, teacher: Tensor, mask: Tensor) -> Tensor:
    """Eq. 8's L_cls of each image, (B,), over the rows of the mask (B, R) taken out by index, so that only those are
    computed with; on CUDA the host waits to learn how many there are."""
    rows, targets = student[mask].float(), teacher[mask].float()
    soft = targets.sigmoid()
    loss = F.binary_cross_entropy_with_logits(rows, soft, reduction="none")
    loss = loss - F.binary_cross_entropy_with_logits(targets, soft, reduction="none")
    return _sums_of_images(loss, mask)


def smooth_l1_of_rows(student: Tensor, teacher: Tensor, mask: Tensor, beta: float) -> Tensor:
    """Eq. 8's L_reg of each image, (B,), likewise."""
    loss = F.smooth_l1_loss(student[mask].float(), teacher[mask].float(), reduction="none", beta=beta)
    return _sums_of_images(loss, mask)


def _sums_of_images(of_rows: Tensor, mask: Tensor) -> Tensor:
    image = mask.nonzero()[:, 0]
    return of_rows.new_zeros(len(mask)).index_add(0, image, of_rows.sum(dim=1))
