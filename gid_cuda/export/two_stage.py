"""Faster R-CNN as two networks: images to predictions of the RPN, and crops of the proposals to boxes with classes.

Between them stands what has no fixed shape: the choice of proposals, which `detect` makes as torchvision does.
"""

from __future__ import annotations

from typing import Any

import torch
from torch import Tensor, nn
from torchvision.models.detection.rpn import concat_box_prediction_layers
from torchvision.ops import roi_align

from gid_cuda.detectors.backbones import PYRAMID_STRIDES
from gid_cuda.detectors.faster_rcnn import FasterRCNN
from gid_cuda.export.normalised import Normalised

_STRIDES = PYRAMID_STRIDES["P2-P6"][:4]  # of the levels that crops are taken from
_LEVELS = [f"level{index}" for index in range(4)]
FIRST_NAMES = ["images"], ["logits", "deltas", *_LEVELS]
SECOND_NAMES = [*_LEVELS, *(f"rois{index}" for index in range(4))], ["logits", "deltas"]


class FirstStage(nn.Module):
    """images (B, 3, H, W) in [0, 1] -> objectness (B, R, 1), deltas (B, R, 4), and the four levels for the crops."""

    def __init__(self, detector: FasterRCNN) -> None:
        super().__init__()
        self.normalised, self.backbone, self.head = Normalised(detector.transform), detector.backbone, detector.rpn.head

    def forward(self, images: Tensor) -> tuple[Tensor, ...]:
        levels = list(self.backbone(self.normalised(images)).values())
        logits, deltas = concat_box_prediction_layers(*self.head(levels))
        return logits.view(images.shape[0], -1, 1), deltas.view(images.shape[0], -1, 4), *levels[:4]


class SecondStage(nn.Module):
    """levels (1, Ch, H_l, W_l) and the boxes of each, (N_l, 4) pixels -> logits (N, C + 1), deltas (N, 4 (C + 1)).

    Rows are those of the boxes, level by level; no level may be without a box.
    """

    def __init__(self, detector: FasterRCNN) -> None:
        super().__init__()
        heads = detector.roi_heads
        self.head, self.predictor = heads.box_head, heads.box_predictor
        self.size, self.sampling_ratio = heads.box_roi_pool.output_size, heads.box_roi_pool.sampling_ratio

    def forward(self, *levels_and_rois: Tensor) -> tuple[Tensor, Tensor]:
        crops = []
        for level, rois, stride in zip(levels_and_rois[:4], levels_and_rois[4:], _STRIDES, strict=True):
            of_first_image = torch.cat([torch.zeros_like(rois[:, :1]), rois], dim=1)
            crops.append(roi_align(level, of_first_image, self.size, 1 / stride, self.sampling_ratio))
        return self.predictor(self.head(torch.cat(crops)))


def boxes_example(detector: FasterRCNN, divisor: int) -> tuple[tuple[Tensor, ...], tuple[Any, ...]]:
    """Arguments of `SecondStage` and what of their shapes is dynamic. divisor: of the padded height and width."""
    rows, columns = (torch.export.Dim(name, min=1, max=4096) for name in ("rows", "columns"))
    counts = [torch.export.Dim(f"count{index}", min=1, max=1 << 16) for index in range(4)]
    levels, of_levels = [], []
    for stride in _STRIDES:
        cells = divisor // stride
        levels.append(torch.rand(1, detector.out_channels, 9 * cells, 13 * cells))
        of_levels.append({2: cells * rows if cells > 1 else rows, 3: cells * columns if cells > 1 else columns})
    rois = [torch.tensor([[0.0, 0.0, 40.0, 60.0]]).expand(count, 4).contiguous() for count in (5, 6, 7, 8)]
    return (*levels, *rois), ((*of_levels, *({0: count} for count in counts)),)


def settings(detector: FasterRCNN) -> dict[str, Any]:
    """What `detect` reads: of the RPN, the crops and the heads. detector: in eval mode."""
    rpn, heads = detector.rpn, detector.roi_heads
    pool = heads.box_roi_pool
    return {
        "coder": "deltas",
        "weights": rpn.box_coder.weights,
        "first_stride": _STRIDES[0],
        "cell_anchors": [cell.tolist() for cell in rpn.anchor_generator.cell_anchors],
        "proposals_a_level": rpn.pre_nms_top_n(),
        "proposals": rpn.post_nms_top_n(),
        "proposals_nms_thresh": rpn.nms_thresh,
        "proposals_score_thresh": rpn.score_thresh,
        "roi_strides": list(_STRIDES),
        "canonical": [pool.canonical_scale, pool.canonical_level],
        "box_weights": heads.box_coder.weights,
        "score_thresh": heads.score_thresh,
        "nms_thresh": heads.nms_thresh,
        "detections_per_img": heads.detections_per_img,
    }
