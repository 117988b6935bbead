"""The lines of the model card, run as they stand there, give torchvision's model with the student's detections."""

from __future__ import annotations

import copy
import re
from pathlib import Path
from typing import Any

import pytest
import torch
from export_helpers import as_tensor, checkpoint, picture, tiny_config

from gid_cuda.export import export
from gid_cuda.export.check import common

CPU = torch.device("cpu")


def _card_model(folder: Path, monkeypatch: Any) -> Any:
    """What the card's code makes of the exported file, in the folder that holds it."""
    card = (folder / "README.md").read_text()
    code = re.search(r"```python\n(import torch\n.+?)```", card, re.DOTALL)
    assert code is not None and "gid_cuda" not in code[1] and "strict=True" in code[1]
    monkeypatch.chdir(folder)
    names: dict[str, Any] = {}
    exec(code[1], names)
    return names["model"]


@pytest.mark.parametrize(
    ("detector", "changes"),
    [
        ("retinanet", {}),
        ("retinanet", {"backbone": "mobilenet_v2", "norm": "frozen", "head_depth": 4, "score_thresh": 0.3}),
        ("retinanet", {"head_depth": 5, "nms_thresh": 0.4, "detections_per_img": 17}),
        ("fcos", {}),
        ("fcos", {"backbone": "mobilenet_v3_small", "head_depth": 2, "fpn_channels": 64}),
        ("faster_rcnn", {}),
        ("faster_rcnn", {"norm": "frozen", "anchor_sizes": [16, 32, 48, 64, 96], "score_thresh": 0.1}),
    ],
)
def test_torchvision_takes_the_state_dict_and_detects_the_same(
    detector: str, changes: dict[str, Any], tmp_path: Path, monkeypatch: Any
) -> None:
    ours = checkpoint(tmp_path / "best.pt", tiny_config(detector, **changes))
    done = export(tmp_path, tmp_path / "out", onnx=False, device=CPU, min_run_time=0.01)
    assert done.files == [tmp_path / "out" / "student.pth", tmp_path / "out" / "README.md"]
    state = torch.load(tmp_path / "out" / "student.pth", weights_only=True)
    assert type(state) is dict and all(type(value) is torch.Tensor for value in state.values())
    assert not any("adapt" in key for key in state)
    theirs = _card_model(tmp_path / "out", monkeypatch)
    assert type(theirs).__module__.startswith("torchvision.")
    images = [as_tensor(picture(200, 280)), as_tensor(picture(150, 120, seed=1))]
    with torch.no_grad():
        found = theirs(images)
    for expected, actual in zip(ours.predict(images), found, strict=True):
        count = len(expected["scores"])
        assert count > 3 and len(actual["scores"]) == count
        actual = {**actual, "labels": actual["labels"] - int(detector == "faster_rcnn")}  # 0 is the background there
        assert common(_arrays(expected), _arrays(actual)) >= 0.98 * count  # equal scores may come in another order


def _arrays(detections: dict[str, torch.Tensor]) -> dict[str, Any]:
    return {key: value.numpy() for key, value in detections.items()}


def test_tensors_are_row_by_row_and_share_no_memory(tmp_path: Path) -> None:
    config = tiny_config("retinanet")
    ours = checkpoint(tmp_path / "best.pt", config)
    strided = copy.deepcopy(ours).to(memory_format=torch.channels_last).state_dict()
    checkpoint(tmp_path / "best.pt", config, model=strided)
    export(tmp_path / "best.pt", tmp_path / "out", onnx=False, device=CPU, min_run_time=0.01)
    state = torch.load(tmp_path / "out" / "student.pth", weights_only=True)
    assert state.keys() == ours.state_dict().keys()
    for key, value in state.items():
        assert value.is_contiguous() and torch.equal(value, ours.state_dict()[key])
        assert value.untyped_storage().nbytes() == value.nbytes
