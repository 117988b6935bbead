"""Fine-grained feature imitation: the student's maps are to become the teacher's near objects."""

from __future__ import annotations

from collections.abc import Sequence

import torch
from torch import Tensor

from gid_cuda.detectors.outputs import Detector, DetectorOutputs, Target
from gid_cuda.distill.boxes import iou
from gid_cuda.distill.checks import check_targets
from gid_cuda.distill.kinds import stack_boxes
from gid_cuda.distill.rival import Rival
from gid_cuda.normalisers import global_normalisers

GROUND_TRUTH_AT_ONCE = 4  # boxes an image whose overlaps with all anchors are held together: B * 4 * R numbers


class FineGrained(Rival):
    """Wang et al., "Distilling Object Detectors with Fine-grained Feature Imitation", CVPR 2019.

    Which cells of a map are imitated (its section 3.1): of a ground-truth box, IoU with all anchors, K at each of the
    W x H cells; M is the largest of them, F = psi * M. A cell is near the box where any of its K anchors has IoU > F.
    The mask I is the union over the boxes of an image. Then

        L_imitation = 1/(2 N_p) sum_ij I_ij sum_c (f_adap(s)_ijc - t_ijc)^2,    N_p = sum_ij I_ij

        loss_imitation = weight * L_imitation

    psi = 0.5, weight = 0.01 (its lambda), f_adap a 3x3 convolution (its "full convolution adaptation layer"): the
    paper's, as its authors' code has them. Strictly above F, and anchors that reach out of the image count: as that
    code. Its f_adap ends in a ReLU where the teacher's features do; the maps of a pyramid do not, so here it is linear.

    The paper says nothing of several levels; its authors say that a level takes the boxes assigned to it. Here M is the
    largest IoU over the anchors of all levels, so a box is imitated at those levels whose anchors come near the best,
    and no other rule is needed. One layer f_adap for all levels; N_p is the number over levels, images and processes
    (see `global_normalisers`). Unlabelled images and those without ground truth add nothing.
    """

    loss_names = ("loss_imitation",)
    families = ("anchor-based", "two-stage")
    needs = "anchors"

    def __init__(
        self,
        student_channels: int,
        teacher_channels: int,
        *,
        weight: float = 0.01,
        psi: float = 0.5,
        adapt: str = "3x3",
    ) -> None:
        super().__init__(student_channels, teacher_channels, weight=weight, adapt=adapt)
        if not 0 <= psi < 1:
            raise ValueError(f"FineGrained: psi is {psi}, but must be at least 0 and below 1")
        self.psi = psi

    def forward(
        self,
        teacher_outputs: DetectorOutputs,
        student_outputs: DetectorOutputs,
        student_detector: Detector,
        targets: Sequence[Target | None] | None = None,
    ) -> tuple[dict[str, Tensor], None]:
        """See `Rival`. targets: B dicts {boxes (N, 4) in the outputs' pixels, ...}, None for an unlabelled image.

        Raises ValueError without targets, for a detector without anchors, and where the outputs do not fit together or
        with the channels given.
        """
        self.check(teacher_outputs, student_outputs, student_detector)
        if targets is None:
            raise ValueError("FineGrained needs the ground truth: pass targets, one dict an image")
        check_targets(targets, len(student_outputs.logits))
        with torch.autocast(student_outputs.logits.device.type, enabled=False):
            masks = imitation_masks(student_outputs, targets, self.psi)
            (cells,) = global_normalisers(torch.stack([mask.sum() for mask in masks]).sum())
            levels = zip(teacher_outputs.features, student_outputs.features, masks, strict=True)
            total = torch.stack([self._level_sum(*level) for level in levels]).sum()
            return {"loss_imitation": self.weight * total / (2 * cells)}, None

    def _level_sum(self, teacher: Tensor, student: Tensor, mask: Tensor) -> Tensor:
        difference = self.adapt(student.float()) - teacher.detach().float()
        return torch.where(mask[:, None], difference, 0.0).square().sum()


@torch.no_grad()
def imitation_masks(outputs: DetectorOutputs, targets: Sequence[Target | None], psi: float) -> list[Tensor]:
    """I of each level, (B, H_l, W_l) bool: the cells near an object, see `FineGrained`.

    The anchors of outputs go by level, row, column, then the K of a cell; ValueError where they are not K everywhere.
    """
    sizes = [tuple(feature.shape[2:]) for feature in outputs.features]
    anchors, cells = outputs.anchors.float(), [height * width for height, width in sizes]
    each, rest = divmod(len(anchors), sum(cells))
    if rest or each == 0:
        raise ValueError(
            f"FineGrained: {len(anchors)} anchors on maps of {sum(cells)} cells, but every cell must have as many: "
            "levels with other numbers of anchors are not supported, use method gid or fitnet"
        )
    boxes, _ = stack_boxes(targets, anchors.device)
    near = torch.zeros((len(outputs.logits), len(anchors)), dtype=torch.bool, device=anchors.device)
    for some in boxes.split(GROUND_TRUTH_AT_ONCE, dim=1) if boxes.shape[1] else ():
        overlaps = iou(some[:, :, None], anchors)  # (B, n, R); that of a padding box is 0 throughout, which is not near
        near |= (overlaps > psi * overlaps.amax(dim=2, keepdim=True)).any(dim=1)
    levels = near.split([each * count for count in cells], dim=1)
    return [level.unflatten(1, (*size, each)).any(dim=3) for level, size in zip(levels, sizes, strict=True)]
