"""Arguments that tests/fuzz found to come through the checks: refused by name, as the docstrings promise."""

from __future__ import annotations

from typing import Any

import pytest
import torch

from gid_cuda import ops

B, R, C, N = 2, 3, 4, 2
ROWS = {"boxes": torch.zeros(B, N, 4), "counts": None, "anchors": torch.zeros(R, 4)}
ALIGN = {"features": [torch.zeros(B, C, 5, 5)], "boxes": torch.zeros(B, R, 4), "strides": [8]}
SCORES = {
    **{f"{who}_logits": torch.zeros(B, R, C) for who in ("teacher", "student")},
    **{f"{who}_deltas": torch.zeros(B, R, 4) for who in ("teacher", "student")},
    "anchors": torch.zeros(R, 4),
}
NMS = {"boxes": torch.zeros(B, R, 4), "scores": torch.zeros(B, R), "k": 1}


@pytest.mark.parametrize(
    ("operator", "arguments", "problem"),
    [
        ("multilevel_roi_align", ALIGN | {"output_size": 2**70}, ValueError),
        ("multilevel_roi_align", ALIGN | {"output_size": 2**62}, ValueError),
        ("multilevel_roi_align", ALIGN | {"sampling_ratio": -(2**70)}, ValueError),
        ("multilevel_roi_align", ALIGN | {"canonical_level": 2**70}, ValueError),
        ("multilevel_roi_align", ALIGN | {"strides": [2**70]}, ValueError),
        ("topk_nms", NMS | {"k": 2**62}, ValueError),
        ("topk_nms", NMS | {"k": 2**70}, ValueError),
        ("decoded_gi_score", SCORES | {"distances": torch.zeros(2)}, TypeError),
        ("match_anchors", ROWS | {"low_quality": torch.zeros(2)}, TypeError),
        ("match_anchors", ROWS | {"boxes": torch.zeros(B, N, 4).to_sparse()}, TypeError),
        ("match_anchors", ROWS | {"counts": torch.zeros(B, dtype=torch.int64).to_sparse()}, TypeError),
        ("box_losses", {"deltas": torch.zeros(B, R, 4).to_sparse()}, TypeError),
        ("class_losses", {"logits": torch.zeros(B, R, C).to_sparse()}, TypeError),
        ("pairwise_distance", {"x": torch.zeros(B, R, C).to_sparse()}, TypeError),
    ],
)
def test_refused_by_name(operator: str, arguments: dict[str, Any], problem: type[Exception]) -> None:
    names = "|".join(arguments)
    with pytest.raises(problem, match=f"^({names})(\\[0\\])? (is|has) .*, expected"):
        getattr(ops, operator)(**arguments)
