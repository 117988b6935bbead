#!/usr/bin/env python3
"""Runs a matrix of methods, detectors and seeds, one after the other or on several GPUs, and sets them side by side.

    python scripts/experiment.py --cfg configs/experiments/methods.yaml
    python scripts/experiment.py --cfg configs/experiments/coco.yaml --devices 0,1,2,3

What is done is kept, so it may be stopped and started again at any moment. The experiment's output holds table.txt,
table.csv, runs.csv, results.json and report.html, written anew after every run. Exit status 1: a run failed, or is of
another config.
"""

from __future__ import annotations

import argparse
import sys
from pathlib import Path

from gid_cuda.errors import told_in_one_sentence
from gid_cuda.experiment.command import run


def positive(text: str) -> int:
    if not text.isdecimal() or int(text) < 1:
        raise argparse.ArgumentTypeError(f"{text!r} is no number of runs: give a whole number above 0")
    return int(text)


def parse() -> argparse.Namespace:
    parser = argparse.ArgumentParser(
        description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter, allow_abbrev=False
    )
    parser.add_argument("--cfg", type=Path, required=True, metavar="FILE", help="the experiment's YAML file")
    parser.add_argument("--jobs", type=positive, metavar="N", help="runs at once (default: one a device)")
    parser.add_argument("--devices", metavar="0,1", help="GPUs to spread the runs over (default: as it is)")
    parser.add_argument("--redo", action="store_true", help="train runs of another config anew, not only tell them")
    parser.add_argument("--adapter", metavar="FILE", help="builds a detector of your own, see docs/own_detector.md")
    parser.add_argument("--no-pictures", action="store_true", help="a page with the tables alone")
    what = parser.add_mutually_exclusive_group()
    what.add_argument("--dry-run", action="store_true", help="say what would be done, and write nothing")
    what.add_argument("--report", action="store_true", help="write tables and page of what is done, and train nothing")
    return parser.parse_args()


if __name__ == "__main__":
    with told_in_one_sentence(interrupted="interrupted: the same command goes on from here"):
        sys.exit(run(parse(), Path(__file__).with_name("train.py")))
