"""train.ema_decay: the average is what a loop by hand gives, is evaluated, saved, resumed, and changes no training."""

from __future__ import annotations

import json
import signal
from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest
import torch
from engine_helpers import distilled_config, plain_config
from test_on_nan import poison, same
from test_trainer import assert_equal_runs, entries
from torch import Tensor, nn
from torch.utils._python_dispatch import TorchDispatchMode

from gid_cuda.engine import milestones, trainer
from gid_cuda.engine.checkpoint import load_checkpoint, load_detector, save_checkpoint
from gid_cuda.engine.ema import WeightAverage, decay_after
from gid_cuda.engine.evaluation import evaluate_weights
from gid_cuda.engine.trainer import train
from gid_cuda.errors import Stopped, UserError

pytestmark = pytest.mark.usefixtures("one_thread")
# Undisturbed: six steps, of which the second is left out; evaluated twice; live batch norm.
MORE = [
    "train.ema_decay=0.3", "train.steps=6", "train.eval_every=3", "train.checkpoint_every=1", "train.on_nan=skip",
    "model.norm=live", "model.score_thresh=0", "train.schedule=constant", "train.lr=0.01",
]  # fmt: skip


class Odd(nn.Module):
    """What a user's own detector may hold: shared and frozen weights, infinities, integers."""

    def __init__(self) -> None:
        super().__init__()
        self.norm, self.one = nn.BatchNorm1d(3), nn.Linear(3, 3)
        self.other = self.one
        self.frozen = nn.Parameter(torch.ones(3), requires_grad=False)
        self.mask: Tensor
        self.register_buffer("mask", torch.tensor([0.0, -torch.inf]))

    def disturb(self) -> None:
        self.norm(torch.randn(4, 3))
        with torch.no_grad():
            for tensor in self.parameters():
                tensor.add_(torch.randn_like(tensor))


def by_hand(states: list[dict[str, Tensor]], decay: float) -> dict[str, Tensor]:
    """The weights after each step that counts -> their average, in float64."""
    mean = {key: value.double() for key, value in states[0].items()}
    for n, state in enumerate(states[1:], start=1):
        d = min(decay, (1 + n) / (10 + n))
        for key, value in state.items():
            mean[key] = d * mean[key] + (1 - d) * value.double()
    return mean


def copied(state: dict[str, Tensor]) -> dict[str, Tensor]:
    return {key: value.clone() for key, value in state.items()}


def test_a_loop_by_hand() -> None:
    torch.manual_seed(0)
    module, states = Odd(), []
    average = WeightAverage(module, 0.6)
    assert same(average.state_dict(), module.state_dict())  # before the first update
    for _ in range(20):
        module.disturb()
        average.update()
        states.append(copied(module.state_dict()))
    expected, found = by_hand(states, 0.6), average.state_dict()
    assert found.keys() == module.state_dict().keys() and average.updates == 20
    assert same(module.state_dict(), states[-1])
    for key in ("frozen", "mask", "norm.num_batches_tracked"):
        assert torch.equal(found.pop(key), states[-1][key])
    for key, value in found.items():
        torch.testing.assert_close(value.double(), expected[key], rtol=1e-5, atol=1e-6)
        assert not torch.equal(value, states[-1][key])


def test_the_decay_grows_to_its_value() -> None:
    assert [decay_after(n, 0.99) for n in (0, 1, 8, 890, 892)] == pytest.approx([0.1, 2 / 11, 0.5, 0.99, 0.99])
    assert decay_after(889, 0.99) < 0.99


def test_an_update_is_one_call() -> None:
    class Calls(TorchDispatchMode):
        def __init__(self) -> None:
            super().__init__()
            self.names: list[str] = []

        def __torch_dispatch__(self, function: Any, types: Any, args: Any = (), kwargs: Any = None) -> Any:
            self.names.append(str(function))
            return function(*args, **(kwargs or {}))

    average = WeightAverage(Odd(), 0.9)
    average.update()
    with Calls() as calls:
        average.update()
    assert calls.names == ["aten._foreach_lerp_.Scalar"]


def test_the_weights_come_back_whatever_happens() -> None:
    module = Odd()
    average = WeightAverage(module, 0.9)
    for _ in range(3):
        module.disturb()
        average.update()
    own, expected = copied(module.state_dict()), average.state_dict()
    with pytest.raises(KeyboardInterrupt), average.in_place():
        assert same(module.state_dict(), expected) and not same(expected, own)
        raise KeyboardInterrupt
    assert same(module.state_dict(), own)


def test_lazy_modules() -> None:
    module = nn.Sequential(nn.LazyLinear(2))
    average = WeightAverage(module, 0.9)
    module(torch.ones(1, 3))
    average.update()
    assert average.state_dict()["0.weight"].shape == (2, 3)


@pytest.fixture(scope="module")
def straight(one_thread: None, data: Path, tmp_path_factory: pytest.TempPathFactory) -> tuple[Path, Any, Any]:
    """(the run's folder, the raw weights after each step, the weights at each evaluation)."""
    folder, raw, evaluated = tmp_path_factory.mktemp("ema") / "run", {}, []
    save, evaluate = trainer.save_run, milestones.evaluate

    def keep(path: Path, config: Any, run: Any, *rest: Any) -> None:
        raw[run.progress.step] = copied(run.student.state_dict())
        save(path, config, run, *rest)

    def watch(detector: Any, *rest: Any, **more: Any) -> Any:
        evaluated.append(copied(detector.state_dict()))
        return evaluate(detector, *rest, **more)

    with pytest.MonkeyPatch.context() as patch:
        poison(patch, 2)
        patch.setattr(trainer, "save_run", keep)
        patch.setattr(milestones, "evaluate", watch)
        train(plain_config(data, folder, *MORE))
    return folder, raw, evaluated


def test_the_average_of_a_run(straight: tuple[Path, Any, Any]) -> None:
    """A step that is left out is no update."""
    folder, raw, _ = straight
    content = load_checkpoint(folder / "last.pt")
    assert content["resume"]["ema"]["updates"] == 5 and content["resume"]["progress"]["skipped"] == 1
    assert same(raw[1], raw[2]) and same(raw[6], content["resume"]["ema"]["student"])
    expected = by_hand([raw[step] for step in (1, 3, 4, 5, 6)], 0.3)
    for key, value in content["model"].items():
        if "num_batches" in key:
            assert torch.equal(value, raw[6][key])
        else:
            torch.testing.assert_close(value.double(), expected[key], rtol=1e-4, atol=1e-6)
    differing = [key for key, value in content["model"].items() if not torch.equal(value, raw[6][key])]
    assert {"weight", "bias", "running_mean", "running_var"} == {key.rpartition(".")[2] for key in differing}


def test_what_is_saved_is_what_was_evaluated(straight: tuple[Path, Any, Any], data: Path) -> None:
    folder, _, evaluated = straight
    metrics = json.loads((folder / "metrics.json").read_text())
    best, last = (load_checkpoint(folder / name) for name in ("best.pt", "last.pt"))
    assert len(evaluated) == 2 and not same(*evaluated)
    assert same(last["model"], evaluated[1]) and same(best["model"], evaluated[best["step"] // 3 - 1])
    assert "resume" not in best and best["metrics"]["AP"] == metrics["best_ap"]
    for name, content in {"best.pt": best, "last.pt": last}.items():
        found = evaluate_weights(plain_config(data, folder, *MORE), str(folder / name))
        assert found["AR"] > 0  # else the next line would hold of any weights
        assert all(found[key] == value for key, value in content["metrics"].items() if key != "step")
        detector, *_ = load_detector(folder / name)  # what predict, export and visualize read
        assert same(detector.state_dict(), content["model"])


def test_it_goes_on_after_sigterm_as_if_nothing_had_been(
    straight: tuple[Path, Any, Any], data: Path, tmp_path: Path, monkeypatch: Any
) -> None:
    poison(monkeypatch, 2)
    compute_losses = trainer.compute_losses

    def interrupted(config: Any, run: Any, *rest: Any) -> Any:
        if run.progress.step == 3:
            signal.raise_signal(signal.SIGTERM)
        return compute_losses(config, run, *rest)

    monkeypatch.setattr(trainer, "compute_losses", interrupted)
    with pytest.raises(Stopped, match="after step 4, which is saved"):
        train(plain_config(data, tmp_path / "run", *MORE))
    result = train(plain_config(data, tmp_path / "run", *MORE), resume=True)
    folder = straight[0]
    assert_equal_runs(folder, tmp_path / "run")
    one, other = (load_checkpoint(path / "last.pt")["resume"]["ema"] for path in (folder, tmp_path / "run"))
    assert one["updates"] == other["updates"] and same(one["student"], other["student"])
    assert {**result, "seconds": 0} == {**json.loads((folder / "metrics.json").read_text()), "seconds": 0}
    assert entries(folder, "eval") == entries(tmp_path / "run", "eval")


def test_switched_on_and_off_between(data: Path, teacher: Path, tmp_path: Path, capsys: Any) -> None:
    """The average changes nothing of the training, so what is left without it is the run that never had one."""

    def go(name: str, steps: int, decay: str, **how: bool) -> dict[str, Any]:
        more = ["train.schedule=constant", "train.lr=0.01", "model.norm=live", f"train.steps={steps}"]
        train(distilled_config(data, tmp_path / name, teacher, *more, f"train.ema_decay={decay}"), **how)
        return load_checkpoint(tmp_path / name / "last.pt")

    plain = go("plain", 4, "none")
    averaged = go("other", 2, "0.9")
    assert "averaging: of the model's weights, decay 0.9; evaluated" in capsys.readouterr().out
    dropped = go("other", 2, "none", resume=True)
    said = capsys.readouterr().out
    assert "the checkpoint's average of the weights is dropped" in said and "step 2: AP" in said  # its own weights'
    assert dropped["resume"]["ema"] is None and not same(dropped["model"], averaged["model"])
    assert same(dropped["model"], averaged["resume"]["ema"]["student"])
    assert same(go("other", 4, "none", resume=True)["model"], plain["model"])
    assert_equal_runs(tmp_path / "plain", tmp_path / "other")
    begun = go("plain", 6, "0.9", resume=True)
    assert "the checkpoint has no average of the weights, so it begins with the next step" in capsys.readouterr().out
    assert begun["resume"]["ema"]["updates"] == 2


DAMAGES: dict[str, tuple[Callable[[dict[str, Any]], Any], str]] = {
    "a list": (lambda ema: [ema], "no weights and count of steps as its resume.ema"),
    "no count": (lambda ema: {"student": ema["student"]}, "no weights and count of steps"),
    "a count of text": (lambda ema: {**ema, "updates": "5"}, "no weights and count of steps"),
    "a negative count": (lambda ema: {**ema, "updates": -1}, "no weights and count of steps"),
    "no weights": (lambda ema: {**ema, "student": None}, "no weights and count of steps"),
    "sparse": (lambda ema: {**ema, "student": {"w": torch.ones(2).to_sparse()}}, "its 'w' is sparse"),
    "others": (lambda ema: {**ema, "student": {"w": torch.ones(2)}}, "cannot be resumed .*begin anew"),
}


@pytest.mark.parametrize("damage", DAMAGES)
def test_a_damaged_checkpoint_is_refused(
    damage: str, straight: tuple[Path, Any, Any], data: Path, tmp_path: Path
) -> None:
    content = load_checkpoint(straight[0] / "last.pt")
    damaged, told = DAMAGES[damage]
    content["resume"]["ema"] = damaged(content["resume"]["ema"])
    (tmp_path / "run").mkdir()
    save_checkpoint(tmp_path / "run" / "last.pt", content)
    with pytest.raises(UserError, match=told) as caught:
        train(plain_config(data, tmp_path / "run", *MORE), resume=True)
    assert "\n" not in str(caught.value)


@pytest.mark.parametrize("decay", ["0", "1", "-0.5", "yes"])
def test_a_decay_that_is_none(decay: str, data: Path, tmp_path: Path) -> None:
    with pytest.raises(UserError, match="train.ema_decay"):
        plain_config(data, tmp_path, f"train.ema_decay={decay}")


@pytest.mark.cuda
@pytest.mark.skipif(not torch.cuda.is_available(), reason="needs a GPU")
def test_nothing_waits_for_the_gpu() -> None:
    module = Odd().cuda()
    average = WeightAverage(module, 0.9)
    torch.cuda.set_sync_debug_mode("error")
    try:
        for _ in range(3):
            average.update()
    finally:
        torch.cuda.set_sync_debug_mode("default")
    assert average.updates == 3
