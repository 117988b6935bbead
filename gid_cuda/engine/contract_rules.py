"""The rules that one forward pass of a detector has to keep, each told in one sentence where it does not."""

from __future__ import annotations

import math
from collections.abc import Sequence
from typing import Any, Literal, NoReturn, get_args

import torch
from torch import Tensor

from gid_cuda.detectors.outputs import BoxCoder, Detector, DetectorOutputs, Family, ImageList
from gid_cuda.errors import UserError
from gid_cuda.ops.roi_align import MAX_LEVELS

GUIDE = "docs/own_detector.md"
_FLOATS = (torch.float32, torch.float16, torch.bfloat16)

Losses = Literal["some", "none", "zero"]


class Rules:
    """Whose outputs are looked at, and the questions asked of them."""

    def __init__(self, whose: str, detector: Detector) -> None:
        self.detector = detector
        self.name = f"{whose}: {type(detector).__name__}"

    def broken(self, what: str) -> NoReturn:
        raise UserError(f"{self.name} {what}; see {GUIDE}")

    def attributes(self, classes: int) -> None:
        """What distillation reads of the detector itself."""
        for name in ("forward", "assign", "response_losses", "predict"):
            if getattr(type(self.detector), name) is getattr(Detector, name):
                self.broken(f"has no method {name}, expected one, as in gid_cuda.detectors.outputs.Detector")
        for name, expected in (("num_classes", classes), ("out_channels", None)):
            value = getattr(self.detector, name, None)
            if type(value) is not int or value < 1:
                self.broken(f"has {name} {value!r}, expected a number, set in its __init__")
            if expected is not None and value != expected:
                self.broken(f"has {name} {value}, expected {expected}, the data set's classes without background")
        if self.detector.family not in get_args(Family):
            self.broken(f"has family {self.detector.family!r}, expected one of {', '.join(get_args(Family))}")
        if not callable(getattr(self.detector, "transform", None)):
            self.broken("has no transform, expected torchvision's GeneralizedRCNNTransform, set in its __init__")

    def tensor(
        self, value: Any, name: str, shape: Sequence[Any], types: Sequence[torch.dtype], like: Tensor | None = None
    ) -> None:
        """A tensor of this shape and one of these types, on the device of `like`."""
        sides = f"({', '.join(map(str, shape))}{',' if len(shape) == 1 else ''})"  # a side may be a letter
        wanted = f"{' or '.join(_type(t) for t in types)} {sides}"
        if not isinstance(value, Tensor):
            self.broken(f"gives {name} as a {type(value).__name__}, expected a tensor, {wanted}")
        if tuple(value.shape) != tuple(shape) or value.dtype not in types:
            self.broken(f"gives {name} as {_type(value.dtype)} {tuple(value.shape)}, expected {wanted}")
        if like is not None and value.device != like.device:
            self.broken(f"gives {name} on {value.device}, expected {like.device}, where the images are")

    def outputs(self, outputs: Any, images: ImageList) -> None:
        """`DetectorOutputs` of a batch, all but its losses."""
        if not isinstance(outputs, DetectorOutputs):
            self.broken(f"returns a {type(outputs).__name__} from forward, expected DetectorOutputs")
        self._features(outputs, images)
        self._predictions(outputs, images.tensors)
        self._anchors(outputs)
        sizes = [[int(height), int(width)] for height, width in images.image_sizes]
        self.tensor(outputs.image_sizes, "image_sizes", (len(sizes), 2), [torch.int64], images.tensors)
        if outputs.image_sizes.tolist() != sizes:
            self.broken(
                f"gives image_sizes {outputs.image_sizes.tolist()}, expected {sizes}: height, width before padding, as "
                "in images.image_sizes"
            )
        self._boxes(outputs)

    def _features(self, outputs: DetectorOutputs, images: ImageList) -> None:
        maps, strides, channels = outputs.features, outputs.strides, self.detector.out_channels
        if not isinstance(maps, list | tuple) or not maps:
            self.broken(f"gives features as a {type(maps).__name__}, expected a list of one tensor a level or more")
        if not isinstance(strides, list | tuple) or len(strides) != len(maps) or len(maps) > MAX_LEVELS:
            self.broken(
                f"gives {len(maps)} features and the strides {strides}, expected a list of one stride for each "
                f"feature map, {MAX_LEVELS} at most"
            )
        powers = all(type(s) is int and s > 0 and s & (s - 1) == 0 for s in strides)
        if not powers or sorted(set(strides)) != list(strides):
            self.broken(f"gives the strides {list(strides)}, expected ascending powers of two, finest first")
        batch, _, *padded = images.tensors.shape
        for level, (feature, stride) in enumerate(zip(maps, strides, strict=True)):
            name = f"features[{level}]"
            extent = tuple(feature.shape[2:]) if isinstance(feature, Tensor) and feature.dim() == 4 else ("H", "W")
            self.tensor(feature, name, (batch, channels, *extent), _FLOATS, images.tensors)
            for cells, pixels in zip(extent, padded, strict=True):
                if not pixels / stride / 1.5 - 1 <= cells <= 1.5 * pixels / stride + 1:
                    about = tuple(math.ceil(side / stride) for side in padded)
                    self.broken(
                        f"gives {name} {extent} with stride {stride} on a batch of {tuple(padded)} pixels, expected "
                        f"about {about}"
                    )

    def _predictions(self, outputs: DetectorOutputs, like: Tensor) -> None:
        logits, batch = outputs.logits, len(like)
        if not isinstance(logits, Tensor) or logits.dim() != 3:
            shape = tuple(logits.shape) if isinstance(logits, Tensor) else f"a {type(logits).__name__}"
            self.broken(f"gives logits as {shape}, expected a tensor (B, R, C)")
        boxes, classes = logits.shape[1:]
        if classes not in (self.detector.num_classes, 1):
            self.broken(
                f"gives logits of {classes} classes, expected {self.detector.num_classes}: the data set's, no "
                "background (or 1, an objectness)"
            )
        if boxes == 0:
            self.broken("gives no predicted box an image, expected at least one")
        self.tensor(logits, "logits", (batch, boxes, classes), _FLOATS, like)
        self.tensor(outputs.deltas, "deltas", (batch, boxes, 4), _FLOATS, like)
        self.tensor(outputs.anchors, "anchors", (boxes, 4), [torch.float32], like)
        if logits.isnan().any():
            self.broken("gives logits with NaN, expected numbers")

    def _anchors(self, outputs: DetectorOutputs) -> None:
        anchors = outputs.anchors
        wrong = ~anchors.isfinite().all(dim=1) | ~(anchors[:, 2:] > anchors[:, :2]).all(dim=1)
        if wrong.any():
            row = int(wrong.nonzero()[0])
            self.broken(
                f"gives anchors[{row}] {anchors[row].tolist()}, expected x1, y1, x2, y2 in pixels with x1 < x2, y1 < y2"
            )

    def _boxes(self, outputs: DetectorOutputs) -> None:
        coder = outputs.coder
        if not isinstance(coder, BoxCoder) or coder.kind not in ("deltas", "distances"):
            self.broken(f"gives the coder {coder!r}, expected BoxCoder('deltas') or BoxCoder('distances')")
        weights = coder.weights
        if not isinstance(weights, tuple | list) or len(weights) != 4 or not all(weight > 0 for weight in weights):
            self.broken(f"gives a coder with the weights {coder.weights}, expected four positive numbers")
        boxes = outputs.boxes
        self.tensor(boxes, "boxes", (*outputs.logits.shape[:2], 4), [torch.float32], outputs.logits)
        if not boxes.isfinite().all():
            image, row = boxes.isfinite().all(dim=2).logical_not().nonzero()[0].tolist()
            self.broken(
                f"gives boxes[{image}, {row}] {boxes[image, row].tolist()}, decoded from deltas "
                f"{outputs.deltas[image, row].tolist()}, expected finite numbers"
            )

    def losses(self, losses: Any, expected: Losses, when: str) -> None:
        """expected: some: one or more finite scalars; none: an empty dict; zero: scalars, all of them 0."""
        if not isinstance(losses, dict):
            self.broken(f"gives losses as a {type(losses).__name__} {when}, expected a dict")
        if expected == "none":
            if losses:
                self.broken(f"gives the losses {', '.join(map(str, losses))} {when}, expected none")
            return
        if not losses:
            self.broken(f"gives no losses {when}, expected a dict of scalars: whatever the mode, targets mean losses")
        for name, value in losses.items():
            if not isinstance(value, Tensor) or value.dim() != 0 or not value.is_floating_point():
                self.broken(f"gives losses[{name!r}] as {_say(value)} {when}, expected a scalar tensor")
            if not value.isfinite() or (expected == "zero" and value != 0):
                wanted = "0: None means unlabelled, not without objects" if expected == "zero" else "a finite number"
                self.broken(f"gives losses[{name!r}] {value.item():g} {when}, expected {wanted}")


def _type(dtype: torch.dtype) -> str:
    return str(dtype).removeprefix("torch.")


def _say(value: Any) -> str:
    return f"{_type(value.dtype)} {tuple(value.shape)}" if isinstance(value, Tensor) else f"a {type(value).__name__}"
