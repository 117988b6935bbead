#!/usr/bin/env python3
"""Run a trained detector over images: pictures with boxes, and one file of COCO results.

    python scripts/predict.py --weights runs/demo/distilled/best.pt --images photos/ --output predictions

The checkpoint alone is enough (a detector of your own needs --adapter, too). OUTPUT/results.json is a list of
{image_id, file_name, category_id, category_name, bbox [x, y, width, height] in pixels, score}. Images are numbered from
1 in the order of their names, categories from 1 in the order of the checkpoint's classes, unless --annotations names a
COCO file whose ids are to be used.
"""

from __future__ import annotations

import argparse
from pathlib import Path

from gid_cuda.detectors.own import check_adapter, load_adapter
from gid_cuda.engine.checkpoint import load_detector
from gid_cuda.engine.device import choose_device
from gid_cuda.engine.inference import coco_ids, find_images, predict_files
from gid_cuda.errors import told_in_one_sentence


def score(text: str) -> float:
    value = float(text)
    if not 0 <= value <= 1:
        raise argparse.ArgumentTypeError(f"{text} is not between 0 and 1")
    return value


def positive(text: str) -> int:
    value = int(text)
    if value < 1:
        raise argparse.ArgumentTypeError(f"{text} is not above 0")
    return value


def main() -> None:
    parser = argparse.ArgumentParser(
        description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter, allow_abbrev=False
    )
    parser.add_argument("--weights", type=Path, required=True, help="checkpoint of a run: best.pt or last.pt")
    parser.add_argument("--images", type=Path, nargs="+", required=True, help="a folder, or image files")
    parser.add_argument("--output", type=Path, default=Path("predictions"), help="folder to write to")
    parser.add_argument(
        "--score-threshold", type=score, default=0.3,
        help="boxes below are neither drawn nor written (default: 0.3); 0 for a results file to compute AP from",
    )  # fmt: skip
    parser.add_argument("--annotations", type=Path, help="COCO annotation file that lists the images: take its ids")
    parser.add_argument("--batch-size", type=positive, default=4, help="images at once (default: 4)")
    parser.add_argument("--adapter", metavar="FILE", help="builds a detector of your own, see docs/own_detector.md")
    parser.add_argument("--device", choices=("auto", "cpu", "cuda"), default="auto")
    arguments = parser.parse_args()
    device = choose_device(arguments.device)
    files = find_images(arguments.images)
    adapter = load_adapter(arguments.adapter)
    detector, config, classes = load_detector(arguments.weights, adapter)
    check_adapter(adapter, config.model)
    ids = coco_ids(arguments.annotations, files, classes) if arguments.annotations else None
    done = predict_files(
        detector, classes, files, arguments.output, score_threshold=arguments.score_threshold,
        batch_size=arguments.batch_size, device=device, ids=ids,
    )  # fmt: skip
    if done.unreadable:
        print(f"{len(done.unreadable)} of {len(files)} images could not be read, left out; e.g. {done.unreadable[0]}")
    print(f"{len(done.pictures)} pictures in {arguments.output}")
    print(f"{done.detections} boxes with a score of {arguments.score_threshold:g} or more in {done.results}")


if __name__ == "__main__":
    with told_in_one_sentence():
        main()
