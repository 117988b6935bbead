#!/usr/bin/env python3
"""Pictures of a distilled run: general instances beside the GI score, their statistics, and curves.

    python scripts/visualize.py --cfg configs/demo.yaml --weights runs/demo/distilled/best.pt --images 4
    python scripts/visualize.py --cfg configs/demo.yaml --weights runs/demo/distilled/best.pt --images 0 --statistics 64
    python scripts/visualize.py --curves runs/demo/student runs/demo/distilled

All can be asked for at once. Of several --weights (stages of a training, say) each picture has a column for each.
--statistics: histograms of GI score, IoU and IoP and the shares of the kinds, as picture and as JSON.
"""

from __future__ import annotations

import argparse
from pathlib import Path
from typing import Any

from gid_cuda.config import load_config
from gid_cuda.detectors.own import load_adapter
from gid_cuda.engine.device import choose_device
from gid_cuda.engine.instance_statistics import draw_statistics
from gid_cuda.engine.pictures import draw_curves, draw_instances
from gid_cuda.engine.setup import require_teacher
from gid_cuda.errors import told_in_one_sentence
from gid_cuda.viz.table import run_names


def count(text: str) -> int:
    value = int(text)
    if value < 0:
        raise argparse.ArgumentTypeError(f"{text} is below 0")
    return value


def main() -> None:
    parser = argparse.ArgumentParser(
        description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter, allow_abbrev=False
    )
    parser.add_argument("--cfg", type=Path, help="config of the distilled run: validation set, teacher, selection")
    parser.add_argument("overrides", nargs="*", metavar="key.path=value", help="after --cfg FILE; changes the config")
    parser.add_argument("--weights", type=Path, nargs="+", help="the student's checkpoint, or several to compare")
    parser.add_argument("--images", type=count, default=4, help="how many, spread over the validation set (default: 4)")
    parser.add_argument("--image-ids", type=int, nargs="+", default=[], metavar="ID", help="these images instead")
    parser.add_argument(
        "--image-files", nargs="+", default=[], metavar="NAME", help="these instead, by their files' names"
    )
    parser.add_argument("--statistics", type=count, default=0, metavar="N", help="of the instances in N images")
    parser.add_argument("--curves", type=Path, nargs="+", metavar="RUN", help="folders of runs to draw curves of")
    parser.add_argument("--names", nargs="+", help="what to call these runs (default: their folders' names)")
    parser.add_argument("--output", type=Path, default=Path("pictures"), help="folder to write (default: pictures)")
    parser.add_argument("--adapter", metavar="FILE", help="builds a detector of your own, see docs/own_detector.md")
    parser.add_argument("--device", choices=("auto", "cpu", "cuda"), default="auto")
    arguments = parser.parse_intermixed_args()
    if (arguments.cfg is None) != (arguments.weights is None):
        parser.error("--cfg and --weights go together")
    pictures = bool(arguments.images or arguments.image_ids or arguments.image_files)
    if arguments.cfg is None and (arguments.image_ids or arguments.image_files or arguments.statistics):
        parser.error("--image-ids, --image-files and --statistics need --cfg and --weights")
    if arguments.curves is None and (arguments.cfg is None or not (pictures or arguments.statistics)):
        parser.error("nothing to draw: give --cfg and --weights (with --images or --statistics above 0), or --curves")
    if arguments.cfg is not None:
        config = load_config(arguments.cfg, arguments.overrides)
        require_teacher(config, arguments.cfg)
        common: dict[str, Any] = {
            "device": choose_device(arguments.device), "adapter": load_adapter(arguments.adapter)
        }  # fmt: skip
        if pictures:
            for path in draw_instances(
                config, arguments.weights, arguments.output, count=arguments.images, image_ids=arguments.image_ids,
                image_files=arguments.image_files, **common,
            ):  # fmt: skip
                print(path)
        if arguments.statistics:
            for path in draw_statistics(
                config, arguments.weights, arguments.output, count=arguments.statistics, **common
            ):
                print(path)
    if arguments.curves is not None:
        print(draw_curves(arguments.curves, run_names(arguments.curves, arguments.names), arguments.output))


if __name__ == "__main__":
    with told_in_one_sentence():
        main()
