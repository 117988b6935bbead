"""The images of each step: read, told of where they cannot be, and brought to the device."""

from __future__ import annotations

from collections.abc import Callable, Generator, Iterator

import torch
from torchvision.models.detection.image_list import ImageList

from gid_cuda.config import Config
from gid_cuda.data import Batch, Images, Loader, build_loader
from gid_cuda.data.sampler import window_length
from gid_cuda.detectors.outputs import Target
from gid_cuda.engine import distributed
from gid_cuda.engine.draws import draws_of_step
from gid_cuda.engine.log import RunLog
from gid_cuda.engine.run import Run
from gid_cuda.engine.setup import Data


def train_loader(
    config: Config,
    run: Run,
    images: Images,
    *,
    batch_size: int | None = None,
    window: int | None = None,
    pinned: bool = True,
) -> Loader:
    """This process's part of the batches of the steps that are left.

    batch_size: other than train.batch_size. window: of `GroupedSampler`, where batches of other images join these.
    pinned: in memory that a GPU can read, where one is trained on.
    """
    batch_size = batch_size or config.train.batch_size
    window = window or window_length((len(images), batch_size))
    return build_loader(
        images,
        batch_size=batch_size,
        workers=config.data.workers,
        train=True,
        seed=config.seed,
        start_step=run.progress.step,
        hflip=config.data.hflip,
        group_window=window if config.data.group_by_aspect else 0,
        pin_memory=pinned and device_of(run).type == "cuda",
        parts=config.train.accumulate,
        rank=distributed.rank(),
        processes=distributed.process_count(),
    )


def step_batches(config: Config, run: Run, data: Data, log: RunLog) -> Generator[Batch, None, None]:
    """Labelled images, and after them unlabelled ones where the config asks for them."""
    more: Iterator[Batch] | None = None
    window = None
    if data.unlabeled is not None and config.data.unlabeled is not None:
        size = config.data.unlabeled.batch_size
        window = window_length((len(data.train), config.train.batch_size), (len(data.unlabeled), size))
        more = iter(train_loader(config, run, data.unlabeled, batch_size=size, window=window))
    for batch in train_loader(config, run, data.train, window=window):
        batch = batch if more is None else batch.with_unlabeled(next(more))
        tell_unreadable(run, log.aside, "the next image stands in for one that cannot be read", batch.unreadable)
        yield batch


def tell_unreadable(run: Run, say: Callable[[str], None], what: str, problems: list[str]) -> None:
    """In one line, and of each file once in a run."""
    new = [line for line in dict.fromkeys(f"{what}: {problem}" for problem in problems) if line not in run.told]
    if new:
        run.told.update(new)
        say(f"data: {new[0]}" + (f", and so for {len(new) - 1} more" if len(new) > 1 else ""))


def to_device(config: Config, run: Run, batch: Batch, part: int = 0) -> tuple[ImageList, list[Target | None]]:
    """uint8 images -> normalised, resized, padded ones with their targets: once a step, for student and teacher.

    part: the how manieth of the step's batch it is. The target of an unlabelled image is None. The sizes that labelled
    images are resized to are the same for any number of processes; those of unlabelled ones are drawn after them.
    """
    device = device_of(run)
    images = [image.to(device, non_blocking=True).float() / 255 for image in batch.images]
    targets = [{key: value.to(device, non_blocking=True) for key, value in t.items()} for t in batch.targets]
    labelled = len(images) - batch.unlabeled
    first = (part * distributed.process_count() + distributed.rank()) * labelled  # of the step's labelled images
    with draws_of_step(config.seed, run.progress.step, first):
        image_list, targets = run.student.transform(images, targets)
    if config.train.channels_last:
        image_list.tensors = image_list.tensors.contiguous(memory_format=torch.channels_last)
    return image_list, [*targets[:labelled], *[None] * batch.unlabeled]


def padding_share(images: ImageList) -> float:
    """Of the pixels of a batch (B, 3, H, W), the share that belongs to no image."""
    count, _, height, width = images.tensors.shape
    return 1 - sum(h * w for h, w in images.image_sizes) / (count * height * width)


def device_of(run: Run) -> torch.device:
    return run.parameters[0].device
