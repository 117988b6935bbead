from __future__ import annotations

import pytest
import torch

from benchmarks import predict
from benchmarks.cases import DiffersError


def test_both_are_timed_and_find_the_same() -> None:
    ours, theirs = predict.run(torch.device("cpu"), quick=True)
    assert (ours["contender"], theirs["contender"]) == ("gid_cuda", "torchvision RetinaNet")
    assert ours["median_s"] > 0 and theirs["median_s"] > 0 and theirs["check"].endswith("detections as ours")


def test_other_detections_are_told() -> None:
    boxes = torch.arange(400.0).reshape(100, 4)
    ours = [[boxes, torch.linspace(1, 0, 100), torch.zeros(100, dtype=torch.int64)]]
    assert predict._same_detections(ours, ours) == "100 of 100 detections as ours"
    with pytest.raises(DiffersError, match="5 of 100 detections are not ours"):
        predict._same_detections(ours, [[part[5:] for part in ours[0]]])
