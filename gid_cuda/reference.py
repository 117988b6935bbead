"""The operators of ``gid_cuda.ops`` in plain PyTorch: their specification, and the twin their tests compare with.

Written to be read, not to be fast. Any floating dtype and any device; arithmetic in float32, or in float64 where
float64 comes in, so that gradients can be checked. Differentiable by plain autograd where the operator has a gradient.
It also runs in place of the CUDA kernels where these could not be loaded, which is why two gradients are written out
at the end.

Shapes: B images, R predicted boxes an image, C classes, K slots an image, Ch channels, P bins a side.
Equation numbers are those of Dai et al., "General Instance Distillation for Object Detection", CVPR 2021.
"""

from __future__ import annotations

import math
from collections.abc import Sequence

import torch
import torch.nn.functional as F
from torch import Tensor

# Adaptive sampling takes one sample a feature cell; no more than this many a bin and axis, so that an absurd box ends.
MAX_ADAPTIVE_GRID = 1024
MAX_LOG_SCALE = math.log(1000.0 / 16)  # R-CNN's clamp: keeps exp() of an untrained head finite
FOCAL_ALPHA = 0.25  # torchvision's sigmoid_focal_loss; its gamma is 2


def gi_score(
    teacher_logits: Tensor,
    student_logits: Tensor,
    teacher_boxes: Tensor,
    student_boxes: Tensor,
    image_sizes: Tensor | None = None,
) -> tuple[Tensor, Tensor]:
    """Eqs. 1 and 2: how much teacher and student disagree about each predicted box, and whose box to take.

    teacher_logits, student_logits (B, R, C); teacher_boxes, student_boxes (B, R, 4) xyxy; image_sizes (B, 2) height,
    width. Returns scores (B, R) and boxes (B, R, 4). A NaN logit gives a NaN score and the student's box.
    """
    teacher, student = _arithmetic(teacher_logits), _arithmetic(student_logits)
    scores = (teacher.sigmoid() - student.sigmoid()).abs().amax(dim=2)
    # Logits, not probabilities: sigmoid is monotone, but saturates to equal numbers where the logits still differ.
    teacher_is_surer = teacher.amax(dim=2) > student.amax(dim=2)
    boxes = torch.where(teacher_is_surer[..., None], teacher_boxes, student_boxes)
    if image_sizes is not None:
        limits = image_sizes.flip(1).repeat(1, 2)[:, None].to(boxes.dtype)  # (B, 1, 4): width, height, width, height
        boxes = torch.minimum(boxes.clamp(min=0), limits)
    return scores, boxes


def decoded_gi_score(
    teacher_logits: Tensor,
    student_logits: Tensor,
    teacher_deltas: Tensor,
    student_deltas: Tensor,
    anchors: Tensor,
    image_sizes: Tensor | None = None,
    weights: Sequence[float] = (1.0, 1.0, 1.0, 1.0),
    distances: bool = False,
) -> tuple[Tensor, Tensor]:
    """`gi_score` of boxes that are still encoded: deltas (B, R, 4) against anchors (R, 4); see `decode_boxes`."""
    boxes = [decode_boxes(deltas, anchors, weights, distances) for deltas in (teacher_deltas, student_deltas)]
    return gi_score(teacher_logits, student_logits, *boxes, image_sizes)


def decode_boxes(
    deltas: Tensor, anchors: Tensor, weights: Sequence[float] = (1.0, 1.0, 1.0, 1.0), distances: bool = False
) -> Tensor:
    """deltas (..., R, 4) against anchors (R, 4) xyxy -> boxes (..., R, 4): R-CNN's dx, dy, dw, dh, or with `distances`
    FCOS's left, top, right, bottom in units of the anchor's size. In the order of torchvision's coders."""
    deltas, anchors = _arithmetic(deltas), _arithmetic(anchors)
    deltas = torch.stack([delta / weight for delta, weight in zip(deltas.unbind(-1), weights, strict=True)], dim=-1)
    size = anchors[:, 2:] - anchors[:, :2]
    if distances:
        center = 0.5 * (anchors[:, :2] + anchors[:, 2:])
        return torch.cat([center - deltas[..., :2] * size, center + deltas[..., 2:] * size], dim=-1)
    center = deltas[..., :2] * size + (anchors[:, :2] + 0.5 * size)
    half = 0.5 * (torch.exp(deltas[..., 2:].clamp(max=MAX_LOG_SCALE)) * size)
    return torch.cat([center - half, center + half], dim=-1)


def encode_boxes(boxes: Tensor, anchors: Tensor, weights: Sequence[float] = (1.0, 1.0, 1.0, 1.0)) -> Tensor:
    """The deltas (..., R, 4) of boxes (..., R, 4) against anchors (R, 4): what `decode_boxes` undoes."""
    boxes, anchors = _arithmetic(boxes), _arithmetic(anchors)
    size, box_size = anchors[:, 2:] - anchors[:, :2], boxes[..., 2:] - boxes[..., :2]
    shift = (boxes[..., :2] + 0.5 * box_size) - (anchors[:, :2] + 0.5 * size)
    deltas = torch.cat([shift / size, torch.log(box_size / size)], dim=-1)
    return torch.stack([delta * weight for delta, weight in zip(deltas.unbind(-1), weights, strict=True)], dim=-1)


def topk_nms(
    boxes: Tensor,
    scores: Tensor,
    k: int,
    iou_threshold: float = 0.3,
    *,
    groups: Tensor | None = None,
    min_size: float = 0.0,
) -> tuple[Tensor, Tensor]:
    """Eq. 3: the first k survivors of greedy non-maximum suppression over all R boxes of each image.

    boxes (B, R, 4) xyxy; scores (B, R); groups (B, R) int64. Returns indices (B, k) int64, best first, equal scores by
    lower index, -1 where there are no more; counts (B,) int64. Never chosen: a non-finite score or coordinate, a side
    that is negative or < min_size.
    """
    boxes, scores = _arithmetic(boxes), _arithmetic(scores)
    sides = boxes[..., 2:] - boxes[..., :2]
    usable = scores.isfinite() & boxes.isfinite().all(dim=2) & (sides >= max(min_size, 0.0)).all(dim=2)
    remaining = scores.masked_fill(~usable, -torch.inf)
    indices = torch.full((len(boxes), k), -1, dtype=torch.int64, device=boxes.device)
    for slot in range(k if boxes.shape[1] > 0 else 0):
        best = remaining.argmax(dim=1, keepdim=True)  # the first of equals; (B, 1)
        found = remaining.gather(1, best) > -torch.inf
        indices[:, slot : slot + 1] = torch.where(found, best, -1)
        suppressed = box_iou(boxes.gather(1, best[..., None].expand(-1, -1, 4)), boxes) > iou_threshold
        if groups is not None:
            suppressed &= groups == groups.gather(1, best)
        remaining = remaining.masked_fill(suppressed, -torch.inf).scatter(1, best, -torch.inf)
    return indices, (indices >= 0).sum(dim=1)


def box_iou(a: Tensor, b: Tensor) -> Tensor:
    """Intersection over union of xyxy boxes, broadcast over leading axes; 0 where the union is not above 0."""
    area_a = (a[..., 2] - a[..., 0]) * (a[..., 3] - a[..., 1])
    area_b = (b[..., 2] - b[..., 0]) * (b[..., 3] - b[..., 1])
    sides = (torch.minimum(a[..., 2:], b[..., 2:]) - torch.maximum(a[..., :2], b[..., :2])).clamp(min=0)
    inter = sides[..., 0] * sides[..., 1]
    union = (area_a + area_b) - inter  # this order of roundings is part of the contract: decisions hang on it
    return torch.where(union > 0, inter / union, 0.0)


def multilevel_roi_align(
    features: Sequence[Tensor],
    boxes: Tensor,
    counts: Tensor | None = None,
    *,
    strides: Sequence[int],
    output_size: int = 10,
    sampling_ratio: int = 2,
    canonical_size: float = 224.0,
    canonical_level: int = 4,
    aligned: bool = True,
) -> Tensor:
    """RoIAlign of each box from the pyramid level that its area belongs to.

    features: L tensors (B, Ch, H_l, W_l), finest first, with their strides in pixels; boxes (B, K, 4) xyxy pixels;
    counts (B,) int64. Returns (B, K, Ch, P, P), P = output_size, in the features' dtype; zeros in slots >= counts[b].
    """
    shape = (*boxes.shape[:2], features[0].shape[1], output_size, output_size)
    output = _arithmetic(features[0]).new_zeros(shape)
    levels = roi_levels(boxes, strides, canonical_size, canonical_level)
    for level, feature in enumerate(features):
        image, slot = ((levels == level) & _filled(boxes, counts)).nonzero(as_tuple=True)
        box = boxes[image, slot]
        pooled = output.new_zeros((len(image), *shape[2:]))
        for y, x, weight in _bilinear_taps(box, feature.shape, strides[level], output_size, sampling_ratio, aligned):
            value = _arithmetic(feature)[image[:, None, None], :, y[:, :, None], x[:, None, :]]  # (N, P*S, P*S', Ch)
            value = torch.where(weight[..., None] > 0, value * weight[..., None], 0)  # what is outside is not read
            value = value.unflatten(2, (output_size, -1)).unflatten(1, (output_size, -1)).sum(dim=(2, 4))
            pooled = pooled + value.permute(0, 3, 1, 2)
        output = output.index_put((image, slot), pooled)
    return output.to(features[0].dtype)


def roi_levels(boxes: Tensor, strides: Sequence[int], canonical_size: float, canonical_level: int) -> Tensor:
    """The index into strides of each box (..., 4): the highest level l = log2(stride) whose threshold
    canonical_size^2 * 4^(l - canonical_level) its area reaches, compared in float32; the first where none is."""
    boxes = boxes.float()
    area = (boxes[..., 2] - boxes[..., 0]) * (boxes[..., 3] - boxes[..., 1])
    thresholds = [canonical_size**2 * 4.0 ** (stride.bit_length() - 1 - canonical_level) for stride in strides]
    level = torch.zeros_like(area, dtype=torch.int64)
    for threshold in thresholds[1:]:
        level += area >= threshold
    return level


def _bilinear_taps(
    boxes: Tensor, shape: Sequence[int], stride: int, bins: int, ratio: int, aligned: bool
) -> list[tuple[Tensor, Tensor, Tensor]]:
    """The four corners of all samples of N boxes: rows (N, bins*S), columns (N, bins*S'), weights (N, bins*S, bins*S').

    RoIAlign's weights are products of one factor for the row and one for the column, so each axis is done by itself.
    """
    x1, y1, x2, y2 = (_arithmetic(boxes) / stride - (0.5 if aligned else 0.0)).unbind(1)
    rows = _axis_taps(y1, y2, shape[2], bins, ratio, aligned)
    columns = _axis_taps(x1, x2, shape[3], bins, ratio, aligned)
    return [(y, x, wy[:, :, None] * wx[:, None, :]) for y, wy in rows for x, wx in columns]


def _axis_taps(
    start: Tensor, end: Tensor, length: int, bins: int, ratio: int, aligned: bool
) -> list[tuple[Tensor, Tensor]]:
    """Both neighbours of the samples along one axis of N boxes: index and weight, each (N, bins * samples a bin)."""
    size = end - start if aligned else (end - start).clamp(min=1)
    grid = torch.full_like(size, ratio) if ratio > 0 else (size / bins).ceil().clamp(0, MAX_ADAPTIVE_GRID)
    grid = torch.where(size.isfinite(), grid, 0)[:, None, None]
    most = int(grid.max()) if grid.numel() else 0
    step = (size / bins)[:, None, None]
    bin_ = torch.arange(bins, device=size.device)[None, :, None]
    sample = torch.arange(most, device=size.device)[None, None, :]
    position = start[:, None, None] + bin_ * step + (sample + 0.5) * step / grid
    # Samples up to one cell outside take the border's value, those further away count as zeros. NaN is outside.
    inside = (position >= -1) & (position <= length) & (sample < grid)
    position = torch.where(inside, position, 0).clamp(0, length - 1)
    low = position.floor()
    weight_high = (position - low) * inside / grid.clamp(min=1)
    weight_low = (1 - (position - low)) * inside / grid.clamp(min=1)
    low = low.long()
    high = (low + 1).clamp(max=length - 1)
    return [(low.flatten(1), weight_low.flatten(1)), (high.flatten(1), weight_high.flatten(1))]


def pairwise_distance(x: Tensor, counts: Tensor | None = None) -> Tensor:
    """Euclidean distances (B, K, K) between the K vectors of x (B, K, D): the inner part of eq. 6.

    Zero on the diagonal and in slots >= counts[b]. From differences, so close vectors keep their digits; the gradient
    of a zero distance is zero.
    """
    filled = _filled(x, counts)
    x = _arithmetic(x).masked_fill(~filled[..., None], 0)
    rows = [(x - x[:, i : i + 1]).square().sum(dim=2) for i in range(x.shape[1])]  # row by row: (B, K, K, D) is large
    squared = torch.stack(rows, dim=1) if rows else x @ x.transpose(1, 2)  # of no rows: (B, 0, 0)
    zero = (squared == 0) | ~(filled[:, :, None] & filled[:, None, :])
    zero = zero | torch.eye(x.shape[1], dtype=torch.bool, device=x.device)  # also where x is not finite
    return squared.masked_fill(zero, 1).sqrt().masked_fill(zero, 0)  # 1: the square root has no gradient at 0


def match_anchors(
    boxes: Tensor,
    counts: Tensor | None,
    anchors: Tensor,
    high: float = 0.5,
    low: float = 0.4,
    low_quality: bool = True,
) -> Tensor:
    """Label assignment by overlap, eq. 7's F of anchor-based detectors, and torchvision's `Matcher`.

    boxes (B, N, 4) ground truth or general instances, anchors (R, 4) -> (B, R) int64: the box that an anchor is for, or
    -1: background (best IoU < low), -2: between the thresholds. An anchor belongs to the box it overlaps most (the
    first of equals) where that IoU is >= high; with low_quality also where its IoU to any box is the best that this box
    has with any anchor, and above 0. counts[b] < 0: an image without labels, all -2.
    """
    iou = box_iou(_arithmetic(boxes)[:, :, None], _arithmetic(anchors))  # (B, N, R)
    iou = iou.nan_to_num(0.0).masked_fill(~_filled(boxes, counts)[..., None], 0.0)
    if iou.numel() == 0:
        matched = torch.full((iou.shape[0], iou.shape[2]), -1, dtype=torch.int64, device=iou.device)
    else:
        best = iou.amax(dim=1)
        index = (iou == best[:, None]).int().argmax(dim=1)  # the first of equals
        matches = best >= high
        if low_quality:
            matches |= ((iou == iou.amax(dim=2, keepdim=True)) & (iou > 0)).any(dim=1)
        matched = torch.where(matches, index, torch.where(best >= low, -2, -1))
        matched = matched.masked_fill(~_filled(boxes, counts).any(dim=1, keepdim=True), -1)
    if counts is None:
        return matched
    return matched.masked_fill((counts < 0)[:, None], -2)


def class_losses(
    logits: Tensor,
    matched: Tensor | None = None,
    labels: Tensor | None = None,
    teacher_logits: Tensor | None = None,
    mask: Tensor | None = None,
    focal: Tensor | None = None,
    soft_focal: bool = False,
) -> tuple[Tensor, Tensor]:
    """The task's focal loss and eq. 8's L_cls, each summed over the rows and classes of an image: (B,) and (B,).

    Focal: logits (B, R, C) against class labels[b, matched[b, r]] (no class where matched is -1; rows below that are
    left out), alpha 0.25, gamma 2. `focal` (B,) given: its value, computed before; the gradient is the same.
    L_cls over the rows of mask (B, R) bool, with p and y the sigmoids of student and teacher: BCE(p, y) less the
    entropy of y; with soft_focal: (0.25 y + 0.75 (1 - y)) (y - p)^2 BCE(p, y). No gradient to the teacher.
    """
    student = _arithmetic(logits)
    task, response = student.new_zeros(len(logits)), student.new_zeros(len(logits))
    if matched is not None and labels is not None:
        left_out = (matched < -1)[..., None]
        counted = student.masked_fill(left_out, 0.0)  # before any arithmetic: 0 * NaN is NaN, in the gradient too
        loss = _focal(counted, _class_targets(student, matched, labels))
        task = loss.masked_fill(left_out, 0.0).sum(dim=(1, 2))
        if focal is not None:
            task = focal.detach() + (task - task.detach())
    if teacher_logits is not None and mask is not None:
        outside = ~mask[..., None]
        inside = student.masked_fill(outside, 0.0)
        teacher = _arithmetic(teacher_logits.detach()).to(student.dtype).masked_fill(outside, 0.0)
        soft = teacher.sigmoid()
        if soft_focal:
            response = _focal(inside, soft).sum(dim=(1, 2))
        else:
            entropy = F.binary_cross_entropy_with_logits(teacher, soft, reduction="none")
            cross_entropy = F.binary_cross_entropy_with_logits(inside, soft, reduction="none")
            response = (cross_entropy - entropy).sum(dim=(1, 2))
    return task, response


def _class_targets(logits: Tensor, matched: Tensor, labels: Tensor) -> Tensor:
    """(B, R, C), 1 at the class of each row's ground truth."""
    if labels.shape[1] == 0:
        return torch.zeros_like(logits)
    label = labels.gather(1, matched.clamp(0, labels.shape[1] - 1))
    classes = torch.arange(logits.shape[2], device=logits.device)
    filled = (matched >= 0) & (matched < labels.shape[1])
    return ((label[..., None] == classes) & filled[..., None]).to(logits.dtype)


def _focal(student: Tensor, target: Tensor) -> Tensor:
    """RetinaNet's focal loss of logits, also at soft targets y: alpha_t |y - p|^2 BCE(p, y)."""
    alpha = FOCAL_ALPHA * target + (1 - FOCAL_ALPHA) * (1 - target)
    cross_entropy = F.binary_cross_entropy_with_logits(student, target, reduction="none")
    return alpha * (target - student.sigmoid()).square() * cross_entropy


def box_losses(
    deltas: Tensor,
    matched: Tensor | None = None,
    boxes: Tensor | None = None,
    anchors: Tensor | None = None,
    teacher_deltas: Tensor | None = None,
    mask: Tensor | None = None,
    beta: float = 0.1,
    weights: Sequence[float] = (1.0, 1.0, 1.0, 1.0),
) -> tuple[Tensor, Tensor]:
    """The task's L1 loss and eq. 8's L_reg, each summed over the rows and deltas of an image: (B,) and (B,).

    L1: deltas (B, R, 4) of the rows with matched >= 0 to `encode_boxes` of boxes[b, matched[b, r]] (B, N, 4) against
    anchors (R, 4). L_reg: smooth L1 with `beta` to the teacher's deltas, over the rows of mask (B, R) bool.
    """
    student = _arithmetic(deltas)
    task, response = student.new_zeros(len(deltas)), student.new_zeros(len(deltas))
    if matched is not None and boxes is not None and anchors is not None and boxes.shape[1] > 0:
        task = _box_errors(student, matched, boxes, anchors, weights).abs().sum(dim=(1, 2))
    if teacher_deltas is not None and mask is not None:
        outside = ~mask[..., None]
        teacher = _arithmetic(teacher_deltas.detach()).to(student.dtype).masked_fill(outside, 0.0)
        smooth = F.smooth_l1_loss(student.masked_fill(outside, 0.0), teacher, reduction="none", beta=beta)
        response = smooth.sum(dim=(1, 2))
    return task, response


def _box_errors(deltas: Tensor, matched: Tensor, boxes: Tensor, anchors: Tensor, weights: Sequence[float]) -> Tensor:
    """(B, R, 4): how far the deltas are from those of the matched boxes, 0 where there is none."""
    filled = ((matched >= 0) & (matched < boxes.shape[1]))[..., None]
    box = boxes.gather(1, matched.clamp(0, boxes.shape[1] - 1)[..., None].expand(-1, -1, 4))
    target = encode_boxes(torch.where(filled, box, anchors), anchors, weights).to(deltas.dtype)
    return (deltas - target).masked_fill(~filled, 0.0)


def multilevel_roi_align_backward(
    grad: Tensor,
    features: Sequence[Tensor],
    boxes: Tensor,
    counts: Tensor | None,
    strides: Sequence[int],
    output_size: int,
    sampling_ratio: int,
    canonical_size: float,
    canonical_level: int,
    aligned: bool,
    deterministic: bool = True,
) -> list[Tensor]:
    """The gradients of multilevel_roi_align to the features (of which only shape and dtype matter) for grad
    (B, K, Ch, P, P), written out because an operator's kernel runs where autograd does not. deterministic=False
    allows a kernel to add in any order."""
    levels = roi_levels(boxes, strides, canonical_size, canonical_level)
    result = []
    for level, feature in enumerate(features):
        image, slot = ((levels == level) & _filled(boxes, counts)).nonzero(as_tuple=True)
        box, pooled = boxes[image, slot], _arithmetic(grad)[image, slot].permute(0, 2, 3, 1)
        total = _arithmetic(feature.permute(0, 2, 3, 1)).new_zeros((len(feature), *feature.shape[2:], feature.shape[1]))
        for y, x, weight in _bilinear_taps(box, feature.shape, strides[level], output_size, sampling_ratio, aligned):
            spread = pooled.repeat_interleave(y.shape[1] // output_size, 1)
            spread = spread.repeat_interleave(x.shape[1] // output_size, 2) * weight[..., None]
            total.index_put_((image[:, None, None], y[:, :, None], x[:, None, :]), spread, accumulate=True)
        result.append(torch.empty_like(feature).copy_(total.permute(0, 3, 1, 2)))
    return result


def pairwise_distance_backward(grad: Tensor, x: Tensor, distances: Tensor, counts: Tensor | None) -> Tensor:
    """The gradient of pairwise_distance to x (B, K, D) for grad (B, K, K), written out for the same reason."""
    values = _arithmetic(x).masked_fill(~_filled(x, counts)[..., None], 0)
    pull = (grad / distances).masked_fill(distances == 0, 0)
    pull = pull + pull.transpose(1, 2)
    result = torch.zeros_like(values)
    for i in range(x.shape[1]):
        difference = (values[:, i : i + 1] - values).masked_fill(distances[:, i, :, None] == 0, 0)
        result[:, i] = (pull[:, i, :, None] * difference).sum(dim=1)
    return result.to(x.dtype)


def class_losses_backward(
    grad_focal: Tensor | None,
    grad_response: Tensor | None,
    logits: Tensor,
    matched: Tensor | None,
    labels: Tensor | None,
    teacher_logits: Tensor | None,
    mask: Tensor | None,
    soft_focal: bool,
) -> Tensor:
    """The gradient of class_losses to the logits for grad_focal and grad_response (B,) each, likewise."""
    student = _arithmetic(logits)
    result = torch.zeros_like(student)
    if grad_focal is not None and matched is not None and labels is not None:
        target = _class_targets(student, matched, labels)
        derivative = grad_focal[:, None, None] * _focal_derivative(student, target)
        result = result + derivative.masked_fill((matched < -1)[..., None], 0.0)
    if grad_response is not None and teacher_logits is not None and mask is not None:
        outside = ~mask[..., None]
        inside = student.masked_fill(outside, 0.0)
        soft = _arithmetic(teacher_logits).to(student.dtype).masked_fill(outside, 0.0).sigmoid()
        derivative = _focal_derivative(inside, soft) if soft_focal else inside.sigmoid() - soft
        result = result + grad_response[:, None, None] * derivative
    return result.to(logits.dtype)


def _focal_derivative(student: Tensor, target: Tensor) -> Tensor:
    alpha = FOCAL_ALPHA * target + (1 - FOCAL_ALPHA) * (1 - target)
    cross_entropy = F.binary_cross_entropy_with_logits(student, target, reduction="none")
    p, q = student.sigmoid(), (-student).sigmoid()
    return alpha * (p - target) * (2 * p * q * cross_entropy + (p - target).square())


def box_losses_backward(
    grad_l1: Tensor | None,
    grad_response: Tensor | None,
    deltas: Tensor,
    matched: Tensor | None,
    boxes: Tensor | None,
    anchors: Tensor | None,
    teacher_deltas: Tensor | None,
    mask: Tensor | None,
    beta: float,
    weights: Sequence[float],
) -> Tensor:
    """The gradient of box_losses to the deltas for grad_l1 and grad_response (B,) each, likewise."""
    student = _arithmetic(deltas)
    result = torch.zeros_like(student)
    given = grad_l1 is not None and matched is not None and boxes is not None and anchors is not None
    if given and boxes.shape[1] > 0:
        result = result + grad_l1[:, None, None] * _box_errors(student, matched, boxes, anchors, weights).sign()
    if grad_response is not None and teacher_deltas is not None and mask is not None:
        outside = ~mask[..., None]
        teacher = _arithmetic(teacher_deltas).to(student.dtype)
        difference = (student - teacher).masked_fill(outside, 0.0)
        derivative = (difference / beta).clamp(-1, 1)
        result = result + grad_response[:, None, None] * derivative
    return result.to(deltas.dtype)


def _filled(slots: Tensor, counts: Tensor | None) -> Tensor:
    """(B, K) bool: which of the slots (B, K, ...) hold something."""
    if counts is None:
        return torch.ones(slots.shape[:2], dtype=torch.bool, device=slots.device)
    return torch.arange(slots.shape[1], device=slots.device)[None] < counts[:, None]


def _arithmetic(tensor: Tensor) -> Tensor:
    """The tensor in the type that is computed in: float64 stays, all else is float32."""
    return tensor if tensor.dtype == torch.float64 else tensor.float()
