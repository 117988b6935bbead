"""One step of four images, by one process or shared out over two: what the tests compare."""

from __future__ import annotations

import os
from collections.abc import Callable, Sequence
from datetime import timedelta
from pathlib import Path
from types import SimpleNamespace
from typing import Any

import torch
from engine_helpers import distilled_config, plain_config
from launched import of_torchrun
from torch import Tensor, nn
from torchvision.models.detection.image_list import ImageList
from zygote import PATIENCE

from gid_cuda.config import Config
from gid_cuda.distill.selection import keep_instances
from gid_cuda.engine import distributed, trainer
from gid_cuda.engine.batches import to_device, train_loader
from gid_cuda.engine.evaluation import detect, evaluate
from gid_cuda.engine.objective import Objective
from gid_cuda.engine.run import Run
from gid_cuda.engine.setup import build_data, build_run

# Of sizes 96x64 and 72x48, which padding makes one: what is padded more has more background.
COMMON = ["train.batch_size=4", "model.norm=frozen", "data.hflip=0.5", "device=cpu"]
FCOS = ["model.detector=fcos", "model.fpn_channels=32", "model.anchor_sizes=[32,64,128,256,512]"]
CASES: dict[str, list[str]] = {
    "retinanet": ["distill=none"],
    "retinanet_torchvision": ["distill=none", "train.fused_losses=false"],
    "fcos": ["distill=none", *FCOS],
    "fcos_torchvision": ["distill=none", *FCOS, "train.fused_losses=false"],
    # With samplers that take all there is: nothing is left to chance, and the images have unlike numbers of samples.
    "faster_rcnn": ["distill=none", "model.detector=faster_rcnn", "model.head_depth=4"],
    "gid": [],
    "gid_accumulated": ["train.accumulate=2"],
    "fitnet": ["distill.method=fitnet"],
    "fine_grained": ["distill.method=fine_grained"],
}
EMPTY = ["retinanet", "fcos", "fcos_torchvision", "faster_rcnn", "gid", "fine_grained"]
UNLABELLED = ["retinanet", "retinanet_torchvision", "fcos", "fcos_torchvision", "gid"]
Result = dict[str, Any]
Way = str


def config_of(case: str, data: Path, teacher: Path, folder: Path) -> Config:
    own = CASES[case]
    if "distill=none" in own:
        return plain_config(data, folder / case, *COMMON, *own[1:])
    return distilled_config(data, folder / case, teacher, *COMMON, *own)


def one_step(
    case: str, data: Path, teacher: Path, folder: Path, *, empty: Sequence[int] = (), way: Way = ""
) -> Result:
    """Gradients after the backward of the first step, logged values, sizes of the images.

    empty: places in the batch whose images have no instance, and no ground truth either. way: see `rounding`."""
    config = config_of(case, data, teacher, folder)
    train_set = build_data(config.data).train
    run = build_run(config, train_set.classes)
    if config.model.detector == "faster_rcnn":
        for sampler in (run.student.rpn.fg_bg_sampler, run.student.roi_heads.fg_bg_sampler):
            sampler.batch_size_per_image = 10**6
    batch = next(iter(train_loader(config, run, train_set)))
    places = _places(config)
    parts, sizes, terms, n = batch.cut(config.train.accumulate), [], [], 0
    for number, part in enumerate(parts):
        none = [place in empty for place in places[n : n + len(part.images)]]
        n += len(none)
        with distributed.accumulating(run.objective, last=number == len(parts) - 1):
            images, targets = to_device(config, run, part, number)
            targets = [_nothing(target) if no else target for target, no in zip(targets, none, strict=True)]
            images, targets, none = _presented(way, images, targets, none)
            _without_instances(run, none)
            losses, others = trainer.compute_losses(config, run, images, targets)
            total = torch.stack(list(losses.values())).sum()
            (total / len(parts)).backward()
        terms.append({**losses, "loss": total, **others})
        sizes += images.image_sizes
    gradients = [p.grad.clone() if p.grad is not None else None for p in run.parameters]
    values = trainer.update(config, run, terms, [part.image_ids for part in parts])
    return {"gradients": gradients, "values": values, "sizes": dict(zip(places, sizes, strict=True))}


def one_step_of_unlabelled(case: str, data: Path, teacher: Path, folder: Path, *, way: Way = "") -> Result:
    """As `one_step`, but the images 1, 2 and 3 are unlabelled, so that the second process has no labelled one."""
    config = config_of(case, data, teacher, folder)
    train_set = build_data(config.data).train
    run = build_run(config, train_set.classes)
    batch = next(iter(train_loader(config, run, train_set)))
    images, targets = to_device(config, run, batch)
    known = [target if place == 0 else None for place, target in zip(_places(config), targets, strict=True)]
    images, known, _ = _presented(way, images, known, [False] * len(known))
    losses, _ = trainer.compute_losses(config, run, images, known)
    sum(losses.values()).backward()
    return {"gradients": [p.grad.clone() for p in run.parameters]}


def evaluation(data: Path, teacher: Path, folder: Path) -> Result:
    """Detections of all, and of three validation images; the metrics of all."""
    config = plain_config(data, folder, "model.fpn_channels=24", f"model.weights={teacher}", "model.score_thresh=0")
    val_set = build_data(config.data).val
    student = build_run(config, val_set.classes).student
    how: dict[str, Any] = {"workers": 0, "device": torch.device("cpu")}
    found = [detect(student, val_set, batch_size=size, **how) for size in (1, 2, 3)]
    some = detect(student, val_set, batch_size=1, indices=[3, 0, 2], **how)
    metrics = evaluate(student, val_set, batch_size=2, **how)
    return {"found": [vars(one) for one in found], "some": vars(some), "metrics": metrics}


class PartlyUsed(nn.Module):
    """As much of a detector as `Objective` sees, with one parameter in use, one in use by process 0, and one never."""

    def __init__(self) -> None:
        super().__init__()
        self.always, self.sometimes, self.never = (nn.Parameter(torch.ones(3)) for _ in range(3))

    def forward(self, images: Tensor, targets: None) -> Any:
        loss = (self.always * images).sum()
        if distributed.is_main():
            loss = loss + (self.sometimes * images).sum()
        return SimpleNamespace(losses={"loss": loss})


def parts_in_use() -> Result:
    module = distributed.wrap(Objective(PartlyUsed(), None))
    for _ in range(2):  # DistributedDataParallel complains in the second step of what was missing in the first
        module.zero_grad()
        losses, *_ = module(torch.full((3,), 2.0), None, None)
        losses["loss"].backward()
    return {name.rpartition(".")[2]: p.grad for name, p in module.named_parameters()}


def running_statistics() -> Result:
    """Of live batch norm that has seen ones on process 0 and threes on process 1."""
    norm = nn.BatchNorm1d(2, momentum=1.0)
    norm(torch.full((4, 2), 1.0 + 2 * distributed.rank()))
    distributed.average_over_processes(distributed.running_statistics(nn.Sequential(norm)))
    return {"mean": norm.running_mean, "steps": norm.num_batches_tracked}


def averaged_weights(data: Path, folder: Path) -> Result:
    """EMA over two steps; the processes' running statistics are 0 and 1, then 4 and 6."""
    config = plain_config(data, folder, "train.ema_decay=0.999", "model.norm=live", "train.batch_size=4")
    run = build_run(config, build_data(config.data).train.classes)
    statistics = distributed.running_statistics(run.student)
    for own in (distributed.rank(), 4 + 2 * distributed.rank()):
        for buffer in statistics:
            buffer.fill_(own)
        run.average.update()
    run.average_running_statistics()
    with run.averaged():
        within = [buffer.unique().tolist() for buffer in statistics]
    return {"average": within, "student": [buffer.unique().tolist() for buffer in statistics]}


WAYS = {"turned": 1, "other kernels": 2, "next number": 3}  # by how many places a part's images are turned


def _presented(
    way: Way, images: ImageList, targets: list[Any], none: list[bool]
) -> tuple[ImageList, list[Any], list[bool]]:
    order = [(place + WAYS.get(way, 0)) % len(none) for place in range(len(none))]
    sizes, targets, none = ([values[place] for place in order] for values in (images.image_sizes, targets, none))
    tensors = images.tensors[order]
    if way == "next number":
        tensors = torch.nextafter(tensors, 2 * tensors)  # zeros, of the padding too, stay
    return ImageList(tensors, sizes), targets, none


def rounding(step: Callable[[Way], Result]) -> list[float]:
    """How far, at most, each gradient of one process moves where nothing changes but the way it is rounded.

    The same step with a part's images in another order, so that all sums are; by other convolution kernels; and with
    each number of the images the next one that float32 has, as another rounding of their normalisation would give it.
    """
    exact, most = step("")["gradients"], None
    for way in WAYS:
        torch.backends.mkldnn.enabled = way != "other kernels"
        try:
            found = step(way)["gradients"]
        finally:
            torch.backends.mkldnn.enabled = True
        away = [float((a - b).abs().max()) for a, b in zip(found, exact, strict=True)]
        most = away if most is None else [max(pair) for pair in zip(most, away, strict=True)]
    return most or []


def roundings(data: Path, teacher: Path, folder: Path) -> dict[str, list[float]]:
    where = (data, teacher, folder)
    found = {case: rounding(lambda way, case=case: one_step(case, *where, way=way)) for case in CASES}
    for case in EMPTY:
        found[f"{case}, second half empty"] = rounding(
            lambda way, case=case: one_step(case, *where, empty=(2, 3), way=way)
        )
    for case in UNLABELLED:
        found[f"{case}, unlabelled"] = rounding(
            lambda way, case=case: one_step_of_unlabelled(case, *where, way=way)
        )
    return found


def _places(config: Config) -> list[int]:
    from gid_cuda.data.sampler import positions

    return positions(config.train.batch_size, config.train.accumulate, distributed.rank(), distributed.process_count())


def _nothing(target: dict[str, Tensor]) -> dict[str, Tensor]:
    return {key: value[:0] for key, value in target.items()}


def _without_instances(run: Run, none: list[bool]) -> None:
    if not hasattr(run.criterion, "select"):
        return
    select = getattr(run.criterion, "selects", run.criterion.select)
    run.criterion.selects = select

    def some(*outputs: Any) -> Any:
        found = select(*outputs)
        return keep_instances(found, found.valid & ~torch.tensor(none)[:, None])

    run.criterion.select = some


def everything(data: Path, teacher: Path, folder: Path) -> dict[str, Result]:
    results = {case: one_step(case, data, teacher, folder) for case in CASES}
    for case in EMPTY:
        results[f"{case}, second half empty"] = one_step(case, data, teacher, folder, empty=(2, 3))
    for case in UNLABELLED:
        results[f"{case}, unlabelled"] = one_step_of_unlabelled(case, data, teacher, folder)
    results["evaluation"] = evaluation(data, teacher, folder)
    results["averaged weights"] = averaged_weights(data, folder)
    results["parts in use"], results["running statistics"] = parts_in_use(), running_statistics()
    return results


def process(rank: int, port: int, data: Path, teacher: Path, folder: Path) -> None:
    """For torch.multiprocessing.spawn: what torchrun would set, then everything."""
    torch.set_num_threads(1)
    os.environ.update(of_torchrun(rank, 2, port))
    distributed._LONGEST_WAIT = timedelta(seconds=PATIENCE)  # for each other: what hangs shall fail
    with distributed.processes():
        torch.save(everything(data, teacher, folder), folder / f"{rank}.pt")
