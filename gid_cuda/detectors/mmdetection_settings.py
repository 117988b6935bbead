"""Which of mmdetection's models can be converted: what their config text must say, where there is one."""

from __future__ import annotations

from typing import Any

from gid_cuda.detectors.mmdetection_file import MMDetectionFile
from gid_cuda.errors import UserError

MEAN, STD = (123.675, 116.28, 103.53), (58.395, 57.12, 57.375)  # of pixels 0..255, RGB

# By path: the values that this package's detectors stand for. A setting that the text leaves out has mmdetection's
# default, which is among them; of some that default, none, is all there is.
_COMMON: dict[str, tuple[Any, ...]] = {
    "backbone.type": ("ResNet",),
    "backbone.strides": ([1, 2, 2, 2],),
    "backbone.dilations": ([1, 1, 1, 1],),
    "backbone.conv_cfg.type": ("Conv2d", "Conv"),  # ConvWS has the same tensors
    "backbone.norm_cfg.eps": (1e-5,),
    "neck.type": ("FPN",),
    "neck.num_outs": (5,),
    "neck.conv_cfg.type": ("Conv2d", "Conv"),
    "neck.act_cfg.type": (),
    "neck.upsample_cfg.mode": ("nearest",),
}
_ANCHORS: dict[str, tuple[Any, ...]] = {
    "type": ("AnchorGenerator",),
    "ratios": ([0.5, 1.0, 2.0],),
    "scale_major": (True,),
    "center_offset": (0,),
    "centers": (),
}
_EXPECTED: dict[str, dict[str, tuple[Any, ...]]] = {
    "retinanet": {
        "type": ("RetinaNet",),
        **_COMMON,
        "neck.start_level": (1,),
        "neck.add_extra_convs": ("on_input", True),
        "neck.relu_before_extra_convs": (False,),
        "bbox_head.type": ("RetinaHead",),
        "bbox_head.anchor_strides": (),  # of 1.x, whose anchors and deltas count a pixel more
        **{f"bbox_head.anchor_generator.{key}": values for key, values in _ANCHORS.items()},
        "bbox_head.anchor_generator.scales": (),
        "bbox_head.anchor_generator.scales_per_octave": (3,),
        "bbox_head.anchor_generator.strides": ([8, 16, 32, 64, 128],),
        "bbox_head.anchor_generator.base_sizes": ([8, 16, 32, 64, 128],),
        "bbox_head.bbox_coder.type": ("DeltaXYWHBBoxCoder",),
        "bbox_head.bbox_coder.target_means": ([0, 0, 0, 0],),
        "bbox_head.bbox_coder.target_stds": ([1, 1, 1, 1],),
        "bbox_head.loss_cls.use_sigmoid": (True,),
    },
    "faster_rcnn": {
        "type": ("FasterRCNN",),
        **_COMMON,
        "neck.start_level": (0,),
        "neck.add_extra_convs": (False,),
        "rpn_head.type": ("RPNHead",),
        **{f"rpn_head.anchor_generator.{key}": values for key, values in _ANCHORS.items()},
        "rpn_head.anchor_generator.octave_base_scale": (),
        "rpn_head.anchor_generator.strides": ([4, 8, 16, 32, 64],),
        "rpn_head.anchor_generator.base_sizes": ([4, 8, 16, 32, 64],),
        "rpn_head.bbox_coder.type": ("DeltaXYWHBBoxCoder",),
        "rpn_head.bbox_coder.target_means": ([0, 0, 0, 0],),
        "rpn_head.bbox_coder.target_stds": ([1, 1, 1, 1],),
        "rpn_head.loss_cls.use_sigmoid": (True,),
        "roi_head.type": ("StandardRoIHead",),
        "roi_head.bbox_roi_extractor.type": ("SingleRoIExtractor",),
        "roi_head.bbox_roi_extractor.finest_scale": (56,),
        "roi_head.bbox_roi_extractor.featmap_strides": ([4, 8, 16, 32],),
        "roi_head.bbox_roi_extractor.roi_layer.type": ("RoIAlign",),
        "roi_head.bbox_roi_extractor.roi_layer.output_size": (7,),
        "roi_head.bbox_roi_extractor.roi_layer.sampling_ratio": (0,),
        "roi_head.bbox_roi_extractor.roi_layer.aligned": (True,),
        "roi_head.bbox_roi_extractor.roi_layer.pool_mode": ("avg",),
        "roi_head.bbox_head.type": ("Shared2FCBBoxHead",),
        "roi_head.bbox_head.reg_class_agnostic": (False,),
        "roi_head.bbox_head.bbox_coder.type": ("DeltaXYWHBBoxCoder",),
        "roi_head.bbox_head.bbox_coder.target_means": ([0, 0, 0, 0],),
        "roi_head.bbox_head.bbox_coder.target_stds": ([0.1, 0.1, 0.2, 0.2],),
        "roi_head.bbox_head.loss_cls.use_sigmoid": (False,),
    },
}
_KNOWN = "RetinaNet and Faster R-CNN (Shared2FCBBoxHead), each with FPN over ResNet-18, 34, 50 or 101"


def detector_of(file: MMDetectionFile) -> str:
    """ "retinanet" or "faster_rcnn", by the heads' tensors; UserError for every other detector."""
    if "bbox_head.retina_cls.weight" in file.state:
        return "retinanet"
    if {"rpn_head.rpn_cls.weight", "roi_head.bbox_head.fc_cls.weight"} <= set(file.state):
        return "faster_rcnn"
    if "bbox_head.conv_centerness.weight" in file.state:
        raise UserError(
            f"{file.path} is mmdetection's FCOS (or a kin of it), whose boxes have learned scales that this package's "
            "FCOS has not: train the teacher with scripts/train.py, or use weights: coco"
        )
    parts = sorted({key.split(".")[0] for key in file.state})
    named = file.settings.get("type") or f"a model of the parts {', '.join(parts[:8])}"
    raise UserError(f"{file.path} is {named}, and what can be converted is {_KNOWN}")


def check_style(file: MMDetectionFile, style: str | None) -> None:
    """pytorch style alone: stride in a bottleneck's 3x3 convolution and torchvision's mean and std.

    The tensors do not tell; style is what the user says where the file has no config text, or one that is silent about
    pixels. A data_preprocessor without mean normalises nothing, and without bgr_to_rgb has BGR.
    """
    told = any(key.startswith("data_preprocessor.") for key in file.settings)
    caffe = file.settings.get("backbone.style") == "caffe"
    if not told and not caffe:
        if style is None:
            raise UserError(
                f"{file.path} has no config text that tells its style and mean: give --style pytorch if its config had "
                f"style='pytorch' and the RGB mean {list(MEAN)}; models of caffe style are not converted"
            )
        return
    pixels = {key: file.settings.get(f"data_preprocessor.{key}") for key in ("mean", "std", "bgr_to_rgb")}
    if caffe or not (_near(pixels["mean"], MEAN) and _near(pixels["std"], STD) and pixels["bgr_to_rgb"] is True):
        what = "backbone.style caffe" if caffe else "data_preprocessor " + str(pixels)
        raise UserError(
            f"{file.path} was trained with {what}, and what can be converted is pytorch style, with the RGB mean "
            f"{list(MEAN)} and std {list(STD)}: use the checkpoint of such a config (r50, not r50-caffe)"
        )


def check_settings(file: MMDetectionFile, detector: str) -> None:
    """UserError for the first setting that this package's detector cannot have."""
    for path, allowed in _EXPECTED[detector].items():
        value = file.settings.get(path)
        value = value.rpartition(".")[2] if isinstance(value, str) else value  # 3.x may write mmdet.models.ResNet
        if value is not None and value not in allowed:
            raise UserError(
                f"{file.path} was trained with model.{path} {value}, and what can be converted has "
                f"{' or '.join(map(str, allowed)) or 'none'}: {_KNOWN}"
            )
    layer, rows = ("bbox_head.retina_reg", 36) if detector == "retinanet" else ("rpn_head.rpn_reg", 12)
    found = file.state.get(f"{layer}.weight")
    if found is not None and found.shape[:1] != (rows,):
        raise UserError(
            f"{file.path} has {layer}.weight of shape {tuple(found.shape)}, so not the {rows // 4} anchors a cell that "
            f"can be converted: {_KNOWN}"
        )


def anchor_sizes(file: MMDetectionFile, detector: str) -> list[int]:
    """Of a config's model section: the smallest scale of each level, in pixels."""
    if detector == "retinanet":
        scale, strides = file.settings.get("bbox_head.anchor_generator.octave_base_scale", 4), [8, 16, 32, 64, 128]
    else:
        scales, strides = file.settings.get("rpn_head.anchor_generator.scales", [8]), [4, 8, 16, 32, 64]
        scale = scales[0] if isinstance(scales, list) and len(scales) == 1 else None
    if not isinstance(scale, (int, float)) or scale <= 0 or scale * strides[0] % 1:
        raise UserError(
            f"{file.path} was trained with other anchors, and what can be converted has one scale a level, of whole "
            f"pixels: {_KNOWN}"
        )
    return [int(scale * stride) for stride in strides]


def _near(values: Any, expected: tuple[float, ...]) -> bool:
    numbers = isinstance(values, list) and len(values) == 3 and all(isinstance(v, (int, float)) for v in values)
    return numbers and all(abs(a - b) < 0.01 for a, b in zip(values, expected, strict=True))
