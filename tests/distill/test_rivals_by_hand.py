"""The equations of the three rivals with numbers that can be followed, and the regions that they imitate."""

from __future__ import annotations

from dataclasses import replace

import pytest
import torch
from torch import Tensor

from gid_cuda.detectors.outputs import BoxCoder, DetectorOutputs
from gid_cuda.distill import FineGrained, FitNet, Mimicking
from gid_cuda.distill.fine_grained import imitation_masks

from .pyramid import TwoStage, naive_cells, naive_iou, pyramid_outputs, some_targets


def flat_outputs(*values: float, channels: int = 2) -> DetectorOutputs:
    """One image of 32 x 32 pixels; levels of 4 x 4 and 2 x 2 cells that hold one value each, an anchor a cell."""
    sizes = [(4, 8), (2, 16)][: len(values)]
    features = [torch.full((1, channels, n, n), float(value)) for value, (n, _) in zip(values, sizes, strict=True)]
    anchors = torch.tensor(
        [[x * s, y * s, (x + 1) * s, (y + 1) * s] for n, s in sizes for y in range(n) for x in range(n)]
    ).float()
    rows = len(anchors)
    return DetectorOutputs(
        features,
        [s for _, s in sizes],
        torch.linspace(1, 0, rows)[None, :, None],
        torch.zeros(1, rows, 4),
        BoxCoder("deltas"),
        anchors,
        torch.tensor([[32, 32]]),
    )


def test_fitnet() -> None:
    """Levels differ by 3 and 1 everywhere: 1/2 * (9 + 1) / 2 = 2.5, whatever the sizes of the levels."""
    losses, _ = FitNet(2, 2)(flat_outputs(4, 2), flat_outputs(1, 1), TwoStage())
    assert losses == {"loss_hint": torch.tensor(2.5)}
    rival = FitNet(2, 2, weight=10)
    torch.nn.init.ones_(rival.adapt.bias)  # the student's become 2 and 2: 1/2 * (4 + 0) / 2
    assert rival(flat_outputs(4, 2), flat_outputs(1, 1), TwoStage())[0]["loss_hint"].item() == 10


def test_fine_grained() -> None:
    """A box of two cells, 16 x 8: IoU 1/2 with the two anchors of 8 x 8 that it covers, and 128 / 256 = 1/2 with the
    one of 16 x 16 that covers it; nothing with others. Cells: 2 of the first level, 1 of the second.
    1 / (2 * 3) * (2 cells * 2 channels * 3^2 + 1 cell * 2 channels * 1^2) = 38 / 6.
    """
    student = flat_outputs(1, 1)
    targets = [{"boxes": torch.tensor([[0.0, 0, 16, 8]])}]
    first, second = imitation_masks(student, targets, psi=0.5)
    assert first[0].nonzero().tolist() == [[0, 0], [0, 1]] and second[0].nonzero().tolist() == [[0, 0]]
    losses, _ = FineGrained(2, 2, weight=1)(flat_outputs(4, 2), student, TwoStage(), targets)
    torch.testing.assert_close(losses, {"loss_imitation": torch.tensor(38 / 6)})
    losses, _ = FineGrained(2, 2)(flat_outputs(4, 2), student, TwoStage(), targets)
    torch.testing.assert_close(losses["loss_imitation"], torch.tensor(0.38 / 6))


def test_fine_grained_level_of_its_own() -> None:
    """An 8 x 8 box fits an anchor of the first level (M = 1); the 16 x 16 one around it has 1/4, which is not near."""
    first, second = imitation_masks(flat_outputs(0, 0), [{"boxes": torch.tensor([[8.0, 8, 16, 16]])}], psi=0.5)
    assert first[0].nonzero().tolist() == [[1, 1]] and not second.any()


def test_fine_grained_threshold_is_strict() -> None:
    """IoU with the anchors 8 x 8: 64/128 with two, as in 16 x 8; with psi = 1/2 of M = 1 an IoU of 1/2 is not above."""
    outputs = flat_outputs(0)
    outputs.anchors[2] = torch.tensor([0.0, 0, 16, 8])  # now M = 1
    (mask,) = imitation_masks(outputs, [{"boxes": torch.tensor([[0.0, 0, 16, 8]])}], psi=0.5)
    assert mask[0].nonzero().tolist() == [[0, 2]]
    (mask,) = imitation_masks(outputs, [{"boxes": torch.tensor([[0.0, 0, 16, 8]])}], psi=0.49)
    assert mask[0].nonzero().tolist() == [[0, 0], [0, 1], [0, 2]]


@pytest.mark.parametrize("psi", [0.0, 0.3, 0.5, 0.9])
def test_fine_grained_cells(psi: float) -> None:
    """More boxes than are looked at together, images of different numbers of them, one that overlaps no anchor."""
    make = torch.Generator().manual_seed(3)
    corner = torch.rand(7, 2, generator=make) * 40
    boxes = torch.cat([corner, corner + 4 + 20 * torch.rand(7, 2, generator=make)], dim=1)
    far = torch.tensor([[500.0, 500, 520, 520], [7, 7, 7, 7]])
    targets = [{"boxes": boxes}, {"boxes": torch.cat([far, boxes[:1]])}, None]
    outputs = pyramid_outputs(seed=1)
    masks = imitation_masks(outputs, targets, psi)
    for image, target in enumerate(targets):
        found = [(level, *place) for level, mask in enumerate(masks) for place in mask[image].nonzero().tolist()]
        assert found == naive_cells(outputs, target, psi)


def test_fine_grained_anchors_that_do_not_fit_the_cells() -> None:
    outputs = pyramid_outputs(seed=1)
    fewer = replace(outputs, logits=outputs.logits[:, 1:], deltas=outputs.deltas[:, 1:], anchors=outputs.anchors[1:])
    with pytest.raises(ValueError, match="119 anchors on maps of 60 cells, but every cell must have as many"):
        FineGrained(4, 4)(fewer, fewer, TwoStage(), some_targets())


def test_mimicking() -> None:
    """Every region differs by 3 in every value: 1/(2N) * N * 1/m * m * 9 = 4.5, however many regions and channels."""
    targets = [{"boxes": torch.tensor([[0.0, 0, 8, 8]])}]
    losses, _ = Mimicking(2, 2)(flat_outputs(4), flat_outputs(1), TwoStage(), targets)
    torch.testing.assert_close(losses, {"loss_mimic": torch.tensor(4.5)})
    losses, _ = Mimicking(2, 2, weight=2)(flat_outputs(4), flat_outputs(1), TwoStage(), targets)
    torch.testing.assert_close(losses["loss_mimic"], torch.tensor(9.0))


def regions(rival: Mimicking, boxes: Tensor | None, outputs: DetectorOutputs | None = None) -> Tensor:
    found = rival.sample_regions(outputs or flat_outputs(0), [None if boxes is None else {"boxes": boxes}])
    assert found.boxes.shape == (1, rival.samples, 4) and not found.boxes[0, int(found.counts) :].any()
    assert found.valid[0].tolist() == (found.indices[0] >= 0).tolist()
    return found.boxes[0, : int(found.counts)]


def test_mimicking_draws_positives_and_negatives() -> None:
    """16 proposals that do not overlap, 4 of which are the ground truth's."""
    truth = flat_outputs(0).anchors[[0, 3, 5, 10]]
    rival = Mimicking(2, 2, samples=8, positive_fraction=0.25)
    seen = set()
    for seed in range(20):
        torch.manual_seed(seed)
        drawn = regions(rival, truth).tolist()
        positive = [box for box in drawn if box in truth.tolist()]
        assert len(drawn) == len({tuple(box) for box in drawn}) == 8 and len(positive) == 2
        seen |= {tuple(box) for box in drawn}
    assert len(seen) == 16  # at random: none is left out for ever


def test_mimicking_takes_what_there_is() -> None:
    anchors = flat_outputs(0).anchors
    rival = Mimicking(2, 2, samples=12, positive_fraction=0.5)
    assert len(regions(rival, anchors[:2])) == 12  # two positives, negatives for the rest
    assert len(regions(rival, anchors[:13])) == 9  # six of thirteen, and the three negatives
    assert len(regions(rival, anchors[:0])) == 12 and len(regions(rival, None)) == 0
    assert len(regions(Mimicking(2, 2, samples=20), anchors[:1])) == 16


def test_mimicking_proposals() -> None:
    """Clipped to the image, free of duplicates, the first by objectness; positive from IoU 0.5 on."""
    outputs = flat_outputs(0)
    outputs.image_sizes = torch.tensor([[12, 32]])  # rows below 12 are padding
    rival = Mimicking(2, 2, samples=6, proposals=6, positive_fraction=0.0)
    drawn = regions(rival, torch.tensor([[0.0, 0, 8, 4]]), outputs)
    # The first has IoU 1/2 and is positive, of which none is taken: five of the first six are left.
    assert drawn.tolist() == [[8, 0, 16, 8], [16, 0, 24, 8], [24, 0, 32, 8], [0, 8, 8, 12], [8, 8, 16, 12]]
    outputs = flat_outputs(0)
    outputs.anchors[1] = outputs.anchors[0] + torch.tensor([0.5, 0, 0.5, 0])
    assert naive_iou(outputs.anchors[0].tolist(), outputs.anchors[1].tolist()) > 0.7
    assert len(regions(Mimicking(2, 2), torch.zeros(0, 4), outputs)) == 15
