"""The case of a detector's post-processing: from the head's outputs of a batch to detections."""

from __future__ import annotations

from types import SimpleNamespace
from typing import Any

import torch
from torch import Tensor
from torchvision.models.detection import RetinaNet
from torchvision.models.detection._utils import BoxCoder as TorchvisionCoder

from benchmarks.cases import Case, Contender, DiffersError, Results, byte_count, dtype_name, run_case, without_gradient
from benchmarks.inputs import STRIDES, level_shapes, make_scene, retinanet_anchors
from benchmarks.timing import copy_bandwidth
from gid_cuda.detectors.outputs import BoxCoder, DetectorOutputs
from gid_cuda.detectors.postprocess import detect

SIZE = (800, 1344)
OPTIONS = {"score_thresh": 0.05, "nms_thresh": 0.5, "topk_candidates": 1000, "detections_per_img": 300}


def run(device: torch.device, quick: bool) -> list[dict[str, Any]]:
    """Rows, as `run_case` makes them, of ours and torchvision's post-processing at 800x1344: batch 1, 4 (GPU: 16).

    quick: one small case, to see that it runs.
    """
    results, seconds = Results(), 0.2 if quick else 5.0
    batches = [1] if quick else [1, 4] + [16] * (device.type == "cuda")
    with torch.device(device):
        bandwidth = copy_bandwidth(device, seconds)
        for images in batches:
            for classes in (3,) if quick else (80, 3):
                case = post_processing(images, classes, torch.float32, (160, 224) if quick else SIZE)
                run_case(case, device, seconds=seconds, bandwidth=bandwidth, results=results)
    return results.rows


def post_processing(images: int, classes: int, dtype: torch.dtype, size: tuple[int, int]) -> Case:
    """Ours against torchvision's, whose scores, thresholds and NMS by class it has, for images of (height, width)."""
    anchors = retinanet_anchors(size, torch.get_default_device())
    levels = [9 * rows * columns for rows, columns in level_shapes(size)]

    def make(seed: int) -> tuple[Tensor, ...]:
        scene = make_scene(images, classes, anchors, size, dtype, seed)
        return scene.student_logits, scene.student_deltas, scene.anchors, scene.image_sizes

    def ours(*inputs: Tensor) -> list[list[Tensor]]:
        logits, deltas, anchors, image_sizes = inputs
        outputs = DetectorOutputs([], STRIDES, logits, deltas, BoxCoder("deltas"), anchors, image_sizes)
        return [list(one.values()) for one in detect(outputs, levels, **OPTIONS)]

    settings = SimpleNamespace(box_coder=TorchvisionCoder((1.0, 1.0, 1.0, 1.0)), **OPTIONS)

    def theirs(logits: Tensor, deltas: Tensor, anchors: Tensor, image_sizes: Tensor) -> list[list[Tensor]]:
        heads = {"cls_logits": logits.float().split(levels, 1), "bbox_regression": deltas.float().split(levels, 1)}
        by_level = [list(anchors.split(levels))] * images
        found = RetinaNet.postprocess_detections(settings, heads, by_level, [size] * images)
        return [list(one.values()) for one in found]

    rows = images * len(anchors)
    return Case(
        operator="post_processing",
        work="forward",
        sizes={"B": images, "R": len(anchors), "C": classes},
        dtype=dtype_name(dtype),
        make=make,
        input_bytes=rows * (classes + 4) * dtype.itemsize,
        moved=lambda logits, *others: byte_count(logits),
        counted="logits read once",
        contenders=[
            Contender("ours", "gid_cuda", without_gradient(ours)),
            Contender("instead", "torchvision RetinaNet", without_gradient(theirs), _same_detections),
        ],
    )


def _same_detections(ours: list[list[Tensor]], theirs: list[list[Tensor]]) -> str:
    """Almost all must be the same; an IoU at the threshold, or equal scores, may go either way."""
    same = total = 0
    for (boxes, scores, labels), (other_boxes, other_scores, other_labels) in zip(ours, theirs, strict=True):
        apart = (boxes[:, None] - other_boxes).abs().amax(2) + 1e3 * (scores[:, None] - other_scores).abs()
        apart[labels[:, None] != other_labels] = torch.inf
        same += int((apart.amin(1) < 0.1).sum()) if apart.numel() else 0
        total += max(len(scores), len(other_scores))
    if same < 0.98 * total:
        raise DiffersError(f"{total - same} of {total} detections are not ours")
    return f"{same} of {total} detections as ours"
