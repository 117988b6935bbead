"""The few lines that build torchvision's own model around an exported state dict; they stand in the model card."""

from __future__ import annotations

from torch import nn
from torchvision.ops.misc import FrozenBatchNorm2d

from gid_cuda.detectors.faster_rcnn import FasterRCNN
from gid_cuda.detectors.fcos import FCOS
from gid_cuda.detectors.outputs import Detector
from gid_cuda.detectors.retinanet import RetinaNet
from gid_cuda.export.student import Model

_DEFAULT_DEPTH = 4  # of torchvision's heads


def torchvision_code(model: Model, weights: str) -> str | None:
    """Python source that ends with `model`, torchvision's, in eval mode with the weights of the file `weights`.

    None for a detector that is not torchvision's. Nothing of this package is imported there.
    """
    detector = model.detector
    if isinstance(detector, RetinaNet):
        imports, lines = _retinanet(detector)
    elif isinstance(detector, FCOS):
        imports, lines = _fcos(detector)
    elif isinstance(detector, FasterRCNN):
        imports, lines = _faster_rcnn(detector)
    else:
        return None
    backbone_imports, backbone = _backbone(detector, model.config.model.backbone)
    imports = [*imports, *backbone_imports, "from torchvision.models.detection.backbone_utils import BackboneWithFPN"]
    source = [
        "import torch",
        "import torchvision",
        *sorted(imports),
        "",
        *backbone,
        *lines,
        f'state = torch.load("{weights}", map_location="cpu", weights_only=True)',
        "model.load_state_dict(state, strict=True)",
        "model.eval()",
    ]
    return "\n".join(source)


def _backbone(detector: Detector, name: str) -> tuple[list[str], list[str]]:
    """What the names and widths are, the built backbone itself says."""
    backbone = detector.backbone
    norm = next(layer for layer in backbone.modules() if isinstance(layer, (nn.BatchNorm2d, FrozenBatchNorm2d)))
    frozen = isinstance(norm, FrozenBatchNorm2d)
    kind = "FrozenBatchNorm2d" if frozen else "torch.nn.BatchNorm2d"
    imports = ["from functools import partial"]
    if frozen:
        imports.append("from torchvision.ops.misc import FrozenBatchNorm2d")
    extra = "LastLevelMaxPool()"
    if not isinstance(detector, FasterRCNN):
        extra = f"LastLevelP6P7({backbone.out_channels}, {backbone.out_channels})"
    imports.append(f"from torchvision.ops.feature_pyramid_network import {extra.partition('(')[0]}")
    features = ".features" if name.startswith("mobilenet") else ""
    return imports, [
        f"norm = partial({kind}, eps={norm.eps!r})",
        "backbone = BackboneWithFPN(",
        f"    torchvision.models.{name}(weights=None, norm_layer=norm){features},",
        f"    return_layers={dict(backbone.body.return_layers)!r},",
        f"    in_channels_list={[block[0].in_channels for block in backbone.fpn.inner_blocks]!r},",
        f"    out_channels={backbone.out_channels},",
        f"    extra_blocks={extra},",
        ")",
    ]


def _retinanet(detector: RetinaNet) -> tuple[list[str], list[str]]:
    imports = [
        "from torchvision.models.detection import RetinaNet",
        "from torchvision.models.detection.anchor_utils import AnchorGenerator",
        "from torchvision.models.detection.retinanet import RetinaNetHead",
    ]
    channels, depth = detector.out_channels, len(detector.head.classification_head.conv)
    lines = [
        *_anchors(detector.anchor_generator),
        f"head = RetinaNetHead({channels}, {detector.anchors_per_cell}, {detector.num_classes})",
    ]
    if depth != _DEFAULT_DEPTH:
        imports.append("from torchvision.ops.misc import Conv2dNormActivation")
        layer = f"Conv2dNormActivation({channels}, {channels}, norm_layer=None)"
        lines += [
            "for branch in (head.classification_head, head.regression_head):",
            f"    branch.conv = torch.nn.Sequential(*[{layer} for _ in range({depth})])",
        ]
    lines += [
        "model = RetinaNet(",
        f"    backbone, num_classes={detector.num_classes}, anchor_generator=anchors, head=head,",
        *_options(detector, detector, ""),
        ")",
    ]
    return imports, lines


def _fcos(detector: FCOS) -> tuple[list[str], list[str]]:
    imports = [
        "from torchvision.models.detection import FCOS",
        "from torchvision.models.detection.fcos import FCOSHead",
    ]
    depth = sum(isinstance(layer, nn.Conv2d) for layer in detector.head.classification_head.conv)
    head = f"FCOSHead({detector.out_channels}, 1, {detector.num_classes}, num_convs={depth})"
    return imports, [
        "model = FCOS(",
        f"    backbone, num_classes={detector.num_classes}, head={head},",
        *_options(detector, detector, ""),
        ")",
    ]


def _faster_rcnn(detector: FasterRCNN) -> tuple[list[str], list[str]]:
    imports = [
        "from torchvision.models.detection import FasterRCNN",
        "from torchvision.models.detection.anchor_utils import AnchorGenerator",
    ]
    return imports, [
        *_anchors(detector.rpn.anchor_generator),
        "model = FasterRCNN(",
        f"    backbone, num_classes={detector.num_classes + 1},  # class 0 is the background",
        "    rpn_anchor_generator=anchors,",
        *_options(detector, detector.roi_heads, "box_"),
        ")",
    ]


def _anchors(generator: nn.Module) -> list[str]:
    return [f"anchors = AnchorGenerator({generator.sizes!r}, {generator.aspect_ratios!r})"]


def _options(detector: Detector, owner: nn.Module, prefix: str) -> list[str]:
    transform = detector.transform
    most = owner.detections_per_img
    return [
        f"    min_size={transform.min_size[-1]}, max_size={transform.max_size},",
        f"    image_mean={list(transform.image_mean)!r}, image_std={list(transform.image_std)!r},",
        f"    {prefix}score_thresh={owner.score_thresh!r}, {prefix}nms_thresh={owner.nms_thresh!r}, "
        f"{prefix}detections_per_img={most},",
    ]
