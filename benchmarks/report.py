"""Results as text."""

from __future__ import annotations

from collections.abc import Iterator, Sequence
from itertools import groupby
from typing import Any

Row = dict[str, Any]
_WIDTH = 54


def by_case(rows: Sequence[Row]) -> Iterator[tuple[Row, list[Row]]]:
    """(our row, the others') of each case, in the order of the rows."""
    for _, group in groupby(rows, key=lambda row: (row["operator"], row["work"], row["sizes"], row["dtype"])):
        of_case = list(group)
        ours = [row for row in of_case if row["role"] == "ours"]
        if ours:
            yield ours[0], [row for row in of_case if row["role"] != "ours"]


def case_text(rows: Sequence[Row]) -> str:
    """The rows of one case: time, how many times ours that is, share of the copy bandwidth, what the check said.

    What was not compared has no share: it computes something else.
    """
    (ours, others), *_ = by_case(rows)
    lines = [
        f"{ours['operator']}, {ours['work']}: {sizes_text(ours['sizes'])}, {ours['dtype']}",
        f"  {ours['moved_bytes'] / 1e6:.4g} MB must move ({ours['counted']}); {ours['input_sets']} input sets in turn",
    ]
    for row in (ours, *others):
        ratio = f"{row['median_s'] / ours['median_s']:8.2f} x" if row is not ours else " " * 10
        told = "; ".join(text for text in (row["check"], row["note"]) if text)
        host = f", host {seconds_text(row['host_s'])}" if row["host_s"] is not None else ""
        share = " " * 14 if row["bandwidth_share"] is None else f"{row['bandwidth_share']:6.1%} of copy"
        lines.append(f"  {row['contender']:<{_WIDTH}} {_plus_minus(row)} {ratio} {share}{host}  {told}".rstrip())
    return "\n".join(lines)


def point_text(row: Row) -> str:
    """A row of the sweep as it comes."""
    case = f"{row['axis']}={row['value']:<8} {row['operator']:<21} {row['contender']:<35}"
    return f"  {case} {_plus_minus(row)}".rstrip()


def sweep_text(rows: Sequence[Row]) -> str:
    """A table an axis, a column a value; rows as `sweep.by_curve` orders them."""
    lines = []
    for axis, group in groupby(rows, key=lambda row: row["axis"]):
        of_axis = list(group)
        values = sorted({row["value"] for row in of_axis})
        lines.append(f"{axis:>56} =" + "".join(f"{value:>11,}" for value in values))
        for (operator, contender), curve in groupby(of_axis, key=lambda row: (row["operator"], row["contender"])):
            times = {row["value"]: seconds_text(row["median_s"]) for row in curve}
            cells = "".join(f"{times.get(value, '-'):>11}" for value in values)
            lines.append(f"{operator:<21} {contender:<35} {cells}")
    return "\n".join(lines)


def machine_text(machine: Row, bandwidth: float) -> str:
    software = f"torch {machine['torch']}, {machine['kernels']} kernels, commit {machine['commit']}"
    return (
        f"{machine['device']}; {machine['threads']} CPU threads; {software}\n"
        f"a copy moves {bandwidth / 1e9:.1f} GB/s, bytes read and bytes written both counted"
    )


def _plus_minus(row: Row) -> str:
    return f"{seconds_text(row['median_s']):>9} ± {seconds_text(row['iqr_s']):<9}"


def sizes_text(sizes: dict[str, int]) -> str:
    return ", ".join(f"{name}={value}" for name, value in sizes.items())


def seconds_text(seconds: float) -> str:
    """Three digits: 12.3 us, 4.56 ms, 1.23 s."""
    for unit, scale in (("us", 1e-6), ("ms", 1e-3)):
        if seconds < 999.5 * scale:
            return f"{seconds / scale:.3g} {unit}"
    return f"{seconds:.3g} s"
