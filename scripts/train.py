#!/usr/bin/env python3
"""Trains a teacher, a plain student or a distilled student: whatever the config file describes.

On many GPUs: torchrun --nproc-per-node 8 scripts/train.py --cfg FILE, with the same config.
"""

from __future__ import annotations

import argparse

from gid_cuda.config import load_config
from gid_cuda.detectors.own import load_adapter
from gid_cuda.engine.distributed import first_of_each_machine, processes
from gid_cuda.engine.setup import require_teacher
from gid_cuda.engine.trainer import train
from gid_cuda.errors import told_in_one_sentence


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, allow_abbrev=False)
    parser.add_argument("--cfg", required=True, metavar="FILE", help="YAML config, for example configs/demo.yaml")
    parser.add_argument("overrides", nargs="*", metavar="key.path=value", help="for example train.lr=0.02 distill=none")
    parser.add_argument("--adapter", metavar="FILE", help="builds a detector of your own, see docs/own_detector.md")
    folder = parser.add_mutually_exclusive_group()
    folder.add_argument("--resume", action="store_true", help="go on from the last checkpoint in the output folder")
    folder.add_argument("--overwrite", action="store_true", help="replace the run in the output folder")
    with first_of_each_machine():
        args = parser.parse_intermixed_args()
        config = load_config(args.cfg, args.overrides)
        require_teacher(config, args.cfg)
    train(config, resume=args.resume, overwrite=args.overwrite, adapter=load_adapter(args.adapter))


if __name__ == "__main__":
    with told_in_one_sentence(interrupted="interrupted: --resume goes on from the last checkpoint"), processes():
        main()
