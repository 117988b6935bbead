"""Batches in which some images have no labels: these are distilled, and take no part in anything else."""

from __future__ import annotations

import json
from pathlib import Path
from typing import Any

import pytest
import torch
from engine_helpers import CONFIGS, distilled_config, plain_config, tiny_overrides

from gid_cuda.config import load_config
from gid_cuda.data import build_loader
from gid_cuda.engine import trainer
from gid_cuda.engine.batches import to_device
from gid_cuda.engine.checkpoint import load_checkpoint
from gid_cuda.engine.setup import build_data, build_run
from gid_cuda.engine.trainer import train
from gid_cuda.errors import UserError

MIXED = ["data.labeled_fraction=0.5", "data.unlabeled.batch_size=2", "model.norm=frozen"]


def test_labelled_images_alone_have_task_losses(data: Path, teacher: Path, tmp_path: Path) -> None:
    """With frozen norms an image's task loss does not depend on its neighbours, whose distillation losses change."""
    config = distilled_config(data, tmp_path / "run", teacher, *MIXED)
    sets = build_data(config.data)
    assert sets.unlabeled is not None and len(sets.train) == len(sets.unlabeled) == 4
    run = build_run(config, sets.train.classes)
    known = next(iter(build_loader(sets.train, batch_size=2, workers=0, train=True)))
    more = next(iter(build_loader(sets.unlabeled, batch_size=2, workers=0, train=True)))

    def losses(batch: Any) -> dict[str, torch.Tensor]:
        torch.manual_seed(0)  # of the transform's draw of a size
        images, targets = to_device(config, run, batch)
        assert [target is None for target in targets] == [False] * 2 + [True] * batch.unlabeled
        found, others = trainer.compute_losses(config, run, images, targets)
        assert others["instances"] > 0
        return found

    alone, mixed = losses(known), losses(known.with_unlabeled(more))
    for name in ("loss_classification", "loss_bbox_regression"):
        torch.testing.assert_close(mixed[name], alone[name], rtol=1e-4, atol=1e-6)
    assert mixed["loss_feature"] != alone["loss_feature"]
    # Of an unlabelled image, distillation alone reaches the heads.
    gradient = torch.autograd.grad(mixed["loss_classification"], run.parameters, allow_unused=True, retain_graph=True)
    expected = torch.autograd.grad(alone["loss_classification"], run.parameters, allow_unused=True)
    for ours, theirs in zip(gradient, expected, strict=True):
        if theirs is not None:
            torch.testing.assert_close(ours, theirs, rtol=1e-3, atol=1e-6)


@pytest.mark.parametrize("method", ["gid", "fitnet"])
def test_a_run_of_both_goes_on_exactly(method: str, data: Path, teacher: Path, tmp_path: Path, capsys: Any) -> None:
    def run(name: str, *more: str, resume: bool = False) -> dict[str, torch.Tensor]:
        options = [*MIXED, f"distill.method={method}", "train.accumulate=2", "train.checkpoint_every=2", *more]
        train(distilled_config(data, tmp_path / name, teacher, *options), resume=resume)
        return load_checkpoint(tmp_path / name / "last.pt")["model"]

    whole = run("whole", "train.steps=4", "train.schedule=constant")
    said = capsys.readouterr().out
    assert "data: 4 images without labels, 2 of them in each step besides 2 labelled ones" in said
    run("cut", "train.steps=2", "train.schedule=constant")
    continued = run("cut", "train.steps=4", "train.schedule=constant", resume=True)
    assert all(torch.equal(whole[key], continued[key]) for key in whole)
    lines = [json.loads(line) for line in (tmp_path / "whole" / "log.jsonl").read_text().splitlines()]
    assert all(line["loss"] > 0 for line in lines if line["kind"] == "train")


@pytest.mark.parametrize(
    ("more", "sentence"),
    [
        (["data.unlabeled.batch_size=2"], "unlabeled names no images, and labeled_fraction is 1"),
        ([*MIXED, "distill=none"], "data.unlabeled is set but distill is not"),
        ([*MIXED, "distill.kinds=[positive]"], "data.unlabeled is set, but distill.kinds"),
        ([*MIXED, "distill.method=fine_grained"], "data.unlabeled is set, but distill.method fine_grained looks at"),
        ([*MIXED, "train.accumulate=2", "data.unlabeled.batch_size=3"], "batch_size 3 cannot be cut into train.accum"),
        (["data.labeled_fraction=0"], "data.labeled_fraction has the number 0, expected a number above 0"),
    ],
)
def test_configs_that_cannot_be_meant(more: list[str], sentence: str, tmp_path: Path) -> None:
    with pytest.raises(UserError) as caught:
        load_config(CONFIGS / "demo.yaml", tiny_overrides(tmp_path, tmp_path / "run", *more))
    assert sentence in str(caught.value)


def test_resume_needs_the_same_share(data: Path, teacher: Path, tmp_path: Path) -> None:
    train(distilled_config(data, tmp_path / "run", teacher, *MIXED))
    for key in ("data.unlabeled.batch_size=4", "data.labeled_fraction=0.75"):
        with pytest.raises(UserError, match=key.partition("=")[0]):
            train(distilled_config(data, tmp_path / "run", teacher, *MIXED, key), resume=True)


def test_a_part_of_the_labels_alone(data: Path, tmp_path: Path, capsys: Any) -> None:
    train(plain_config(data, tmp_path / "run", "data.labeled_fraction=0.25"))
    assert "data: 2 labelled training and 4 validation images" in capsys.readouterr().out
