"""What nobody can catch: SIGKILL, a full disk, a loader process that dies. The last checkpoint stays whole."""

from __future__ import annotations

import json
import multiprocessing
import os
import random
import shutil
import signal
import subprocess
import sys
import time
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import pytest
import torch
from engine_helpers import plain_config
from test_interrupted import MORE, STEPS, after_step, goes_on_like, start, straight  # noqa: F401
from test_trainer import entries
from torch.utils.data.dataloader import _MultiProcessingDataLoaderIter
from zygote import Zygote

from gid_cuda.data import Batch, build_dataset, build_loader
from gid_cuda.data.dataset import DetectionDataset
from gid_cuda.engine.checkpoint import load_checkpoint, save_checkpoint
from gid_cuda.engine.trainer import train
from gid_cuda.errors import UserError

pytestmark = pytest.mark.usefixtures("one_thread")

WRITER = """
import sys, torch
from pathlib import Path
from gid_cuda.engine.checkpoint import load_checkpoint, save_checkpoint
path = Path(sys.argv[1])
step = load_checkpoint(path)["step"] if path.exists() else 0
while True:
    step += 1
    save_checkpoint(path, {"step": step, "model": {"w": torch.full((300_000,), float(step))}})
"""

LIMITED = """
import resource, signal, sys, torch
from pathlib import Path
from gid_cuda.engine.checkpoint import save_checkpoint
from gid_cuda.errors import told_in_one_sentence
signal.signal(signal.SIGXFSZ, signal.SIG_IGN)
resource.setrlimit(resource.RLIMIT_FSIZE, (100_000, 100_000))
with told_in_one_sentence():
    save_checkpoint(Path(sys.argv[1]), {"step": 2, "w": torch.zeros(300_000)})
"""


def test_twenty_kills_over_the_writer(zygote: Zygote, tmp_path: Path) -> None:
    script, path = tmp_path / "writer.py", tmp_path / "run" / "last.pt"
    script.write_text(WRITER)
    path.parent.mkdir()
    moments = random.Random(0)
    step, cut_off = 0, 0
    for _ in range(20):
        process = zygote.start(script, str(path))
        before = path.stat().st_mtime_ns if path.exists() else 0
        process.until(lambda before=before: path.exists() and path.stat().st_mtime_ns != before)  # it writes
        time.sleep(moments.uniform(0, 0.03))
        process.send(signal.SIGKILL)
        assert process.wait() == -signal.SIGKILL
        cut_off += (path.parent / ".last.pt.part").exists()
        content = load_checkpoint(path)
        assert content["step"] > step and (content["model"]["w"] == content["step"]).all()
        step = content["step"]
    assert cut_off > 0  # some of them met it in the middle
    save_checkpoint(path, {"step": 0})
    assert [p.name for p in path.parent.iterdir()] == ["last.pt"]


@pytest.mark.slow
@pytest.mark.parametrize("seed", range(3))
def test_a_run_that_is_killed(
    seed: int,
    zygote: Zygote,
    data: Path,
    straight: Path,  # noqa: F811
    tmp_path: Path,
) -> None:
    """Twice, at random; whatever it leaves is whole, and it ends as the one that nobody disturbed."""
    moments, folder = random.Random(seed), tmp_path / "run"
    for more in ([], ["--resume"]):
        process = start(zygote, data, folder, "train.checkpoint_every=2", *more)
        after_step(process, moments.randrange(1, STEPS // 2) + (STEPS // 2 if more else 0))
        time.sleep(moments.uniform(0, 0.2))
        process.send(signal.SIGKILL)
        assert process.wait() in (-signal.SIGKILL, 0)  # 0: it was quicker
        for name in ("last.pt", "best.pt"):
            if (folder / name).exists():
                load_checkpoint(folder / name)
        if (folder / "last.pt").exists():
            believed = load_checkpoint(folder / "last.pt")["resume"]["progress"]
            if believed["best_step"]:
                best = load_checkpoint(folder / "best.pt")
                assert best["step"] >= believed["best_step"] and best["metrics"]["AP"] >= believed["best_ap"]
    goes_on_like(straight, data, folder)


def test_the_best_is_what_best_pt_holds(data: Path, tmp_path: Path) -> None:
    """Killed between best.pt and last.pt, a run goes on from before its best, which stays where it is not surpassed."""
    config = plain_config(data, tmp_path / "run", "train.steps=2", "train.eval_every=1")
    train(config)
    path = tmp_path / "run" / "best.pt"
    best = {key: value for key, value in load_checkpoint(path).items() if key != "format"}
    save_checkpoint(path, {**best, "step": 3, "metrics": {**best["metrics"], "AP": 50.0}})
    longer = plain_config(data, tmp_path / "run", "train.steps=4", "train.eval_every=1")
    result = train(longer, resume=True)
    assert result["best_ap"] == 50.0 and result["best_step"] == 3
    assert load_checkpoint(path)["metrics"]["AP"] == 50.0
    path.unlink()
    result = train(longer, resume=True)
    assert result["best_step"] == 4 and load_checkpoint(path)["step"] == 4
    assert [e["step"] for e in entries(tmp_path / "run", "eval")] == [1, 2, 3, 4]


@pytest.fixture
def small_disk(tmp_path: Path) -> Iterator[Path]:
    """A file system of 40 MB; the tests of a run on a full one are skipped where none may be mounted."""
    folder = tmp_path / "disk"
    folder.mkdir()
    command = ["mount", "-t", "tmpfs", "-o", "size=40m", "tmpfs", str(folder)]
    if shutil.which("mount") is None or subprocess.run(command, capture_output=True).returncode != 0:
        pytest.skip("this user may mount no tmpfs")
    yield folder
    subprocess.run(["umount", "--lazy", str(folder)], check=True)  # a test that failed may still write to it


def test_a_disk_that_is_full(zygote: Zygote, data: Path, small_disk: Path) -> None:
    folder = small_disk / "run"
    process = start(zygote, data, folder, "train.checkpoint_every=1", "train.steps=400", "train.eval_every=0")
    process.until((folder / "last.pt").exists)
    process.send(signal.SIGSTOP)
    time.sleep(0.05)
    for _ in range(200):
        if not (folder / ".last.pt.part").exists():  # its place will be free again
            break
        process.send(signal.SIGCONT)
        time.sleep(0.01)
        process.send(signal.SIGSTOP)
        time.sleep(0.05)
    free = os.statvfs(small_disk)
    with open(small_disk / "ballast", "wb") as file:  # room for a few lines of log
        file.write(b"\0" * max(0, free.f_bavail * free.f_frsize - 300_000))
    process.send(signal.SIGCONT)
    assert process.wait() == 2
    said = process.err.read_text()
    assert said.startswith(f"error: checkpoint {folder}/last.pt could not be written (")
    assert "No space left on device" in said and len(said.splitlines()) == 1
    assert "; the checkpoint that was there is intact" in said
    assert load_checkpoint(folder / "last.pt")["step"] >= 1
    assert sorted(p.name for p in folder.glob(".*")) == []
    (small_disk / "ballast").unlink()
    step = load_checkpoint(folder / "last.pt")["step"] + 1
    assert train(plain_config(data, folder, *MORE, f"train.steps={step}"), resume=True)["step"] == step


def test_a_file_that_may_not_grow(zygote: Zygote, tmp_path: Path) -> None:
    """A quota, or a limit of the system, where no disk can be mounted."""
    path, script = tmp_path / "last.pt", tmp_path / "limited.py"
    save_checkpoint(path, {"step": 1})
    script.write_text(LIMITED)
    process = zygote.start(script, str(path))
    assert process.wait() == 2
    said = process.err.read_text()
    assert "could not be written" in said and "File too large" in said and "is intact" in said
    assert load_checkpoint(path)["step"] == 1 and not (tmp_path / ".last.pt.part").exists()


def test_a_run_outlives_its_loader_process(
    zygote: Zygote,
    data: Path,
    straight: Path,  # noqa: F811
    tmp_path: Path,
) -> None:
    """It goes on with a new one, with the same batches."""
    process = start(zygote, data, tmp_path / "run")
    after_step(process, 2)
    for child in process.children():
        os.kill(child, signal.SIGKILL)
    assert process.wait() == 0
    assert "a process that loads images died" in process.err.read_text()
    goes_on_like(straight, data, tmp_path / "run")


@pytest.fixture
def impatient(monkeypatch: Any) -> None:
    """torch looks after its processes every five seconds."""
    monkeypatch.setattr(_MultiProcessingDataLoaderIter._try_get_data, "__defaults__", (0.2,))


def test_no_image_is_lost_with_a_loader_process(data: Path, impatient: None) -> None:
    dataset = build_dataset(plain_config(data, data).data, "train")
    batches = iter(build_loader(dataset, batch_size=1, workers=1, train=False))
    ids = [next(batches).image_ids]
    (worker,) = multiprocessing.active_children()
    assert worker.pid is not None
    os.kill(worker.pid, signal.SIGKILL)
    worker.join()
    with pytest.warns(UserWarning, match="a process that loads images died .*: new ones go on"):
        ids += [batch.image_ids for batch in batches]
    assert [i for one in ids for i in one] == dataset.image_ids


class Deadly(DetectionDataset):
    """The third image crashes its decoder."""

    def __getitem__(self, index: int) -> Any:
        if index == 2:
            os.kill(os.getpid(), signal.SIGSEGV)
        return super().__getitem__(index)


def test_an_image_that_kills_its_loader(data: Path, impatient: None) -> None:
    dataset = Deadly(build_dataset(plain_config(data, data).data, "train").records)
    batches = iter(build_loader(dataset, batch_size=1, workers=1, train=False))
    with pytest.warns(UserWarning), pytest.raises(UserError, match="died 3 times in a row on one batch .*data.workers"):
        list(batches)
    batches = iter(build_loader(dataset, batch_size=1, workers=0, train=False))
    assert next(batches).image_ids == dataset.image_ids[:1]  # without processes nothing dies unasked


class Watching(DetectionDataset):
    """Its loader process dies where nothing that tells it to end has a lock, which it could take along."""

    def __getitem__(self, index: int) -> Any:
        frame = sys._getframe()
        while "done_event" not in frame.f_locals:
            assert frame.f_back is not None
            frame = frame.f_back
        if hasattr(frame.f_locals["done_event"], "_cond"):
            raise UserError("there is a lock: who is killed while holding it lets the trainer wait for ever")
        os.kill(os.getpid(), signal.SIGKILL)


def test_a_loader_process_takes_no_lock_along(data: Path, impatient: None) -> None:
    dataset = Watching(build_dataset(plain_config(data, data).data, "train").records)
    batches = iter(build_loader(dataset, batch_size=1, workers=2, train=False))
    with pytest.warns(UserWarning), pytest.raises(UserError, match="died 3 times in a row on one batch"):
        next(batches)


def test_an_image_that_becomes_unreadable_in_mid_run(tmp_path: Path, monkeypatch: Any, capsys: Any) -> None:
    more = ["train.steps=16", "data.workers=1", "train.eval_every=8"]  # four steps are an epoch
    config = plain_config(tmp_path / "data", tmp_path / "run", *more)
    images = [build_dataset(config.data, part).path(1) for part in ("train", "val")]
    cut, steps = Batch.cut, iter(range(100))

    def spoil(*arguments: Any) -> Any:
        if next(steps) == 8:
            images[0].write_bytes(images[0].read_bytes()[:200])
            images[1].unlink()
        return cut(*arguments)

    monkeypatch.setattr(Batch, "cut", spoil)
    assert train(config)["step"] == 16
    said = capsys.readouterr().out
    assert said.count(f"the next image stands in for one that cannot be read: {images[0]}") == 1
    assert said.count(f"left out of the evaluation, as it cannot be read: {images[1]}: not found") == 1
    assert [e["images"] for e in entries(tmp_path / "run", "eval")] == [4, 3]
    assert all(torch.isfinite(torch.tensor(e["loss"])) for e in entries(tmp_path / "run", "train"))
    assert json.loads((tmp_path / "run" / "metrics.json").read_text())["images"] == 3
