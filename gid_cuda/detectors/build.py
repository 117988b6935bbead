"""From a config's model section to a detector with its weights."""

from __future__ import annotations

from collections.abc import Sequence
from typing import TYPE_CHECKING, Literal

from gid_cuda.detectors import weights
from gid_cuda.detectors.backbones import PYRAMID_STRIDES, fpn_backbone
from gid_cuda.detectors.outputs import Detector
from gid_cuda.detectors.retinanet import RetinaNet
from gid_cuda.errors import UserError

if TYPE_CHECKING:
    from gid_cuda.config import InputConfig, ModelConfig


def build_detector(
    model: ModelConfig,
    input: InputConfig,
    classes: Sequence[str],
    *,
    response_cls: Literal["bce", "focal"] = "bce",
    response_smooth_l1_beta: float = 0.1,
    fused_losses: bool = True,
) -> Detector:
    """The detector that `model` describes, for `classes`, on the CPU, with its weights loaded.

    What was loaded, gathered by name or initialised anew stands in `detector.weight_notes`, one line each.
    Raises UserError where the parts do not fit each other or the weights do not fit the data.
    """
    if not classes:
        raise UserError("the data set has no classes: name at least one in data.classes or in the annotation file")
    if len(model.anchor_sizes) != len(PYRAMID_STRIDES):
        raise UserError(
            f"anchor_sizes has {len(model.anchor_sizes)} entries, but the detector has {len(PYRAMID_STRIDES)} levels "
            f"(strides {', '.join(map(str, PYRAMID_STRIDES))}): give one size a level"
        )
    imagenet = model.weights is None and model.backbone_weights == "imagenet"
    if imagenet or model.weights == "coco":
        weights.check_torchvision_input("imagenet" if imagenet else "coco", input)
    pretrained = imagenet or model.weights is not None
    backbone = fpn_backbone(
        model.backbone,
        channels=model.fpn_channels,
        norm=model.norm,
        trainable_layers=3 if pretrained and model.trainable_layers is None else model.trainable_layers,
        imagenet=imagenet,
    )
    detector = RetinaNet(
        backbone,
        len(classes),
        anchor_sizes=model.anchor_sizes,
        head_depth=model.head_depth,
        response_cls=response_cls,
        response_smooth_l1_beta=response_smooth_l1_beta,
        fused_losses=fused_losses,
        min_size=tuple(input.min_size),
        max_size=input.max_size,
        image_mean=list(input.mean),
        image_std=list(input.std),
        score_thresh=model.score_thresh,
        nms_thresh=model.nms_thresh,
        detections_per_img=model.detections_per_img,
    )
    if model.weights == "coco":
        detector.weight_notes = weights.load_coco(detector, model, classes)
    elif model.weights is not None:
        detector.weight_notes = weights.load_file(detector, model, input, classes)
    elif imagenet:
        detector.weight_notes = [f"backbone_weights: imagenet, {model.backbone}; pyramid and heads initialised anew"]
    elif model.norm == "frozen":
        detector.weight_notes = ["norm: frozen without weights normalises nothing: norm: live starts from scratch"]
    return detector
