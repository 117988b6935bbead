"""Where the sets of one part of a config's data lie, with what `data` itself says filled in."""

from __future__ import annotations

from dataclasses import dataclass
from pathlib import Path
from typing import Literal

from gid_cuda.config import DataConfig, SplitConfig
from gid_cuda.data.generated import generate
from gid_cuda.errors import UserError

Part = Literal["train", "val"]


@dataclass(frozen=True)
class Source:
    """One set of images: a `SplitConfig` with nothing left to look up. `key` is where it stands in the config."""

    key: str  # data.train, or data.train[1] in a list
    format: Literal["coco", "voc"]
    root: Path
    annotations: Path | None = None
    images: Path | None = None
    split: str | None = None
    one_based: bool = False

    def need(self, name: Literal["annotations", "images"]) -> Path:
        """A key of COCO layout as a path. UserError where it is not set."""
        value = self.annotations if name == "annotations" else self.images
        if value is None:
            raise UserError(f"{self.key}.{name} is not set: format coco needs it, relative to data.root")
        return self.root / value


def sources(config: DataConfig, part: Part) -> list[Source]:
    """The sets of a part, in the config's order. The generated one is written first, where it is not there yet."""
    splits = getattr(config, part)
    _check_one_based(config)
    if config.format == "generated":
        folder = generate(config.generated, config.root)
        return [Source(f"data.{part}", "coco", folder, Path(f"{part}.json"), Path(part))]
    if isinstance(splits, SplitConfig):
        return [_source(config, config.format, splits, f"data.{part}")]
    return [_source(config, config.format, split, f"data.{part}[{i}]") for i, split in enumerate(splits)]


def _source(config: DataConfig, usual: Literal["coco", "voc"], split: SplitConfig, key: str) -> Source:
    format = split.format or usual
    unread = {"coco": {"split": split.split, "one_based": split.one_based}, "voc": {"annotations": split.annotations}}
    for name, value in unread[format].items():
        if value:
            raise UserError(
                f"{key}.{name} is {value}, which format {format} does not read: leave it out (where a base config has "
                f"it, set it to null), or set {key}.format"
            )
    return Source(
        key,
        format,
        config.root if split.root is None else config.root / split.root,
        split.annotations,
        split.images,
        split.split,
        config.one_based if split.one_based is None else split.one_based,
    )


def _check_one_based(config: DataConfig) -> None:
    """UserError where it is set and no set could follow it: boxes would be a pixel off from what was meant."""
    splits = [split for part in (config.train, config.val) for split in (part if isinstance(part, list) else [part])]
    if config.one_based and not any((split.format or config.format) == "voc" for split in splits):
        raise UserError(
            f"data.one_based is true, but only format voc reads it, and none of the sets is of it (data.format is "
            f"{config.format}): set data.one_based=false"
        )
