"""A detector's network as ONNX: images of any size that 32 divides in, raw predictions out. `detect` does the rest."""

from __future__ import annotations

import contextlib
import importlib.util
import io
import json
import logging
import warnings
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import torch
from torch import Tensor, nn

from gid_cuda.detectors.faster_rcnn import FasterRCNN
from gid_cuda.detectors.fcos import FCOS
from gid_cuda.detectors.outputs import Detector
from gid_cuda.detectors.retinanet import RetinaNet
from gid_cuda.errors import UserError, reason
from gid_cuda.export.detect import DIVISOR, METADATA
from gid_cuda.export.student import Model

PACKAGES = ("onnx", "onnxscript", "onnxruntime")
# No level with equal sides and none with a side of 1: what is 1 or alike in the example may stay so in the file.
_EXAMPLE = (2, 3, 288, 416)


def check_packages() -> None:
    """UserError where the packages that ONNX needs are not all installed."""
    if missing := [name for name in PACKAGES if importlib.util.find_spec(name) is None]:
        raise UserError(
            f"ONNX needs the package{'s' if len(missing) > 1 else ''} {', '.join(missing)}: "
            "pip install -e '.[export]' in the checkout, or leave ONNX out with --no-onnx"
        )


def why_not(detector: Detector) -> str | None:
    """Why there is no ONNX file of this detector; None where there is one."""
    if isinstance(detector, RetinaNet | FCOS):
        return None
    kind = "Faster R-CNN" if isinstance(detector, FasterRCNN) else "a detector of your own"
    return f"ONNX is written for RetinaNet and FCOS, not for {kind}: --no-onnx writes the state dict and the card alone"


def export_onnx(model: Model, path: Path) -> None:
    """RetinaNet or FCOS, of `student.load_student`: the network of `Network`, and beside it in the metadata what
    `detect` must know. Batch, height and width are dynamic; height and width are multiples of 32.

    Raises UserError where torch.onnx cannot.
    """
    detector = model.detector
    assert isinstance(detector, RetinaNet | FCOS)
    detector.cpu().eval()
    batch, rows, columns = (torch.export.Dim(name, min=1, max=4096) for name in ("batch", "rows", "columns"))
    try:
        with torch.no_grad(), _quiet():
            program = torch.onnx.export(
                Network(detector).eval(),
                (torch.rand(_EXAMPLE),),
                dynamo=True,
                dynamic_shapes=({0: batch, 2: DIVISOR * rows, 3: DIVISOR * columns},),
                input_names=["images"],
                output_names=["logits", "deltas", "centerness"][: 3 if isinstance(detector, FCOS) else 2],
                verbose=False,
            )
    except torch.onnx.OnnxExporterError as error:
        raise UserError(
            f"torch.onnx could not export this network ({reason(error)}): "
            "try another version of torch and onnxscript, or leave ONNX out with --no-onnx"
        ) from error
    assert program is not None
    _forget_machine(program.model)
    program.model.metadata_props[METADATA] = json.dumps(settings(model))
    program.save(path)


class Network(nn.Module):
    """images (B, 3, H, W) in [0, 1] -> logits (B, R, C), deltas (B, R, 4), and FCOS's centerness (B, R, 1).

    `detect.prepare` pads with the mean, which is 0 from the first line on, as torchvision's padding is.
    """

    mean: Tensor
    std: Tensor

    def __init__(self, detector: RetinaNet | FCOS) -> None:
        super().__init__()
        self.backbone, self.head = detector.backbone, detector.head
        self.register_buffer("mean", torch.tensor(detector.transform.image_mean)[:, None, None])
        self.register_buffer("std", torch.tensor(detector.transform.image_std)[:, None, None])

    def forward(self, images: Tensor) -> tuple[Tensor, ...]:
        found = self.head(list(self.backbone((images - self.mean) / self.std).values()))
        names = ("cls_logits", "bbox_regression", "bbox_ctrness")
        return tuple(found[name] for name in names if name in found)


def settings(model: Model) -> dict[str, Any]:
    """What `detect` reads: all that is no layer of the network."""
    detector = model.detector
    assert isinstance(detector, RetinaNet | FCOS)
    transform = detector.transform
    return {
        "classes": list(model.classes),
        "min_size": transform.min_size[-1],
        "max_size": transform.max_size,
        "mean": list(transform.image_mean),
        "coder": "distances" if isinstance(detector, FCOS) else "deltas",
        "weights": getattr(detector.box_coder, "weights", (1.0, 1.0, 1.0, 1.0)),
        "cell_anchors": [cell.tolist() for cell in detector.anchor_generator.cell_anchors],
        "topk_candidates": detector.topk_candidates,
        "score_thresh": detector.score_thresh,
        "nms_thresh": detector.nms_thresh,
        "detections_per_img": detector.detections_per_img,
    }


def _forget_machine(model: Any) -> None:
    """The exporter notes a stack trace for each node, with the folders of this machine."""
    for graph in (model.graph, *(function.graph for function in model.functions.values())):
        for node in graph.all_nodes():
            node.metadata_props.clear()
        for value in (*graph.inputs, *graph.outputs):
            value.metadata_props.clear()


@contextlib.contextmanager
def _quiet() -> Iterator[None]:
    """The exporter warns and prints about its own inner life, page after page."""
    before = logging.root.manager.disable
    logging.disable(logging.WARNING)
    try:
        with warnings.catch_warnings(), contextlib.redirect_stdout(io.StringIO()):
            warnings.simplefilter("ignore")
            yield
    finally:
        logging.disable(before)
