#!/usr/bin/env python3
"""Converts a checkpoint of mmdetection (RetinaNet or Faster R-CNN, ResNet with FPN, pytorch style) for this package.

    python scripts/convert_checkpoint.py --input retinanet_r50_fpn.pth --output teacher.pt

OUTPUT serves as teacher.weights or model.weights beside `variant: mmdetection`, and for scripts/predict.py.
"""

from __future__ import annotations

import argparse
import json
from pathlib import Path

from gid_cuda.detectors.mmdetection import convert_mmdetection
from gid_cuda.engine.checkpoint import save_checkpoint
from gid_cuda.errors import UserError, told_in_one_sentence


def read_names(path: Path) -> list[str]:
    try:
        return [line.strip() for line in path.read_text(encoding="utf-8").splitlines() if line.strip()]
    except (OSError, UnicodeDecodeError) as error:
        raise UserError(f"--classes {path} cannot be read ({error}): give a text file with one name a line") from None


def main() -> None:
    parser = argparse.ArgumentParser(
        description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter, allow_abbrev=False
    )
    parser.add_argument(
        "--input", type=Path, required=True, metavar="FILE", help="mmdetection's checkpoint, 2.x or 3.x"
    )
    parser.add_argument("--output", type=Path, required=True, metavar="FILE", help="file to write")
    parser.add_argument("--classes", type=Path, metavar="FILE", help="names, one a line, where the checkpoint has none")
    parser.add_argument("--style", choices=["pytorch"], help="say so where the checkpoint has no config text")
    arguments = parser.parse_args()
    if arguments.output.exists() and arguments.input.exists() and arguments.output.samefile(arguments.input):
        raise UserError(f"--output {arguments.output} is the input, which would be lost: give another file")
    names = read_names(arguments.classes) if arguments.classes else None
    content = convert_mmdetection(arguments.input, style=arguments.style, classes=names)
    arguments.output.parent.mkdir(parents=True, exist_ok=True)
    save_checkpoint(arguments.output, content)
    model = content["config"]["model"]
    keys = ("detector", "variant", "backbone", "fpn_channels", "head_depth", "anchor_sizes")
    section = ", ".join([*(f"{key}: {model[key]}" for key in keys), f"weights: {json.dumps(str(arguments.output))}"])
    print(f"{arguments.output}: {len(content['classes'])} classes; for a config:\nteacher: {{{section}}}")
    print("the student's model section takes the same detector, variant and anchor_sizes")


if __name__ == "__main__":
    with told_in_one_sentence():
        main()
