"""GID once more, by loops over the instances in float64, sharing no code with the package: what it is held to."""

from __future__ import annotations

import torch
from torch import Tensor, nn
from torch.nn.functional import conv2d, smooth_l1_loss

from gid_cuda.detectors.outputs import DetectorOutputs, Target


def select(teacher: DetectorOutputs, student: DetectorOutputs, top_k: int) -> list[list[list[float]]]:
    """The boxes of each image's instances."""
    result = []
    for image, (height, width) in enumerate(student.image_sizes.tolist()):
        boxes, scores = [], []
        for t, s, box_t, box_s in zip(
            teacher.logits[image], student.logits[image], teacher.boxes[image], student.boxes[image], strict=True
        ):
            scores.append(max(abs(a - b) for a, b in zip(t.sigmoid().tolist(), s.sigmoid().tolist(), strict=True)))
            x1, y1, x2, y2 = (box_t if max(t.tolist()) > max(s.tolist()) else box_s).tolist()
            boxes.append([max(x1, 0.0), max(y1, 0.0), min(x2, float(width)), min(y2, float(height))])
        kept: list[list[float]] = []
        for index in sorted(range(len(scores)), key=lambda r: -scores[r]):
            box = boxes[index]
            large = box[2] - box[0] >= 10 and box[3] - box[1] >= 10
            if large and len(kept) < top_k and all(iou(box, other) <= 0.3 for other in kept):
                kept.append(box)
        result.append(kept)
    return result


def overlap(a: list[float], b: list[float]) -> float:
    return max(0.0, min(a[2], b[2]) - max(a[0], b[0])) * max(0.0, min(a[3], b[3]) - max(a[1], b[1]))


def area(box: list[float]) -> float:
    return (box[2] - box[0]) * (box[3] - box[1])


def iou(a: list[float], b: list[float]) -> float:
    return overlap(a, b) / (area(a) + area(b) - overlap(a, b))


def kind(box: list[float], target: Target | None) -> str:
    if target is None:
        return "unlabelled"
    truth = target["boxes"].tolist()
    best_iou = max((iou(box, gt) for gt in truth), default=0.0)
    best_iop = max((overlap(box, gt) / area(box) for gt in truth), default=0.0)
    if best_iou > 0.5:
        return "positive"
    if best_iop > 0.7:
        return "semi-positive"
    return "negative" if best_iou < 0.5 and best_iop < 0.3 else "uncounted"


def roi_align(outputs: DetectorOutputs, image: int, box: list[float], bins: int) -> Tensor:
    """(Ch, bins, bins), two samples a bin and axis."""
    level = 1 if area(box) >= 448.0**2 else 0  # strides 8 and 32, the levels 3 and 5 of the pyramid
    feature, stride = outputs.features[level][image], outputs.strides[level]
    rows = axis(box[1] / stride - 0.5, box[3] / stride - 0.5, feature.shape[1], bins)
    columns = axis(box[0] / stride - 0.5, box[2] / stride - 0.5, feature.shape[2], bins)
    return torch.einsum("ih,chw,jw->cij", rows, feature, columns)


def axis(start: float, end: float, length: int, bins: int) -> Tensor:
    """(bins, length): how much of each cell goes into each bin."""
    weights = torch.zeros(bins, length, dtype=torch.float64)
    for i in range(bins):
        for offset in (0.25, 0.75):
            position = start + (i + offset) * (end - start) / bins
            if -1 <= position <= length:
                position = min(max(position, 0.0), length - 1.0)
                low = int(position)
                weights[i, low] += 0.5 * (1 - (position - low))
                weights[i, min(low + 1, length - 1)] += 0.5 * (position - low)
    return weights


def distances(x: list[Tensor]) -> dict[tuple[int, int], Tensor]:
    pairs = {(i, j): (x[i] - x[j]).norm() for i in range(len(x)) for j in range(len(x)) if i != j}
    mean = sum(pairs.values()) / max(len(pairs), 1)
    return {pair: distance / mean for pair, distance in pairs.items()}


def losses(
    teacher: DetectorOutputs,
    student: DetectorOutputs,
    adapt: nn.Conv2d | None,
    boxes: list[list[list[float]]],
    *,
    bins: int,
    reduction: str,
    scope: str,
) -> dict[str, Tensor]:
    """The four losses with the paper's weights. Gradients flow to the float64 leaves of student and adapt."""
    zero = 0 * student.logits.sum()
    crops: list[tuple[list[Tensor], list[Tensor]]] = []
    for image, row in enumerate(boxes):
        t = [roi_align(teacher, image, box, bins) for box in row]
        s = [roi_align(student, image, box, bins) for box in row]
        if adapt is not None:
            s = [conv2d(x[None], adapt.weight, adapt.bias, padding=adapt.padding)[0] for x in s]
        crops.append((t, s))

    squares = [(t - s).square().sum() for ts, ss in crops for t, s in zip(ts, ss, strict=True)]
    feature = sum(squares, zero) / max(len(squares), 1) / (bins * bins if reduction == "pixel" else 1)

    if scope == "batch":
        crops = [(sum((t for t, _ in crops), []), sum((s for _, s in crops), []))]
    per_image = []
    for t, s in crops:
        expected, found = distances(t), distances(s)
        if expected:
            total = sum(smooth_l1_loss(found[pair], expected[pair]) for pair in expected)
            per_image.append(total / len(expected))
    relation = sum(per_image, zero) / max(len(per_image), 1)

    cls, reg, masked = zero, zero, 0
    for image, row in enumerate(boxes):
        for r, anchor in enumerate(student.anchors.tolist()):
            if any(iou(anchor, box) >= 0.5 for box in row):
                p, q = teacher.logits[image, r].sigmoid(), student.logits[image, r].sigmoid()
                cls = cls + (p * (p / q).log() + (1 - p) * ((1 - p) / (1 - q)).log()).sum()
                for t, s in zip(teacher.deltas[image, r], student.deltas[image, r], strict=True):
                    d = (t - s).abs()
                    reg = reg + (d * d / 0.2 if d < 0.1 else d - 0.05)
                masked += 1
    return {
        "loss_feature": 5e-4 * feature,
        "loss_relation": 40 * relation,
        "loss_response_cls": 0.1 * cls / max(masked, 1),
        "loss_response_reg": reg / max(masked, 1),
    }
