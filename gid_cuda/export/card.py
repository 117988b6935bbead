"""The model card: what someone who is handed the exported files must know."""

from __future__ import annotations

import platform
from collections.abc import Sequence
from pathlib import Path
from typing import Any

import torch
import torchvision

from gid_cuda import __version__
from gid_cuda.config import DataConfig, InputConfig, ModelConfig, SplitConfig, config_to_dict
from gid_cuda.export.detect import boxes_file
from gid_cuda.export.student import Model
from gid_cuda.export.torchvision_code import torchvision_code
from gid_cuda.plain_yaml import dump_yaml

_METHODS = {
    "gid": "General Instance Distillation (Dai et al., CVPR 2021)",
    "fitnet": "FitNet hints (Romero et al., ICLR 2015)",
    "fine_grained": "fine-grained feature imitation (Wang et al., CVPR 2019)",
    "mimicking": "mimicking (Li et al., CVPR 2017)",
}


def model_card(
    model: Model,
    *,
    weights: str,
    onnx: str | None,
    no_onnx: str | None,
    check: str | None,
    table: str,
    notes: Sequence[str],
) -> str:
    """Markdown. weights, onnx: file names beside the card; no_onnx: why there is none; check: what the ONNX file was
    held to; table, notes: of costs and AP."""
    size = model.config.input
    sections = [
        f"# {_name(model.config.model)}, {len(model.classes)} classes",
        f"Trained with gid_cuda {__version__}{_how(model)}.",
        "## Results",
        f"AP is COCO's, in percent, {_on(model)}.\n\n{table}\n\n" + "\n".join(f"- {note}" for note in notes),
        _per_class(model),
        "## Classes",
        "Labels count from 0, in this order: " + ", ".join(f"{i} {name}" for i, name in enumerate(model.classes)) + ".",
        "## Input",
        _input(size),
        f"## {weights}",
        _loading(model, weights),
        "## ONNX",
        _onnx(onnx, no_onnx, check, two_stages=model.config.model.detector == "faster_rcnn"),
        "## Training",
        f"{model.step} steps; torch {torch.__version__}, torchvision {torchvision.__version__}, Python "
        f"{platform.python_version()} at the export. The config, without the folders of its machine:\n\n"
        f"```yaml\n{dump_yaml(_config(model))}```",
        "## Licence",
        "To be filled in by whoever passes this model on: data, teacher and pretrained weights may each bind it.",
    ]
    return "\n\n".join(section for section in sections if section) + "\n"


def _input(size: InputConfig) -> str:
    return (
        f"RGB, values in [0, 1]; resized (bilinear, not smoothed) so that the shorter side has {size.min_size[-1]} "
        f"pixels and the longer one at most {size.max_size}; minus the mean {list(size.mean)}, divided by the standard "
        f"deviation {list(size.std)}; padded with 0 at the right and at the bottom to multiples of 32. The models "
        "below do all this themselves. EXIF orientation was not applied to the training images."
    )


def _name(model: ModelConfig) -> str:
    return f"{model.detector} {model.backbone}" if model.detector != "own" else "A detector of one's own"


def _how(model: Model) -> str:
    config = model.config
    if config.distill is None or config.teacher is None:
        return ", without a teacher"
    return f": distilled from {_name(config.teacher)} by {_METHODS.get(config.distill.method, config.distill.method)}"


def _on(model: Model) -> str:
    data: DataConfig = model.config.data
    if data.format == "generated":
        return f"on the validation part of gid_cuda's generated data ({data.generated.val_images} images)"
    parts = data.val if isinstance(data.val, list) else [data.val]
    names = [str(part.annotations or part.split or "") for part in parts if isinstance(part, SplitConfig)]
    images = (model.metrics or {}).get("images")
    count = f", {images} images" if images else ""
    return f"on the validation part ({data.format}, {Path(data.root).name}: {', '.join(filter(None, names))}{count})"


def _per_class(model: Model) -> str:
    by_name = (model.metrics or {}).get("per_class") or {}
    if not by_name:
        return ""
    return "AP by class: " + ", ".join(f"{k} {'-' if v is None else f'{v:.1f}'}" for k, v in by_name.items()) + "."


def _loading(model: Model, weights: str) -> str:
    code = torchvision_code(model, weights)
    if code is None:
        return (
            "A plain state dict of the detector that its adapter builds: "
            f'`detector.load_state_dict(torch.load("{weights}", weights_only=True))`.'
        )
    labels = "labels from 0"
    if model.config.model.detector == "faster_rcnn":
        labels = "labels from 1, as 0 is the background there: subtract 1 for the order above"
    return (
        f"A plain state dict; torchvision's own model takes it, without gid_cuda:\n\n```python\n{code}\n```\n\n"
        f"`model([image])` takes (3, H, W) float tensors in [0, 1] and gives boxes (pixels of the image), scores "
        f"and labels ({labels})."
    )


def _onnx(onnx: str | None, no_onnx: str | None, check: str | None, *, two_stages: bool) -> str:
    if onnx is None:
        return f"None: {no_onnx}."
    second = ""
    if two_stages:
        second = f"`{boxes_file(onnx)}`, which belongs beside it, goes on from crops of the proposals. "
    return (
        f"`{onnx}` holds the network with the normalisation, from `images` (batch, 3, height, width), float32 RGB in "
        f"[0, 1], height and width multiples of 32, to raw predictions. {second}`detect.py` resizes, pads, decodes "
        "and removes duplicates with numpy and onnxruntime alone (`pip install numpy onnxruntime`):\n\n"
        "```python\nfrom detect import Detector\n\n"
        f'detector = Detector("{onnx}")\nfound = detector(image)  # uint8 (H, W, 3) RGB -> boxes, scores, labels\n'
        "```\n\n"
        f"or, with pillow, `python detect.py {onnx} photo.jpg`. Checked at the export: {check}."
    )


def _config(model: Model) -> dict[str, Any]:
    config = config_to_dict(model.config)
    del config["output"]
    config["data"]["root"] = Path(config["data"]["root"]).name
    return config
