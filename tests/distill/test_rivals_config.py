"""What a config says of the methods is what they take, and in one sentence what it may not say."""

from __future__ import annotations

from inspect import signature
from pathlib import Path
from typing import Any, get_args

import pytest

from gid_cuda.config import DistillConfig, config_from_dict
from gid_cuda.detectors.faster_rcnn import FasterRCNN
from gid_cuda.detectors.fcos import FCOS
from gid_cuda.detectors.outputs import Family
from gid_cuda.detectors.retinanet import RetinaNet
from gid_cuda.distill import GID, FineGrained, FitNet, Mimicking
from gid_cuda.errors import UserError

DETECTORS = {"retinanet": RetinaNet, "fcos": FCOS, "faster_rcnn": FasterRCNN}
METHODS = {"gid": GID, "fitnet": FitNet, "fine_grained": FineGrained, "mimicking": Mimicking}


@pytest.mark.parametrize("method", METHODS)
def test_defaults_are_those_of_the_method(method: str) -> None:
    options = DistillConfig(method=method).method_options()
    arguments = signature(METHODS[method]).parameters
    defaults = {name: a.default for name, a in arguments.items() if a.kind is a.KEYWORD_ONLY}
    if method == "gid":  # these two are no keys of a config
        del defaults["output_size"], defaults["sampling_ratio"]
    assert options == defaults


def distilled(detector: str = "retinanet", /, **distill: Any) -> DistillConfig | None:
    raw = {
        "output": "run",
        "data": {"format": "generated", "root": str(Path("data"))},
        "train": {"steps": 1},
        "model": {"detector": detector},
        "teacher": {"detector": detector, "weights": "teacher.pt"},
        "distill": distill,
    }
    return config_from_dict(raw, name="run.yaml").distill


def test_a_section_is_its_methods_alone() -> None:
    config = distilled("faster_rcnn", method="mimicking", top_k=3, mimicking={"samples": 7})
    assert config is not None and config.method_options()["samples"] == 7 and "top_k" not in config.method_options()


@pytest.mark.parametrize(
    ("distill", "message"),
    [
        ({"method": "fitnets"}, "distill.method.*fitnets.*'gid', 'fitnet', 'fine_grained', 'mimicking'"),
        ({"fitnet": {"weight": 0}}, "distill.fitnet.weight"),
        ({"fine_grained": {"psi": 1}}, "distill.fine_grained.psi"),
        ({"fine_grained": {"phi": 0.5}}, "distill.fine_grained.phi.*psi"),
        ({"mimicking": {"samples": 2000}}, "samples is 2000, more than the 1000 proposals: lower it"),
    ],
)
def test_mistakes(distill: dict[str, Any], message: str) -> None:
    with pytest.raises(UserError, match=message):
        distilled(**distill)


@pytest.mark.parametrize("detector", DETECTORS)
@pytest.mark.parametrize("method", METHODS)
def test_a_config_allows_the_pairs_that_the_methods_are_for(method: str, detector: str) -> None:
    """Before data and weights are looked at: a matrix would otherwise tell it after its teacher, hours later."""
    families = getattr(METHODS[method], "families", get_args(Family))
    if DETECTORS[detector].family in families:
        assert distilled(detector, method=method) is not None
        return
    with pytest.raises(UserError, match=f"distill.method {method} is for .* model.detector is {detector}, so"):
        distilled(detector, method=method)
