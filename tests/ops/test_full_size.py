"""The sizes of real batches, and beyond what 32 bits count."""

from __future__ import annotations

import pytest
import torch
from ops_helpers import each_device, moved, random_boxes

from gid_cuda import reference
from gid_cuda.ops import gi_score, topk_nms


@each_device
@pytest.mark.parametrize("count", [201_600, 1_000_000])
@pytest.mark.parametrize("levels", [None, 1000, 1], ids=["distinct", "ties", "equal"])
def test_topk_nms_of_a_whole_batch(device: str, count: int, levels: int | None):
    """At random, with about 200 or 1000 boxes a score, and with one score for all."""
    images = 1 if count == 1_000_000 else 16 if device == "cuda" else 2
    boxes = random_boxes(images, count, 1300.0, 4.0, 300.0)
    scores = torch.rand(images, count)
    if levels is not None:
        scores = (scores * levels).floor() / levels
    found = topk_nms(boxes.to(device), scores.to(device), 10, 0.3)
    for actual, expected in zip(found, reference.topk_nms(boxes, scores, 10, 0.3), strict=True):
        assert torch.equal(actual.cpu(), expected)


@pytest.mark.cuda
@pytest.mark.skipif(not torch.cuda.is_available(), reason="needs a GPU")
def test_gi_score_of_more_logits_than_32_bits_count():
    images, count, classes = 2, 13_500_001, 80
    assert images * count * classes > 2**31
    if torch.cuda.mem_get_info()[0] < 24 << 30:
        pytest.skip("needs 24 GiB of GPU memory")
    logits = [torch.empty(images, count, classes, dtype=torch.bfloat16, device="cuda").normal_() for _ in range(2)]
    boxes = [torch.rand(images, count, 4, device="cuda") for _ in range(2)]
    scores, chosen = gi_score(*logits, *boxes)
    for rows in (slice(0, 1000), slice(count - 1000, count)):
        parts = [tensor[:, rows].cpu() for tensor in (*logits, *boxes)]
        expected = reference.gi_score(*(part.float() for part in parts))
        torch.testing.assert_close(scores[:, rows].cpu(), expected[0], rtol=0, atol=2e-6)
        assert torch.equal(chosen[:, rows].cpu(), expected[1])


def test_what_is_moved_lies_as_it_lay():
    """Else the tests of such memory would test none where there is a GPU."""
    wide = torch.arange(48, dtype=torch.float16).view(2, 4, 6)
    for tensor in (wide[:, ::2, 1:], wide.mT, wide[:, :1].expand(2, 4, 6), wide.flatten()[1:].view(47), wide[:, :0]):
        there = moved(tensor, "meta")
        assert there.device.type == "meta" and there.dtype == tensor.dtype and there.shape == tensor.shape
        assert (there.stride(), there.storage_offset()) == (tensor.stride(), tensor.storage_offset())
    assert moved(wide, "cpu") is wide
