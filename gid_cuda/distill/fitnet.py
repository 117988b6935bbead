"""FitNet's hints, over the maps of a feature pyramid: the student's whole maps are to become the teacher's."""

from __future__ import annotations

from collections.abc import Sequence

import torch
from torch import Tensor

from gid_cuda.detectors.outputs import Detector, DetectorOutputs, Target
from gid_cuda.distill.rival import Rival


class FitNet(Rival):
    """Romero et al., "FitNets: Hints for Thin Deep Nets", ICLR 2015, as detection papers apply it.

        L_HT = 1/2 ||u_h(x) - r(v_g(x))||^2                                                 (its eq. 3)

    u_h: the teacher's hint layer, v_g: the student's guided layer, r: a learned convolutional regressor from one to the
    other. Theirs are one layer in the middle of two classifiers, trained before all else. What a detector makes of it,
    and its numbers, are not in that paper; decided here:

    - Hint and guided layers are the maps of the feature pyramid, all levels, trained along with the task losses.
    - The squared norm is a mean over the elements of a level, and the levels' means are averaged:

        loss_hint = weight * 1/L sum_l 1/(2 B Ch H_l W_l) sum over all elements of (t_l - r(s_l))^2

      so that neither the size of an image nor the many cells of the finest level set its weight. All cells count, those
      of the padding and of unlabelled images, too; no ground truth is read.
    - weight 1; r is 1x1, one layer for all levels, like the f_adapt that `GID` is compared with.

    Each process takes the mean of its own batch, and so each image counts the same whatever its process.
    """

    loss_names = ("loss_hint",)

    def __init__(
        self, student_channels: int, teacher_channels: int, *, weight: float = 1.0, adapt: str = "1x1"
    ) -> None:
        super().__init__(student_channels, teacher_channels, weight=weight, adapt=adapt)

    def forward(
        self,
        teacher_outputs: DetectorOutputs,
        student_outputs: DetectorOutputs,
        student_detector: Detector,
        targets: Sequence[Target | None] | None = None,
    ) -> tuple[dict[str, Tensor], None]:
        """See `Rival`; targets are not read. ValueError where the outputs do not fit together or with the channels."""
        self.check(teacher_outputs, student_outputs, student_detector)
        with torch.autocast(student_outputs.logits.device.type, enabled=False):
            pairs = zip(teacher_outputs.features, student_outputs.features, strict=True)
            levels = [_mean_square(t.detach().float() - self.adapt(s.float())) for t, s in pairs]
            return {"loss_hint": 0.5 * self.weight * torch.stack(levels).mean()}, None


def _mean_square(x: Tensor) -> Tensor:
    """0 of a batch without images."""
    return x.square().sum() / max(1, x.numel())
