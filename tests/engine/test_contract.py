"""Each rule of `Detector` and `DetectorOutputs`, broken by a detector of one's own: one sentence names it."""

from __future__ import annotations

import importlib.util
from collections.abc import Callable
from dataclasses import replace
from types import SimpleNamespace
from typing import Any

import pytest
import torch
from engine_helpers import CONFIGS
from torch import Tensor

from gid_cuda.config import InputConfig, ModelConfig
from gid_cuda.detectors.build import build_detector
from gid_cuda.detectors.outputs import BoxCoder, Detector
from gid_cuda.detectors.own import load_adapter
from gid_cuda.engine.contract import check_contract
from gid_cuda.errors import UserError

EXAMPLE = CONFIGS.parent / "examples" / "point_detector.py"
SIZES = [(64, 96), (48, 96)]  # height, width
INPUT = InputConfig(min_size=[64], max_size=96)
SMALL = ModelConfig(detector="own", options={"width": 8, "depth": 1})

spec = importlib.util.spec_from_file_location("point_detector", EXAMPLE)
assert spec is not None and spec.loader is not None
example = importlib.util.module_from_spec(spec)
spec.loader.exec_module(example)


def batch() -> dict[str, Any]:
    torch.manual_seed(0)
    targets = [{"boxes": torch.tensor([[10.0, 10, 50, 40]]), "labels": torch.tensor([label])} for label in (0, 2)]
    images = SimpleNamespace(tensors=torch.rand(2, 3, 64, 96), image_sizes=SIZES)
    return {"images": images, "targets": targets, "raw": [torch.rand(3, *size) for size in SIZES], "classes": 3}


def detector(kind: type = example.PointDetector) -> Any:
    torch.manual_seed(1)
    return kind(SMALL, INPUT, 3, **SMALL.options)


def told(student: Detector, teacher: Detector | None = None) -> str:
    with pytest.raises(UserError) as caught:
        check_contract(student, teacher, **batch())
    return str(caught.value)


def test_the_example_keeps_the_contract_and_is_left_as_it_was() -> None:
    student, teacher = detector(), detector().eval()
    student.train()
    student.body[0].eval()  # a user keeps it as it is
    before = {key: value.clone() for key, value in student.state_dict().items()}
    check_contract(student, teacher, **batch())
    assert all(torch.equal(value, before[key]) for key, value in student.state_dict().items())
    assert student.training and student.body[1].training and not student.body[0].training and not teacher.training
    assert all(p.grad is None for p in student.parameters())
    state = torch.get_rng_state()
    check_contract(student, None, **{**batch(), "raw": [torch.ones(3, 20, 30)] * 2})
    torch.manual_seed(0)
    batch()
    assert torch.equal(state, torch.get_rng_state())


@pytest.mark.parametrize("fused", [True, False])
@pytest.mark.parametrize("kind", ["retinanet", "fcos", "faster_rcnn"])
def test_the_packages_detectors_keep_it(kind: Any, fused: bool) -> None:
    small = ModelConfig(detector=kind, backbone="mobilenet_v3_small", norm="live", fpn_channels=32)
    student, teacher = (build_detector(small, INPUT, ["a", "b", "c"], fused_losses=fused) for _ in range(2))
    check_contract(student, teacher.eval(), **batch())


def test_in_low_precision_it_is_kept_too() -> None:
    with torch.autocast("cpu", dtype=torch.bfloat16):
        check_contract(detector(), None, **batch())


def outputs(**change: Callable[[Any], Any]) -> type:
    """A PointDetector whose outputs have these fields changed; each function takes the whole."""

    class Changed(example.PointDetector):
        def forward(self, images: Any, targets: Any = None) -> Any:
            found = super().forward(images, targets)
            return replace(found, **{name: make(found) for name, make in change.items()})

    return Changed


def losses(change: Callable[[dict[str, Tensor], Any], Any]) -> type:
    """A PointDetector with other losses; `change` takes those and the detector."""

    class Changed(example.PointDetector):
        def forward(self, images: Any, targets: Any = None) -> Any:
            found = super().forward(images, targets)
            return replace(found, losses=change(found.losses, self)) if targets is not None else found

    return Changed


def method(name: str, change: Callable[..., Any]) -> type:
    """A PointDetector with a method that gives `change(what it gave, *its arguments)`."""

    def changed(self: Any, *arguments: Any) -> Any:
        return change(getattr(example.PointDetector, name)(self, *arguments), *arguments)

    return type("Changed", (example.PointDetector,), {name: changed})


def attributes(**values: Any) -> type:
    class Changed(example.PointDetector):
        def __init__(self, *arguments: Any, **options: Any) -> None:
            super().__init__(*arguments, **options)
            for name, value in values.items():
                setattr(self, name, value)

    return Changed


def found(**values: Any) -> type:
    """Every image has these detections, where not as they should be."""
    one = {"boxes": torch.ones(2, 4), "scores": torch.tensor([0.9, 0.1]), "labels": torch.tensor([0, 2])}
    return method("predict", lambda _, images: [{**one, **values} for _ in images])


def one_wrong(of: Callable[[Any], Tensor], value: float, index: Any) -> Callable[[Any], Tensor]:
    def make(outputs: Any) -> Tensor:
        tensor = of(outputs).detach().clone()
        tensor[index] = value
        return tensor

    return make


NO_METHOD = type("Changed", (example.PointDetector,), {"assign": Detector.assign})
FIELDS = [
    (outputs(features=lambda o: o.features[0]), "gives features as a Tensor, expected a list of one tensor a level"),
    (outputs(features=lambda o: []), "gives features as a list, expected a list of one tensor a level or more"),
    (outputs(features=lambda o: [o.features[0][:, :4]]), "features[0] as float32 (2, 4, 8, 12), expected .* (2, 8,"),
    (outputs(features=lambda o: [o.features[0].double()]), "features[0] as float64 (2, 8, 8, 12), expected float32 or"),
    (outputs(strides=lambda o: [8, 16]), "gives 1 features and the strides [8, 16], expected a list of one stride for"),
    (outputs(strides=lambda o: [12]), "gives the strides [12], expected ascending powers of two, finest first"),
    (outputs(strides=lambda o: [16, 8], features=lambda o: o.features * 2), "strides [16, 8], expected ascending"),
    (outputs(strides=lambda o: [32]), "features[0] (8, 12) with stride 32 on a batch of (64, 96) pixels, expected"),
    (outputs(logits=lambda o: o.logits.flatten(1)), "gives logits as (2, 288), expected a tensor (B, R, C)"),
    (outputs(logits=lambda o: torch.cat([o.logits] * 2, 2)), "gives logits of 6 classes, expected 3: the data set's"),
    (outputs(logits=lambda o: o.logits[:1]), "gives logits as float32 (1, 96, 3), expected .* (2, 96, 3)"),
    (outputs(logits=lambda o: o.logits[:, :0], deltas=lambda o: o.deltas[:, :0]), "gives no predicted box an image"),
    (outputs(logits=one_wrong(lambda o: o.logits, torch.nan, (0, 3))), "gives logits with NaN, expected numbers"),
    (outputs(deltas=lambda o: o.deltas[:, 1:]), "gives deltas as float32 (2, 95, 4), expected .* (2, 96, 4)"),
    (outputs(deltas=lambda o: None), "gives deltas as a NoneType, expected a tensor, float32 or float16 or bfloat16"),
    (outputs(deltas=one_wrong(lambda o: o.deltas, torch.inf, (1, 5))), "gives boxes[1, 5] [-inf, .* expected finite"),
    (outputs(anchors=lambda o: o.anchors.bfloat16()), "gives anchors as bfloat16 (96, 4), expected float32 (96, 4)"),
    (outputs(anchors=lambda o: o.anchors.expand(2, -1, -1)), "anchors as float32 (2, 96, 4), expected float32 (96, 4)"),
    (outputs(anchors=one_wrong(lambda o: o.anchors, -99.0, (7, 2))), "anchors[7] [44.0, -12.0, -99.0, .* with x1 < x2"),
    (outputs(coder=lambda o: "distances"), "gives the coder 'distances', expected BoxCoder('deltas') or"),
    (outputs(coder=lambda o: BoxCoder("distances", (1, 1, 0, 1))), "with the weights (1, 1, 0, 1), expected four"),
    (outputs(image_sizes=lambda o: o.image_sizes.float()), "image_sizes as float32 (2, 2), expected int64 (2, 2)"),
    (outputs(image_sizes=lambda o: o.image_sizes.flip(1)), "image_sizes [[96, 64], [96, 48]], expected [[64, 96],"),
    (method("forward", lambda o, *_: vars(o)), "returns a dict from forward, expected DetectorOutputs"),
    (outputs(coder=lambda o: BoxCoder("distances", 1.0)), "gives a coder with the weights 1.0, expected four positive"),
]  # fmt: skip
LOSSES = [
    (losses(lambda given, model: {}), "gives no losses in train mode where targets are given, expected a dict of"),
    (losses(lambda given, model: given if model.training else {}), "gives no losses in eval mode where targets are"),
    (losses(lambda given, model: sum(given.values())), "gives losses as a Tensor in train mode where .* expected a"),
    (losses(lambda given, model: {"all": 1.5}), "losses['all'] as a float in train mode .* expected a scalar tensor"),
    (losses(lambda given, model: {"a": torch.ones(2)}), "losses['a'] as float32 (2,) in train .* expected a scalar"),
    (losses(lambda given, model: {"a": torch.tensor(torch.nan)}), "losses['a'] nan in train .* expected a finite"),
    (losses(lambda given, model: {"a": torch.tensor(0.5)}), "losses['a'] 0.5 where all targets are None, expected 0:"),
    (outputs(losses=lambda o: {"a": torch.tensor(0.0)}), "gives the losses a where no targets are given, expected"),
]  # fmt: skip
RESPONSE = [
    (method("assign", lambda m, *_: m.float()), "gives assign's result as float32 (2, 96), expected bool (2, 96)"),
    (method("assign", lambda m, *_: m.any(0)), "gives assign's result as bool (96,), expected bool (2, 96)"),
    (method("assign", lambda m, *_: m | True), "marks 96 boxes in assign for an image without instances, expected"),
    (method("assign", lambda m, *_: m & False), "marks nothing in assign for instances that are anchors of its own"),
    (method("response_losses", lambda r, *_: sum(r)), "returns a Tensor from response_losses, expected the pair"),
    (method("response_losses", lambda r, *_: (r[0][None], r[1])), "response_losses' cls as float32 (1,), expected"),
    (method("response_losses", lambda r, *_: (r[0], r[1].double())), "response_losses' reg as float64 (), expected"),
    (method("response_losses", lambda r, *_: (r[0] / 0, r[1])), "gives response_losses' cls inf, expected a finite"),
    (method("response_losses", lambda r, *_: (r[0].detach(), r[1])), "cls without a gradient to the student's logits"),
    (method("response_losses", lambda r, s, *_: (r[0], s.boxes.mean())), "reg without a gradient to the student's"),
    (method("response_losses", lambda r, s, *_: (r[0], (s.deltas * 0).sum().sqrt())), "reg with a gradient that is"),
    (method("response_losses", lambda r, s, *_: (s.logits.sum(), r[1])), "cls with a gradient to boxes outside the"),
    (method("response_losses", lambda r, s, t, m: (r[0], r[1] / m.sum())), "reg .* for a mask and .* for its halves"),
]  # fmt: skip
PREDICT = [
    (method("predict", lambda p, *_: p[0]), "gives a dict from predict for 2 images, expected a list of one dict"),
    (method("predict", lambda p, *_: p[:1]), "gives 1 entries from predict for 2 images, expected a list of one dict"),
    (method("predict", lambda p, *_: [{"boxes": 0, "scores": 0}] * 2), "gives no labels from predict, expected a dict"),
    (found(boxes=torch.ones(3, 4)), "gives predict's boxes as float32 (3, 4), expected .* (2, 4)"),
    (found(boxes=torch.full((2, 4), torch.inf)), "gives boxes from predict that are not finite, expected pixels"),
    (found(scores=torch.tensor([0.1, 0.9])), "gives the scores 0.1, 0.9 from predict, expected them in 0 to 1,"),
    (found(scores=torch.tensor([5.0, 0.9])), "gives the scores 5, 0.9 from predict, expected them in 0 to 1"),
    (found(labels=torch.tensor([1, 3])), "gives the labels 1, 3 from predict, expected 0 to 2, without background"),
    (found(labels=torch.tensor([1.0, 2.0])), "gives predict's labels as float32 (2,), expected int64 (2,)"),
    (method("predict", lambda p, *_: [{k: v.tolist() for k, v in d.items()} for d in p]), "as a list, .* (N,)"),
    (found(boxes=torch.tensor([[50.0, 9.0, 20.0, 30.0]] * 2)), "gives the box 50, 9, 20, 30 from predict, .* x1,"),
]  # fmt: skip
ITSELF = [
    (NO_METHOD, "has no method assign, expected one, as in gid_cuda.detectors.outputs.Detector"),
    (attributes(num_classes=4), "has num_classes 4, expected 3, the data set's classes without background"),
    (attributes(family="two stages"), "has family 'two stages', expected one of anchor-free, anchor-based, two-stage"),
    (attributes(num_classes="3"), "has num_classes '3', expected a number, set in its __init__"),
    (attributes(out_channels=None), "has out_channels None, expected a number, set in its __init__"),
    (attributes(transform=None), "has no transform, expected torchvision's GeneralizedRCNNTransform"),
]  # fmt: skip


def matches(text: str, expected: str) -> bool:
    """`.*` in what is expected stands for anything, in this order."""
    position = 0
    for part in expected.split(".*"):
        position = text.find(part.strip(), position)
        if position < 0:
            return False
    return True


@pytest.mark.parametrize(("kind", "expected"), FIELDS + LOSSES + RESPONSE + PREDICT + ITSELF, ids=lambda x: "")
def test_a_broken_rule_is_told_in_one_sentence(kind: type, expected: str) -> None:
    text = told(detector(kind))
    assert text.startswith("model: Changed ") and text.endswith("; see docs/own_detector.md") and "\n" not in text
    assert matches(text, expected), text


@pytest.mark.parametrize(("kind", "expected"), [FIELDS[16], PREDICT[7], ITSELF[1]], ids=lambda x: "")
def test_of_a_teacher_too(kind: type, expected: str) -> None:
    text = told(detector(), detector(kind).eval())
    assert text.startswith("teacher: Changed ") and matches(text, expected), text


def test_of_a_teacher_no_assignment_is_asked() -> None:
    check_contract(detector(), detector(method("assign", lambda m, *_: m & False)).eval(), **batch())


def two_levels(outputs: Any) -> list[Tensor]:
    return [*outputs.features, outputs.features[0][:, :, ::2, ::2]]


@pytest.mark.parametrize(
    ("kind", "expected"),
    [
        (outputs(anchors=lambda o: o.anchors + 1), "the anchors of teacher and student differ"),
        (outputs(coder=lambda o: BoxCoder("deltas")), "the teacher encodes boxes by BoxCoder(kind='deltas'"),
        (outputs(strides=lambda o: [8, 16], features=two_levels), "features have strides [8, 16], the student's [8]"),
    ],
    ids=lambda x: "",
)
def test_teacher_and_student_that_do_not_fit(kind: type, expected: str) -> None:
    text = told(detector(), detector(kind).eval())
    assert text.startswith("model and teacher do not fit together: ") and expected in text and "\n" not in text


def test_what_the_detector_raises_comes_through() -> None:
    def fail(*_: Any) -> None:
        raise KeyError("mine")

    with pytest.raises(KeyError, match="mine"):
        check_contract(detector(method("assign", fail)), None, **batch())


def test_an_objectness_of_one_class_is_allowed() -> None:
    rpn = outputs(logits=lambda o: o.logits[..., :1])
    check_contract(detector(rpn), None, **batch())


def test_a_single_class() -> None:
    build = load_adapter(EXAMPLE)
    assert build is not None
    one = batch()
    for target in one["targets"]:
        target["labels"] *= 0
    built = build(SMALL, INPUT, ["only"])
    assert built.num_classes == 1
    check_contract(built, None, **{**one, "classes": 1})
