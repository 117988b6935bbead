"""Holds the ONNX files and `detect` to the detector's own `predict`."""

from __future__ import annotations

from dataclasses import dataclass
from pathlib import Path
from typing import Any

import numpy as np
import torch

from gid_cuda.detectors.faster_rcnn import FasterRCNN
from gid_cuda.detectors.fcos import FCOS
from gid_cuda.detectors.retinanet import RetinaNet
from gid_cuda.errors import UserError
from gid_cuda.export import detect

SAME_IOU = 0.99
SAME_SCORE = 1e-3
ENOUGH = 0.98  # of the detections: two that are alike but for rounding may come in another order
_WANTED = 200  # detections an image, at most


@dataclass
class Agreement:
    """How many detections `predict` and ONNX had in common, of those with the higher count of the two."""

    images: int
    found: int
    same: int

    def __str__(self) -> str:
        return f"{self.same} of {self.found} detections on {self.images} images are those of predict"


def check_onnx(
    detector: RetinaNet | FCOS | FasterRCNN, path: Path, images: list[np.ndarray] | None = None
) -> Agreement:
    """Raises UserError where ONNX detects something else than `detector.predict`, on the CPU, or there is nothing to
    compare.

    images: (H, W, 3) uint8; None: made-up ones, both ways up. Both get a score threshold of which something is left,
    but less than the most detections of an image, so that nothing hangs on which comes last.
    """
    images = _made_up(detector) if images is None else images
    detector.cpu()
    owner = detector.roi_heads if isinstance(detector, FasterRCNN) else detector
    threshold = owner.score_thresh
    agreement = Agreement(len(images), 0, 0)
    try:
        for image in images:
            pixels = torch.from_numpy(image.copy()).permute(2, 0, 1).float() / 255
            owner.score_thresh = 0.0
            scores = detector.predict([pixels])[0]["scores"]
            if len(scores):
                owner.score_thresh = float(scores[min(_WANTED, len(scores) // 2)]) * (1 - 1e-3)
            ours = {key: value.numpy() for key, value in detector.predict([pixels])[0].items()}
            theirs = detect.Detector(path, score_threshold=owner.score_thresh)(image)
            agreement.found += max(len(ours["scores"]), len(theirs["scores"]))
            agreement.same += common(ours, theirs)
    finally:
        owner.score_thresh = threshold
    if not agreement.found:
        raise UserError(
            "this detector finds nothing, whatever the threshold, so ONNX cannot be checked: are its weights NaN?"
        )
    if agreement.same < ENOUGH * agreement.found:
        raise UserError(
            f"the ONNX file detects something else than the checkpoint: {agreement}; nothing was written: please "
            "report it with the versions of torch, onnxscript and onnxruntime, or leave ONNX out with --no-onnx"
        )
    return agreement


def common(ours: dict[str, Any], theirs: dict[str, Any]) -> int:
    """How many detections pair off, each used once: the same class, IoU >= 0.99 and scores within 0.001."""
    left = list(range(len(theirs["scores"])))
    count = 0
    for box, score, label in zip(ours["boxes"], ours["scores"], ours["labels"], strict=True):
        for index in left:
            if (
                theirs["labels"][index] == label
                and abs(float(theirs["scores"][index]) - float(score)) <= SAME_SCORE
                and _iou(box, theirs["boxes"][index]) >= SAME_IOU
            ):
                left.remove(index)
                count += 1
                break
    return count


def _iou(a: np.ndarray, b: np.ndarray) -> float:
    a, b = a.astype(np.float64), b.astype(np.float64)
    sides = np.maximum(np.minimum(a[2:], b[2:]) - np.maximum(a[:2], b[:2]), 0)
    inter = sides.prod()
    union = (a[2:] - a[:2]).prod() + (b[2:] - b[:2]).prod() - inter
    return float(inter / union) if union > 0 else float(np.allclose(a, b, atol=1e-2))


def _made_up(detector: RetinaNet | FCOS | FasterRCNN) -> list[np.ndarray]:
    """Blotches and edges in landscape and portrait format, of other sizes than the network's."""
    generator = torch.Generator().manual_seed(0)
    height, width = detector.transform.min_size[-1], detector.transform.max_size
    images = []
    for size in ((height * 3 // 4, width * 3 // 4), (width * 7 // 8, height)):
        coarse = torch.rand(1, 3, 9, 13, generator=generator)
        smooth = torch.nn.functional.interpolate(coarse, size, mode="bilinear", antialias=False)
        blocks = torch.nn.functional.interpolate(torch.rand(1, 3, 7, 5, generator=generator), size, mode="nearest")
        picture = (0.5 * smooth + 0.5 * blocks)[0].mul(255).round().to(torch.uint8)
        images.append(picture.permute(1, 2, 0).contiguous().numpy())
    return images
