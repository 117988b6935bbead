#!/usr/bin/env python3
"""Trains a teacher, a plain student or a distilled student: whatever the config file describes."""

from __future__ import annotations

import argparse
import sys

from gid_cuda.config import load_config
from gid_cuda.engine.setup import require_teacher
from gid_cuda.engine.trainer import train
from gid_cuda.errors import UserError


def main() -> int:
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("--cfg", required=True, metavar="FILE", help="YAML config, for example configs/demo.yaml")
    parser.add_argument("overrides", nargs="*", metavar="key.path=value", help="for example train.lr=0.02 distill=none")
    folder = parser.add_mutually_exclusive_group()
    folder.add_argument("--resume", action="store_true", help="go on from the last checkpoint in the output folder")
    folder.add_argument("--overwrite", action="store_true", help="replace the run in the output folder")
    args = parser.parse_intermixed_args()
    try:
        config = load_config(args.cfg, args.overrides)
        require_teacher(config, args.cfg)
        train(config, resume=args.resume, overwrite=args.overwrite)
    except UserError as error:
        print(f"error: {error}", file=sys.stderr)
        return 2
    except KeyboardInterrupt:
        print("interrupted: --resume goes on from the last checkpoint", file=sys.stderr)
        return 130
    return 0


if __name__ == "__main__":
    sys.exit(main())
