"""General instance distillation (selection, the three losses, their sum as the criterion `GID`), and its rivals."""

from __future__ import annotations

from gid_cuda.distill.build import Method, build_method
from gid_cuda.distill.checks import check_anchors
from gid_cuda.distill.fine_grained import FineGrained
from gid_cuda.distill.fitnet import FitNet
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
from gid_cuda.distill.mimicking import Mimicking
from gid_cuda.distill.selection import select_instances

__all__ = [
    "EMPTY",
    "FineGrained",
    "FitNet",
    "GID",
    "KIND_NAMES",
    "LOSS_NAMES",
    "Method",
    "Mimicking",
    "NEGATIVE",
    "POSITIVE",
    "SEMI_POSITIVE",
    "UNCOUNTED",
    "build_method",
    "check_anchors",
    "instance_kinds",
    "kind_counts",
    "overlaps",
    "select_instances",
]
