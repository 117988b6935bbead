"""Mimicking: the student's features of its own proposals are to become the teacher's."""

from __future__ import annotations

from collections.abc import Sequence

import torch
from torch import Tensor

from gid_cuda.detectors.outputs import Detector, DetectorOutputs, GeneralInstances, Target
from gid_cuda.distill.boxes import clip
from gid_cuda.distill.checks import check_targets
from gid_cuda.distill.feature import adapt_crops, crop_features, feature_sum
from gid_cuda.distill.kinds import overlaps
from gid_cuda.distill.rival import Rival
from gid_cuda.distill.selection import fill_slots, keep_instances
from gid_cuda.normalisers import global_normalisers
from gid_cuda.ops import topk_nms

LEAST_SIDE = 1e-3  # pixels; torchvision's of an RPN


class Mimicking(Rival):
    """Li, Jin, Yan, "Mimicking Very Efficient Network for Object Detection", CVPR 2017, without its second stage.

        L_m = 1/(2N) sum_i 1/m_i ||u^(i) - r(v^(i))||^2,        loss_mimic = weight * L_m

    u^(i), v^(i): the teacher's and the student's features of the i-th of N regions, pooled to m_i numbers each; r: the
    transformation layer. The regions are proposals of the student's RPN, drawn at random among those that ground truth
    makes positive and those that it makes negative. weight = 1 is the paper's lambda_1. (Its training in two stages,
    and its student of half the input size, are not here: GID's paper compares on one schedule and one input.)

    Decided here, as R-CNN's own training has it where it has a number:

    - Proposals: the student's RPN boxes, clipped to the image, the first `proposals` after NMS over all levels at IoU
      `nms_iou`. Ground truth is not added to them.
    - Positive: IoU >= positive_iou with any ground-truth box. `samples` an image, positives at most positive_fraction
      of them, negatives for the rest; all there are where there are fewer. Drawn from torch's generator.
    - Regions are pooled by RoIAlign of the level that fits their size to output_size x output_size, as `GID`'s crops:
      m_i = Ch * P * P. r is a 1x1 layer on them, for all levels.
    - N is over the images and processes (see `global_normalisers`). An unlabelled image has no region; one without
      ground truth only negatives.
    """

    loss_names = ("loss_mimic",)
    families = ("two-stage",)
    needs = "a region proposal network"

    def __init__(
        self,
        student_channels: int,
        teacher_channels: int,
        *,
        weight: float = 1.0,
        samples: int = 128,
        positive_fraction: float = 0.25,
        positive_iou: float = 0.5,
        proposals: int = 1000,
        nms_iou: float = 0.7,
        output_size: int = 7,
        sampling_ratio: int = 2,
        adapt: str = "1x1",
    ) -> None:
        super().__init__(student_channels, teacher_channels, weight=weight, adapt=adapt)
        if not 1 <= samples <= proposals:
            raise ValueError(f"Mimicking: samples is {samples}, but must be from 1 to proposals ({proposals})")
        for name, value in (
            ("positive_fraction", positive_fraction),
            ("positive_iou", positive_iou),
            ("nms_iou", nms_iou),
        ):
            if not 0 <= value <= 1:
                raise ValueError(f"Mimicking: {name} is {value}, but must be from 0 to 1")
        if not output_size >= 1:
            raise ValueError(f"Mimicking: output_size is {output_size}, but must be at least 1")
        self.samples, self.positives = samples, int(samples * positive_fraction)
        self.positive_iou = positive_iou
        self.proposals, self.nms_iou = proposals, nms_iou
        self.output_size, self.sampling_ratio = output_size, sampling_ratio

    def forward(
        self,
        teacher_outputs: DetectorOutputs,
        student_outputs: DetectorOutputs,
        student_detector: Detector,
        targets: Sequence[Target | None] | None = None,
    ) -> tuple[dict[str, Tensor], None]:
        """See `Rival`. targets: B dicts {boxes (N, 4) in the outputs' pixels, ...}, None for an unlabelled image.

        Raises ValueError without targets, for a detector of one stage, and where the outputs do not fit together or
        with the channels given.
        """
        self.check(teacher_outputs, student_outputs, student_detector)
        if targets is None:
            raise ValueError("Mimicking needs the ground truth: pass targets, one dict an image")
        check_targets(targets, len(student_outputs.logits))
        with torch.autocast(student_outputs.logits.device.type, enabled=False):
            regions = self.sample_regions(student_outputs, targets)
            (count,) = global_normalisers(regions.counts.sum())
            how = (regions, self.output_size, self.sampling_ratio)
            with torch.no_grad():
                u = crop_features(teacher_outputs.features, teacher_outputs.strides, *how)
            v = crop_features(student_outputs.features, student_outputs.strides, *how)
            dimension = self.teacher_channels * self.output_size**2
            total = feature_sum(u, adapt_crops(self.adapt, v, regions)) / dimension
            return {"loss_mimic": self.weight * total / (2 * count)}, None

    @torch.no_grad()
    def sample_regions(self, student: DetectorOutputs, targets: Sequence[Target | None]) -> GeneralInstances:
        """`samples` slots an image, filled with proposals drawn at random, in the order of their objectness."""
        proposals = self._proposals(student)
        best, _ = overlaps(proposals, targets)
        usable = proposals.valid & _labelled(targets, proposals.boxes.device)[:, None]
        positive = best >= self.positive_iou
        keys = torch.rand_like(best)
        chosen = _draw(usable & positive, keys, self.positives)
        chosen |= _draw(usable & ~positive, keys, self.samples - chosen.sum(dim=1, keepdim=True))
        found = keep_instances(proposals, chosen)
        slots = slice(0, self.samples)
        return GeneralInstances(found.boxes[:, slots], found.scores[:, slots], found.indices[:, slots], found.counts)

    def _proposals(self, student: DetectorOutputs) -> GeneralInstances:
        boxes = clip(student.boxes, student.image_sizes)
        scores = student.logits.detach().float().amax(dim=2)  # objectness has C = 1
        indices, counts = topk_nms(boxes, scores, self.proposals, self.nms_iou, min_size=LEAST_SIDE)
        return fill_slots(boxes, scores, indices.clamp(min=0), indices, counts)


def _draw(mask: Tensor, keys: Tensor, most: int | Tensor) -> Tensor:
    """Of each row of mask (B, P) the `most` entries (an int or (B, 1)) with the least keys; all, if they are fewer."""
    order = torch.where(mask, keys, 2.0).argsort(dim=1)  # keys are below 1, so the masked come first
    rank = order.argsort(dim=1)
    return mask & (rank < most)


def _labelled(targets: Sequence[Target | None], device: torch.device) -> Tensor:
    """(B,) bool, filled on the device: a tensor made of a Python list would be a copy that the host waits for."""
    flags = [torch.full((), target is not None, dtype=torch.bool, device=device) for target in targets]
    return torch.stack(flags) if flags else torch.zeros(0, dtype=torch.bool, device=device)
