"""Checkpoints made to harm, or holding something else than it says on them: refused in one sentence, nothing is run."""

from __future__ import annotations

import sys
import time
import zipfile
from collections import OrderedDict
from pathlib import Path
from typing import Any

import pytest
import torch
from detector_helpers import small_input, small_model
from mmdetection_helpers import hollow, retinanet_state

from gid_cuda.config import Config, DataConfig, TrainConfig, config_to_dict
from gid_cuda.detectors import RetinaNet, build_detector
from gid_cuda.detectors.mmdetection import convert_mmdetection
from gid_cuda.detectors.mmdetection_file import read_mmdetection
from gid_cuda.engine.checkpoint import load_checkpoint, load_detector
from gid_cuda.errors import UserError

CLASSES = ["cat", "dog", "horse"]


@pytest.fixture(scope="module")
def content() -> dict[str, Any]:
    """What a checkpoint of a small detector holds."""
    config = Config(
        output="x", data=DataConfig(format="coco", root="x"), model=small_model(), input=small_input(),
        train=TrainConfig(steps=1),
    )  # fmt: skip
    state = build_detector(small_model(), small_input(), CLASSES).state_dict()
    return {"format": 1, "model": state, "classes": CLASSES, "config": config_to_dict(config), "metrics": None}


def build(path: Path) -> RetinaNet:
    return build_detector(small_model(weights=str(path)), small_input(), CLASSES)


def refused(path: Path, told: str) -> None:
    """As a teacher's weights, and as what predict.py is given."""
    for load in (build, load_detector):
        with pytest.raises(UserError, match=told) as raised:
            load(path)
        assert len(str(raised.value)) < 600


def test_the_content_itself_is_loaded(content: dict[str, Any], tmp_path: Path) -> None:
    torch.save(content, tmp_path / "x.pt")
    build(tmp_path / "x.pt")
    load_detector(tmp_path / "x.pt")


def pack(source: Path, target: Path, extra: int = 0) -> None:
    """The same archive, packed; its first tensor with `extra` zeros behind."""
    with zipfile.ZipFile(source) as old, zipfile.ZipFile(target, "w", zipfile.ZIP_DEFLATED) as new:
        first = next(name for name in old.namelist() if "/data/" in name)
        for name in old.namelist():
            new.writestr(name, old.read(name) + (b"\0" * extra if name == first else b""))


@pytest.mark.parametrize("extra", [0, 64 << 20])
def test_a_packed_file_is_not_unpacked(
    content: dict[str, Any], tmp_path: Path, monkeypatch: pytest.MonkeyPatch, extra: int
) -> None:
    torch.save(content, tmp_path / "x.pt")
    pack(tmp_path / "x.pt", tmp_path / "bomb.pt", extra)
    monkeypatch.setattr(torch, "load", lambda *_, **__: pytest.fail("unpacked"))
    refused(tmp_path / "bomb.pt", r"bomb\.pt cannot be read.*its parts are packed")
    with pytest.raises(UserError, match="its parts are packed"):
        read_mmdetection(tmp_path / "bomb.pt")


def test_parts_that_claim_more_than_the_file_has(content: dict[str, Any], tmp_path: Path) -> None:
    """Entries that share their bytes: stored, and still many times as large as the file."""
    torch.save(content, tmp_path / "x.pt")
    data = bytearray((tmp_path / "x.pt").read_bytes())
    at = data.find(b"PK\x01\x02")  # the first entry of the directory: packed and unpacked size at 20
    data[at + 20 : at + 28] = (2**31).to_bytes(4, "little") * 2
    (tmp_path / "x.pt").write_bytes(bytes(data))
    refused(tmp_path / "x.pt", r"x\.pt cannot be read.*its parts are packed")


@pytest.mark.parametrize(
    "classes",
    ["cat", 5, [1, 2, 3], [["cat"], ["dog"], ["horse"]], ["cat", "\x1b[31mdog", "horse"], ["cat", "dog\n", "horse"],
     {"cat": 1, "dog": 2, "horse": 3}, torch.ones(3), ["", "dog", "horse"]],
)  # fmt: skip
def test_classes_that_are_no_names(content: dict[str, Any], tmp_path: Path, classes: Any) -> None:
    torch.save(content | {"classes": classes}, tmp_path / "x.pt")
    refused(tmp_path / "x.pt", r"x\.pt has no printable names as its classes")


@pytest.mark.parametrize(
    ("key", "value", "told"),
    [
        (5, torch.ones(1), "its '5' is no name"),
        ("a", torch.ones(2).to_sparse(), "its 'a' is sparse, complex, or without content"),
        ("a", torch.ones(2, dtype=torch.complex64), "its 'a' is sparse, complex, or without content"),
        ("a", torch.ones(2, device="meta"), "its 'a' is sparse, complex, or without content"),
    ],
)
@pytest.mark.filterwarnings("ignore:Validating sparse tensor")
def test_tensors_of_no_layer(content: dict[str, Any], tmp_path: Path, key: Any, value: Any, told: str) -> None:
    torch.save(content | {"model": {**content["model"], key: value}}, tmp_path / "x.pt")
    refused(tmp_path / "x.pt", told)


@pytest.mark.parametrize("metadata", [5, {"": 5}, {"": {"version": "x"}}])
def test_what_hangs_on_a_state_dict_is_left(content: dict[str, Any], tmp_path: Path, metadata: Any) -> None:
    state = OrderedDict(content["model"])
    state._metadata = metadata  # type: ignore[attr-defined]
    torch.save(content | {"model": state}, tmp_path / "x.pt")
    build(tmp_path / "x.pt")
    load_detector(tmp_path / "x.pt")


def test_a_tensor_that_is_larger_than_its_file(content: dict[str, Any], tmp_path: Path) -> None:
    key = next(iter(content["model"]))
    torch.save(content | {"model": {**content["model"], key: torch.zeros(1).expand(10**12)}}, tmp_path / "x.pt")
    refused(tmp_path / "x.pt", "fit")


@pytest.mark.parametrize("mean", ["abc", 5, [None] * 3, ["a"] * 3, [0.1, 0.2], torch.ones(3), b"abc", {1: 2}])
def test_a_config_of_odd_values(content: dict[str, Any], tmp_path: Path, mean: Any) -> None:
    config = content["config"] | {"input": content["config"]["input"] | {"mean": mean}}
    torch.save(content | {"config": config}, tmp_path / "x.pt")
    refused(tmp_path / "x.pt", r"x\.pt")


@pytest.mark.parametrize("part", ["model", "classes", "config"])
def test_a_checkpoint_that_lacks_a_part(content: dict[str, Any], tmp_path: Path, part: str) -> None:
    torch.save({key: value for key, value in content.items() if key != part}, tmp_path / "x.pt")
    with pytest.raises(UserError, match=rf"x\.pt has no {part}, which a checkpoint of a run has"):
        load_detector(tmp_path / "x.pt")


@pytest.mark.parametrize("more", [{"model": 5}, {"config": [1]}, {"format": torch.ones(2)}, {"config": {1: 2}}])
def test_parts_of_another_kind(content: dict[str, Any], tmp_path: Path, more: dict[str, Any]) -> None:
    torch.save(content | more, tmp_path / "x.pt")
    with pytest.raises(UserError, match=r"x\.pt"):
        load_detector(tmp_path / "x.pt")


def test_a_config_that_asks_for_all_memory_is_refused(content: dict[str, Any], tmp_path: Path) -> None:
    config = content["config"] | {"model": content["config"]["model"] | {"fpn_channels": 10**6}}
    torch.save(content | {"config": config}, tmp_path / "x.pt")
    with pytest.raises(UserError, match="model.fpn_channels has the number 1000000"):
        load_detector(tmp_path / "x.pt")


def test_so_many_classes_that_memory_would_run_out(content: dict[str, Any], tmp_path: Path) -> None:
    torch.save(content | {"classes": [f"c{index}" for index in range(20_001)]}, tmp_path / "x.pt")
    with pytest.raises(UserError, match="20001 classes, and a detector has at most 20000"):
        load_detector(tmp_path / "x.pt")


@pytest.mark.parametrize(
    "metrics", ["abc", [1], {"AP": "x"}, {"AP": torch.zeros(3)}, {"per_class": [1]}, {"per_class": {"a": "b"}}, {1: 2}]
)
def test_metrics_that_are_no_numbers(content: dict[str, Any], tmp_path: Path, metrics: Any) -> None:
    torch.save(content | {"metrics": metrics}, tmp_path / "x.pt")
    with pytest.raises(UserError, match=r"x\.pt has something else than an evaluation's numbers as its metrics"):
        load_checkpoint(tmp_path / "x.pt")


@pytest.mark.parametrize("step", ["7\n\n# evil", 7.5, -1, True, None, torch.ones(2)])
def test_a_step_that_is_no_number(content: dict[str, Any], tmp_path: Path, step: Any) -> None:
    torch.save(content | {"step": step}, tmp_path / "x.pt")
    with pytest.raises(UserError, match=r"x\.pt has .* as its step") as raised:
        load_checkpoint(tmp_path / "x.pt")
    assert str(raised.value).isprintable()


# -- safetensors ------------------------------------------------------------------------------------------------------


def test_safetensors_gives_the_same_weights(content: dict[str, Any], tmp_path: Path) -> None:
    safetensors = pytest.importorskip("safetensors.torch")
    safetensors.save_file(content["model"], tmp_path / "x.safetensors")
    state = build(tmp_path / "x.safetensors").state_dict()
    assert all(torch.equal(value, content["model"][key]) for key, value in state.items())


@pytest.mark.parametrize("data", [b"", b"\xff" * 8 + b"{}", (2).to_bytes(8, "little") + b"{}", b"hello, world"])
def test_another_file_by_that_name(tmp_path: Path, data: bytes) -> None:
    pytest.importorskip("safetensors.torch")
    (tmp_path / "x.safetensors").write_bytes(data)
    with pytest.raises(UserError, match=r"x\.safetensors (cannot be read|is neither a checkpoint)"):
        build(tmp_path / "x.safetensors")


def test_a_truncated_safetensors_file(content: dict[str, Any], tmp_path: Path) -> None:
    safetensors = pytest.importorskip("safetensors.torch")
    path = tmp_path / "x.safetensors"
    safetensors.save_file(content["model"], path)
    path.write_bytes(path.read_bytes()[: path.stat().st_size // 2])
    with pytest.raises(UserError, match=r"x\.safetensors cannot be read"):
        build(path)


def test_safetensors_is_not_installed(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    (tmp_path / "x.safetensors").touch()
    monkeypatch.setitem(sys.modules, "safetensors.torch", None)
    with pytest.raises(UserError, match=r"x\.safetensors: to read .safetensors files, pip install safetensors"):
        build(tmp_path / "x.safetensors")


def test_safetensors_is_no_checkpoint(tmp_path: Path) -> None:
    (tmp_path / "x.safetensors").write_bytes((2).to_bytes(8, "little") + b"{}")
    with pytest.raises(UserError, match=r"x\.safetensors is no checkpoint of gid_cuda"):
        load_checkpoint(tmp_path / "x.safetensors")


# -- mmdetection's ----------------------------------------------------------------------------------------------------


def _theirs(path: Path, **meta: Any) -> Path:
    torch.save({"state_dict": hollow(retinanet_state(channels=16, depth=1)), "meta": meta}, path)
    return path


def test_a_config_text_that_doubles_with_every_line(tmp_path: Path) -> None:
    lines = ["a0 = dict(x=1)", *(f"a{i + 1} = dict(x=a{i}, y=[a{i}])" for i in range(60)), "model = dict(type=a60)"]
    path = _theirs(tmp_path / "x.pth", cfg="\n".join(lines))
    start = time.process_time()
    assert read_mmdetection(path).settings == {}
    assert time.process_time() - start < 20


@pytest.mark.parametrize(
    "text", ["model=" + "(" * 5000, "model=" + "-" * 50_000 + "1", "model=a" + ".a" * 50_000, "\0"]
)
def test_a_config_text_that_cannot_be_parsed(tmp_path: Path, text: str) -> None:
    with pytest.raises(UserError, match="has no config text that tells its style"):
        convert_mmdetection(_theirs(tmp_path / "x.pth", cfg=text))


def test_names_with_control_characters(tmp_path: Path) -> None:
    with pytest.raises(UserError, match=r"x\.pth has no printable names as its classes"):
        convert_mmdetection(_theirs(tmp_path / "x.pth", CLASSES=("cat", "\x1b[2Jdog", "horse")))
