"""General instance distillation: selection of instances, the three losses, their sum as the criterion `GID`."""

from __future__ import annotations

from gid_cuda.distill.checks import check_anchors
from gid_cuda.distill.gid import GID, LOSS_NAMES
from gid_cuda.distill.kinds import (
    EMPTY,
    KIND_NAMES,
    NEGATIVE,
    POSITIVE,
    SEMI_POSITIVE,
    UNCOUNTED,
    instance_kinds,
    kind_counts,
    overlaps,
)
from gid_cuda.distill.selection import select_instances

__all__ = [
    "EMPTY",
    "GID",
    "KIND_NAMES",
    "LOSS_NAMES",
    "NEGATIVE",
    "POSITIVE",
    "SEMI_POSITIVE",
    "UNCOUNTED",
    "check_anchors",
    "instance_kinds",
    "kind_counts",
    "overlaps",
    "select_instances",
]
