#!/usr/bin/env python3
"""Times the operators and the whole criterion beside plain PyTorch, torch.compile and torchvision, in one run.

    scripts/benchmark.py [--device cpu|cuda] [--only NAME ...] [--full] [--sweep] [--json FILE] [--plot FILE]
    scripts/benchmark.py --step --cfg FILE [key.path=value ...]         the parts of a training step
    scripts/benchmark.py --step --switches --cfg FILE                   what each setting of the loop is worth

Each contender's result is compared with ours before it is timed; one that should be equal and is not ends in exit code
1. `benchmarks/readme.py` makes README's tables and plot from what --json keeps.
"""

from __future__ import annotations

import argparse
import sys
from pathlib import Path

sys.path.insert(0, str(Path(__file__).resolve().parent.parent))

from benchmarks import main  # noqa: E402
from gid_cuda.errors import told_in_one_sentence  # noqa: E402


def parse() -> argparse.Namespace:
    parser = argparse.ArgumentParser(
        description=__doc__.splitlines()[0], epilog="\n".join(__doc__.splitlines()[2:]),
        formatter_class=argparse.RawDescriptionHelpFormatter, allow_abbrev=False,
    )  # fmt: skip
    parser.add_argument("--device", choices=("auto", "cpu", "cuda"), default="auto", help="default: cuda if there is")
    parser.add_argument("--only", nargs="+", metavar="NAME", help="these operators alone, or `criterion`")
    extent = parser.add_mutually_exclusive_group()
    extent.add_argument("--full", action="store_true", help="every size and type; default: those that tell most")
    extent.add_argument("--quick", action="store_true", help="tiny sizes, few runs: does it work?")
    parser.add_argument("--no-compile", action="store_true", help="without torch.compile, which takes most of the time")
    parser.add_argument("--sweep", action="store_true", help="also how cost grows with boxes, instances and images")
    parser.add_argument("--plot", type=Path, metavar="FILE", help="the sweep as a picture")
    parser.add_argument("--json", type=Path, metavar="FILE", help="keep everything that was measured")
    parser.add_argument("--step", action="store_true", help="instead, time a training step of a config by part")
    parser.add_argument("--switches", action="store_true", help="with --step: each setting the other way, in turn")
    parser.add_argument("--cfg", metavar="FILE", help="config of the step, for example configs/retina.yaml")
    parser.add_argument("--adapter", metavar="FILE", help="builds the step's detectors (docs/own_detector.md)")
    parser.add_argument("--steps", type=int, default=20, help="steps that are timed (default: 20)")
    parser.add_argument("overrides", nargs="*", metavar="key.path=value", help="changes to the config of the step")
    return parser.parse_intermixed_args()


if __name__ == "__main__":
    with told_in_one_sentence():
        sys.exit(main.run(parse()))
