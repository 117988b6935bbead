"""On a GPU: the same numbers, and nothing on the way of distillation waits for the device."""

from __future__ import annotations

import pytest
import torch
from detector_helpers import settle, small_input, small_model
from torchvision.models.detection.image_list import ImageList

from gid_cuda.detectors import build_detector
from gid_cuda.detectors.outputs import GeneralInstances
from gid_cuda.detectors.postprocess import candidates
from gid_cuda.ops import topk_nms

pytestmark = [
    pytest.mark.cuda,
    pytest.mark.skipif(not torch.cuda.is_available(), reason="needs a GPU"),
]


def test_forward_assign_and_response_do_not_synchronise() -> None:
    detector = build_detector(small_model(), small_input(), ["a", "b"])
    settle(detector)
    detector.cuda().eval()
    images = ImageList(torch.rand(2, 3, 96, 96, device="cuda"), [(96, 96), (80, 96)])
    corner = torch.rand(2, 5, 2, device="cuda") * 50
    boxes = torch.cat([corner, corner + 30], dim=-1)
    counts = torch.tensor([5, 3], device="cuda")
    instances = GeneralInstances(boxes, boxes[..., 0], torch.zeros(2, 5, dtype=torch.int64, device="cuda"), counts)
    detector(images)  # the first call moves the cell anchors to the device
    torch.cuda.synchronize()
    mode = torch.cuda.get_sync_debug_mode()
    torch.cuda.set_sync_debug_mode("error")
    try:
        with torch.no_grad():
            teacher = detector(images)
        student = detector(images)
        student.logits = student.logits + 0.5
        mask = detector.assign(instances, student)
        cls, reg = detector.response_losses(student, teacher, mask)
        (cls + reg).backward()
    finally:
        torch.cuda.set_sync_debug_mode(mode)
    assert mask.any() and cls > 0
    assert student.image_sizes.tolist() == [[96, 96], [80, 96]]


def test_cpu_and_gpu_agree(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(torch.backends.cudnn, "allow_tf32", False)  # it rounds the inputs of convolutions to ten bits
    detector = build_detector(small_model(score_thresh=0.6), small_input(), ["a", "b"])
    settle(detector)
    detector.eval()
    pixels = torch.rand(1, 3, 96, 96)
    expected = detector(ImageList(pixels, [(96, 96)]))
    found = detector.cuda()(ImageList(pixels.cuda(), [(96, 96)]))
    assert torch.equal(found.anchors.cpu(), expected.anchors)
    torch.testing.assert_close(found.logits.cpu(), expected.logits, rtol=5e-3, atol=5e-3)
    assert detector.predict([pixels[0]])[0]["boxes"].is_cuda


def test_post_processing_synchronises_only_to_cut_the_results() -> None:
    detector = build_detector(small_model(), small_input(), ["a", "b"])
    settle(detector)
    detector.cuda().eval()
    with torch.no_grad():
        outputs = detector(ImageList(torch.rand(2, 3, 96, 96, device="cuda"), [(96, 96), (80, 96)]))
    levels = [9 * feature.shape[-2] * feature.shape[-1] for feature in outputs.features]
    torch.cuda.synchronize()
    mode = torch.cuda.get_sync_debug_mode()
    torch.cuda.set_sync_debug_mode("error")
    try:
        boxes, scores, labels = candidates(outputs, levels, 0.05, 1000)
        _, counts = topk_nms(boxes, scores, 100, 0.5, groups=labels)
    finally:
        torch.cuda.set_sync_debug_mode(mode)
    assert counts.min() > 0
