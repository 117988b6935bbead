"""Same weights, same images: FCOS's losses, gradients, matches and detections are torchvision's own."""

from __future__ import annotations

import copy
from types import SimpleNamespace

import pytest
import torch
from detector_helpers import settle, small_input, small_model
from test_predict_batch import assert_equal_but_for_near_ones
from torch import Tensor
from torchvision.models.detection import FCOS as TorchvisionFCOS
from torchvision.models.detection import fcos_resnet50_fpn
from torchvision.models.detection.fcos import FCOSHead
from torchvision.models.detection.transform import resize_boxes

from gid_cuda.config import ModelConfig
from gid_cuda.detectors import FCOS, build_detector
from gid_cuda.detectors.dense_losses import join_targets
from gid_cuda.detectors.fcos_losses import FCOSOutputs, match_locations, task_losses
from gid_cuda.detectors.outputs import BoxCoder
from gid_cuda.detectors.postprocess import candidates

Targets = list[dict[str, Tensor]]
STRIDES = [8, 16, 32, 64, 128]
DEFAULTS = {"score_thresh": 0.2, "nms_thresh": 0.6, "detections_per_img": 100, "topk_candidates": 1000}


def target(*boxes: list[float], label: int = 0) -> dict[str, Tensor]:
    labels = torch.arange(label, label + len(boxes)) % 3
    return {"boxes": torch.tensor(boxes, dtype=torch.float32).reshape(-1, 4), "labels": labels}


def locations(side: int) -> tuple[Tensor, list[int]]:
    """torchvision's anchors of a square image, and how many each level has."""
    anchors = []
    for stride in STRIDES:
        y, x = torch.meshgrid(torch.arange(0.0, side, stride), torch.arange(0.0, side, stride), indexing="ij")
        center = torch.stack([x, y], dim=-1).reshape(-1, 2)
        anchors.append(torch.cat([center - stride / 2, center + stride / 2], dim=1))
    return torch.cat(anchors), [len(level) for level in anchors]


@pytest.fixture(scope="module")
def photos() -> list[Tensor]:
    make = torch.Generator().manual_seed(0)
    return [torch.rand(3, 140, 220, generator=make), torch.rand(3, 190, 130, generator=make)]


@pytest.fixture(scope="module")
def pair(photos: list[Tensor]) -> tuple[TorchvisionFCOS, FCOS]:
    torch.manual_seed(0)
    model = small_model(
        detector="fcos", backbone="mobilenet_v3_small", anchor_sizes=ModelConfig().anchor_sizes, head_depth=2
    )
    ours = build_detector(model, small_input(min_size=[160], max_size=240), ["a", "b", "c"])
    theirs = TorchvisionFCOS(
        copy.deepcopy(ours.backbone), 3, head=FCOSHead(32, 1, 3, num_convs=2), min_size=160, max_size=240
    )
    settle(theirs, theirs.transform(photos)[0].tensors)
    torch.nn.init.constant_(theirs.head.regression_head.bbox_reg.bias, 2.0)  # boxes of some strides
    assert list(ours.state_dict()) == list(theirs.state_dict())
    ours.load_state_dict(theirs.state_dict())
    return theirs, ours


def test_the_whole_state_dict_is_torchvisions() -> None:
    with torch.device("meta"):  # keys and shapes alone
        ours = build_detector(ModelConfig(detector="fcos", norm="live"), small_input(), [str(i) for i in range(91)])
        theirs = fcos_resnet50_fpn(weights=None, weights_backbone=None)
    assert {k: v.shape for k, v in ours.state_dict().items()} == {k: v.shape for k, v in theirs.state_dict().items()}
    assert {name: getattr(ours, name) for name in DEFAULTS} == DEFAULTS
    assert {name: getattr(theirs, name) for name in DEFAULTS} == DEFAULTS


SEVERAL_LEVELS = [target([10, 12, 40, 45], [20, 8, 150, 130], [1, 1, 215, 139]), target([5, 20, 100, 180], label=1)]
LABELLED = {
    "several levels": SEVERAL_LEVELS,
    "an image without ground truth": [SEVERAL_LEVELS[0], target()],
    "no ground truth": [target(), target()],
    "equal areas": [target([40, 40, 90, 80], [50, 35, 90, 85], [40, 40, 90, 80]), target([30, 30, 90, 90])],
    "beyond every location": [target([41.1, 41.1, 42.9, 42.9]), target([30, 30, 90, 90])],
}


@pytest.mark.parametrize("fused", [True, False])
def test_losses_and_gradients(pair: tuple[TorchvisionFCOS, FCOS], photos: list[Tensor], fused: bool) -> None:
    theirs, ours = (model.train() for model in pair)
    ours.fused_losses = fused
    ours.zero_grad(), theirs.zero_grad()
    expected = theirs(photos, SEVERAL_LEVELS)
    outputs = ours(*ours.transform(photos, SEVERAL_LEVELS))
    assert (outputs.task is not None) == fused
    assert set(outputs.losses) == set(expected) == {"classification", "bbox_regression", "bbox_ctrness"}
    assert all(loss > 0 for loss in expected.values())
    torch.testing.assert_close(outputs.losses, expected)
    sum(expected.values()).backward()
    sum(outputs.losses.values()).backward()
    gradients = {name: parameter.grad for name, parameter in theirs.named_parameters()}
    # Of the gradient of a bias before group norm nothing is left but rounding, which goes by the size of the others.
    rounding = 1e-6 * torch.stack([gradient.norm() for gradient in gradients.values()]).norm()
    for name, parameter in ours.named_parameters():
        wanted = gradients[name]
        assert (parameter.grad - wanted).norm() <= (1e-3 if fused else 1e-5) * wanted.norm() + rounding, name


@pytest.mark.parametrize("case", LABELLED)
def test_losses_and_gradients_of_the_predictions(pair: tuple[TorchvisionFCOS, FCOS], case: str) -> None:
    """The fused losses against torchvision's on the same predictions."""
    anchors, levels = locations(256)
    make = torch.Generator().manual_seed(0)
    shapes = {"logits": 3, "deltas": 4, "centerness": 1}
    drawn = {name: 2 * torch.randn(2, len(anchors), last, generator=make) for name, last in shapes.items()}
    drawn["deltas"] = drawn["deltas"].relu()  # as the head gives them: boxes without area are among them
    mine, own = ({name: x.clone().requires_grad_() for name, x in drawn.items()} for _ in range(2))
    outputs = FCOSOutputs(
        [], STRIDES, **mine, coder=BoxCoder("distances"), anchors=anchors, image_sizes=torch.ones(2, 2)
    )
    losses, _ = task_losses(outputs, LABELLED[case], levels, radius=1.5)
    heads = dict(zip(("cls_logits", "bbox_regression", "bbox_ctrness"), own.values(), strict=True))
    expected = pair[0].compute_loss(LABELLED[case], heads, [anchors] * 2, levels)
    assert (losses["bbox_regression"] > 0) == (losses["bbox_ctrness"] > 0) == (case != "no ground truth")
    torch.testing.assert_close(losses, expected)
    sum(losses.values()).backward()
    sum(expected.values()).backward()
    for name, x in own.items():
        torch.testing.assert_close(mine[name].grad, x.grad, rtol=1e-4, atol=1e-7)


def test_detections_but_for_near_ones(pair: tuple[TorchvisionFCOS, FCOS], photos: list[Tensor]) -> None:
    theirs, ours = (model.eval() for model in pair)
    with torch.no_grad():
        expected = theirs(photos)
        batch, _ = ours.transform(photos)
        outputs = ours(batch)
    levels = [feature.shape[-2] * feature.shape[-1] for feature in outputs.features]
    everything = []
    for image, one in enumerate(zip(*candidates(outputs, levels, 0.2, 1000, outputs.centerness), strict=True)):
        scaled = resize_boxes(one[0], batch.image_sizes[image], tuple(photos[image].shape[-2:]))
        everything.append((*one, scaled))
    found = ours.predict(photos)
    assert all(len(one["scores"]) > 30 and set(one) == {"boxes", "scores", "labels"} for one in found)
    for detections in (found, expected):
        assert_equal_but_for_near_ones(detections, everything, 0.6)


def torchvision_matches(targets: Targets, anchors: Tensor, levels: list[int]) -> list[Tensor]:
    tell = SimpleNamespace(compute_loss=lambda targets, heads, anchors, matched: matched)
    model = SimpleNamespace(center_sampling_radius=1.5, head=tell)
    return TorchvisionFCOS.compute_loss(model, targets, {}, [anchors] * len(targets), levels)


@pytest.mark.parametrize("seed", range(8))
def test_matches(seed: int) -> None:
    """Boxes of all sizes, on whole pixels, so that distances meet their bounds and areas each other."""
    make = torch.Generator().manual_seed(seed)
    anchors, levels = locations(1024)
    targets = []
    for count in (40, 0, 1, 12):
        center = torch.randint(0, 1024, (count, 2), generator=make).float()
        sides = 4 * 2 ** torch.randint(0, 8, (count, 2), generator=make).float()
        sides += torch.randint(0, 3, (count, 2), generator=make)
        boxes = torch.cat([center - sides / 2, center + sides / 2], dim=1).clamp(0, 1024)
        targets.append({"boxes": boxes, "labels": torch.zeros(count, dtype=torch.int64)})
    truth = join_targets(targets, torch.device("cpu"))
    found = match_locations(truth, anchors, levels, radius=1.5)
    expected = torch.stack(torchvision_matches(targets, anchors, levels))
    assert torch.equal(found, expected)
    first = torch.tensor([0, *levels[:-1]]).cumsum(0).tolist()
    hits = [bool((found[:, start : start + size] >= 0).any()) for start, size in zip(first, levels, strict=True)]
    assert sum(hits) >= 4  # every kind of level, but for the coarsest in some draws


@pytest.mark.parametrize(("areas", "chosen"), [((100, 81), 1), ((100, 100), 0), ((99, 97), 0)])
def test_the_smallest_area_wins_as_torchvision_sees_it(areas: tuple[int, int], chosen: int) -> None:
    """Next to 1e8 areas nearer than 8 pixels may be equal in float32: then the first wins, there as here."""
    anchors, levels = locations(128)
    boxes = torch.tensor([[64 - area / 20, 59.0, 64 + area / 20, 69] for area in areas])
    truth = [{"boxes": boxes, "labels": torch.zeros(2, dtype=torch.int64)}]
    found = match_locations(join_targets(truth, torch.device("cpu")), anchors, levels, radius=1.5)
    assert torch.equal(found, torch.stack(torchvision_matches(truth, anchors, levels)))
    assert found.unique().tolist() == [-1, chosen]
