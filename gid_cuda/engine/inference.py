"""A detector over image files: pictures with boxes, and one file of COCO results."""

from __future__ import annotations

import json
from collections.abc import Iterator, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import torch
from torch import Tensor
from tqdm import tqdm

from gid_cuda.data.images import SUFFIXES, UnreadableImage, read_image
from gid_cuda.detectors.outputs import Detector
from gid_cuda.engine.evaluation import coco_results
from gid_cuda.errors import UserError
from gid_cuda.viz.drawing import detection_boxes, draw_boxes, to_picture

RESULTS = "results.json"


@dataclass
class Predictions:
    """What `predict_files` wrote: pictures, the results file, how many boxes; and the files that could not be read."""

    pictures: list[Path]
    results: Path
    detections: int
    unreadable: list[str]


def find_images(places: Sequence[Path]) -> list[Path]:
    """The image files in folders (by suffix, sorted by name; their own folders are left out), and files as they are."""
    files: list[Path] = []
    for place in places:
        if place.is_file():
            files.append(place)
        elif place.is_dir():
            found = sorted(p for p in place.iterdir() if p.suffix.lower() in SUFFIXES and p.is_file())
            if not found:
                raise UserError(
                    f"no images in {place}: looked for {', '.join(SUFFIXES)}; folders inside it are not searched"
                )
            files += found
        else:
            raise UserError(f"{place} does not exist: --images takes a folder or image files")
    return files


@torch.no_grad()
def predict_files(
    detector: Detector,
    classes: Sequence[str],
    files: Sequence[Path],
    output: Path,
    *,
    score_threshold: float = 0.3,
    batch_size: int = 4,
    device: torch.device,
    ids: tuple[Sequence[int], Sequence[int]] | None = None,
) -> Predictions:
    """Writes one picture a file into `output`, and all detections with score >= score_threshold to results.json there.

    results.json is a COCO results file: a list of {image_id, file_name, category_id, category_name, bbox, score}, bbox
    as x, y, width, height in pixels. A checkpoint knows no ids, so images are numbered from 1 in the order of `files`
    and categories from 1 in the order of `classes`; ids = (one an image, one a class), e.g. from `coco_ids`, replaces
    both. Files that cannot be decoded are left out (and keep their number). Raises UserError where none can be, or
    where a picture would overwrite an image.
    """
    if any(file.resolve().parent == output.resolve() for file in files):
        raise UserError(f"{output} holds the images themselves: give another folder with --output")
    image_ids, category_ids = ids or (range(1, len(files) + 1), range(1, len(classes) + 1))
    make_folder(output)
    detector.to(device).eval()
    done: list[Path] = []
    results: list[dict[str, Any]] = []
    unreadable: list[str] = []
    names = _picture_names(files)
    with tqdm(total=len(files), unit="image", disable=None, leave=False) as bar:
        for start in range(0, len(files), batch_size):
            chunk = range(start, min(start + batch_size, len(files)))
            readable = list(_readable(files, chunk, unreadable))
            found = detector.predict([image.to(device).float() / 255 for _, image in readable]) if readable else []
            for (index, image), prediction in zip(readable, found, strict=True):
                prediction = {key: value.cpu() for key, value in prediction.items()}
                kept = prediction["scores"] >= score_threshold
                prediction = {key: value[kept] for key, value in prediction.items()}
                boxes = detection_boxes(prediction["boxes"], prediction["labels"], prediction["scores"], classes)
                draw_boxes(to_picture(image), boxes).save(output / names[index], quality=90)
                done.append(output / names[index])
                entries = coco_results([prediction], [image_ids[index]], category_ids)
                labels = prediction["labels"].tolist()
                results += [_entry(e, files[index], classes[i]) for e, i in zip(entries, labels, strict=True)]
            bar.update(len(chunk))
    if not done:
        raise UserError(f"none of the {len(files)} images could be read; the first: {unreadable[0]}")
    path = output / RESULTS
    lines = ",\n".join(json.dumps(entry, ensure_ascii=False) for entry in results)
    path.write_text(f"[\n{lines}\n]\n" if results else "[]\n", encoding="utf-8")
    return Predictions(done, path, len(results), unreadable)


def coco_ids(annotations: Path, files: Sequence[Path], classes: Sequence[str]) -> tuple[list[int], list[int]]:
    """The ids that a COCO annotation file gives to these images (by file name) and classes (by name)."""
    try:
        content = json.loads(annotations.read_text(encoding="utf-8"))
        images = {Path(image["file_name"]).name: int(image["id"]) for image in content["images"]}
        categories = {category["name"]: int(category["id"]) for category in content["categories"]}
    except OSError as error:
        raise UserError(f"annotation file {annotations} cannot be read: {error.strerror}") from None
    except (ValueError, KeyError, TypeError, OverflowError, RecursionError):
        raise UserError(f"{annotations} is no COCO annotation file: it has no images and categories with ids") from None
    unlisted = [file.name for file in files if file.name not in images]
    if unlisted:
        raise UserError(
            f"{annotations} does not list {unlisted[0]} ({len(unlisted)} of {len(files)} are missing): give --images "
            "only what it lists, as files or as a folder of its own, or leave --annotations out"
        )
    unknown = [name for name in classes if name not in categories]
    if unknown:
        raise UserError(f"{annotations} has no category {unknown[0]!r}, but the detector has: {', '.join(classes)}")
    return [images[file.name] for file in files], [categories[name] for name in classes]


def _readable(files: Sequence[Path], indices: range, unreadable: list[str]) -> Iterator[tuple[int, Tensor]]:
    for index in indices:
        try:
            yield index, read_image(files[index])
        except UnreadableImage as error:
            unreadable.append(str(error))


def _entry(result: dict[str, Any], file: Path, class_name: str) -> dict[str, Any]:
    return {
        "image_id": result["image_id"],
        "file_name": file.name,
        "category_id": result["category_id"],
        "category_name": class_name,
        "bbox": [round(value, 2) for value in result["bbox"]],
        "score": round(result["score"], 5),
    }


def _picture_names(files: Sequence[Path]) -> list[str]:
    """`<stem>.jpg` for each, numbered where several files have the same stem."""
    names: list[str] = []
    taken: set[str] = set()
    for file in files:
        name, number = f"{file.stem}.jpg", 1
        while name.lower() in taken:  # some file systems ignore case
            number += 1
            name = f"{file.stem}_{number}.jpg"
        taken.add(name.lower())
        names.append(name)
    return names


def make_folder(path: Path) -> None:
    """The folder and those it lies in; UserError where the disk refuses."""
    try:
        path.mkdir(parents=True, exist_ok=True)
    except FileExistsError:
        raise UserError(f"{path} is a file, expected a folder: give another with --output") from None
    except OSError as error:
        raise UserError(f"the folder {path} cannot be made: {error.strerror}; give another with --output") from None
