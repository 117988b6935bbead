"""From dense outputs to detections, the whole batch at once: one operator removes duplicates class by class.

torchvision's rules (`RetinaNet.postprocess_detections`, `FCOS.postprocess_detections`), with fixed shapes and without a
wait for the device until the results are cut into lists.
"""

from __future__ import annotations

from collections.abc import Sequence

import torch
from torch import Tensor

from gid_cuda.detectors.outputs import DetectorOutputs
from gid_cuda.ops import topk_nms


def detect(
    outputs: DetectorOutputs,
    level_sizes: Sequence[int],
    *,
    score_thresh: float,
    nms_thresh: float,
    topk_candidates: int,
    detections_per_img: int,
    centerness: Tensor | None = None,
) -> list[dict[str, Tensor]]:
    """Detections of each image: boxes (N, 4) xyxy pixels within `outputs.image_sizes`, scores (N,) descending, labels.

    Of each level those `topk_candidates` pairs of box and class with the highest scores above `score_thresh`, then
    greedy NMS within each class, then the best `detections_per_img` of all classes. Equal scores: finer level, lower
    box, lower class first. A box with a NaN among its logits or a non-finite one among its coordinates is no detection.

    level_sizes: how many of the R boxes belong to each level, finest first.
    centerness: (B, R, 1) logits; the score is then sqrt(sigmoid(class) * sigmoid(centerness)), else sigmoid(class).
    """
    boxes, scores, labels = candidates(outputs, level_sizes, score_thresh, topk_candidates, centerness)
    chosen, counts = topk_nms(boxes, scores, detections_per_img, nms_thresh, groups=labels)
    slots = chosen.clamp(min=0)  # empty ones hold -1
    boxes = boxes.gather(1, slots[..., None].expand(-1, -1, 4))
    scores, labels = scores.gather(1, slots), labels.gather(1, slots)
    return [  # the one wait for the device
        {"boxes": boxes[image, :count], "scores": scores[image, :count], "labels": labels[image, :count]}
        for image, count in enumerate(counts.tolist())
    ]


@torch.no_grad()
def candidates(
    outputs: DetectorOutputs,
    level_sizes: Sequence[int],
    score_thresh: float,
    most: int,
    centerness: Tensor | None = None,
) -> tuple[Tensor, Tensor, Tensor]:
    """The best `most` pairs of each level before NMS: boxes (B, N, 4), scores (B, N), labels (B, N) int64.

    N depends on shapes alone; the score of a slot without a candidate is -inf. Boxes are decoded for these alone.
    """
    logits = outputs.logits
    # No score of a box is above that of its largest logit, so the best pairs lie in the boxes that are best by it.
    best = _scores(logits.amax(dim=2), None if centerness is None else centerness[..., 0])
    best = best.masked_fill(best.isnan(), -torch.inf)
    chosen, first = [], 0
    for size in level_sizes:
        rows = first + top_indices(best[:, first : first + size], most).sort(dim=1).values  # so that ties go by box
        scores = _scores(_rows(logits, rows), None if centerness is None else _rows(centerness, rows))
        passed = (scores > score_thresh) & (_rows(best, rows) > -torch.inf)[..., None]
        scores = scores.masked_fill(~passed, -torch.inf).flatten(1)
        pairs = top_indices(scores, most)
        classes = logits.shape[2]
        chosen.append((rows.gather(1, pairs // classes), scores.gather(1, pairs), pairs % classes))
        first += size
    indices, scores, labels = (torch.cat(parts, dim=1) for parts in zip(*chosen, strict=True))
    return _decode(outputs, indices), scores, labels


def top_indices(scores: Tensor, k: int) -> Tensor:
    """Indices of the k largest (all, if fewer) along dim 1, descending, equal ones by lower index; (B, N) -> (B, k).

    scores: float32, not negative but for -inf, no NaN. `Tensor.topk` leaves open which of equal scores it takes, and
    in 16 bits many are equal: the keys that it sees here are score and index in one number, no two alike.
    """
    count = scores.shape[1]
    tie = torch.arange(count - 1, -1, -1, device=scores.device)
    keys = (scores.contiguous().view(torch.int32).long() << 32) | tie  # as integers such floats keep their order
    return keys.topk(min(k, count), dim=1).indices


def _scores(logits: Tensor, centerness: Tensor | None) -> Tensor:
    scores = logits.float().sigmoid()
    return scores if centerness is None else (scores * centerness.float().sigmoid()).sqrt()


def _rows(values: Tensor, rows: Tensor) -> Tensor:
    """values (B, R, ...), rows (B, N) -> (B, N, ...)."""
    return values[torch.arange(len(values), device=values.device)[:, None], rows]


def _decode(outputs: DetectorOutputs, indices: Tensor) -> Tensor:
    """(B, N) of the R boxes -> (B, N, 4) float32, clipped to each image."""
    deltas = _rows(outputs.deltas, indices).flatten(0, 1)
    boxes = outputs.coder.decode(deltas, outputs.anchors[indices.flatten()]).view(*indices.shape, 4)
    height, width = outputs.image_sizes.float()[:, None].unbind(-1)  # (B, 1) each
    limits = torch.stack([width, height, width, height], dim=-1)
    return boxes.clamp(min=0).minimum(limits)
