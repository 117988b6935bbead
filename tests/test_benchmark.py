"""The benchmark runs at tiny sizes with all results equal, finds what is not, and tells mistakes in one sentence."""

from __future__ import annotations

import importlib.util
import json
import logging
import os
import runpy
import subprocess
import sys
import time
from dataclasses import replace
from pathlib import Path
from types import ModuleType
from typing import Any

import pytest
import torch

from benchmarks import main, plain, plot, timing
from benchmarks.cases import Case, Contender, DiffersError, Results, close, run_case, with_gradient
from benchmarks.inputs import make_scene, scattered_anchors
from benchmarks.operators import gi_score
from benchmarks.report import case_text
from benchmarks.suite import NAMES
from gid_cuda import reference
from gid_cuda.errors import UserError

ROOT = Path(__file__).parent.parent
CPU = torch.device("cpu")


def run_script(monkeypatch: pytest.MonkeyPatch, *arguments: object) -> int:
    """The exit code of scripts/benchmark.py."""
    monkeypatch.setattr(sys, "argv", ["benchmark.py", *map(str, arguments)])
    with pytest.raises(SystemExit) as exit:
        runpy.run_path(str(ROOT / "scripts" / "benchmark.py"), run_name="__main__")
    return exit.value.code or 0


@pytest.fixture(scope="module")
def readme() -> ModuleType:
    spec = importlib.util.spec_from_file_location("readme_tables", ROOT / "benchmarks" / "readme.py")
    module = importlib.util.module_from_spec(spec)
    spec.loader.exec_module(module)
    return module


@pytest.fixture(scope="module")
def quick(tmp_path_factory: pytest.TempPathFactory) -> tuple[dict[str, Any], Path]:
    """What a quick run on the CPU keeps, and its folder."""
    folder = tmp_path_factory.mktemp("benchmark")
    with pytest.MonkeyPatch.context() as patch:
        options = ["--device", "cpu", "--quick", "--no-compile", "--sweep"]
        code = run_script(patch, *options, "--json", folder / "new" / "cpu.json", "--plot", folder / "sweep.png")
    result = json.loads((folder / "new" / "cpu.json").read_text())
    assert code == 0, result["differing"]
    return result, folder


def test_the_timer_brings_no_warning_with_it() -> None:
    """torch looks for a CUDA toolkit as it is imported; what it says of a machine without a GPU helps nobody here."""
    environment = {**os.environ, "CUDA_HOME": "/usr/local", "CUDA_VISIBLE_DEVICES": ""}
    code = "import gid_cuda.timing, logging; print(logging.getLogger('torch.utils.cpp_extension').level)"
    done = subprocess.run([sys.executable, "-c", code], env=environment, capture_output=True, text=True, check=True)
    assert done.stderr == "" and done.stdout == f"{logging.NOTSET}\n"


def test_a_quick_run_compares_and_times_every_operator(quick: tuple[dict[str, Any], Path]) -> None:
    result, folder = quick
    assert {row["operator"] for row in result["rows"]} == set(NAMES) and result["complete"]
    for row in result["rows"] + result["sweep"]:
        assert row["median_s"] > 0 and row["runs"] >= 3 and row["moved_bytes"] > 0 and row["input_sets"] >= 2
        # Compared, or a baseline of time that says why it is not.
        assert row["role"] == "ours" or row["check"] or row["note"], row
        assert "DIFFERS" not in row["check"]
    assert {row["role"] for row in result["rows"]} == {"ours", "pytorch", "instead"}
    assert {(row["axis"], row["operator"]) for row in result["sweep"]} >= {("R", "gi_score"), ("B", "criterion")}
    assert result["machine"]["kind"] == "cpu" and result["machine"]["torch"] == torch.__version__
    assert str(ROOT) not in json.dumps(result["machine"])
    assert (folder / "sweep.png").read_bytes().startswith(b"\x89PNG")


def test_what_was_not_compared_has_no_share_of_the_bandwidth(quick: tuple[dict[str, Any], Path]) -> None:
    """What only sums the logits, say, moves less than the bytes that the case counts."""
    rows = [row for row in quick[0]["rows"] if row["operator"] == "gi_score" and row["dtype"] == "float32"]
    lines = {row["contender"]: line for row, line in zip(rows, case_text(rows).splitlines()[2:], strict=True)}
    assert "% of copy" in lines["gid_cuda"] and "% of copy" in lines["PyTorch"]
    assert "% of copy" not in lines["sum of all logits"] and "reads what any" in lines["sum of all logits"]


def test_the_plot_of_a_result_is_one_file(quick: tuple[dict[str, Any], Path], tmp_path: Path) -> None:
    result, folder = quick
    plot.save(result, tmp_path / "again.png")
    assert (tmp_path / "again.png").read_bytes() == (folder / "sweep.png").read_bytes()
    with pytest.raises(UserError, match="no sweep to draw"):
        plot.save({**result, "sweep": []}, tmp_path / "none.png")


def test_readme_has_a_table_of_what_there_is_a_file_of(
    quick: tuple[dict[str, Any], Path], readme: ModuleType, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    result, _ = quick
    monkeypatch.setattr(readme, "RESULTS", tmp_path)
    assert readme.table("speed-cpu", "cpu.json") == readme.table("speed-gpu", "gpu*.json") == ""
    (tmp_path / "cpu.json").write_text(json.dumps(result))
    rows = [line for line in readme.table("speed-cpu", "cpu.json").splitlines() if line.startswith("| `topk_nms`")]
    by_role = {row["role"]: row for row in result["rows"] if row["operator"] == "topk_nms"}
    ratio = by_role["pytorch"]["median_s"] / by_role["ours"]["median_s"]
    assert len(rows) == 1 and f"| {ratio:.3g}x | – |" in rows[0] and "batched_nms" in rows[0]
    assert "benchmark_cpu.png" in readme.table("speed-cpu", "cpu.json")
    assert readme.table("speed-gpu", "gpu*.json") == ""


def test_a_run_that_is_stopped_leaves_what_it_has(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    def stopped(*arguments: Any, **options: Any) -> None:
        raise KeyboardInterrupt

    monkeypatch.setattr(main, "sweep", stopped)
    options = ["--device", "cpu", "--quick", "--no-compile", "--sweep", "--only", "pairwise_distance"]
    assert run_script(monkeypatch, *options, "--json", tmp_path / "cpu.json") == 130
    result = json.loads((tmp_path / "cpu.json").read_text())
    assert {row["operator"] for row in result["rows"]} == {"pairwise_distance"} and not result["complete"]


@pytest.mark.slow
def test_torch_compile_runs_and_agrees(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    file = tmp_path / "compiled.json"
    assert run_script(monkeypatch, "--device", "cpu", "--quick", "--only", "gi_score", "criterion", "--json", file) == 0
    result = json.loads(file.read_text())
    assert result["skipped"] == []
    checks = {row["operator"]: row["check"] for row in result["rows"] if row["role"] == "compile"}
    assert set(checks) == {"gi_score", "criterion"} and all(check.startswith("equal") for check in checks.values())


@pytest.mark.parametrize(
    ("arguments", "sentence"),
    [
        (["--only", "nms"], "error: --only nms: there is no such case; choose from gi_score, "),
        (["--plot", "sweep.png"], "error: --plot draws the sweep: add --sweep"),
        (["--step"], "error: --step needs a config: add --cfg FILE"),
        (["train.lr=1"], "error: train.lr=1 is for the training step: add --step"),
        (["--switches"], "error: --switches is for the training step: add --step"),
        (["--cfg", "a.yaml"], "error: --cfg is for the training step: add --step"),
        (["--step", "--cfg", "a.yaml", "--steps", "0"], "error: --steps is 0: give at least 1"),
        (["--json", "."], "error: --json . is a folder: give the name of a file"),
        (["--json", "/dev/null/x.json"], "error: /dev/null"),
    ],
)
def test_mistakes_are_told_in_one_sentence(
    arguments: list[str], sentence: str, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    assert run_script(monkeypatch, *arguments) == 2
    said = capsys.readouterr()
    assert said.err.startswith(sentence) and said.err.count("\n") == 1 and said.out == ""


def test_cuda_where_there_is_none(monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]) -> None:
    monkeypatch.setattr(torch.cuda, "is_available", lambda: False)
    assert run_script(monkeypatch, "--device", "cuda") == 2
    assert capsys.readouterr().err.startswith("error: --device cuda: torch sees no CUDA device")


def small_case(*contenders: Contender, input_bytes: int = 32) -> Case:
    return Case(
        operator="double",
        work="forward",
        sizes={"R": 8},
        dtype="float32",
        make=lambda seed: (torch.arange(8.0) + seed,),
        input_bytes=input_bytes,
        moved=lambda x: 64,
        counted="",
        contenders=[Contender("ours", "gid_cuda", lambda x: 2 * x), *contenders],
    )


def run_small(case: Case) -> Results:
    results = Results()
    run_case(case, CPU, seconds=0.001, bandwidth=1e9, results=results)
    return results


def test_results_are_compared_without_tf32_and_timed_as_torch_is_set(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(torch.backends.cudnn, "allow_tf32", True)
    seen: list[bool] = []

    def double(x: torch.Tensor) -> torch.Tensor:
        seen.append(torch.backends.cudnn.allow_tf32)
        return 2 * x

    run_small(small_case(Contender("pytorch", "PyTorch", double, close(0.0))))
    assert seen[0] is False and all(seen[1:]) and len(seen) > 1 and torch.backends.cudnn.allow_tf32


def test_a_wrong_result_is_found_and_still_timed() -> None:
    wrong = Contender("pytorch", "wrong", lambda x: x + x + (x == 3), close(1e-6))
    results = run_small(small_case(wrong))
    assert [row["contender"] for row in results.rows] == ["gid_cuda", "wrong"]
    assert results.rows[1]["check"].startswith("DIFFERS: off by 7.1e-02 of the largest value")
    assert len(results.differing) == 1 and "double, forward: R=8, float32, wrong" in results.differing[0]
    told_alone = run_small(small_case(replace(wrong, binding=False)))
    assert told_alone.rows[1]["check"] == results.rows[1]["check"] and told_alone.differing == []


def test_what_does_not_fit_or_compile_is_left_out_with_a_line() -> None:
    def uncompilable(x: torch.Tensor) -> torch.Tensor:
        raise RuntimeError("no compiler\nand a long trace")

    results = run_small(
        small_case(
            Contender("compile", "torch.compile", uncompilable),
            Contender("pytorch", "large", lambda x: 2 * x, temporary=1 << 60),
        )
    )
    assert [row["contender"] for row in results.rows] == ["gid_cuda"]
    assert results.skipped[0].endswith("torch.compile: RuntimeError: no compiler")
    assert "large: needs about 1152921504.6 GB" in results.skipped[1]
    results = run_small(small_case(input_bytes=1 << 60))
    assert results.rows == [] and "its inputs need" in results.skipped[0]


def test_a_contender_that_fails_otherwise_is_an_error() -> None:
    with pytest.raises(ZeroDivisionError):
        run_small(small_case(Contender("pytorch", "broken", lambda x: 1 // 0)))


def test_close() -> None:
    whole = torch.tensor([1, 2])
    assert close(0.0)((whole, torch.ones(2)), (whole, torch.ones(2))) == "equal"
    assert close(1e-3)(torch.tensor([0.0, 100.0]), torch.tensor([0.05, 100.0])) == "equal within 5e-04"
    for other in (torch.tensor([0.2, 100.0]), torch.tensor([torch.nan, 100.0])):
        with pytest.raises(DiffersError):
            close(1e-3)(torch.tensor([0.0, 100.0]), other)
    with pytest.raises(DiffersError, match="1 of 2 integers"):
        close(1.0)(whole, torch.tensor([1, 3]))


def test_with_gradient_gives_outputs_and_gradients_of_nested_inputs() -> None:
    leaf, constant = torch.tensor(3.0, requires_grad=True), torch.tensor(2.0)
    output, gradient = with_gradient(lambda pair, factor: pair[0] * pair[1] * factor)((leaf, constant), constant)
    assert output == 12 and gradient == 4 and not output.requires_grad


def test_timing_takes_the_inputs_in_turn_and_the_median_of_its_runs() -> None:
    seen = []
    (found,) = timing.time_calls([timing.rotating(seen.append, [(1,), (2,), (3,)])], CPU, 0.001)
    assert seen[:4] == [1, 2, 3, 1] and len(found.times) >= timing.LEAST_RUNS
    (slow,) = timing.time_calls([lambda: time.sleep(0.005)], CPU, 0.001)
    assert 0.005 <= slow.median < 1 and len(slow.times) >= timing.LEAST_RUNS
    spread = timing.Timing([4.0, 1.0, 2.0, 3.0, 5.0])
    assert spread.median == 3.0 and spread.iqr == 2.0


class FakeEvent:
    """A CUDA event on a device that does everything at once."""

    def __init__(self, enable_timing: bool) -> None:
        assert enable_timing

    def record(self) -> None:
        self.at = time.perf_counter()

    def elapsed_time(self, end: FakeEvent) -> float:
        return 1e3 * (end.at - self.at)


def test_device_events_measure_the_call_alone(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(torch.cuda, "Event", FakeEvent)
    monkeypatch.setattr(torch.cuda, "synchronize", lambda device: None)
    monkeypatch.setattr(timing, "cache_bytes", lambda device: 1 << 16)
    times, host = timing._cuda_times(lambda: time.sleep(0.001), CPU, 0.05)
    assert len(times) >= timing.LEAST_RUNS
    assert 0.001 <= min(times) and 0.001 <= host


def test_a_copy_moves_bytes_at_a_rate_that_memory_has() -> None:
    assert 1e7 < timing.copy_bandwidth(CPU, 0.01, size=1 << 22) < 1e13


def test_bytes_of_gi_score_counted_by_hand() -> None:
    case = gi_score(2, scattered_anchors(5, (64, 96), CPU), 3, torch.bfloat16, (64, 96))
    logits, boxes, sizes, outputs = 2 * 5 * 3 * 2, 2 * 5 * 16, 2 * 16, 2 * 5 * 20
    assert case.moved(*case.make(0)) == 2 * logits + 2 * boxes + sizes + outputs


def test_a_scene_has_objects_that_the_teacher_is_surer_of() -> None:
    anchors = scattered_anchors(2000, (256, 256), CPU)
    scene = make_scene(2, 4, anchors, (256, 256), torch.float32, seed=0)
    matched = reference.match_anchors(scene.objects, scene.counts, anchors, low_quality=False)
    on, off = matched >= 0, matched == -1
    teacher, student = scene.teacher_logits.amax(dim=2), scene.student_logits.amax(dim=2)
    assert teacher[on].mean() > student[on].mean() + 1 > teacher[off].mean() + 2
    assert (scene.objects[..., 2:] <= 256).all() and (scene.objects[..., :2] >= 0).all()


@pytest.mark.parametrize("min_size", [0.0, 60.0])
def test_the_users_way_is_exact_where_it_sees_all_boxes(min_size: float) -> None:
    generator = torch.Generator().manual_seed(0)
    boxes = torch.stack([scattered_anchors(300, (256, 256), CPU)] * 2)
    scores = torch.rand((2, 300), generator=generator)
    found = plain.top_then_nms(boxes, scores, 200, 0.3, min_size)
    expected = reference.topk_nms(boxes, scores, 200, 0.3, min_size=min_size)
    assert (expected[1] < 200).all()  # so that padding is seen
    assert torch.equal(found[0], expected[0]) and torch.equal(found[1], expected[1])
