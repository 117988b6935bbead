#!/usr/bin/env python3
"""Writes README's result tables from the JSON files of benchmarks/results/, between `<!-- NAME -->` marks.

    python benchmarks/readme.py [--check]         --check: change nothing, exit 1 where README and files differ

What there is no file of has no table. The pictures of the sweeps are drawn anew too, unless checking.
"""

from __future__ import annotations

import argparse
import json
import re
import statistics
import sys
from pathlib import Path
from typing import Any

ROOT = Path(__file__).resolve().parent.parent
sys.path.insert(0, str(ROOT))

from benchmarks import plot  # noqa: E402
from benchmarks.report import by_case, seconds_text  # noqa: E402

README = ROOT / "README.md"
RESULTS = ROOT / "benchmarks" / "results"
IMAGES = Path("docs") / "images"
ROLES = ("pytorch", "compile", "instead")
PATTERNS = {
    "demo-seeds": "demo_seeds.json",
    "experiments": "experiment_*.json",
    "speed-cpu": "cpu.json",
    "speed-gpu": "gpu*.json",
}
SIZES = ("B", "R", "C", "K", "k", "N")  # those that differ between users


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


def experiment(results: dict[str, Any]) -> str:
    """A row a method: AP and AP50, the gain in AP over the baseline, and what the paper has for that row."""
    head = ("seeds", "AP", "AP50", "gain in AP", "the paper's AP, gain")
    lines = [f"| {results['title']} | {' | '.join(head)} |", "|---" * (1 + len(head)) + "|"]
    for row in results["rows"]:
        ap, ap50 = (_spread(row["values"].get(metric)) for metric in ("AP", "AP50"))
        gain = _spread(row["differences"].get("AP"), "+")
        paper = f"{row['paper']['AP']:.1f}" if "AP" in row["paper"] else ""
        if "AP" in row["paper_differences"]:
            paper += f", {row['paper_differences']['AP']:+.1f}"
        lines.append(f"| {row['name']} | {row['done']} | {ap} | {ap50} | {gain} | {paper} |")
    made_with = "; ".join(
        f"{machine['CPU']}, GPU {machine['GPU']}, torch {machine['torch']}, commit {machine['git commit']}"
        for machine in results["machines"]
    )
    lines += [
        "",
        "Mean ± standard deviation over the seeds; gains are paired by seed; the paper's numbers are of COCO. "
        f"{made_with}, {results['date']}.",
    ]
    return "\n".join(lines)


def _spread(value: dict[str, Any] | None, sign: str = "") -> str:
    if value is None:
        return ""
    deviation = "" if value["deviation"] is None else f" ± {value['deviation']:.1f}"
    return f"{value['mean']:{sign}.1f}{deviation}"


def speed(path: Path, results: dict[str, Any]) -> str:
    """A row a case: our time, how many times as long the others take, our share of the copy bandwidth."""
    lines = [
        "| | sizes | time | PyTorch | torch.compile | instead | of copy bandwidth |",
        "|---|---|---|---|---|---|---|",
    ]
    for ours, others in by_case(results["rows"]):
        if ", " in ours["work"] and not ours["work"].startswith("joint"):
            continue  # a part of what another row has whole
        work = ours["operator"] if ours["operator"] == "criterion" else f"`{ours['operator']}`"
        sizes = ", ".join(f"{name}={size:,}" for name, size in ours["sizes"].items() if name in SIZES)
        cells = [f"{work}, {ours['work']}", f"{sizes}, {ours['dtype']}", seconds_text(ours["median_s"])]
        for role in ROLES:
            of_role = [row for row in others if row["role"] == role]
            cells.append("; ".join(_ratio(row, ours) + _named(row) for row in of_role) or "–")
        cells.append(f"{ours['bandwidth_share']:.0%}")
        lines.append(f"| {' | '.join(cells)} |")
    lines += ["", _made_with(results)]
    if results["sweep"]:
        image = picture(path)
        dashed = ", ".join(f"{name} for {operator}" for operator, name in _opponents(results["sweep"]).items())
        lines += [
            "",
            f"![How cost grows with boxes, instances and images]({image.as_posix()})",
            "",
            f"*Dashed: {dashed}.*",
        ]
    return "\n".join(lines)


def _ratio(row: dict[str, Any], ours: dict[str, Any]) -> str:
    return f"{row['median_s'] / ours['median_s']:.3g}x"


def _named(row: dict[str, Any]) -> str:
    """The contender where the column's title does not name it."""
    return f" {row['contender'].replace('torchvision ', '')}" if row["role"] == "instead" else ""


def _opponents(rows: list[dict[str, Any]]) -> dict[str, str]:
    return {row["operator"]: row["contender"] for row in rows if row["role"] != "ours"}


def _made_with(results: dict[str, Any]) -> str:
    machine = results["machine"]
    others = [f"{row['operator']}, {row['contender']}" for row in results["rows"] if "DIFFERS" in row["check"]]
    equal = f"Not equal to ours: {'; '.join(others)}" if others else "All other results equal ours"
    notes: dict[str, list[str]] = {}
    for row in results["rows"]:
        if row["note"] and row["contender"] not in notes.setdefault(row["note"], []):
            notes[row["note"]].append(row["contender"])
    told = "".join(f"{' / '.join(names)}: {note}. " for note, names in notes.items())
    return (
        f"{machine['device']}, {machine['threads']} CPU threads, torch {machine['torch']}, commit {machine['commit']}, "
        f"{machine['date']}. Medians; the others' times in multiples of ours. A copy moves "
        f"{results['copy_bandwidth'] / 1e9:.1f} GB/s in the same run. {told}{equal}."
    )


def picture(path: Path) -> Path:
    """Where the picture of a result file is, relative to the root."""
    return IMAGES / f"benchmark_{path.stem}.png"


def files_of(name: str) -> list[Path]:
    """The result files behind a table, whichever there are; of GPUs there may be several."""
    pattern = PATTERNS[name]
    return [path for path in sorted(RESULTS.glob(pattern)) if not path.stem.endswith(("-step", "-compiled"))]


def read(path: Path) -> dict[str, Any]:
    """A result file; its rows are those of NAME-compiled.json, where that is, as they have torch.compile's too."""
    results = json.loads(path.read_text())
    compiled = path.with_name(f"{path.stem}-compiled.json")
    if compiled.exists():
        results = {**json.loads(compiled.read_text()), "sweep": results["sweep"]}
    return results


def table(name: str) -> str:
    """The tables of all files, one after the other, or nothing."""
    parts = []
    for path in files_of(name):
        results = read(path)
        if name == "demo-seeds":
            parts.append(demo_seeds(results))
        else:
            parts.append(experiment(results) if name == "experiments" else speed(path, results))
    return "\n\n".join(parts)




def render(text: str) -> str:
    """README's text with every table made anew."""
    for name in PATTERNS:
        marker = re.compile(rf"(<!-- {name} -->\n).*?(<!-- /{name} -->)", re.DOTALL)
        if not marker.search(text):
            sys.exit(f"error: README.md has no place for the table: add <!-- {name} --> and <!-- /{name} -->")
        content = table(name)
        content = f"{content}\n" if content else ""
        text = marker.sub(lambda match, content=content: f"{match[1]}{content}{match[2]}", text)
    return text


def draw() -> None:
    for path in [*files_of("speed-cpu"), *files_of("speed-gpu")]:
        results = read(path)
        if results["sweep"]:
            plot.save(results, ROOT / picture(path))


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    parser.add_argument("--check", action="store_true", help="change nothing, exit 1 where README and files differ")
    arguments = parser.parse_args()
    old = README.read_text()
    new = render(old)
    if arguments.check:
        sys.exit("error: README.md's tables are stale: run python benchmarks/readme.py" if new != old else 0)
    README.write_text(new)
    draw()


if __name__ == "__main__":
    main()
