"""General instance distillation, whole: selection and the three losses (paper, sections 3.1-3.5)."""

from __future__ import annotations

import math
from collections.abc import Sequence
from functools import partial

import torch
from torch import Tensor, nn

from gid_cuda.detectors.outputs import Detector, DetectorOutputs, GeneralInstances, Target
from gid_cuda.distill.checks import check_outputs, check_targets
from gid_cuda.distill.feature import Adaptation, adapt_crops, crop_features, feature_sum
from gid_cuda.distill.kinds import KIND_VALUES, ground_truth_instances, instance_kinds
from gid_cuda.distill.relation import join_batch, relation_sum
from gid_cuda.distill.response import response_mask, response_sums
from gid_cuda.distill.selection import keep_instances, select_instances
from gid_cuda.normalisers import global_normalisers

LOSS_NAMES = ("loss_feature", "loss_relation", "loss_response_cls", "loss_response_reg")
"""The keys of the losses that `GID` gives."""


class GID(nn.Module):
    """Dai et al., "General Instance Distillation for Object Detection", CVPR 2021, as a criterion.

        gid = GID(student_channels=256, teacher_channels=256)          # its parameters go into the student's optimizer
        with torch.no_grad():
            teacher_outputs = teacher(images)                          # eval mode
        student_outputs = student(images, targets)
        losses, instances = gid(teacher_outputs, student_outputs, student)
        loss = sum(student_outputs.losses.values()) + sum(losses.values())          # eq. 9

    loss_feature = lambda_feature * L_feature, eqs. 4-5: the squared L2 distance between the teacher's and the adapted
        student's crop, over all Ch*P*P values; mean over the instances of the batch. That is the paper's, and
        reduction="instance". "pixel" also divides by P*P, for detectors where this term outweighs all others.
    loss_relation = lambda_relation * L_relation, eq. 6: distances between the crops of each pair of instances, divided
        by their mean; smooth L1 between the teacher's and the adapted student's; mean over the pairs of an image, then
        over the images with two instances or more. scope="batch" pairs the instances of all images of this process.
    loss_response_cls, loss_response_reg = lambda_response * alpha and beta * the two parts of L_response, eqs. 7-8: the
        detector's own losses between the outputs of both heads, at the boxes to which the detector's own label
        assignment gives an instance, divided by how many these are (N_m).

    Args:
        student_channels, teacher_channels: Ch of the FPN maps.
        top_k: K, general instances an image. 0 switches distillation off: every loss is 0.
        nms_iou, min_size, pre_nms_top_k: see `select_instances`. min_size is in pixels of the padded batch.
        lambda_feature, lambda_relation, lambda_response, alpha, beta: weights. A term of weight 0 is not computed.
        adapt: f_adapt, "1x1", "3x3" or "none" (needs equal channels); see `Adaptation`. These are the only parameters;
            there are none where nothing would use them.
        kinds: "all" takes every general instance; a list of "positive", "semi-positive" and "negative" only those
            (eqs. 10-11, chosen among the top_k; see `instance_kinds`); "ground_truth" puts the first 100 ground-truth
            boxes of each image in their place. All but "all" need targets, and find nothing in unlabelled images.
        reduction, scope: see above.
        output_size, sampling_ratio: P and the samples a bin and axis of RoIAlign.
        canonical_size: an instance of this side in pixels gets its features from the level of stride 16, one of twice
            the side from stride 32. 224, of the paper on feature pyramids, is for images of 800 pixels; for smaller
            ones it should shrink with them, or the finest level gets all instances and the others are not taught.

    Every mean is taken over the batch of all processes where torch.distributed is initialised (see
    `global_normalisers`). Losses are computed in float32 outside autocast. A batch or an image without instances gives
    zero, never NaN; a student that equals its teacher gets zero losses and zero gradients. Nothing waits for the
    device, so the whole can be captured in a CUDA graph. Raises ValueError for arguments outside these ranges.
    """

    loss_names = LOSS_NAMES

    def __init__(
        self,
        student_channels: int,
        teacher_channels: int,
        *,
        top_k: int = 10,
        nms_iou: float = 0.3,
        min_size: float = 10.0,
        lambda_feature: float = 5e-4,
        lambda_relation: float = 40.0,
        lambda_response: float = 1.0,
        alpha: float = 0.1,
        beta: float = 1.0,
        adapt: str = "1x1",
        kinds: str | Sequence[str] = "all",
        reduction: str = "instance",
        scope: str = "image",
        pre_nms_top_k: int = 0,
        output_size: int = 10,
        sampling_ratio: int = 2,
        canonical_size: float = 224.0,
    ) -> None:
        super().__init__()
        for name, value, least in (
            ("student_channels", student_channels, 1),
            ("teacher_channels", teacher_channels, 1),
            ("top_k", top_k, 0),
            ("nms_iou", nms_iou, 0),
            ("min_size", min_size, 0),
            ("lambda_feature", lambda_feature, 0),
            ("lambda_relation", lambda_relation, 0),
            ("lambda_response", lambda_response, 0),
            ("alpha", alpha, 0),
            ("beta", beta, 0),
            ("pre_nms_top_k", pre_nms_top_k, 0),
            ("output_size", output_size, 1),
        ):
            if not value >= least:
                raise ValueError(f"GID: {name} is {value}, but must be at least {least}")
        if not 0 < canonical_size < math.inf:
            raise ValueError(f"GID: canonical_size is {canonical_size}, but must be a number of pixels above 0")
        for name, choice, choices in (
            ("adapt", adapt, ("1x1", "3x3", "none")),
            ("reduction", reduction, ("instance", "pixel")),
            ("scope", scope, ("image", "batch")),
        ):
            if choice not in choices:
                raise ValueError(f"GID: {name} is {choice!r}, but must be one of {', '.join(choices)}")
        if adapt == "none" and student_channels != teacher_channels:
            raise ValueError(
                f"GID: adapt='none' needs equal channels, but the student has {student_channels} and the teacher "
                f"{teacher_channels}: use adapt='1x1'"
            )
        self.student_channels, self.teacher_channels = student_channels, teacher_channels
        self.top_k = top_k
        self.select = partial(
            select_instances, top_k=top_k, nms_iou=nms_iou, min_size=min_size, pre_nms_top_k=pre_nms_top_k
        )
        self.lambda_feature, self.lambda_relation = lambda_feature, lambda_relation
        self.lambda_response, self.alpha, self.beta = lambda_response, alpha, beta
        self.kinds = _check_kinds(kinds)
        self.reduction, self.scope = reduction, scope
        self.output_size, self.sampling_ratio = output_size, sampling_ratio
        self.canonical_size = canonical_size
        # Not made where unused: DistributedDataParallel waits for the gradient of every parameter there is.
        self.uses_features = top_k > 0 and (lambda_feature > 0 or lambda_relation > 0)
        self.adapt: Adaptation | None = None
        if self.uses_features and adapt != "none":
            self.adapt = Adaptation(student_channels, teacher_channels, kernel_size=int(adapt[0]))

    def forward(
        self,
        teacher_outputs: DetectorOutputs,
        student_outputs: DetectorOutputs,
        student_detector: Detector,
        targets: Sequence[Target | None] | None = None,
    ) -> tuple[dict[str, Tensor], GeneralInstances]:
        """Both models' outputs of one batch -> (weighted losses by name, the instances they were computed from).

        teacher_outputs: of the same images, under torch.no_grad, and of the same anchors, which is not looked at here:
        `check_anchors` does, once before training. student_detector: gives label assignment and response
        losses. targets: B dicts {boxes (N, 4) in the outputs' pixels, ...} or None for an unlabelled image; read only
        where `kinds` is not "all". The losses are 0-dim float32 tensors under `LOSS_NAMES`. Raises ValueError where the
        two outputs do not fit together or with the channels given.
        """
        check_outputs(teacher_outputs, student_outputs, self.teacher_channels, self.student_channels)
        with torch.autocast(student_outputs.logits.device.type, enabled=False):
            instances = self._instances(teacher_outputs, student_outputs, targets)
            losses = {name: torch.zeros((), device=instances.boxes.device) for name in LOSS_NAMES}
            if self.top_k > 0:
                losses.update(self._losses(teacher_outputs, student_outputs, student_detector, instances))
        return losses, instances

    def _instances(
        self, teacher: DetectorOutputs, student: DetectorOutputs, targets: Sequence[Target | None] | None
    ) -> GeneralInstances:
        if self.kinds == "all" or self.top_k == 0:
            return self.select(teacher, student)
        if targets is None:
            raise ValueError(f"GID: kinds={self.kinds!r} needs the ground truth: pass targets, one dict an image")
        check_targets(targets, len(student.logits))
        if self.kinds == "ground_truth":
            return ground_truth_instances(targets, student.logits.device)
        instances = self.select(teacher, student)
        found = instance_kinds(instances, targets)
        return keep_instances(instances, torch.stack([found == KIND_VALUES[kind] for kind in self.kinds]).any(dim=0))

    def _losses(
        self, teacher: DetectorOutputs, student: DetectorOutputs, detector: Detector, instances: GeneralInstances
    ) -> dict[str, Tensor]:
        """Sums first, then one division by counts that are global: `global_normalisers` asks all processes at once."""
        joined = instances.counts.sum()[None] if self.scope == "batch" else instances.counts  # a batch as one image
        counts = [joined.sum(), (joined >= 2).sum()]
        if self.lambda_response > 0:
            mask = response_mask(detector, instances, student)
            counts.append(mask.sum())
        divisors = global_normalisers(*counts)

        losses = {}
        if self.uses_features:
            teacher_crops, student_crops = self._crops(teacher, student, instances)
            if self.lambda_feature > 0:
                per_instance = feature_sum(teacher_crops, student_crops) / divisors[0]
                scale = self.output_size**2 if self.reduction == "pixel" else 1
                losses["loss_feature"] = self.lambda_feature / scale * per_instance
            if self.lambda_relation > 0:
                t, s = teacher_crops.flatten(2), student_crops.flatten(2)
                if self.scope == "batch":
                    t, s = join_batch(t, instances.valid), join_batch(s, instances.valid)
                losses["loss_relation"] = self.lambda_relation * relation_sum(t, s, joined) / divisors[1]
        if self.lambda_response > 0:
            cls, reg = response_sums(detector, student, teacher, mask)
            losses["loss_response_cls"] = self.lambda_response * self.alpha * cls / divisors[2]
            losses["loss_response_reg"] = self.lambda_response * self.beta * reg / divisors[2]
        return losses

    def _crops(
        self, teacher: DetectorOutputs, student: DetectorOutputs, instances: GeneralInstances
    ) -> tuple[Tensor, Tensor]:
        """t without gradient and adapted s of eqs. 4-6, (B, K, Ch, P, P) float32 each, zero in empty slots."""
        how = (instances, self.output_size, self.sampling_ratio, self.canonical_size)
        with torch.no_grad():
            teacher_crops = crop_features(teacher.features, teacher.strides, *how)
        student_crops = crop_features(student.features, student.strides, *how)
        return teacher_crops, adapt_crops(self.adapt, student_crops, instances)


def _check_kinds(kinds: str | Sequence[str]) -> str | tuple[str, ...]:
    if kinds in ("all", "ground_truth"):
        return kinds
    if isinstance(kinds, str) or not kinds or any(kind not in KIND_VALUES for kind in kinds):
        raise ValueError(
            f"GID: kinds is {kinds!r}, but must be 'all', 'ground_truth' or a list of {', '.join(KIND_VALUES)}"
        )
    return tuple(kinds)
