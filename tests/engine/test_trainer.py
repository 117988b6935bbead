"""Whole runs on tiny generated data: what they write, that they learn, go on exactly, and stop in time."""

from __future__ import annotations

import json
import multiprocessing
from pathlib import Path
from typing import Any

import pytest
import torch
import yaml
from engine_helpers import CONFIGS, TINY_TEACHER, distilled_config, plain_config, tiny_overrides
from torch import Tensor

from gid_cuda.config import Config, config_from_dict, load_config
from gid_cuda.data import Batch, build_loader
from gid_cuda.engine import trainer
from gid_cuda.engine.batches import to_device
from gid_cuda.engine.checkpoint import load_checkpoint, load_detector, save_checkpoint
from gid_cuda.engine.setup import build_data, build_run
from gid_cuda.engine.trainer import compute_losses, train
from gid_cuda.errors import UserError

GID_LOSSES = {"loss_feature", "loss_relation", "loss_response_cls", "loss_response_reg"}
GI_KINDS = {"gi_positive", "gi_semi_positive", "gi_negative", "gi_uncounted"}


def entries(folder: Path, kind: str) -> list[dict[str, Any]]:
    lines = [json.loads(line) for line in (folder / "log.jsonl").read_text().splitlines()]
    return [entry for entry in lines if entry["kind"] == kind]


def weights(path: Path) -> dict[str, Tensor]:
    return load_checkpoint(path)["model"]


def assert_equal_runs(one: Path, other: Path) -> None:
    """Weights, optimizer and criterion, bit for bit."""
    a, b = load_checkpoint(one / "last.pt"), load_checkpoint(other / "last.pt")
    for x, y in [(a["model"], b["model"]), (a["resume"]["criterion"] or {}, b["resume"]["criterion"] or {})]:
        assert x.keys() == y.keys()
        assert [key for key in x if not torch.equal(x[key], y[key])] == []
    states = [content["resume"]["optimizer"]["state"] for content in (a, b)]
    for key, values in states[0].items():
        assert all(torch.equal(value, states[1][key][name]) for name, value in values.items())
    assert torch.equal(a["resume"]["random"]["torch"], b["resume"]["random"]["torch"])
    logs = [[(e["step"], e["loss"], e["lr"]) for e in entries(folder, "train")] for folder in (one, other)]
    assert logs[0] == logs[1]


def test_a_distilled_run_leaves_its_folder(data: Path, teacher: Path, tmp_path: Path, capsys: Any) -> None:
    config = distilled_config(data, tmp_path / "run", teacher)
    result = train(config)
    folder = tmp_path / "run"
    assert {p.name for p in folder.iterdir()} == {
        "config.yaml", "log.jsonl", "run.json", "tensorboard", "last.pt", "best.pt", "metrics.json"
    }  # fmt: skip
    assert config_from_dict(yaml.safe_load((folder / "config.yaml").read_text()), name="written") == config
    assert json.loads((folder / "metrics.json").read_text()) == result
    assert result["step"] == 3 and result["parameters"] > 0 and result["seconds"] > 0
    assert set(result["per_class"]) == set(load_checkpoint(folder / "best.pt")["classes"])
    steps = entries(folder, "train")
    assert [entry["step"] for entry in steps] == [1, 2, 3]
    for entry in steps:
        assert GID_LOSSES | {"loss_classification", "loss_bbox_regression", "loss", "lr", "images_per_s"} < set(entry)
        terms = [value for name, value in entry.items() if name.startswith("loss_")]
        assert entry["loss"] == pytest.approx(sum(terms), rel=1e-5)
        assert all(entry[name] > 0 for name in GID_LOSSES - {"loss_response_cls"})
        assert sum(entry[name] for name in GI_KINDS) == pytest.approx(entry["instances"]) and entry["instances"] > 0
    assert [entry["lr"] for entry in steps] == pytest.approx([0.0005, 0.001, 0.001])
    said = capsys.readouterr().out
    for part in ("device: CPU", "8 training and 4 validation images", "model: retinanet mobilenet", "teacher: AP50",
                 "warning: this teacher is no better than chance", "step 3/3", "AP50"):  # fmt: skip
        assert part in said


def test_kinds_of_instances_in_the_log(data: Path, teacher: Path, tmp_path: Path) -> None:
    """Means over the parts of a batch; ground truth in place of the instances is positive."""
    found = {}
    for name, more in {"whole": [], "parts": ["train.accumulate=2"], "truth": ["distill.kinds=ground_truth"]}.items():
        same = ["train.steps=1", "model.norm=frozen", "input.min_size=[64]", *more]  # whatever the part of an image
        train(distilled_config(data, tmp_path / name, teacher, *same))
        (found[name],) = entries(tmp_path / name, "train")
    whole, parts, truth = found.values()
    assert sum(whole[name] for name in GI_KINDS) == pytest.approx(whole["instances"])
    assert {name: parts[name] for name in GI_KINDS} == pytest.approx({name: whole[name] for name in GI_KINDS})
    assert truth["gi_positive"] == truth["instances"] > 0
    assert all(truth[name] == 0 for name in GI_KINDS - {"gi_positive"})


def test_fused_losses_are_torchvisions(data: Path, teacher: Path, tmp_path: Path) -> None:
    """The same first step whichever computes the task losses."""
    found = {}
    for fused in ("true", "false"):
        train(distilled_config(data, tmp_path / fused, teacher, f"train.fused_losses={fused}", "train.steps=1"))
        (found[fused],) = entries(tmp_path / fused, "train")
    losses = [{key: value for key, value in entry.items() if "loss" in key} for entry in found.values()]
    assert losses[0].keys() > GID_LOSSES and losses[0] == pytest.approx(losses[1], rel=1e-4)


def test_best_holds_the_student_alone(data: Path, teacher: Path, tmp_path: Path) -> None:
    train(distilled_config(data, tmp_path / "run", teacher))
    best, last = (load_checkpoint(tmp_path / "run" / name) for name in ("best.pt", "last.pt"))
    assert "resume" not in best and last["resume"]["criterion"]
    assert not any("adapt" in key for key in best["model"])
    detector, config, classes = load_detector(tmp_path / "run" / "best.pt")
    assert classes == best["classes"] and not detector.training
    assert all(torch.equal(value, best["model"][key]) for key, value in detector.state_dict().items())
    assert config.model.fpn_channels == 16


@pytest.mark.parametrize("name", ["demo_teacher", "demo_student"])
def test_demo_configs_run(name: str, data: Path, tmp_path: Path) -> None:
    """With their own model and batch, on small images."""
    own = load_config(CONFIGS / f"{name}.yaml")
    overrides = tiny_overrides(
        data, tmp_path / "run", f"model.backbone={own.model.backbone}", f"model.fpn_channels={own.model.fpn_channels}",
        f"model.head_depth={own.model.head_depth}", "train.steps=2",
    )  # fmt: skip
    assert train(load_config(CONFIGS / f"{name}.yaml", overrides))["step"] == 2


@pytest.mark.parametrize("distilled", [False, True], ids=["plain", "distilled"])
def test_resume_is_exact(distilled: bool, data: Path, teacher: Path, tmp_path: Path, monkeypatch: Any) -> None:
    """Six steps straight equal a run that is stopped in its fifth and goes on from step 3: bit for bit."""
    more = ["train.steps=6", "train.eval_every=3", "train.optimizer=adamw", "data.workers=1"]

    def config(name: str) -> Config:
        if distilled:
            return distilled_config(data, tmp_path / name, teacher, "distill.warmup_steps=4", *more)
        return plain_config(data, tmp_path / name, *more)

    train(config("straight"))
    calls = iter(range(100))

    def stop_in_step_5(*args: Any) -> Any:
        if next(calls) == 4:
            raise KeyboardInterrupt
        return compute_losses(*args)

    monkeypatch.setattr(trainer, "compute_losses", stop_in_step_5)
    with pytest.raises(KeyboardInterrupt):
        train(config("stopped"))
    monkeypatch.undo()
    assert load_checkpoint(tmp_path / "stopped" / "last.pt")["step"] == 3
    assert [e["step"] for e in entries(tmp_path / "stopped", "train")] == [1, 2, 3, 4]
    result = train(config("stopped"), resume=True)
    assert_equal_runs(tmp_path / "straight", tmp_path / "stopped")
    straight = json.loads((tmp_path / "straight" / "metrics.json").read_text())
    assert {**result, "seconds": 0} == {**straight, "seconds": 0}


def test_loss_falls_on_one_small_batch(data: Path, teacher: Path, tmp_path: Path) -> None:
    """A distilled student sees the same two images again and again: its task losses fall, and so does the whole."""
    config = distilled_config(data, tmp_path, teacher, "train.clip_grad_norm=1", "input.min_size=[64]")
    train_set = build_data(config.data).train
    run = build_run(config, train_set.classes)
    batch = next(iter(build_loader(train_set, batch_size=2, workers=0, train=True)))
    history = []
    for _ in range(30):
        losses, _ = compute_losses(config, run, *to_device(config, run, batch))
        history.append({name: value.item() for name, value in losses.items()})
        run.optimizer.zero_grad()
        sum(losses.values()).backward()
        run.optimizer.step()
    for name in ("loss_classification", "loss_bbox_regression"):
        assert history[-1][name] < 0.7 * history[0][name], name
    # The distillation terms go up and down while the student finds its way: five steps, not one, and no factor.
    totals = [sum(losses.values()) for losses in history]
    assert sum(totals[-5:]) < sum(totals[:5])


def test_plain_and_distilled_students_of_a_seed_start_alike(data: Path, teacher: Path, tmp_path: Path) -> None:
    runs = []
    for config in (plain_config(data, tmp_path), distilled_config(data, tmp_path, teacher)):
        runs.append(build_run(config, build_data(config.data).train.classes).student.state_dict())
    assert all(torch.equal(runs[0][key], runs[1][key]) for key in runs[0])


def test_the_teacher_is_left_alone(data: Path, teacher: Path, tmp_path: Path) -> None:
    config = distilled_config(data, tmp_path, teacher)
    train_set = build_data(config.data).train
    run = build_run(config, train_set.classes)
    assert run.teacher is not None and run.criterion is not None
    batch = next(iter(build_loader(train_set, batch_size=2, workers=0, train=True)))
    before = {key: value.clone() for key, value in run.teacher.state_dict().items()}
    losses, _ = compute_losses(config, run, *to_device(config, run, batch))
    sum(losses.values()).backward()
    run.optimizer.step()
    assert not run.teacher.training and all(p.grad is None for p in run.teacher.parameters())
    assert all(torch.equal(before[key], value) for key, value in run.teacher.state_dict().items())
    trained = {id(p) for group in run.optimizer.param_groups for p in group["params"]}
    assert {id(p) for p in run.criterion.parameters()} <= trained
    assert not {id(p) for p in run.teacher.parameters()} & trained


def test_distillation_grows_over_its_warm_up(data: Path, teacher: Path, tmp_path: Path) -> None:
    more = ["train.steps=1", "input.min_size=[64]"]
    full = distilled_config(data, tmp_path / "full", teacher, *more)
    growing = distilled_config(data, tmp_path / "growing", teacher, "distill.warmup_steps=4", *more)
    for config in (full, growing):
        train(config)
    at_once, first = (entries(tmp_path / name, "train")[0] for name in ("full", "growing"))
    assert first["loss_feature"] == pytest.approx(at_once["loss_feature"] / 4)
    assert first["loss_classification"] == at_once["loss_classification"]


def test_accumulation_equals_the_whole_batch(data: Path, tmp_path: Path) -> None:
    """The task loss is a mean over images, so with frozen batch norm the parts give the same gradient.

    Not the same bits: sums run in another order. Images of one size, so that the parts are padded alike.
    """
    first = {}
    for accumulate in (1, 2):
        config = plain_config(
            data, tmp_path / str(accumulate), "train.batch_size=4", f"train.accumulate={accumulate}", "train.steps=1",
            "model.norm=frozen", "input.min_size=[64]", "train.optimizer=sgd", "train.lr=0.1", "train.warmup_steps=0",
        )  # fmt: skip
        train(config)
        first[accumulate] = weights(tmp_path / str(accumulate) / "last.pt")
    for key, value in first[1].items():
        torch.testing.assert_close(first[2][key], value, rtol=1e-4, atol=1e-5)


@pytest.mark.parametrize("term", ["loss_classification", "loss_feature"])
def test_a_loss_that_is_not_finite_stops_the_run(
    term: str, data: Path, teacher: Path, tmp_path: Path, monkeypatch: Any
) -> None:
    seen: list[list[int]] = []
    cut = Batch.cut

    def watch(batch: Batch, count: int) -> list[Batch]:
        seen.append(batch.image_ids)
        return cut(batch, count)

    def poison(*args: Any) -> Any:
        losses, others = compute_losses(*args)
        if len(seen) == 3:
            losses[term] = losses[term] * torch.tensor(float("nan"))
        return losses, others

    monkeypatch.setattr(Batch, "cut", watch)
    monkeypatch.setattr(trainer, "compute_losses", poison)
    with pytest.raises(UserError) as caught:
        train(distilled_config(data, tmp_path / "run", teacher, "train.checkpoint_every=2", "train.steps=5"))
    ids = ", ".join(map(str, seen[2]))
    assert str(caught.value).startswith(f"{term} became nan at step 3 on the images with ids {ids};")
    content = load_checkpoint(tmp_path / "run" / "last.pt")
    assert content["step"] == 2
    assert all(value.isfinite().all() for value in content["model"].values())


def test_a_gradient_that_is_not_finite_stops_the_run(data: Path, tmp_path: Path, monkeypatch: Any) -> None:
    """A finite loss can have such a gradient: here that of a square root at zero."""

    def poison(config: Any, run: Any, *args: Any) -> Any:
        losses, others = compute_losses(config, run, *args)
        return {**losses, "loss_root": (run.parameters[0].sum() * 0).sqrt()}, others

    monkeypatch.setattr(trainer, "compute_losses", poison)
    with pytest.raises(UserError, match="the gradient is not finite at step 1 on the images with ids"):
        train(plain_config(data, tmp_path / "run"))


def test_an_error_leaves_no_loader_process(data: Path, tmp_path: Path, monkeypatch: Any) -> None:
    """Python waits for those at its end; the traceback is at hand even then, as it is here."""

    def out_of_memory(*_: Any) -> Any:
        assert len(multiprocessing.active_children()) == 1
        raise RuntimeError("out of memory")

    monkeypatch.setattr(trainer, "compute_losses", out_of_memory)
    with pytest.raises(RuntimeError, match="out of memory") as caught:
        train(plain_config(data, tmp_path / "run", "data.workers=1", "train.steps=50"))
    assert caught.tb is not None and multiprocessing.active_children() == []


def test_a_folder_with_a_run_is_not_written_over_unasked(data: Path, tmp_path: Path) -> None:
    config = plain_config(data, tmp_path / "run")
    train(config)
    with pytest.raises(UserError, match="already holds a run .*--resume.*--overwrite.*output="):
        train(config)
    (tmp_path / "run" / "notes.txt").write_text("mine")
    train(config, overwrite=True)
    assert (tmp_path / "run" / "notes.txt").read_text() == "mine"
    assert [e["step"] for e in entries(tmp_path / "run", "train")] == [1, 2, 3]
    with pytest.raises(UserError, match="exclude each other"):
        train(config, overwrite=True, resume=True)


def test_a_mistake_found_while_building_leaves_the_old_run(data: Path, tmp_path: Path) -> None:
    train(plain_config(data, tmp_path / "run"))
    with pytest.raises(UserError, match="no such file"):
        train(plain_config(data, tmp_path / "run", "model.weights=gone.pt"), overwrite=True)
    assert load_checkpoint(tmp_path / "run" / "last.pt")["step"] == 3


def test_resume_with_nothing_there_begins(data: Path, tmp_path: Path, capsys: Any) -> None:
    assert train(plain_config(data, tmp_path / "run"), resume=True)["step"] == 3
    assert "nothing to resume here: beginning anew" in capsys.readouterr().out


@pytest.mark.parametrize("gone", [[], ["metrics.json"], ["best.pt"]])
def test_a_run_whose_last_pt_is_gone_is_not_begun_anew_unasked(gone: list[str], data: Path, tmp_path: Path) -> None:
    train(plain_config(data, tmp_path / "run", "train.steps=1"))
    for name in ("last.pt", *gone):
        (tmp_path / "run" / name).unlink()
    before = {path: path.stat().st_mtime_ns for path in (tmp_path / "run").iterdir()}
    with pytest.raises(UserError, match="run holds .* but no last.pt, .*: begin anew with --overwrite, or name"):
        train(plain_config(data, tmp_path / "run", "train.steps=1"), resume=True)
    assert {path: path.stat().st_mtime_ns for path in (tmp_path / "run").iterdir()} == before


def test_resume_of_a_finished_run_and_beyond_it(data: Path, tmp_path: Path, capsys: Any) -> None:
    first = train(plain_config(data, tmp_path / "run"))
    assert train(plain_config(data, tmp_path / "run"), resume=True) == first
    assert "resumed after step 3\ntrain.steps is 3: no step is left to do\n" in capsys.readouterr().out
    assert train(plain_config(data, tmp_path / "run", "train.steps=4"), resume=True)["step"] == 4
    assert [e["step"] for e in entries(tmp_path / "run", "train")] == [1, 2, 3, 4]


def test_resume_of_a_run_of_an_older_version(data: Path, tmp_path: Path) -> None:
    """Its config lacks the keys that came later: their defaults are what it was trained with."""
    train(plain_config(data, tmp_path / "run", "train.steps=1"))
    path = tmp_path / "run" / "last.pt"
    content = load_checkpoint(path)
    for key in ("variant", "options", "score_thresh"):
        del content["config"]["model"][key]
    save_checkpoint(path, content)
    assert train(plain_config(data, tmp_path / "run", "train.steps=2"), resume=True)["step"] == 2
    with pytest.raises(UserError, match="model.variant torchvision and the config says mmdetection"):
        train(plain_config(data, tmp_path / "run", "model.variant=mmdetection"), resume=True)


@pytest.mark.parametrize(
    ("change", "told"),
    [
        ("model.fpn_channels=24", r"was trained with model\.fpn_channels 16 and the config says 24: resume needs both"),
        ("model.weights=last.pt", r"model\.weights none and the config says .*last\.pt: resume"),
        ("train.optimizer=sgd", r"train\.optimizer adamw and the config says sgd"),
        ("train.batch_size=4", r"train\.batch_size 2 and the config says 4"),
        ("data.classes=[ring, gear]", "was trained on the classes .* and the data has ring, gear: resume needs"),
    ],
)
def test_resume_under_another_config(change: str, told: str, data: Path, tmp_path: Path) -> None:
    train(plain_config(data, tmp_path / "run", "train.steps=1"))
    change = change.replace("last.pt", str(tmp_path / "run" / "last.pt"))
    with pytest.raises(UserError, match=told):
        train(plain_config(data, tmp_path / "run", change), resume=True)
    train(plain_config(data, tmp_path / "run", "train.steps=2", "train.lr=0.01", "model.score_thresh=0.2"), resume=True)


def test_a_run_begun_without_a_scaler_goes_on_with_one(data: Path, tmp_path: Path) -> None:
    """Begun on the CPU or with amp off, resumed on a GPU in fp16."""
    config = plain_config(data, tmp_path / "run", "train.steps=1")
    train(config)
    content = load_checkpoint(tmp_path / "run" / "last.pt")
    run = build_run(config, content["classes"])
    run.scaler = torch.amp.GradScaler("cpu", init_scale=8.0)
    run.restore(content)
    assert run.progress.step == 1 and run.scaler.get_scale() == 8.0
    run.scaler.scale(torch.ones(()))  # it begins to count with its first use
    run.scaler.update(4.0)
    content["resume"] = run.resume_state()
    run.scaler = torch.amp.GradScaler("cpu")
    run.restore(content)
    assert run.scaler.get_scale() == 4.0


def test_resume_without_the_teacher(data: Path, teacher: Path, tmp_path: Path) -> None:
    train(distilled_config(data, tmp_path / "run", teacher, "train.steps=1"))
    with pytest.raises(UserError, match="last.pt was trained with distill on and the config says none"):
        train(distilled_config(data, tmp_path / "run", teacher, "distill=none"), resume=True)


def test_weights_that_are_not_there(data: Path, tmp_path: Path) -> None:
    with pytest.raises(UserError, match=r"no such file: .*gone\.pt"):
        train(plain_config(data, tmp_path / "run", f"model.weights={tmp_path}/gone.pt"))
    assert not (tmp_path / "run").exists()


def test_teacher_of_other_classes(data: Path, teacher: Path, tmp_path: Path) -> None:
    with pytest.raises(UserError, match="was trained on [0-9]+ classes and the data has 2"):
        train(distilled_config(data, tmp_path / "run", teacher, "data.classes=[ring, gear]"))


def test_teacher_in_the_runs_own_folder(data: Path, teacher: Path) -> None:
    with pytest.raises(UserError, match="lies in this run's own output folder"):
        train(distilled_config(data, teacher.parent, teacher), overwrite=True)
    assert teacher.exists()


def test_overwriting_the_weights_that_it_starts_from(data: Path, tmp_path: Path) -> None:
    train(plain_config(data, tmp_path / "run", "train.steps=1"))
    best = tmp_path / "run" / "best.pt"
    with pytest.raises(UserError, match=r"model\.weights: .*best\.pt lies in this run's own output folder"):
        train(plain_config(data, tmp_path / "run", f"model.weights={best}"), overwrite=True)
    assert best.exists()


def test_adaptation_that_does_not_fit(data: Path, teacher: Path, tmp_path: Path) -> None:
    with pytest.raises(UserError, match="distill: .*adapt='none' needs equal channels"):
        train(distilled_config(data, tmp_path / "run", teacher, "distill.adapt=none"))


def test_no_gpu_here(data: Path, tmp_path: Path, monkeypatch: Any) -> None:
    monkeypatch.setattr(torch.cuda, "is_available", lambda: False)
    with pytest.raises(UserError, match="device is cuda, but torch sees no GPU"):
        train(plain_config(data, tmp_path / "run", "device=cuda"))


def test_an_image_that_cannot_be_read_is_told_once(tmp_path: Path, capsys: Any) -> None:
    """In training the next one stands in; evaluation leaves it out."""
    config = plain_config(tmp_path / "data", tmp_path / "run", "train.steps=10", "train.eval_every=5")
    parts = build_data(config.data).train, build_data(config.data).val
    for part in parts:
        part.path(1).write_bytes(b"no image")
    result = train(config)
    said = capsys.readouterr().out
    assert said.count(str(parts[0].path(1))) == 1 and "the next image stands in" in said
    assert said.count(str(parts[1].path(1))) == 1 and "left out of the evaluation" in said
    assert result["images"] == 3


def test_tiny_teacher_overrides_fit_the_fixture(teacher: Path) -> None:
    """The fixture's teacher and the overrides that describe it are written in two places."""
    config = load_checkpoint(teacher)["config"]["model"]
    for override in TINY_TEACHER:
        key, value = override.removeprefix("teacher.").split("=")
        assert str(config[key]) == value
