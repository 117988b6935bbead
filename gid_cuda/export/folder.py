"""The folder that an export leaves: whole and checked, or not there at all."""

from __future__ import annotations

import shutil
from dataclasses import dataclass
from pathlib import Path

import torch

from gid_cuda.detectors.faster_rcnn import FasterRCNN
from gid_cuda.detectors.fcos import FCOS
from gid_cuda.detectors.own import Builder
from gid_cuda.detectors.retinanet import RetinaNet
from gid_cuda.errors import UserError
from gid_cuda.export import cost, detect
from gid_cuda.export.card import model_card
from gid_cuda.export.check import check_onnx
from gid_cuda.export.network import check_packages, export_onnx, why_not
from gid_cuda.export.student import Model, find_checkpoint, load_student, load_teacher, plain_state_dict
from gid_cuda.files import write_text

WEIGHTS, ONNX, CODE, CARD = "student.pth", "student.onnx", "detect.py", "README.md"


@dataclass
class Export:
    """What was written (`files`), the table of teacher and student, and what is to be told of either, a line each."""

    files: list[Path]
    table: str
    notes: list[str]


def export(
    source: Path,
    output: Path,
    *,
    onnx: bool = True,
    overwrite: bool = False,
    adapter: Builder | None = None,
    device: torch.device,
    min_run_time: float = 1.0,
) -> Export:
    """From a run's folder or a checkpoint: the state dict, ONNX with the code that runs it, and the model card.

    onnx: False leaves it out; a detector that has none is exported without. overwrite: replace a former export.
    adapter: builds a user's own detector. device: where latency is measured, min_run_time seconds a model.
    Raises UserError, and leaves no folder, for any mistake in these and where ONNX does not detect what `predict` does.
    """
    source, output = find_checkpoint(source), output.resolve()
    _check_output(output, overwrite)
    student = load_student(source, adapter)
    no_onnx = why_not(student.detector) if onnx else "it was left out at the export"
    if no_onnx is None:
        check_packages()
    teacher = load_teacher(student, adapter)
    part = output.with_name(f".{output.name}.part")
    shutil.rmtree(part, ignore_errors=True)
    part.mkdir(parents=True)
    try:
        files, told = [WEIGHTS], None
        torch.save(plain_state_dict(student.detector), part / WEIGHTS)
        if no_onnx is None:
            told, networks = _write_onnx(student, part)
            files += [*networks, CODE]
        table = cost.table(cost.rows(student, teacher, device, min_run_time=min_run_time))
        notes = _notes(student, teacher, device)
        card = model_card(
            student, weights=WEIGHTS, onnx=ONNX if told else None, no_onnx=no_onnx, check=told, table=table, notes=notes
        )
        write_text(part / CARD, card)
        _replace(output, part)
    except BaseException:
        shutil.rmtree(part, ignore_errors=True)
        raise
    if onnx and no_onnx is not None:
        notes.append(no_onnx)
    if told is not None:
        notes.append(f"ONNX: {told}")
    return Export([output / name for name in [*files, CARD]], table, notes)


def _check_output(output: Path, overwrite: bool) -> None:
    if output.is_dir() and any(output.iterdir()):
        # __pycache__: of whoever has imported CODE
        ours = (WEIGHTS, ONNX, detect.boxes_file(ONNX), CODE, CARD, "__pycache__")
        foreign = sorted(path.name for path in output.iterdir() if path.name not in ours)
        if foreign:
            raise UserError(f"--output {output} holds {foreign[0]}, which no export wrote: name another folder")
        if not overwrite:
            raise UserError(
                f"--output {output} already holds an export: name another folder, or replace it with --overwrite"
            )
    elif output.exists() and not output.is_dir():
        raise UserError(f"--output {output} is a file, expected a folder")


def _write_onnx(student: Model, folder: Path) -> tuple[str, list[str]]:
    """What was compared with `predict`, in words, and the files' names."""
    assert isinstance(student.detector, RetinaNet | FCOS | FasterRCNN)
    written = export_onnx(student, folder / ONNX)
    shutil.copyfile(detect.__file__, folder / CODE)
    return str(check_onnx(student.detector, folder / ONNX)), [path.name for path in written]


def _replace(output: Path, part: Path) -> None:
    if output.exists():
        shutil.rmtree(output)
    part.rename(output)


def _notes(student: Model, teacher: Model | None, device: torch.device) -> list[str]:
    height, width = cost.input_size(student.config.input)
    where = torch.cuda.get_device_name(device) if device.type == "cuda" else f"CPU, {torch.get_num_threads()} threads"
    notes = [
        f"one image of {height} x {width} pixels, float32; FLOPs of convolutions and matrix products, a multiply-add "
        f"counts as two; latency: median of predict (resizing, network, removal of duplicates) on {where}"
    ]
    if student.ap is None:
        notes.append(f"{student.path} has no evaluation of these very weights, so the student's AP is not known")
    if teacher is not None and not teacher.trained:
        named = student.config.teacher.weights if student.config.teacher else None
        notes.append(f"the teacher's checkpoint {named} is not at hand: measured with untrained weights, AP not known")
    elif teacher is not None and _validation(teacher) != _validation(student):
        notes.append("the teacher's AP is of its own run's validation data, which that config names otherwise")
    return notes


def _validation(model: Model) -> tuple[object, ...]:
    data = model.config.data
    return data.format, data.root, data.val, data.generated
