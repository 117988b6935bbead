"""From a config's model section to a detector with its weights."""

from __future__ import annotations

from collections.abc import Sequence
from typing import TYPE_CHECKING, Any, Literal

from gid_cuda.detectors import weights, weights_coco
from gid_cuda.detectors.backbones import PYRAMID_STRIDES, Pyramid, fpn_backbone
from gid_cuda.detectors.faster_rcnn import FasterRCNN
from gid_cuda.detectors.fcos import FCOS, GROUPS
from gid_cuda.detectors.outputs import Detector
from gid_cuda.detectors.own import Builder, build_own
from gid_cuda.detectors.retinanet import DEFAULT_HEAD_DEPTH, RetinaNet
from gid_cuda.errors import UserError

if TYPE_CHECKING:
    from torchvision.models.detection.backbone_utils import BackboneWithFPN

    from gid_cuda.config import InputConfig, ModelConfig

MAX_CLASSES = 20_000  # the largest public sets have some 13,000; a head of so many has 2 GB


def build_detector(
    model: ModelConfig,
    input: InputConfig,
    classes: Sequence[str],
    *,
    response_cls: Literal["bce", "focal"] = "bce",
    response_smooth_l1_beta: float | None = None,
    fused_losses: bool = True,
    adapter: Builder | None = None,
) -> Detector:
    """The detector that `model` describes, for `classes`, on the CPU, with its weights loaded.

    response_smooth_l1_beta: None: the detector's own. fused_losses: Faster R-CNN's task losses are torchvision's own
    whatever it says. adapter: builds the detector where model.detector is own, for which these three are without
    meaning. What was loaded, gathered by name or initialised anew stands in `detector.weight_notes`, one line each.
    Raises UserError where the parts do not fit each other or the weights do not fit the data.
    """
    if not classes:
        raise UserError("the data set has no classes: name at least one in data.classes or in the annotation file")
    if len(classes) > MAX_CLASSES:
        raise UserError(f"{len(classes)} classes, and a detector has at most {MAX_CLASSES}: name fewer in data.classes")
    if model.detector == "own":
        return _own(adapter, model, input, list(classes))
    imagenet = model.weights is None and model.backbone_weights == "imagenet"
    if imagenet or model.weights == "coco":
        weights.check_torchvision_input("imagenet" if imagenet else "coco", input)
    response = {"response_cls": response_cls, "response_smooth_l1_beta": response_smooth_l1_beta}
    detector: Detector
    if model.detector == "faster_rcnn":
        detector = _faster_rcnn(model, input, len(classes), **_given(response))
    else:
        make = _fcos if model.detector == "fcos" else _retinanet
        detector = make(model, input, len(classes), fused_losses=fused_losses, **_given(response))
    if model.weights == "coco":
        detector.weight_notes = weights_coco.load_coco(detector, model, classes)
    elif model.weights is not None:
        detector.weight_notes = weights.load_file(detector, model, input, classes)
    elif imagenet:
        detector.weight_notes = [f"backbone_weights: imagenet, {model.backbone}; pyramid and heads initialised anew"]
    elif model.norm == "frozen":
        detector.weight_notes = ["norm: frozen without weights normalises nothing: norm: live starts from scratch"]
    return detector


def _own(adapter: Builder | None, model: ModelConfig, input: InputConfig, classes: list[str]) -> Detector:
    detector = build_own(adapter, model, input, classes)
    if model.weights is not None:
        detector.weight_notes = [*detector.weight_notes, *weights.load_file(detector, model, input, classes)]
    return detector


def _retinanet(model: ModelConfig, input: InputConfig, num_classes: int, **options: Any) -> RetinaNet:
    _check_anchor_sizes(model, "P3-P7")
    return RetinaNet(
        _backbone(model, "P3-P7"),
        num_classes,
        anchor_sizes=model.anchor_sizes,
        exact_anchors=model.variant == "mmdetection",
        head_depth=model.head_depth,
        **_postprocessing(model),
        **_transform(input),
        **options,
    )


def _fcos(
    model: ModelConfig,
    input: InputConfig,
    num_classes: int,
    *,
    response_smooth_l1_beta: float | None = None,
    **options: Any,
) -> FCOS:
    default = type(model).model_fields["anchor_sizes"].default
    if model.anchor_sizes != default:
        raise UserError(
            f"FCOS has no anchors: leave model.anchor_sizes out (where a base config has it, set it to {default})"
        )
    if response_smooth_l1_beta is not None:
        raise UserError("FCOS distils boxes by GIoU, which has no beta: leave distill.response_smooth_l1_beta out")
    if model.fpn_channels % GROUPS:
        raise UserError(
            f"fpn_channels is {model.fpn_channels}, but FCOS's heads have group norm of {GROUPS} groups: "
            f"give a multiple of {GROUPS}"
        )
    return FCOS(
        _backbone(model, "P3-P7"),
        num_classes,
        head_depth=model.head_depth,
        **_postprocessing(model),
        **_transform(input),
        **options,
    )


def _faster_rcnn(model: ModelConfig, input: InputConfig, num_classes: int, **options: Any) -> FasterRCNN:
    _check_anchor_sizes(model, "P2-P6")
    if model.head_depth != DEFAULT_HEAD_DEPTH:
        raise UserError(
            f"head_depth is {model.head_depth}, but the RPN of Faster R-CNN always has one layer: leave head_depth out "
            f"or set it to its default, {DEFAULT_HEAD_DEPTH}"
        )
    of_boxes = {f"box_{name}": getattr(model, name) for name in ("score_thresh", "nms_thresh", "detections_per_img")}
    return FasterRCNN(
        _backbone(model, "P2-P6"),
        num_classes,
        anchor_sizes=model.anchor_sizes,
        exact_anchors=model.variant == "mmdetection",
        aligned_rois=model.variant == "mmdetection",
        **_given(of_boxes),
        **_transform(input),
        **options,
    )


def _backbone(model: ModelConfig, pyramid: Pyramid) -> BackboneWithFPN:
    pretrained = model.weights is not None or model.backbone_weights is not None
    return fpn_backbone(
        model.backbone,
        channels=model.fpn_channels,
        norm=model.norm,
        pyramid=pyramid,
        extra_from="c5" if model.variant == "mmdetection" else "p5",
        relu_before_p7=model.variant != "mmdetection",
        trainable_layers=3 if pretrained and model.trainable_layers is None else model.trainable_layers,
        imagenet=model.weights is None and model.backbone_weights == "imagenet",
    )


def _check_anchor_sizes(model: ModelConfig, pyramid: Pyramid) -> None:
    strides = PYRAMID_STRIDES[pyramid]
    if len(model.anchor_sizes) != len(strides):
        raise UserError(
            f"anchor_sizes has {len(model.anchor_sizes)} entries, but the detector has {len(strides)} levels "
            f"(strides {', '.join(map(str, strides))}): give one size a level"
        )


def _postprocessing(model: ModelConfig) -> dict[str, Any]:
    return _given({name: getattr(model, name) for name in ("score_thresh", "nms_thresh", "detections_per_img")})


def _transform(input: InputConfig) -> dict[str, Any]:
    """What torchvision's models take for their `GeneralizedRCNNTransform`."""
    return {
        "min_size": tuple(input.min_size),
        "max_size": input.max_size,
        "image_mean": list(input.mean),
        "image_std": list(input.std),
    }


def _given(options: dict[str, Any]) -> dict[str, Any]:
    """Without those that are None: for these the detector's own defaults hold."""
    return {name: value for name, value in options.items() if value is not None}
