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

from gid_cuda.detectors.backbones import PYRAMID_STRIDES
from gid_cuda.detectors.faster_rcnn import FasterRCNN
from gid_cuda.detectors.fcos import FCOS
from gid_cuda.detectors.outputs import Detector
from gid_cuda.detectors.retinanet import RetinaNet
from gid_cuda.errors import UserError, reason
from gid_cuda.export import two_stage
from gid_cuda.export.detect import DIVISOR, METADATA, boxes_file
from gid_cuda.export.normalised import Normalised
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
    if isinstance(detector, RetinaNet | FCOS | FasterRCNN):
        return None
    return (
        "ONNX is written for RetinaNet, FCOS and Faster R-CNN, not for a detector of your own: --no-onnx writes the "
        "state dict and the card alone"
    )


def export_onnx(model: Model, path: Path) -> list[Path]:
    """A detector of `student.load_student` that `why_not` has nothing against, and beside it in the metadata what
    `detect` must know. Batch, height and width are dynamic; height and width are multiples of 32.

    Returns the files: RetinaNet and FCOS have one, `Network`; Faster R-CNN's second one begins at the proposals.
    Raises UserError where torch.onnx cannot.
    """
    detector = model.detector
    detector.cpu().eval()
    batch, rows, columns = (torch.export.Dim(name, min=1, max=4096) for name in ("batch", "rows", "columns"))
    images = (torch.rand(_EXAMPLE),)
    shapes: tuple[Any, ...] = ({0: batch, 2: DIVISOR * rows, 3: DIVISOR * columns},)
    if isinstance(detector, FasterRCNN):
        boxes = Path(boxes_file(path))
        of_boxes = two_stage.boxes_example(detector, DIVISOR)
        _write(two_stage.FirstStage(detector), images, shapes, two_stage.FIRST_NAMES, path, settings(model))
        _write(two_stage.SecondStage(detector), *of_boxes, two_stage.SECOND_NAMES, boxes, None)
        return [path, boxes]
    assert isinstance(detector, RetinaNet | FCOS)
    names = ["logits", "deltas", "centerness"][: 3 if isinstance(detector, FCOS) else 2]
    _write(Network(detector), images, shapes, (["images"], names), path, settings(model))
    return [path]


def _write(
    network: nn.Module,
    example: tuple[Tensor, ...],
    shapes: tuple[Any, ...],
    names: tuple[list[str], list[str]],
    path: Path,
    metadata: dict[str, Any] | None,
) -> None:
    try:
        with torch.no_grad(), _quiet():
            program = torch.onnx.export(
                network.eval(), example, dynamo=True, dynamic_shapes=shapes,
                input_names=names[0], output_names=names[1], verbose=False,
            )  # fmt: skip
    except torch.onnx.OnnxExporterError as error:
        raise UserError(
            f"torch.onnx could not export this network ({reason(error)}): "
            "try another version of torch and onnxscript, or leave ONNX out with --no-onnx"
        ) from error
    assert program is not None
    _forget_machine(program.model)
    if metadata is not None:
        program.model.metadata_props[METADATA] = json.dumps(metadata)
    program.save(path)


class Network(nn.Module):
    """images (B, 3, H, W) in [0, 1] -> logits (B, R, C), deltas (B, R, 4), and FCOS's centerness (B, R, 1)."""

    def __init__(self, detector: RetinaNet | FCOS) -> None:
        super().__init__()
        self.normalised, self.backbone, self.head = Normalised(detector.transform), detector.backbone, detector.head

    def forward(self, images: Tensor) -> tuple[Tensor, ...]:
        found = self.head(list(self.backbone(self.normalised(images)).values()))
        names = ("cls_logits", "bbox_regression", "bbox_ctrness")
        return tuple(found[name] for name in names if name in found)


def settings(model: Model) -> dict[str, Any]:
    """What `detect` reads: all that is no layer of the network."""
    detector = model.detector
    transform = detector.transform
    common = {
        "classes": list(model.classes),
        "min_size": transform.min_size[-1],
        "max_size": transform.max_size,
        "mean": list(transform.image_mean),
    }
    if isinstance(detector, FasterRCNN):
        return {**common, **two_stage.settings(detector)}
    assert isinstance(detector, RetinaNet | FCOS)
    return {
        **common,
        "coder": "distances" if isinstance(detector, FCOS) else "deltas",
        "weights": getattr(detector.box_coder, "weights", (1.0, 1.0, 1.0, 1.0)),
        "first_stride": PYRAMID_STRIDES["P3-P7"][0],
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
