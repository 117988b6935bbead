"""What a run says: lines or a progress bar on the terminal, log.jsonl and TensorBoard in its folder."""

from __future__ import annotations

import contextlib
import json
import sys
import threading
import time
from collections.abc import Iterator, Mapping
from pathlib import Path
from typing import Any

from torch.utils.tensorboard import SummaryWriter
from tqdm import tqdm

from gid_cuda.errors import UserError, printable
from gid_cuda.files import write_text


class RunLog:
    """Open for one run; what an earlier, resumed run has logged after `start_step` is dropped, as it is done again.

    evaluating: so is the evaluation after that step. UserError where the disk refuses: no step is lost unnoticed.
    """

    def __init__(self, folder: Path, *, start_step: int, steps: int, every: int, evaluating: bool = False) -> None:
        self._every, self._steps, self._start = every, steps, start_step
        self._path = folder / "log.jsonl"
        self._hook = threading.excepthook
        threading.excepthook = self._not_of_the_board
        with contextlib.ExitStack() as undo:  # whatever stops it here
            undo.callback(setattr, threading, "excepthook", self._hook)
            with self._told():
                self._drop_after(start_step, evaluating)
                self._file = undo.enter_context(open(self._path, "a", encoding="utf-8", buffering=1))
                self._board = SummaryWriter(str(folder / "tensorboard"), purge_step=start_step + 1)
            undo.pop_all()
        self._bar = tqdm(total=steps, initial=start_step, unit="step", disable=not sys.stderr.isatty(), leave=False)
        self._window: list[dict[str, float]] = []
        self._images = 0
        self._paused = 0.0
        self.start_clock()

    def __enter__(self) -> RunLog:
        return self

    def __exit__(self, kind: type[BaseException] | None, *_: object) -> None:
        self._bar.close()
        try:
            # What is left to write goes to the disk now, or not: closed are both, whatever comes of the first.
            with self._told(), contextlib.closing(self._board), contextlib.closing(self._file):
                pass
        except UserError:
            if kind is None:  # else the run is ending because of something that matters more
                raise
        finally:
            threading.excepthook = self._hook

    @contextlib.contextmanager
    def _told(self) -> Iterator[None]:
        try:
            yield
        except OSError as error:
            raise UserError(
                f"the log in {self._path.parent} could not be written ({error.strerror or error}); the checkpoints "
                "that are there are intact: make room, then --resume goes on from the last one"
            ) from None

    def _not_of_the_board(self, args: threading.ExceptHookArgs) -> None:
        """TensorBoard's thread prints its traceback, and the next line of the log raises the same error again."""
        if type(args.thread).__name__ != "_AsyncWriterThread" or not isinstance(args.exc_value, OSError):
            self._hook(args)

    def start_clock(self) -> None:
        """Speed and remaining time count from here: what comes before the first step is no training."""
        self._began = self._mark = time.monotonic()

    def say(self, text: str) -> None:
        """A line (or several) for the person who watches."""
        tqdm.write(printable(text), file=sys.stdout)
        sys.stdout.flush()

    def aside(self, text: str) -> None:
        """What only the process that says it knows."""
        self.say(text)

    def train(self, step: int, values: Mapping[str, float], *, lr: float, images: int) -> None:
        """After each step: weighted losses by name, their sum as `loss`, counts of instances (`instances`, `gi_...`).

        Every `every` steps their means are logged.
        """
        self._window.append(dict(values))
        self._images += images
        self._bar.update(1)
        if step % self._every and step != self._steps:
            return
        means = {name: sum(v[name] for v in self._window) / len(self._window) for name in values}
        now = time.monotonic()
        speed = self._images / max(now - self._mark, 1e-9)
        self._window, self._images, self._mark = [], 0, now
        self._write({"kind": "train", "step": step, "lr": lr, "images_per_s": speed, **means})
        losses = "  ".join(  # the kinds of instances are for curves: the line is long enough
            f"{name.removeprefix('loss_')} {value:.4g}" for name, value in means.items() if not name.startswith("gi_")
        )
        if self._bar.disable:
            left = self._remaining(step)
            self.say(f"step {step}/{self._steps}  {losses}  lr {lr:.3g}  {speed:.1f} img/s  {left} left")
        else:
            self._bar.set_postfix_str(f"{losses}  lr {lr:.3g}  {speed:.1f} img/s")

    def skipped(self, step: int, what: str) -> None:
        """Instead of `train`, after a step that was left out: the means are those of the others."""
        self._bar.update(1)
        self._write({"kind": "skip", "step": step, "what": what})
        self.say(what)

    def evaluated(self, step: int, metrics: Mapping[str, Any], seconds: float) -> None:
        """After an evaluation that took `seconds`, which count neither for speed nor for the remaining time."""
        self._mark += seconds
        self._paused += seconds
        self._write({"kind": "eval", "step": step, **metrics})
        shown = "  ".join(f"{name} {metrics[name]:.1f}" for name in ("AP", "AP50", "AP75") if metrics[name] is not None)
        self.say(f"step {step}: {shown or 'no ground truth in the validation images, so no AP'}")

    def _remaining(self, step: int) -> str:
        training = time.monotonic() - self._began - self._paused
        return tqdm.format_interval(training / (step - self._start) * (self._steps - step))

    def _write(self, entry: dict[str, Any]) -> None:
        with self._told():
            self._file.write(json.dumps(entry) + "\n")
            for name, value in entry.items():
                if isinstance(value, float):
                    self._board.add_scalar(f"{entry['kind']}/{name}", value, entry["step"])

    def _drop_after(self, step: int, evaluating: bool) -> None:
        if not self._path.exists():
            return
        kept = []
        for line in self._path.read_bytes().splitlines():
            try:
                entry = json.loads(line)
                if entry["step"] < step + (entry["kind"] != "eval" or not evaluating):
                    kept.append(line.decode() + "\n")
            except (ValueError, KeyError, TypeError, RecursionError):  # cut where the process was killed, or damaged
                continue
        write_text(self._path, "".join(kept))


class QuietLog(RunLog):
    """Of the processes that do not write: says what only they know, and nothing else."""

    def __init__(self, rank: int) -> None:
        self._rank = rank

    def __exit__(self, *_: object) -> None:
        pass

    def start_clock(self) -> None:
        pass

    def say(self, text: str) -> None:
        pass

    def aside(self, text: str) -> None:
        print(f"process {self._rank}: {text}", flush=True)

    def train(self, step: int, values: Mapping[str, float], *, lr: float, images: int) -> None:
        pass

    def skipped(self, step: int, what: str) -> None:
        pass

    def evaluated(self, step: int, metrics: Mapping[str, Any], seconds: float) -> None:
        pass
