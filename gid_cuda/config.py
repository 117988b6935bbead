"""The schema of a config file.

One YAML file describes one run. `load_config` (at the end) reads it, follows `base:`, applies `key.path=value`
overrides and checks every key and value against the classes here; the comments are the reference of what a key means.
"""

from __future__ import annotations

import json
import os.path
from collections.abc import Sequence
from pathlib import Path
from typing import Annotated, Any, Literal

from pydantic import (
    AfterValidator,
    BaseModel,
    ConfigDict,
    Field,
    PositiveFloat,
    PositiveInt,
    ValidationError,
    model_validator,
)

from gid_cuda import config_file
from gid_cuda.errors import UserError
from gid_cuda.plain_yaml import check_plain

NonNegativeInt = Annotated[int, Field(ge=0)]
Seed = Annotated[int, Field(ge=0, lt=2**63)]  # what torch's generators take
NonNegativeFloat = Annotated[float, Field(ge=0)]
Fraction = Annotated[float, Field(ge=0, le=1)]
# No shell expands ~ in a config.
HomePath = Annotated[Path, AfterValidator(lambda path: Path(os.path.expanduser(path)))]
Option = bool | int | float | str
HomeText = Annotated[str, AfterValidator(os.path.expanduser)]


class Section(BaseModel):
    """No unknown keys; what is parsed is not changed afterwards."""

    model_config = ConfigDict(extra="forbid", frozen=True, allow_inf_nan=False)


class GeneratedConfig(Section):
    """The generated data set (`format: generated`): written once in COCO layout under `data.root`."""

    train_images: PositiveInt = 400  # how many are drawn to train on
    val_images: PositiveInt = 100  # and how many to evaluate on
    width: PositiveInt = 192  # pixels, at least 48
    height: PositiveInt = 144  # pixels, at least 48
    seed: int = 0  # another seed draws other pictures


class SplitConfig(Section):
    """One set of images. COCO layout: annotations + images. VOC layout: split (the name in ImageSets/Main)."""

    root: HomePath | None = None  # relative to data.root; none: data.root itself
    format: Literal["coco", "voc"] | None = None  # none: data.format
    annotations: HomePath | None = None  # COCO: annotation file, relative to the root
    # image folder, relative to the root; VOC default: JPEGImages. It may be a link, what lies in it only within it
    images: HomePath | None = None
    split: str | None = None  # VOC: ImageSets/Main/<split>.txt
    one_based: bool | None = None  # none: data.one_based


# A list joins its sets to one: image ids become 1..N, an image that two of them hold counts once, as in the first.
Splits = SplitConfig | Annotated[list[SplitConfig], Field(min_length=1)]


class UnlabeledConfig(Section):
    """Images without annotations in every training batch: they have distillation losses alone."""

    # a folder, relative to data.root, searched with those in it; none: what data.labeled_fraction leaves out
    images: HomePath | None = None
    batch_size: PositiveInt  # such images a step, besides train.batch_size


class DataConfig(Section):
    """Images with their boxes, to train on and to evaluate on."""

    format: Literal["coco", "voc", "generated"]  # layout of the files; generated: pictures are drawn
    root: HomePath  # relative paths are taken from the working directory
    train: Splits = SplitConfig()  # generated: known by itself
    val: Splits = SplitConfig()  # what is evaluated on
    # Keep and number these, in this order; images that none of them is in stay, as background. None: all classes of the
    # annotation file in its order, or all names of the VOC splits sorted; joined sets must then agree.
    classes: list[str] | None = None
    # of the training images, drawn at random, the same in every run, at least one: the others' boxes take no part,
    # though flaws of the annotation file that lie in them are told, too
    labeled_fraction: Annotated[float, Field(gt=0, le=1)] = 1.0
    unlabeled: UnlabeledConfig | None = None
    one_based: bool = False  # VOC: coordinates start at 1
    # loader processes, of each process that trains; as many as it has cores are enough
    workers: Annotated[int, Field(ge=0, le=128)] = 2
    hflip: Fraction = 0.5  # probability of a horizontal flip in training
    # images of a training batch are all wider than high or all not, but for a few batches: less padding. Where all
    # images of the set are alike in this, nothing changes
    group_by_aspect: bool = True
    generated: GeneratedConfig = GeneratedConfig()

    @model_validator(mode="after")
    def _unlabeled_come_from_somewhere(self) -> DataConfig:
        if self.unlabeled is not None and self.unlabeled.images is None and self.labeled_fraction == 1:
            raise ValueError(
                "unlabeled names no images, and labeled_fraction is 1: name a folder with unlabeled.images, or set "
                "labeled_fraction below 1 to take the other training images"
            )
        return self

    @model_validator(mode="after")
    def _generated_reads_no_files(self) -> DataConfig:
        if self.format == "generated" and (self.train != SplitConfig() or self.val != SplitConfig()):
            raise ValueError(
                "data.train or data.val names files, but data.format is generated, which reads none: "
                "set data.format=coco or data.format=voc"
            )
        return self


class InputConfig(Section):
    """The one transform of a step: torchvision's `GeneralizedRCNNTransform`. Shared by teacher and student."""

    # shorter side; several: one is drawn in training, the last in evaluation
    min_size: Annotated[list[PositiveInt], Field(min_length=1)] = [800]
    max_size: PositiveInt = 1333  # of the longer side, to which the shorter one gives way
    mean: tuple[float, float, float] = (0.485, 0.456, 0.406)  # of red, green and blue in 0..1, subtracted
    std: tuple[PositiveFloat, PositiveFloat, PositiveFloat] = (0.229, 0.224, 0.225)  # divided by


class ModelConfig(Section):
    detector: Literal["retinanet", "fcos", "faster_rcnn", "own"] = "retinanet"  # own: of the file given by --adapter
    # of one's own detector: whatever its adapter reads. The other keys here are its, too, to read or to leave
    options: dict[str, Option | list[Option]] = {}
    # torchvision's networks, under a feature pyramid
    backbone: Literal["resnet18", "resnet34", "resnet50", "resnet101", "mobilenet_v2", "mobilenet_v3_small"] = (
        "resnet50"
    )
    # whole detector: "coco" (torchvision's, by name), a checkpoint file, or .safetensors (tensors alone)
    weights: HomeText | None = None
    # whose anchors, P6, P7 and RoIAlign: torchvision's, or mmdetection's, which the checkpoints of
    # scripts/convert_checkpoint.py need; teacher and student alike
    variant: Literal["torchvision", "mmdetection"] = "torchvision"
    backbone_weights: Literal["imagenet"] | None = None  # torchvision's, by name; ignored where `weights` is given
    # batch norm: frozen statistics, or live (from scratch needs live): those of each process's own images
    norm: Literal["frozen", "live"] = "frozen"
    # of the backbone, as torchvision counts; none: 3 with weights, else all
    trainable_layers: Annotated[int, Field(ge=0, le=6)] | None = None
    fpn_channels: Annotated[int, Field(gt=0, le=4096)] = 256  # of the pyramid; student and teacher may differ
    # 3x3 convolutions of each head; Faster R-CNN's RPN always has one
    head_depth: Annotated[int, Field(gt=0, le=64)] = 4
    # one a level, pixels; each at 3 ratios, RetinaNet's at 3 scales, too; FCOS has none
    anchor_sizes: list[PositiveInt] = [32, 64, 128, 256, 512]
    score_thresh: Fraction | None = None  # of detections; none: torchvision's, 0.05, of FCOS 0.2
    nms_thresh: Fraction | None = None  # IoU of two of a class, at most; none: torchvision's, 0.5, of FCOS 0.6
    detections_per_img: PositiveInt | None = None  # none: torchvision's, 100, of RetinaNet 300

    @model_validator(mode="after")
    def _options_are_of_own(self) -> ModelConfig:
        if self.options and self.detector != "own":
            raise ValueError(
                f"options is set but detector is {self.detector}, which has none: set detector: own, or leave it out"
            )
        if self.detector == "own" and self.weights == "coco":
            raise ValueError("weights: coco exists for torchvision's detectors, not for detector: own: name a file")
        return self

    @model_validator(mode="after")
    def _variant_exists(self) -> ModelConfig:
        if self.detector not in ("retinanet", "faster_rcnn") and self.variant != "torchvision":
            raise ValueError(
                f"variant {self.variant} exists for retinanet and faster_rcnn, not for {self.detector}: leave it out"
            )
        return self


class FitNetConfig(Section):
    """Hints (Romero et al. 2015) over the whole maps of the pyramid; see `gid_cuda.distill.FitNet`."""

    weight: PositiveFloat = 1.0  # of the loss
    adapt: Literal["1x1", "3x3", "none"] = "1x1"  # r, the regressor


class FineGrainedConfig(Section):
    """Fine-grained feature imitation (Wang et al. 2019), near objects; see `gid_cuda.distill.FineGrained`."""

    weight: PositiveFloat = 0.01  # lambda
    psi: Annotated[float, Field(ge=0, lt=1)] = 0.5  # near: IoU of an anchor above psi times the best
    adapt: Literal["1x1", "3x3", "none"] = "3x3"  # the layer from the student's channels to the teacher's


class MimickingConfig(Section):
    """Mimicking (Li et al. 2017), of the student's proposals; see `gid_cuda.distill.Mimicking`."""

    weight: PositiveFloat = 1.0  # lambda_1
    samples: PositiveInt = 128  # proposals an image, at most
    positive_fraction: Fraction = 0.25  # of them, at most
    positive_iou: Fraction = 0.5  # with a ground-truth box, from which a proposal is positive
    proposals: PositiveInt = 1000  # of which they are drawn
    nms_iou: Fraction = 0.7  # of two proposals, at most
    output_size: PositiveInt = 7  # P: crops are P x P
    sampling_ratio: PositiveInt = 2  # samples a bin and axis of RoIAlign
    adapt: Literal["1x1", "3x3", "none"] = "1x1"  # r, the transformation layer

    @model_validator(mode="after")
    def _as_many_proposals(self) -> MimickingConfig:
        if self.samples > self.proposals:
            raise ValueError(f"samples is {self.samples}, more than the {self.proposals} proposals: lower it")
        return self


class DistillConfig(Section):
    """General instance distillation, symbols are the paper's; or one of its rivals, each with a section at the end.

    The keys of methods other than `method` are without effect, so that one config serves for all by distill.method=.
    """

    method: Literal["gid", "fitnet", "fine_grained", "mimicking"] = "gid"  # gid, or what the paper compares it with
    top_k: Annotated[int, Field(ge=0, le=1000)] = 10  # K
    nms_iou: Fraction = 0.3  # of two instances of an image, at most
    min_size: NonNegativeFloat = 10.0  # pixels: smaller boxes are never chosen
    pre_nms_top_k: NonNegativeInt = 0  # 0 = off: NMS sees every box
    lambda_feature: NonNegativeFloat = 5e-4  # weight of the feature loss, lambda_1; 0: off
    lambda_relation: NonNegativeFloat = 40.0  # of the relation loss, lambda_2; 0: off
    lambda_response: NonNegativeFloat = 1.0  # of the response loss, lambda_3; 0: off
    alpha: NonNegativeFloat = 0.1  # of the response loss's classification part
    beta: NonNegativeFloat = 1.0  # of its regression part
    adapt: Literal["1x1", "3x3", "none"] = "1x1"  # f_adapt (eq. 5)
    reduction: Literal["instance", "pixel"] = "instance"  # of the feature loss (eq. 4); pixel also divides by P*P
    # pixels: instances of this side get their features at stride 16; smaller images want it smaller in proportion
    canonical_size: Annotated[float, Field(ge=1, le=100_000)] = 224.0
    scope: Literal["image", "batch"] = "image"  # pairs of the relation loss (eq. 6)
    # which instances are distilled (eqs. 10-11), or the ground truth in their place; see `gid_cuda.distill.GID`
    kinds: (
        Literal["all", "ground_truth"]
        | Annotated[list[Literal["positive", "semi-positive", "negative"]], Field(min_length=1)]
    ) = "all"
    response_cls: Literal["bce", "focal"] = "bce"  # classification part: cross-entropy, or the focal task loss
    # of the regression part; none: 0.1 for RetinaNet, 1/9 for Faster R-CNN's RPN; FCOS has GIoU
    response_smooth_l1_beta: PositiveFloat | None = None
    # of every method:
    warmup_steps: NonNegativeInt = 0  # the distillation losses grow linearly from 0 over these steps
    # of one method each:
    fitnet: FitNetConfig = FitNetConfig()
    fine_grained: FineGrainedConfig = FineGrainedConfig()
    mimicking: MimickingConfig = MimickingConfig()

    def method_options(self) -> dict[str, Any]:
        """The arguments of the method's class, without those of the detectors."""
        if self.method != "gid":
            return getattr(self, self.method).model_dump()
        elsewhere = {"method", "response_cls", "response_smooth_l1_beta", "warmup_steps"}
        return self.model_dump(exclude=elsewhere | {"fitnet", "fine_grained", "mimicking"})


class TrainConfig(Section):
    """Length, optimizer and precision of a run, and how often it logs, evaluates and saves."""

    steps: PositiveInt
    # images a step, over all processes and accumulation parts: torchrun changes neither what a step sees nor the rate
    batch_size: PositiveInt = 16
    accumulate: PositiveInt = 1  # parts that a batch is cut into, each spread over all processes
    optimizer: Literal["sgd", "adamw"] = "sgd"
    lr: PositiveFloat = 0.01  # for batch_size images, whatever the number of processes
    momentum: Fraction = 0.9
    weight_decay: NonNegativeFloat = 1e-4  # of all parameters, norms and biases too
    schedule: Literal["step", "cosine", "constant"] = "step"  # of the learning rate, after the warm-up
    milestones: list[PositiveInt] = []  # step schedule: divided by 10 after each of these steps
    warmup_steps: NonNegativeInt = 1000  # the learning rate grows linearly over these
    clip_grad_norm: PositiveFloat | None = None
    # a loss or gradient that is not finite: stop, or skip that step's update (the run stops after ten in a row)
    on_nan: Literal["stop", "skip"] = "stop"
    # of an exponential moving average of the model's weights, such as 0.999 or, over many steps, 0.9998: then the
    # average is what is evaluated, saved as the model and exported, and the run costs hardly more; none: no average
    ema_decay: Annotated[float, Field(gt=0, lt=1)] | None = None
    amp: Literal["off", "bf16", "fp16"] = "off"  # off on CPU whatever stands here
    channels_last: bool = True  # memory format of images, features and weights
    compile: bool = False  # both networks by torch.compile, whose first steps take minutes; evaluation runs without
    fused_losses: bool = True  # the task losses by fused operators; false: torchvision's own, slower
    log_every: PositiveInt = 20  # steps, whose means are logged
    eval_every: NonNegativeInt = 0  # steps; 0: at the end alone
    checkpoint_every: NonNegativeInt = 0  # steps; 0: with each evaluation and at the end

    @model_validator(mode="after")
    def _parts_are_equal(self) -> TrainConfig:
        if self.batch_size % self.accumulate:
            raise ValueError(
                f"train.batch_size {self.batch_size} cannot be cut into train.accumulate {self.accumulate} equal parts"
            )
        return self


# Of the package's detectors; the methods' classes say it by family, an adapter's detector is asked when it is built.
_METHOD_IS_FOR = {
    "fine_grained": ("detectors with anchors", ("retinanet", "faster_rcnn")),
    "mimicking": ("detectors with a region proposal network", ("faster_rcnn",)),
}
NO_SUCH_PAIR = "the paper's tables have no such pair"

_NEEDS_GROUND_TRUTH = ("fine_grained", "mimicking")


class Config(Section):
    output: HomePath  # the run's folder
    seed: Seed = 0  # the same seed on the same machine and CPU gives the same weights, bit for bit
    deterministic: bool = False  # ... and on the same GPU: slower; operators without a deterministic form are refused
    device: Literal["auto", "cpu", "cuda"] = "auto"
    data: DataConfig
    input: InputConfig = InputConfig()
    model: ModelConfig = ModelConfig()  # the detector that is trained: teacher, plain student or distilled student
    teacher: ModelConfig | None = None  # the detector that it learns from
    distill: DistillConfig | None = None  # `none` in YAML: plain training
    train: TrainConfig

    @model_validator(mode="after")
    def _own_detectors_have_their_own_response(self) -> Config:
        plain = DistillConfig()
        if self.distill is not None and self.model.detector == "own":
            for key in ("response_cls", "response_smooth_l1_beta"):
                if getattr(self.distill, key) != getattr(plain, key):
                    raise ValueError(
                        f"distill.{key} is for the package's detectors, and model.detector is own: its adapter's "
                        "response_losses decides, with model.options where it needs any; leave the key out"
                    )
        return self

    @model_validator(mode="after")
    def _method_fits_the_detector(self) -> Config:
        if self.distill is not None and self.model.detector != "own" and self.distill.method in _METHOD_IS_FOR:
            what, detectors = _METHOD_IS_FOR[self.distill.method]
            if self.model.detector not in detectors:
                raise ValueError(
                    f"distill.method {self.distill.method} is for {what} ({', '.join(detectors)}), and model.detector "
                    f"is {self.model.detector}, so {NO_SUCH_PAIR}: use method gid or fitnet"
                )
        return self

    @model_validator(mode="after")
    def _unlabeled_images_can_teach(self) -> Config:
        if self.data.unlabeled is None:
            return self
        if self.distill is None:
            raise ValueError(
                "data.unlabeled is set but distill is not, and images without labels have distillation losses alone: "
                "set data.unlabeled: none"
            )
        if self.distill.method in _NEEDS_GROUND_TRUTH or (self.distill.method == "gid" and self.distill.kinds != "all"):
            what = "kinds" if self.distill.method == "gid" else "method"
            raise ValueError(
                f"data.unlabeled is set, but distill.{what} {getattr(self.distill, what)} looks at the ground truth, "
                "which these images have not: use method gid with kinds all, method fitnet, or set data.unlabeled: none"
            )
        if self.data.unlabeled.batch_size % self.train.accumulate:
            raise ValueError(
                f"data.unlabeled.batch_size {self.data.unlabeled.batch_size} cannot be cut into train.accumulate "
                f"{self.train.accumulate} equal parts"
            )
        return self

    @model_validator(mode="after")
    def _distillation_needs_both(self) -> Config:
        if self.distill is not None and self.teacher is None:
            raise ValueError(
                "distill is set but teacher is not: name the teacher's backbone and weights, or set distill: none"
            )
        if self.distill is None or self.teacher is None:
            return self
        if self.teacher.weights is None:
            raise ValueError("teacher.weights is missing: a teacher that is not trained has nothing to teach")
        if "own" in (self.teacher.detector, self.model.detector):  # then a look at their outputs decides, at the start
            return self
        if self.teacher.anchor_sizes != self.model.anchor_sizes:
            raise ValueError(
                f"teacher.anchor_sizes is {self.teacher.anchor_sizes} and model.anchor_sizes is "
                f"{self.model.anchor_sizes}: their boxes must correspond one to one, so both must be the same"
            )
        if self.teacher.detector != self.model.detector:
            raise ValueError(
                f"teacher.detector is {self.teacher.detector} and model.detector is {self.model.detector}: "
                "their boxes must correspond one to one, so both must be the same kind"
            )
        if self.teacher.variant != self.model.variant:
            raise ValueError(
                f"teacher.variant is {self.teacher.variant} and model.variant is {self.model.variant}: their boxes "
                f"must correspond one to one, so both must be the same: set model.variant={self.teacher.variant}"
            )
        return self


def load_config(path: str | Path, overrides: Sequence[str] = ()) -> Config:
    """The checked config of a YAML file.

    `base: other.yaml` (relative to the file) gives what the file leaves out: sections are merged key by key, lists and
    values replaced. `overrides` are `key.path=value`, the value read as YAML, applied in order; `none` or `null`
    switches a section off (`distill=none`: plain training).

    Raises UserError: a sentence for each mistake, with file, key path, what it has and what was expected.
    """
    raw, origins = config_file.read_config_file(Path(path))
    for override in overrides:
        config_file.apply_override(raw, override, origins)
    return config_from_dict(raw, name=str(path), origins=origins)


def config_from_dict(raw: dict[str, Any], *, name: str, origins: config_file.Origins | None = None) -> Config:
    """A plain dict (parsed YAML, or `config_to_dict`'s result) -> checked config; `name` stands for it in errors."""
    check_plain(raw, name)
    config_file.none_to_null(raw, Config)
    try:  # by way of JSON, the one strict mode of pydantic in which a list is a tuple and text is a path
        return Config.model_validate_json(json.dumps(raw), strict=True)
    except ValidationError as error:
        raise UserError(config_file.explain(error, raw, origins or {}, Config, name)) from None


def config_to_dict(config: Config) -> dict[str, Any]:
    """Plain values alone, every default written out: what is stored beside a run and in its checkpoints."""
    return config.model_dump(mode="json")
