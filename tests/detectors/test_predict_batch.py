"""Post-processing of a whole batch at once: equal to NMS class by class done by hand, and to torchvision's."""

from __future__ import annotations

from types import SimpleNamespace
from typing import Any

import numpy as np
import pytest
import torch
from detector_helpers import settle, small_input, small_model
from torch import Tensor
from torchvision.models.detection import FCOS
from torchvision.models.detection import RetinaNet as TorchvisionRetinaNet
from torchvision.models.detection._utils import BoxLinearCoder
from torchvision.models.detection.transform import resize_boxes
from torchvision.ops import box_iou, nms

from gid_cuda.detectors import build_detector
from gid_cuda.detectors.outputs import BoxCoder, DetectorOutputs
from gid_cuda.detectors.postprocess import candidates, detect, top_indices

Detections = list[dict[str, Tensor]]
LEVELS = [1500, 400, 90, 9]
DEFAULTS = {"score_thresh": 0.05, "nms_thresh": 0.5, "topk_candidates": 1000, "detections_per_img": 100}
NEAR = 1e-3


def random_outputs(images: int, classes: int, *, kind: str = "deltas", levels: list[int] = LEVELS) -> DetectorOutputs:
    """Crowded boxes of about 30 pixels in images of different sizes, scores from 0.001 to 0.9."""
    count = sum(levels)
    center, side = torch.rand(count, 2) * torch.tensor([160.0, 120]), 20 + 20 * torch.rand(count, 2)
    sizes = torch.tensor([[120, 160], [90, 100], [64, 160]])[torch.arange(images) % 3]
    logits, deltas = 1.5 * torch.randn(images, count, classes) - 2, 0.2 * torch.randn(images, count, 4)
    if kind == "distances":
        deltas = 0.5 + 0.3 * torch.rand(images, count, 4)
    anchors = torch.cat([center - side / 2, center + side / 2], dim=1)
    return DetectorOutputs([], [], logits, deltas, BoxCoder(kind), anchors, sizes)


def by_hand(outputs: DetectorOutputs, levels: list[int] = LEVELS, **changes: Any) -> Detections:
    """The rules of `detect`, one image, level and class at a time, by stable sorts and torchvision's nms."""
    options = {**DEFAULTS, **changes}
    detections = []
    for image, (height, width) in enumerate(outputs.image_sizes.tolist()):
        boxes, scores, labels = [], [], []
        for part, first in zip(levels, torch.tensor([0, *levels]).cumsum(0).tolist(), strict=False):
            flat = outputs.logits[image, first : first + part].float().sigmoid().flatten()
            order = flat.sort(stable=True, descending=True).indices
            order = order[flat[order] > options["score_thresh"]][: options["topk_candidates"]]
            rows = first + order // outputs.logits.shape[2]
            decoded = outputs.coder.decode(outputs.deltas[image, rows], outputs.anchors[rows])
            boxes.append(decoded.clamp(min=0).minimum(torch.tensor([width, height, width, height])))
            scores.append(flat[order])
            labels.append(order % outputs.logits.shape[2])
        box, score, label = torch.cat(boxes), torch.cat(scores), torch.cat(labels)
        survivors = torch.zeros(len(score), dtype=torch.bool)
        for name in label.unique():
            of_class = (label == name).nonzero()[:, 0]
            survivors[of_class[nms(box[of_class], score[of_class], options["nms_thresh"])]] = True
        kept = survivors.nonzero()[:, 0]
        kept = kept[score[kept].sort(stable=True, descending=True).indices][: options["detections_per_img"]]
        detections.append({"boxes": box[kept], "scores": score[kept], "labels": label[kept]})
    return detections


def assert_equal(found: Detections, expected: Detections) -> None:
    assert len(found) == len(expected)
    for one, other in zip(found, expected, strict=True):
        assert torch.equal(one["labels"], other["labels"])
        torch.testing.assert_close(one["scores"], other["scores"], rtol=0, atol=1e-6)
        torch.testing.assert_close(one["boxes"], other["boxes"], rtol=0, atol=1e-4)


def verdicts(boxes: Tensor, scores: Tensor, labels: Tensor, threshold: float) -> tuple[Tensor, Tensor]:
    """Greedy NMS of one image's candidates that admits doubt -> (surely kept, in doubt), bool in the order given.

    In doubt is whoever has an IoU within NEAR of the threshold with a box that is kept or in doubt, or one above it
    with a box that is itself in doubt.
    """
    iou = box_iou(boxes.double(), boxes.double())
    iou[labels[:, None] != labels] = 0
    above, near = (iou > threshold + NEAR).numpy(), (iou > threshold - NEAR).numpy()
    sure, doubt = np.zeros(len(scores), dtype=bool), np.zeros(len(scores), dtype=bool)
    for index in scores.sort(stable=True, descending=True).indices.tolist():
        if (above[index] & sure).any() or scores[index] == -torch.inf:
            continue
        (doubt if (near[index] & (sure | doubt)).any() else sure)[index] = True
    return torch.from_numpy(sure), torch.from_numpy(doubt)


def assert_equal_but_for_near_ones(found: Detections, everything: list[tuple[Tensor, ...]], threshold: float) -> None:
    """found, boxes in any scale. everything: of each image the candidates' boxes, scores, labels, boxes in that scale.

    Every detection is a candidate that is surely kept or in doubt, and nobody who is surely kept is missing, down to
    the score where the image's detections end.
    """
    for one, (boxes, scores, labels, scaled) in zip(found, everything, strict=True):
        sure, doubt = verdicts(boxes, scores, labels, threshold)
        assert doubt.sum() <= 0.1 * sure.sum() + 1  # else this would show little
        apart = (one["boxes"][:, None] - scaled).abs().amax(2) + 1e3 * (one["scores"][:, None] - scores).abs()
        apart[one["labels"][:, None] != labels] = torch.inf
        distance, which = apart.min(dim=1)
        assert (distance < 1e-2).all() and (sure | doubt)[which].all() and len(which.unique()) == len(which)
        expected = sure & (scores > one["scores"].min())
        assert expected.any() and torch.isin(expected.nonzero()[:, 0], which).all()


def torchvision_detections(
    outputs: DetectorOutputs, levels: list[int] = LEVELS, centerness: Tensor | None = None, **changes: Any
) -> Detections:
    model, coder = TorchvisionRetinaNet, TorchvisionRetinaNet.__annotations__["box_coder"]((1.0, 1.0, 1.0, 1.0))
    heads = {"cls_logits": outputs.logits.split(levels, 1), "bbox_regression": outputs.deltas.split(levels, 1)}
    if centerness is not None:
        model, coder = FCOS, BoxLinearCoder(normalize_by_size=True)
        heads["bbox_ctrness"] = centerness.split(levels, 1)
    settings = SimpleNamespace(box_coder=coder, **{**DEFAULTS, **changes})
    anchors = [list(outputs.anchors.split(levels))] * len(outputs.logits)
    sizes = [tuple(size) for size in outputs.image_sizes.tolist()]
    return model.postprocess_detections(settings, heads, anchors, sizes)


@pytest.mark.parametrize("classes", [1, 5, 80])
@pytest.mark.parametrize("score_thresh", [0.0, 0.05, 0.6])
@pytest.mark.parametrize(("nms_thresh", "most"), [(0.5, 100), (0.3, 1), (0.9, 3000)])
def test_equal_to_nms_class_by_class(classes: int, score_thresh: float, nms_thresh: float, most: int) -> None:
    outputs = random_outputs(3, classes)
    options = {"score_thresh": score_thresh, "nms_thresh": nms_thresh, "detections_per_img": most}
    found = detect(outputs, LEVELS, **{**DEFAULTS, **options})
    assert_equal(found, by_hand(outputs, **options))
    assert all(1 <= len(one["scores"]) <= most for one in found)


@pytest.mark.parametrize("dtype", [torch.bfloat16, torch.float16])
def test_equal_scores_go_by_level_then_box_then_class(dtype: torch.dtype) -> None:
    """In 16 bits dozens of candidates tie at the cut of the thousand; and the largest saturate the sigmoid."""
    outputs = random_outputs(2, 5)
    outputs.logits[:, ::7] += 30
    outputs.logits, outputs.deltas = outputs.logits.to(dtype), outputs.deltas.to(dtype)
    found = detect(outputs, LEVELS, **{**DEFAULTS, "detections_per_img": 2000})
    assert len(found[0]["scores"].unique()) < len(found[0]["scores"]) / 2
    assert_equal(found, by_hand(outputs, detections_per_img=2000))


@pytest.mark.parametrize("most", [1, 40, 10**6])
def test_the_number_of_candidates_is_bounded_per_level(most: int) -> None:
    outputs = random_outputs(2, 4)
    boxes, scores, labels = candidates(outputs, LEVELS, 0.05, most)
    assert scores.shape == labels.shape == boxes.shape[:2] == (2, sum(min(4 * size, most) for size in LEVELS))
    found = detect(outputs, LEVELS, **{**DEFAULTS, "topk_candidates": most})
    assert_equal(found, by_hand(outputs, topk_candidates=most))


def test_top_indices_are_those_of_a_stable_sort() -> None:
    scores = torch.randint(0, 20, (4, 500)) / 19
    scores[2:, ::3] = -torch.inf
    order = scores.sort(dim=1, stable=True, descending=True).indices
    for k in (0, 1, 100, 500, 900):
        assert torch.equal(top_indices(scores, k), order[:, :k])


def test_a_box_with_a_nan_is_no_detection_and_takes_no_place() -> None:
    outputs = random_outputs(2, 3)
    clean = by_hand(outputs)
    broken = torch.arange(0, 1400)
    outputs.logits[0, broken, 1] = torch.nan
    outputs.deltas[1, 0, 2] = torch.nan
    found = detect(outputs, LEVELS, **DEFAULTS)
    outputs.logits[0, broken] = -torch.inf
    outputs.logits[1, 0], outputs.deltas[1, 0] = -torch.inf, 0
    assert_equal(found, by_hand(outputs))
    assert not torch.equal(found[0]["scores"], clean[0]["scores"]) and len(found[0]["scores"]) > 5


def test_nothing_above_the_threshold_no_images_an_empty_level() -> None:
    outputs = random_outputs(2, 3)
    for one in detect(outputs, LEVELS, **{**DEFAULTS, "score_thresh": 1.0}):
        assert one["boxes"].shape == (0, 4) and one["scores"].shape == one["labels"].shape == (0,)
        assert one["labels"].dtype == torch.int64
    assert detect(random_outputs(0, 3), LEVELS, **DEFAULTS) == []
    assert_equal(detect(outputs, [*LEVELS, 0], **DEFAULTS), by_hand(outputs))


def test_boxes_are_clipped_to_their_own_image() -> None:
    outputs = random_outputs(3, 2)
    for one, (height, width) in zip(detect(outputs, LEVELS, **DEFAULTS), outputs.image_sizes.tolist(), strict=True):
        assert one["boxes"].min() == 0
        assert one["boxes"][:, 2].max() == width and one["boxes"][:, 3].max() == height


def test_candidates_need_no_value_on_the_host() -> None:
    """On the meta device whatever needs one fails."""
    outputs = random_outputs(2, 3)
    for name in ("logits", "deltas", "anchors", "image_sizes"):
        setattr(outputs, name, getattr(outputs, name).to("meta"))
    boxes, scores, labels = candidates(outputs, LEVELS, 0.05, 100, torch.empty(2, sum(LEVELS), 1, device="meta"))
    assert boxes.shape == (2, 327, 4) and scores.shape == labels.shape == (2, 327)


@pytest.mark.parametrize(("score_thresh", "nms_thresh", "most"), [(0.05, 0.5, 300), (0.5, 0.3, 100), (0.01, 0.7, 1000)])
def test_equal_to_torchvisions_but_for_near_ones(score_thresh: float, nms_thresh: float, most: int) -> None:
    outputs = random_outputs(2, 6)
    options = {"score_thresh": score_thresh, "nms_thresh": nms_thresh, "detections_per_img": most}
    boxes, scores, labels = candidates(outputs, LEVELS, score_thresh, DEFAULTS["topk_candidates"])
    everything = list(zip(boxes, scores, labels, boxes, strict=True))
    for detections in (detect(outputs, LEVELS, **{**DEFAULTS, **options}), torchvision_detections(outputs, **options)):
        assert_equal_but_for_near_ones(detections, everything, nms_thresh)


def test_fcos_scores_and_boxes() -> None:
    outputs, centerness = random_outputs(2, 6, kind="distances"), torch.randn(2, sum(LEVELS), 1) + 1
    boxes, scores, labels = candidates(outputs, LEVELS, 0.1, 1000, centerness)
    everything = list(zip(boxes, scores, labels, boxes, strict=True))
    options = {**DEFAULTS, "score_thresh": 0.1}
    theirs = torchvision_detections(outputs, centerness=centerness, **options)
    for detections in (detect(outputs, LEVELS, **options, centerness=centerness), theirs):
        assert_equal_but_for_near_ones(detections, everything, DEFAULTS["nms_thresh"])


@pytest.mark.parametrize(("score_thresh", "nms_thresh", "most"), [(0.3, 0.5, 300), (0.02, 0.3, 1000)])
def test_predict_is_torchvisions_forward_but_for_near_ones(score_thresh: float, nms_thresh: float, most: int) -> None:
    """The whole way from images of different sizes, with random weights."""
    options = {"score_thresh": score_thresh, "nms_thresh": nms_thresh, "detections_per_img": most}
    ours = build_detector(small_model(**options), small_input(), ["a", "b", "c"])
    images = [torch.rand(3, 70, 110), torch.rand(3, 140, 90), torch.rand(3, 96, 96)]
    settle(ours, ours.transform(images)[0].tensors)
    theirs = TorchvisionRetinaNet(
        ours.backbone, 3, anchor_generator=ours.anchor_generator, head=ours.head, min_size=96, max_size=128, **options
    ).eval()
    with torch.no_grad():
        expected = theirs(images)
        batch, _ = ours.eval().transform(images)
        outputs = ours(batch)
    levels = [9 * feature.shape[-2] * feature.shape[-1] for feature in outputs.features]
    everything = []
    for image, one in enumerate(zip(*candidates(outputs, levels, score_thresh, 1000), strict=True)):
        scaled = resize_boxes(one[0], batch.image_sizes[image], tuple(images[image].shape[-2:]))
        everything.append((*one, scaled))
    found = ours.predict(images)
    assert all(len(one["scores"]) > 30 for one in found)
    for detections in (found, expected):
        assert_equal_but_for_near_ones(detections, everything, nms_thresh)
