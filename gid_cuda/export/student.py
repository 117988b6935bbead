"""The detector to export, from a run's folder or a checkpoint; and its teacher, as far as it is at hand."""

from __future__ import annotations

from dataclasses import dataclass
from pathlib import Path
from typing import Any

from torch import Tensor

from gid_cuda.config import Config, config_from_dict
from gid_cuda.detectors.build import build_detector
from gid_cuda.detectors.outputs import Detector
from gid_cuda.detectors.own import Builder, check_adapter
from gid_cuda.engine.checkpoint import load_checkpoint, load_detector
from gid_cuda.errors import UserError


@dataclass
class Model:
    """A detector in eval mode on the CPU and what its checkpoint says of it. metrics: of these very weights, or None.

    trained: False where the weights are not at hand, and stand-ins of the same shapes were drawn.
    """

    detector: Detector
    config: Config
    classes: list[str]
    path: Path | None = None
    step: int = 0
    metrics: dict[str, Any] | None = None
    trained: bool = True

    @property
    def ap(self) -> float | None:
        """Percent."""
        return self.metrics.get("AP") if self.metrics else None


def find_checkpoint(path: Path) -> Path:
    """A checkpoint itself, or best.pt (else last.pt) of a run's folder."""
    if path.is_dir():
        for name in ("best.pt", "last.pt"):
            if (path / name).is_file():
                return path / name
        raise UserError(f"{path} holds neither best.pt nor last.pt: give the folder of a run, or a checkpoint file")
    if not path.exists():
        raise UserError(f"{path} does not exist: give the folder of a run, or a checkpoint file such as best.pt")
    return path


def load_student(path: Path, adapter: Builder | None = None) -> Model:
    """Raises UserError: no file, no checkpoint, no config inside, an own detector without its adapter, or a variant
    whose layers torchvision has not."""
    path = find_checkpoint(path)
    content = load_checkpoint(path)
    config = config_from_dict(content["config"], name=f"config inside {path}")
    check_adapter(adapter, config.model)
    if config.model.variant != "torchvision":
        raise UserError(
            f"{path} is of variant {config.model.variant}: its anchors, P6, P7 or RoIAlign are not torchvision's, "
            "where its weights would load and detect silently worse; train one of variant torchvision to export it"
        )
    detector, config, classes = load_detector(path, adapter)
    return Model(detector, config, classes, path, content.get("step", 0), _own_metrics(content))


def load_teacher(student: Model, adapter: Builder | None = None) -> Model | None:
    """The teacher that the student's config names, with stand-in weights where its checkpoint is not at hand."""
    config = student.config
    if config.teacher is None or (config.teacher.detector == "own" and adapter is None):
        return None
    path = Path(config.teacher.weights or "")
    own = adapter if config.teacher.detector == "own" else None
    if path.is_file():
        try:
            detector, its_config, classes = load_detector(path, own)
            return Model(detector, its_config, classes, path, 0, _own_metrics(load_checkpoint(path)))
        except (UserError, KeyError):
            pass  # a bare state dict, or a file that has been replaced: the table does without its AP
    untrained = config.teacher.model_copy(update={"weights": None, "backbone_weights": None})
    detector = build_detector(untrained, config.input, student.classes, adapter=own).eval()
    return Model(detector, config, student.classes, trained=False)


def plain_state_dict(detector: Detector) -> dict[str, Tensor]:
    """The detector's tensors by torchvision's names: on the CPU, each dense and row by row, sharing nothing."""
    return {key: value.detach().cpu().contiguous().clone() for key, value in detector.state_dict().items()}


def _own_metrics(content: dict[str, Any]) -> dict[str, Any] | None:
    """last.pt may be steps further than the evaluation inside it."""
    metrics = content.get("metrics")
    return metrics if metrics and metrics.get("step") == content.get("step") else None
