"""The general instance selection module, GISM (paper, section 3.1): which boxes of a batch are distilled."""

from __future__ import annotations

import torch
from torch import Tensor

from gid_cuda.detectors.outputs import BoxCoder, DetectorOutputs, GeneralInstances
from gid_cuda.ops import decoded_gi_score, gi_score, topk_nms


@torch.no_grad()
def select_instances(
    teacher: DetectorOutputs,
    student: DetectorOutputs,
    *,
    top_k: int = 10,
    nms_iou: float = 0.3,
    min_size: float = 10.0,
    pre_nms_top_k: int = 0,
) -> GeneralInstances:
    """Eqs. 1-3: the top_k boxes of each image about which teacher and student disagree most, duplicates removed.

    Every predicted box r has a GI score, max_c |sigmoid(teacher) - sigmoid(student)| over its C classes (eq. 1), and
    a GI box, that of whichever model is surer of its best class (eq. 2; the student's at a tie). GI boxes are clipped
    to the image; then greedy non-maximum suppression at IoU nms_iou, across levels and classes, keeps the first top_k
    (eq. 3). Boxes with a side under min_size pixels are never chosen.

    pre_nms_top_k: 0 lets the suppression see all R boxes; n > 0 only those with the n best scores of their image
        (counted before small boxes are dropped), as detectors do.

    Row r means the same anchor in both models: boxes that are still encoded are decoded against the student's anchors.

    Returns `GeneralInstances` with K = top_k slots an image, best score first, detached. Its indices point into the R
    predicted boxes. Shapes depend on no value, and the host never waits for the device.
    """
    batch, boxes_per_image = student.logits.shape[:2]
    if top_k == 0 or boxes_per_image == 0:
        return empty_instances(batch, top_k, student.logits.device)
    logits = (teacher.logits, student.logits)
    if teacher.logits.dtype != student.logits.dtype:  # one of them under autocast
        logits = (teacher.logits.float(), student.logits.float())
    if _are_encoded(teacher, student):
        coder = {"weights": student.coder.weights, "distances": student.coder.kind == "distances"}
        deltas = (teacher.deltas, student.deltas)
        scores, boxes = decoded_gi_score(*logits, *deltas, student.anchors, student.image_sizes, **coder)
    else:
        scores, boxes = gi_score(*logits, teacher.boxes, student.boxes, student.image_sizes)
    candidates = _best(scores, pre_nms_top_k) if 0 < pre_nms_top_k < boxes_per_image else scores
    indices, counts = topk_nms(boxes, candidates, top_k, nms_iou, min_size=min_size)
    return fill_slots(boxes, scores, indices.clamp(min=0), indices, counts)


def _are_encoded(*both: DetectorOutputs) -> bool:
    """Is it left to this step to decode the boxes, and in the way that the operator knows?"""
    return all(
        type(outputs.coder) is BoxCoder and type(outputs).boxes is DetectorOutputs.boxes and outputs._boxes is None
        for outputs in both
    )


def empty_instances(batch: int, slots: int, device: torch.device) -> GeneralInstances:
    """`GeneralInstances` of `batch` images, none of whose slots holds anything."""
    return GeneralInstances(
        boxes=torch.zeros((batch, slots, 4), device=device),
        scores=torch.zeros((batch, slots), device=device),
        indices=torch.full((batch, slots), -1, dtype=torch.int64, device=device),
        counts=torch.zeros((batch,), dtype=torch.int64, device=device),
    )


def keep_instances(instances: GeneralInstances, keep: Tensor) -> GeneralInstances:
    """The instances where keep (B, K) bool is set, in their order, moved to the front; K stays, so shapes do too."""
    keep = keep & instances.valid
    order = front_order(keep)
    return fill_slots(instances.boxes, instances.scores, order, instances.indices.gather(1, order), keep.sum(dim=1))


def front_order(filled: Tensor) -> Tensor:
    """(..., K) int64: the order that brings the filled slots to the front, all else as it was."""
    return torch.argsort(filled.logical_not().to(torch.uint8), dim=-1, stable=True)


def fill_slots(boxes: Tensor, scores: Tensor, positions: Tensor, indices: Tensor, counts: Tensor) -> GeneralInstances:
    """The first counts (B,) slots filled from boxes (B, N, 4) and scores (B, N) at positions (B, K), the rest empty."""
    filled = torch.arange(positions.shape[1], device=positions.device) < counts[:, None]
    return GeneralInstances(
        boxes=torch.where(filled[..., None], boxes.gather(1, positions[..., None].expand(-1, -1, 4)), 0.0),
        scores=torch.where(filled, scores.gather(1, positions), 0.0),
        indices=torch.where(filled, indices, -1),
        counts=counts,
    )


def _best(scores: Tensor, n: int) -> Tensor:
    """scores (B, R) with all but the n best of each row made NaN, which is never chosen; equal ones by lower index."""
    order = torch.argsort(scores.nan_to_num(nan=-1.0), dim=1, descending=True, stable=True)[:, :n]
    return torch.full_like(scores, torch.nan).scatter(1, order, scores.gather(1, order))
