"""The operators of General Instance Distillation, with CPU and CUDA kernels.

Float32, float16 and bfloat16 in, arithmetic in float32; no host synchronisation; fixed output shapes, so CUDA graphs
and ``torch.compile(fullgraph=True)`` work. ``gid_cuda.reference`` has the same functions in plain PyTorch.
"""

from __future__ import annotations

from gid_cuda.ops import _fallback
from gid_cuda.ops.box_losses import box_losses
from gid_cuda.ops.class_losses import class_losses
from gid_cuda.ops.gi_score import decoded_gi_score, gi_score
from gid_cuda.ops.match_anchors import match_anchors
from gid_cuda.ops.pairwise_distance import pairwise_distance
from gid_cuda.ops.roi_align import multilevel_roi_align
from gid_cuda.ops.topk_nms import topk_nms

_fallback.register()

__all__ = [
    "box_losses",
    "class_losses",
    "decoded_gi_score",
    "gi_score",
    "match_anchors",
    "multilevel_roi_align",
    "pairwise_distance",
    "topk_nms",
]
