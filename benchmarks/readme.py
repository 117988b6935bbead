#!/usr/bin/env python3
"""Writes the result tables of README and docs from the files of benchmarks/results/, between `<!-- NAME -->` marks.

    python benchmarks/readme.py [--check]         --check: change nothing, exit 1 where a page and the files differ

What there is no file of has no table. The pictures of the sweeps are drawn anew too, unless checking.
"""

from __future__ import annotations

import argparse
import json
import re
import sys
from pathlib import Path
from typing import Any

ROOT = Path(__file__).resolve().parent.parent
sys.path.insert(0, str(ROOT))

from benchmarks import plot  # noqa: E402
from benchmarks.report import by_case, seconds_text  # noqa: E402

RESULTS = ROOT / "benchmarks" / "results"
IMAGES = Path("docs") / "images"
ROLES = ("pytorch", "compile", "instead")
EXPERIMENTS = ("methods", "small_images", "table5", "table6", "table7", "unlabeled")
PAGES = {  # and the files behind each table of theirs
    "README.md": {"methods": "experiment_methods.json", "speed-cpu": "cpu.json", "speed-gpu": "gpu*.json"},
    "docs/long_runs.md": {"switches": "switches_*.json"},
    "docs/experiments.md": {name: f"experiment_{name}.json" for name in EXPERIMENTS},
}
SPEED = ("speed-cpu", "speed-gpu")
SIZES = ("B", "R", "C", "K", "k", "N")  # those that differ between users


def experiment(results: dict[str, Any]) -> str:
    """A row a method: AP and AP50, the gain in AP over the baseline, and what the paper has for that row.

    Rows without a number yet are left out, and of those that are not whole it says so: a table is of results.
    """
    head = ("seeds", "AP", "AP50", "gain in AP", "the paper's AP, gain")
    lines = [f"| {_cell(results['title'])} | {' | '.join(head)} |", "|---" * (1 + len(head)) + "|"]
    for row in results["rows"]:
        if not row["values"]:
            continue
        ap, ap50 = (_spread(row["values"].get(metric)) for metric in ("AP", "AP50"))
        gain = _spread(row["differences"].get("AP"), "+")
        paper = f"{row['paper']['AP']:.1f}" if "AP" in row["paper"] else ""
        if "AP" in row["paper_differences"]:
            paper += f", {row['paper_differences']['AP']:+.1f}"
        name = _cell(", ".join(filter(None, (row["detector"], row["name"]))))
        seeds = f"{row['done']} of {row['planned']}" if row["done"] < row["planned"] else row["done"] or ""
        lines.append(f"| {name} | {seeds} | {ap} | {ap50} | {gain} | {paper} |")
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


def _cell(text: str) -> str:
    return text.replace("|", "\\|")


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


def loop(results: dict[str, Any]) -> str:
    """A row a setting of the training loop: the step as configured, and with that setting the other way."""
    lines = ["| setting | as configured | the other way | ratio |", "|---|---|---|---|"]
    for row in results["switches"]:
        own, other = (f"{1e3 * row[key]:.0f} ms" for key in ("step_s", "other_s"))
        lines.append(f"| {row['name']}: {row['setting']} | {own} | {other} | {row['ratio']:.2f}x |")
    machine = results["machine"]
    return "\n".join(
        [
            *lines,
            "",
            f"`{results['config']}`, {results['images']} images a step, {machine['device']}, {machine['threads']} CPU "
            f"threads, torch {machine['torch']}, commit {machine['commit']}, {machine['date']}. Medians of "
            f"{results['steps']} steps each, taken in turn, the ratio step by step. "
            f"{_padding(results['switches'])}",
        ]
    )


def _padding(rows: list[dict[str, Any]]) -> str:
    """The last sentence, where that setting was timed."""
    grouped = [(row["name"], *row["padding"]) for row in rows if "group" in row["name"]]
    return "".join(
        f"{name} is timed on drawn images, half of them tall: {own:.0%} of the pixels are padding, else {other:.0%}."
        for name, own, other in grouped
    )


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


def files_of(pattern: str) -> list[Path]:
    """The result files behind a table, whichever there are; of GPUs there may be several."""
    return [path for path in sorted(RESULTS.glob(pattern)) if not path.stem.endswith(("-step", "-compiled"))]


def read(path: Path) -> dict[str, Any]:
    """A result file; its rows are those of NAME-compiled.json, where that is, as they have torch.compile's too."""
    results = _read_json(path)
    compiled = path.with_name(f"{path.stem}-compiled.json")
    if compiled.exists():
        results = {**_read_json(compiled), "sweep": results.get("sweep", [])}
    return results


def _read_json(path: Path) -> dict[str, Any]:
    try:
        content = json.loads(path.read_text(encoding="utf-8"))
    except (OSError, ValueError) as error:
        sys.exit(f"error: {path} cannot be read as JSON ({error}): copy it again, or make it anew")
    if not isinstance(content, dict):
        sys.exit(f"error: {path} holds no results: copy it again, or make it anew")
    return content


def table(name: str, pattern: str) -> str:
    """The tables of all files, one after the other, or nothing."""
    return "\n\n".join(_table_of(name, path) for path in files_of(pattern))


def _table_of(name: str, path: Path) -> str:
    results = read(path)
    try:
        if name in SPEED:
            return speed(path, results)
        return loop(results) if name == "switches" else experiment(results)
    except (KeyError, TypeError, ValueError, AttributeError, IndexError) as error:
        what = f"has no {error}" if isinstance(error, KeyError) else f"has other values than results have ({error})"
        sys.exit(f"error: {path} {what}: it is incomplete or of another version, make it anew")


def render(page: str, text: str) -> str:
    """A page's text with every table made anew."""
    for name, pattern in PAGES[page].items():
        marker = re.compile(rf"(<!-- {name} -->\n).*?(<!-- /{name} -->)", re.DOTALL)
        if not marker.search(text):
            sys.exit(f"error: {page} has no place for the table: add <!-- {name} --> and <!-- /{name} -->")
        content = table(name, pattern)
        content = f"{content}\n" if content else ""
        text = marker.sub(lambda match, content=content: f"{match[1]}{content}{match[2]}", text)
    return text


def draw() -> None:
    for name in SPEED:
        for path in files_of(PAGES["README.md"][name]):
            results = read(path)
            if results["sweep"]:
                plot.save(results, ROOT / picture(path))


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0], allow_abbrev=False)
    parser.add_argument("--check", action="store_true", help="change nothing, exit 1 where README and files differ")
    arguments = parser.parse_args()
    old = {page: (ROOT / page).read_text() for page in PAGES}
    new = {page: render(page, text) for page, text in old.items()}
    if arguments.check:
        stale = [page for page in PAGES if old[page] != new[page]]
        sys.exit(f"error: stale tables in {', '.join(stale)}: run python benchmarks/readme.py" if stale else 0)
    for page, text in new.items():
        (ROOT / page).write_text(text)
    draw()


if __name__ == "__main__":
    main()
