"""A teacher and a student of one class out of the data set's four: heads, and losses on images without that class."""

from __future__ import annotations

from pathlib import Path

import torch
from engine_helpers import distilled_config, plain_config

from gid_cuda.config import config_to_dict
from gid_cuda.data import build_dataset
from gid_cuda.data.loaders import Batch
from gid_cuda.engine.checkpoint import save_checkpoint
from gid_cuda.engine.setup import build_run
from gid_cuda.engine.trainer import compute_losses, to_device

RING = "data.classes=[ring]"


def test_teacher_and_student_of_one_class(data: Path, tmp_path: Path) -> None:
    plain = plain_config(data, tmp_path, RING, "model.fpn_channels=24")
    made = build_run(plain, ["ring"]).student
    weights = tmp_path / "teacher.pt"
    content = {"model": made.state_dict(), "classes": ["ring"], "config": config_to_dict(plain)}
    save_checkpoint(weights, {**content, "step": 1, "metrics": None})

    config = distilled_config(data, tmp_path, weights, RING)
    dataset = build_dataset(config.data, "train")
    run = build_run(config, dataset.classes)
    background = next(i for i in range(len(dataset)) if not len(dataset[i].labels))
    batch = Batch()
    batch.add(dataset[background])
    batch.add(dataset[background])
    images, targets = to_device(config, run, batch)
    assert run.teacher is not None
    assert run.student(images).logits.shape[-1] == run.teacher(images).logits.shape[-1] == 1
    losses, _ = compute_losses(config, run, images, targets)
    sum(losses.values(), torch.zeros(())).backward()
    assert all(loss.isfinite() for loss in losses.values()) and losses["loss_classification"] > 0
    gradients = [p.grad for p in run.parameters if p.grad is not None]
    assert gradients and all(gradient.isfinite().all() for gradient in gradients)
