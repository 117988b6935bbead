"""Real signals to real runs: the step under way is finished and saved, and the run goes on as if nothing had been."""

from __future__ import annotations

import json
import os
import signal
import subprocess
import sys
import time
from pathlib import Path

import pytest
from engine_helpers import CONFIGS, plain_config, tiny_overrides
from test_trainer import assert_equal_runs, entries
from zygote import Process, Zygote

from gid_cuda.engine.checkpoint import load_checkpoint
from gid_cuda.engine.interrupt import Interrupt
from gid_cuda.engine.trainer import train
from gid_cuda.errors import Stopped

pytestmark = pytest.mark.usefixtures("one_thread")

SCRIPT = CONFIGS.parent / "scripts" / "train.py"
STEPS = 12
MORE = [f"train.steps={STEPS}", "train.eval_every=6", "train.schedule=constant", "data.workers=1"]
SLOW_EVALUATION = ["data.generated.val_images=150"]


@pytest.fixture(scope="module")
def straight(one_thread: None, data: Path, tmp_path_factory: pytest.TempPathFactory) -> Path:
    """A run that nobody disturbs."""
    folder = tmp_path_factory.mktemp("straight") / "run"
    train(plain_config(data, folder, *MORE))
    return folder


@pytest.fixture(scope="module")
def much_to_evaluate(one_thread: None, tmp_path_factory: pytest.TempPathFactory) -> tuple[Path, Path]:
    """(data with so many validation images that an evaluation can be met, a run on them that nobody disturbs)."""
    root = tmp_path_factory.mktemp("much")
    train(plain_config(root / "data", root / "run", *MORE, *SLOW_EVALUATION))
    return root / "data", root / "run"


def start(zygote: Zygote, data: Path, folder: Path, *more: str) -> Process:
    return zygote.start(
        SCRIPT, "--cfg", str(CONFIGS / "demo_student.yaml"), *tiny_overrides(data, folder, *MORE, *more)
    )


def after_step(process: Process, step: int) -> None:
    process.until(lambda: f"step {step}/" in process.said())


def goes_on_like(straight: Path, data: Path, folder: Path, *more: str) -> None:
    result = train(plain_config(data, folder, *MORE, *more), resume=True)
    assert_equal_runs(straight, folder)
    undisturbed = json.loads((straight / "metrics.json").read_text())
    assert {**result, "seconds": 0} == {**undisturbed, "seconds": 0}
    assert entries(folder, "eval") == entries(straight, "eval")
    best, other = (load_checkpoint(path / "best.pt") for path in (straight, folder))
    assert best["step"] == other["step"] and best["metrics"] == other["metrics"]


@pytest.mark.parametrize(("name", "status"), [("SIGTERM", 143), ("SIGINT", 130), ("SIGHUP", 129)])
def test_in_training(name: str, status: int, zygote: Zygote, data: Path, straight: Path, tmp_path: Path) -> None:
    """To the whole process group, as a terminal and most launchers send it: the loaders go on until it is done."""
    process = start(zygote, data, tmp_path / "run")
    after_step(process, 2)
    process.send_to_all(getattr(signal, name))
    assert process.wait() == status
    step = load_checkpoint(tmp_path / "run" / "last.pt")["step"]
    assert 2 <= step < STEPS and step == entries(tmp_path / "run", "train")[-1]["step"]
    said = process.err.read_text()
    assert f"{name}: finishing this step" in said and "Traceback" not in said
    assert said.endswith(f"stopped by {name}: --resume goes on after step {step}, which is saved\n")
    assert not (tmp_path / "run" / "metrics.json").exists()
    goes_on_like(straight, data, tmp_path / "run")


def test_in_an_evaluation(zygote: Zygote, much_to_evaluate: tuple[Path, Path], tmp_path: Path) -> None:
    """It is left at once, and made up for when the run goes on."""
    data, straight = much_to_evaluate
    process = start(zygote, data, tmp_path / "run", *SLOW_EVALUATION)
    last = tmp_path / "run" / "last.pt"
    process.until(last.exists)
    process.send(signal.SIGTERM)
    assert process.wait() == 143
    assert process.err.read_text().endswith("stopped by SIGTERM: nothing that was done is lost, and --resume goes on\n")
    content = load_checkpoint(last)
    assert content["step"] == 6 and content["metrics"] is None
    assert entries(tmp_path / "run", "eval") == [] and not (tmp_path / "run" / "best.pt").exists()
    goes_on_like(straight, data, tmp_path / "run", *SLOW_EVALUATION)


@pytest.mark.parametrize(("number", "status"), [(signal.SIGTERM, 143), (signal.SIGINT, 130)])
def test_before_the_first_step(
    number: int, status: int, zygote: Zygote, data: Path, straight: Path, tmp_path: Path
) -> None:
    process = start(zygote, data, tmp_path / "run")
    process.until((tmp_path / "run").exists)  # made after the detectors, before the first step
    process.send(number)
    ended = process.wait()
    said = process.err.read_text()
    assert ended == status and "stopped by" in said and "Traceback" not in said
    goes_on_like(straight, data, tmp_path / "run")


def test_a_resumed_run_is_stopped_before_its_first_step(
    zygote: Zygote, data: Path, straight: Path, tmp_path: Path
) -> None:
    process = start(zygote, data, tmp_path / "run")
    after_step(process, 2)
    process.send(signal.SIGTERM)
    assert process.wait() == 143
    before = (tmp_path / "run" / "last.pt").read_bytes()
    process = start(zygote, data, tmp_path / "run", "--resume")
    process.until(lambda: (tmp_path / "run" / "run.json").read_text().count("after_step") == 2)
    process.send(signal.SIGTERM)
    assert process.wait() == 143
    after = load_checkpoint(tmp_path / "run" / "last.pt")["step"]
    assert after > 2 or (tmp_path / "run" / "last.pt").read_bytes() == before
    goes_on_like(straight, data, tmp_path / "run")


def test_a_second_ctrl_c_leaves_at_once(zygote: Zygote, data: Path, straight: Path, tmp_path: Path) -> None:
    """Killed by the signal itself, which a shell calls 130, while the step goes on; last.pt is the older one."""
    process = start(zygote, data, tmp_path / "run", "train.batch_size=8", "train.checkpoint_every=1", "train.steps=500")
    last = tmp_path / "run" / "last.pt"
    process.until(last.exists)
    process.send_to_all(signal.SIGINT)
    process.until(lambda: "finishing this step" in process.err.read_text())
    process.send_to_all(signal.SIGINT)
    assert process.wait() in (-signal.SIGINT, 130)  # 130: it was done with its step in that moment
    assert load_checkpoint(last)["step"] >= 1


def test_nohup_stays_in_force(tmp_path: Path) -> None:
    """Outside the main thread, too, nothing is changed."""
    code = """
import signal, threading
from gid_cuda.engine.interrupt import Interrupt
signal.signal(signal.SIGHUP, signal.SIG_IGN)
before = signal.getsignal(signal.SIGTERM)
with Interrupt() as interrupt:
    signal.raise_signal(signal.SIGHUP)
    assert not interrupt.asked()
    interrupt.finish_steps()
    signal.raise_signal(signal.SIGTERM)
    assert interrupt.asked()
assert signal.getsignal(signal.SIGTERM) is before
def elsewhere():
    with Interrupt():
        assert signal.getsignal(signal.SIGTERM) is before
thread = threading.Thread(target=elsewhere)
thread.start()
thread.join()
"""
    ended = subprocess.run([sys.executable, "-c", code], capture_output=True, text=True, timeout=120)
    assert ended.returncode == 0, ended.stderr


def test_a_signal_that_turned_into_another_error_is_still_a_stop() -> None:
    """Code in other languages reports whatever its callbacks raise as its own."""
    with pytest.raises(Stopped, match="stopped by SIGTERM"), Interrupt():
        try:
            os.kill(os.getpid(), signal.SIGTERM)
            time.sleep(5)
        except Stopped:
            raise ValueError("error while serialising") from None


def test_an_error_of_its_own_stays_what_it_is() -> None:
    with pytest.raises(ValueError, match="own"), Interrupt():
        raise ValueError("own")
