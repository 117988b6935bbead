#!/usr/bin/env python3
"""One table of several runs: parameters, AP, AP50, the difference to the plain run, seconds of training.

    python scripts/compare.py runs/demo/teacher runs/demo/student runs/demo/distilled --names teacher plain distilled

The plain run is the one with a distilled run's model and without distillation, unless --baseline names it.
Runs that were evaluated on different data are told.
"""

from __future__ import annotations

import argparse
import sys
from pathlib import Path

from gid_cuda.errors import printable, told_in_one_sentence
from gid_cuda.viz.table import comparison_table, data_note, run_names


def main() -> None:
    parser = argparse.ArgumentParser(
        description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter, allow_abbrev=False
    )
    parser.add_argument("runs", type=Path, nargs="+", metavar="RUN", help="folder of a run")
    parser.add_argument("--names", nargs="+", help="what to call the runs (default: their folders' names)")
    parser.add_argument("--baseline", metavar="NAME", help="the run that the others are compared with")
    parser.add_argument("--markdown", action="store_true", help="as a Markdown table")
    arguments = parser.parse_args()
    names = run_names(arguments.runs, arguments.names)
    print(comparison_table(arguments.runs, names, baseline=arguments.baseline, markdown=arguments.markdown))
    if note := data_note(arguments.runs, names):
        print(f"note: {printable(note)}", file=sys.stderr)


if __name__ == "__main__":
    with told_in_one_sentence():
        main()
