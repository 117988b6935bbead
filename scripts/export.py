#!/usr/bin/env python3
"""Write a trained detector for use without this package: a torchvision state dict, ONNX and a model card.

    python scripts/export.py --weights runs/demo/distilled --output exported

OUTPUT/student.pth is a plain state dict for torchvision's own RetinaNet, FCOS or FasterRCNN; OUTPUT/README.md, the
model card, has the lines that load it. OUTPUT/student.onnx (with student_boxes.onnx, of Faster R-CNN) and
OUTPUT/detect.py need numpy and onnxruntime alone; they are held to this package's predict before anything is left on
the disk. Prints teacher against student: parameters, FLOPs, latency on this machine, AP. ONNX needs:
pip install -e '.[export]'.
"""

from __future__ import annotations

import argparse
from pathlib import Path

from gid_cuda.detectors.own import load_adapter
from gid_cuda.engine.device import choose_device
from gid_cuda.errors import told_in_one_sentence
from gid_cuda.export import export


def main() -> None:
    parser = argparse.ArgumentParser(
        description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter, allow_abbrev=False
    )
    parser.add_argument("--weights", type=Path, required=True, help="a run's folder (its best.pt), or a checkpoint")
    parser.add_argument("--output", type=Path, default=Path("exported"), help="folder to write (default: exported)")
    parser.add_argument("--no-onnx", action="store_true", help="the state dict and the model card alone")
    parser.add_argument("--overwrite", action="store_true", help="replace an earlier export in OUTPUT")
    parser.add_argument("--adapter", metavar="FILE", help="builds a detector of your own, see docs/own_detector.md")
    parser.add_argument("--device", choices=("auto", "cpu", "cuda"), default="auto", help="where latency is measured")
    arguments = parser.parse_args()
    done = export(
        arguments.weights, arguments.output, onnx=not arguments.no_onnx, overwrite=arguments.overwrite,
        adapter=load_adapter(arguments.adapter), device=choose_device(arguments.device),
    )  # fmt: skip
    print(done.table)
    for note in done.notes:
        print(note)
    print(f"written: {', '.join(map(str, done.files))}")


if __name__ == "__main__":
    with told_in_one_sentence():
        main()
