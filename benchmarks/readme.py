#!/usr/bin/env python3
"""Writes README's result tables from the JSON files of benchmarks/results/, between `<!-- NAME -->` marks.

    python benchmarks/readme.py [--check]         --check: change nothing, exit 1 where README and files differ
"""

from __future__ import annotations

import argparse
import json
import re
import statistics
import sys
from pathlib import Path

ROOT = Path(__file__).parent.parent
README = ROOT / "README.md"


def mean_and_spread(values: list[float]) -> str:
    spread = f" ± {statistics.stdev(values):.1f}" if len(values) > 1 else ""
    return f"{statistics.mean(values):.1f}{spread}"


def demo_seeds(results: dict) -> str:
    """Mean and sample standard deviation over the seeds, a row a role, then the gain seed by seed."""
    roles: dict[str, list[dict]] = {}
    for run in results["runs"]:
        roles.setdefault(run["role"], []).append(run)
    lines = ["| | parameters | AP | AP50 | AP of each seed |", "|---|---|---|---|---|"]
    for role, runs in roles.items():
        each = ", ".join(f"{run['AP']:.1f}" for run in runs)
        ap, ap50 = (mean_and_spread([run[key] for run in runs]) for key in ("AP", "AP50"))
        lines.append(f"| {role} | {runs[0]['parameters'] / 1e6:.1f} M | {ap} | {ap50} | {each} |")
    gains = [d["AP"] - p["AP"] for p, d in zip(roles["plain"], roles["distilled"], strict=True)]
    each = ", ".join(f"{gain:+.1f}" for gain in gains)
    lines.append(f"| gain | | {mean_and_spread(gains)} | | {each} |")
    machine = results["machine"]
    lines += [
        "",
        f"Mean ± standard deviation over {len(gains)} seeds of the students, one teacher; "
        f"{machine['threads']} CPU threads, torch {machine['torch']}, commit {machine['commit']}. "
        "Made again by `python benchmarks/demo_seeds.py`.",
    ]
    return "\n".join(lines)


TABLES = {"demo-seeds": ("demo_seeds.json", demo_seeds)}


def render(text: str) -> str:
    """README's text with every table made anew."""
    for name, (file, table) in TABLES.items():
        results = json.loads((ROOT / "benchmarks" / "results" / file).read_text())
        marker = re.compile(rf"(<!-- {name} -->\n).*?(<!-- /{name} -->)", re.DOTALL)
        if not marker.search(text):
            sys.exit(f"error: README.md has no place for the table: add <!-- {name} --> and <!-- /{name} -->")
        content = table(results)
        text = marker.sub(lambda match, content=content: f"{match[1]}{content}\n{match[2]}", text)
    return text


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    parser.add_argument("--check", action="store_true", help="change nothing, exit 1 where README and files differ")
    arguments = parser.parse_args()
    old = README.read_text()
    new = render(old)
    if arguments.check:
        sys.exit("error: README.md's tables are stale: run python benchmarks/readme.py" if new != old else 0)
    README.write_text(new)


if __name__ == "__main__":
    main()
