#!/usr/bin/env python3
"""Evaluates a weights file on a config's validation images: COCO AP and AR in percent, and AP by class."""

from __future__ import annotations

import argparse
import sys

from gid_cuda.config import load_config
from gid_cuda.detectors.own import load_adapter
from gid_cuda.engine.distributed import first_of_each_machine, is_main, processes
from gid_cuda.engine.evaluation import evaluate_weights, format_metrics
from gid_cuda.errors import printable, told_in_one_sentence


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, allow_abbrev=False)
    parser.add_argument("--cfg", required=True, metavar="FILE", help="YAML config: its data, input and model sections")
    parser.add_argument("--weights", required=True, metavar="FILE", help="best.pt or last.pt of a run, or a state dict")
    parser.add_argument("overrides", nargs="*", metavar="key.path=value", help="for example input.min_size=[600]")
    parser.add_argument("--adapter", metavar="FILE", help="builds a detector of your own, see docs/own_detector.md")
    with first_of_each_machine():
        args = parser.parse_intermixed_args()
        config = load_config(args.cfg, args.overrides)
    metrics = evaluate_weights(config, args.weights, adapter=load_adapter(args.adapter))
    if not is_main():
        return
    for note in metrics["notes"]:
        print(printable(note), file=sys.stderr)
    print(format_metrics(metrics))


if __name__ == "__main__":
    with told_in_one_sentence(), processes():
        main()
