"""Loss and AP curves from logs."""

from __future__ import annotations

import json
import math
from pathlib import Path

import numpy as np
import pytest

from gid_cuda.errors import UserError
from gid_cuda.viz.curves import curves_figure, read_log, smooth


def make_run(folder: Path, *, distilled: bool, steps: int = 400, kinds: bool = False) -> Path:
    folder.mkdir(parents=True)
    with open(folder / "log.jsonl", "w") as file:
        for step in range(20, steps + 1, 20):
            losses = {"loss_classification": 1.0 / step, "loss_bbox_regression": 0.5}
            if distilled:
                losses |= {"loss_feature": 100.0 / step**2, "loss_relation": 0.1}
            total = sum(losses.values())
            if kinds:
                losses |= {"gi_positive": 6 - step / 100, "gi_semi_positive": 2.0, "gi_negative": step / 100}
            file.write(json.dumps({"kind": "train", "step": step, "lr": 0.1, "loss": total, **losses}) + "\n")
            if step % 100 == 0:
                entry = {"kind": "eval", "step": step, "AP": step / 20, "AP50": None, "per_class": {"a": 1.0}}
                file.write(json.dumps(entry) + "\n")
    return folder


def panels(figure) -> dict[str, list]:
    return {axes.get_title(): axes.get_lines() for axes in figure.axes if axes.get_title()}


def test_one_panel_a_term_one_line_a_run(tmp_path):
    runs = [make_run(tmp_path / "plain", distilled=False), make_run(tmp_path / "ours", distilled=True)]
    figure = curves_figure(runs, ["plain", "ours"])
    found = panels(figure)
    assert list(found) == ["loss, all terms", "classification", "bbox regression", "feature", "relation", "AP"]
    plain, ours = found["AP"]
    assert list(plain.get_xdata()) == [100, 200, 300, 400] and list(plain.get_ydata()) == [5, 10, 15, 20]
    assert plain.get_color() != ours.get_color() and plain.get_linestyle() != ours.get_linestyle()
    raw = found["feature"][:2]
    assert [len(line.get_xdata()) for line in raw] == [0, 20]  # the plain run has no such term
    assert list(raw[1].get_ydata()) == [100.0 / step**2 for step in range(20, 401, 20)]
    assert [text.get_text() for text in figure.legends[0].get_texts()] == ["plain", "ours"]
    handles = figure.legends[0].legend_handles
    assert [handle.get_color() for handle in handles] == [plain.get_color(), ours.get_color()]


def test_kinds_of_instances_have_a_panel_a_run(tmp_path):
    """Figure 5: smoothed with 0.9, in one scale, told apart by colour, dash and marker; by name in the panel."""
    one = make_run(tmp_path / "one", distilled=True, kinds=True, steps=4000)
    assert "general instances an image" in panels(curves_figure([one], ["one"]))
    runs = [one, make_run(tmp_path / "plain", distilled=False), make_run(tmp_path / "two", distilled=True, kinds=True)]
    figure = curves_figure(runs, ["one", "plain", "two"])
    assert [t for t in panels(figure) if t.startswith("instances")] == ["instances, one", "instances, two"]
    axes, other = (a for a in figure.axes if a.get_title().startswith("instances"))
    assert axes.get_ylim() == other.get_ylim()
    raw, bold = axes.get_lines()[:4], axes.get_lines()[4:]
    names = [text.get_text() for text in axes.get_legend().get_texts()]
    assert names == ["positive", "semi-positive", "negative", "uncounted"]
    logged = [6 - step / 100 for step in range(20, 4001, 20)]
    assert list(raw[0].get_ydata()) == logged and list(bold[0].get_ydata()) == smooth(logged, 0.9)
    assert list(bold[1].get_ydata()) == pytest.approx([2.0] * 200)
    for look in ("get_color", "get_linestyle", "get_marker"):
        assert len({getattr(line, look)() for line in bold[:3]}) == (2 if look == "get_linestyle" else 3)
    assert bold[1]._dash_pattern != bold[2]._dash_pattern  # get_linestyle says "--" of both


def test_smoothing_with_0_9_worked_by_hand():
    assert smooth([1.0, 2.0, 4.0]) == pytest.approx([1.0, 2.9 / 1.9, (0.81 + 1.8 + 4) / 2.71])


def test_one_evaluation_a_run_is_bars(tmp_path):
    runs = [make_run(tmp_path / "plain", distilled=False, steps=100), make_run(tmp_path / "ours", distilled=True)]
    log = (runs[1] / "log.jsonl").read_text().splitlines()
    evaluations = [i for i, line in enumerate(log) if '"eval"' in line]
    kept = [line for i, line in enumerate(log) if i not in evaluations[:-1]]
    last = kept[-1].replace('"AP50": null', '"AP50": 40.0')
    (runs[1] / "log.jsonl").write_text("\n".join([*kept[:-1], last]))
    figure = curves_figure(runs, ["plain", "ours"])
    (axes,) = (a for a in figure.axes if a.get_title() == "after the last step")
    heights = [patch.get_height() for patch in axes.patches]
    assert heights == [5, 20, 40]  # AP of both, AP50 of the second
    assert {text.get_text() for text in axes.texts} == {"5.0", "20.0", "40.0"}
    assert [label.get_text() for label in axes.get_xticklabels()] == ["AP", "AP50"]
    assert axes.patches[0].get_facecolor() != axes.patches[1].get_facecolor() == axes.patches[2].get_facecolor()
    assert "after step 400" in [a.get_title() for a in curves_figure(runs[1:], ["ours"]).axes]
    mixed = curves_figure([make_run(tmp_path / "more", distilled=False), runs[1]], ["more", "ours"])
    lines = panels(mixed)["AP"]
    assert list(lines[1].get_xdata()) == [400] and list(lines[2].get_ydata()) == [20, 20]  # a line through the mark


def test_a_wide_span_gets_a_logarithmic_axis(tmp_path):
    figure = curves_figure([make_run(tmp_path / "ours", distilled=True)], ["ours"])
    scales = {axes.get_title(): axes.get_yscale() for axes in figure.axes}
    assert scales["feature"] == "log" and scales["relation"] == "linear" and scales["AP"] == "linear"


def test_nothing_is_clipped_and_no_text_overlaps(tmp_path):
    names = ["a plain student", "a student with a rather long name, longer than any", "third", "fourth", "fifth"]
    runs = [make_run(tmp_path / str(i), distilled=i > 0, kinds=i > 3) for i in range(5)]
    figure = curves_figure(runs, names)
    figure.savefig(tmp_path / "curves.png")  # lays out
    width, height = figure.get_size_inches() * figure.dpi
    boxes = [a.get_tightbbox() for a in figure.axes if a.axison] + [figure.legends[0].get_window_extent()]
    for i, box in enumerate(boxes):
        assert box.x0 >= 0 and box.y0 >= 0 and box.x1 <= width and box.y1 <= height
        for other in boxes[:i]:
            assert (
                min(box.x1, other.x1) - max(box.x0, other.x0) < 1 or min(box.y1, other.y1) - max(box.y0, other.y0) < 1
            )


def test_a_run_killed_while_writing_can_be_drawn(tmp_path):
    run = make_run(tmp_path / "run", distilled=False)
    before = read_log(run)
    with open(run / "log.jsonl", "a") as file:
        file.write('{"kind": "train", "st')
    assert read_log(run) == before


def test_smoothing_is_a_weighted_mean_without_a_pull_to_zero():
    assert smooth([3.0] * 5) == pytest.approx([3.0] * 5)
    assert smooth([1.0, 2.0, 4.0], 0.5) == pytest.approx([1.0, (0.5 + 2) / 1.5, (0.25 + 1 + 4) / 1.75])
    assert smooth([1.0, 2.0], 0.0) == [1.0, 2.0]
    with_gap = smooth([math.nan, 1.0, math.inf, 1.0])
    assert math.isnan(with_gap[0]) and with_gap[1:] == pytest.approx([1.0] * 3)


def test_a_non_finite_loss_does_not_stop_the_picture(tmp_path):
    run = make_run(tmp_path / "run", distilled=False)
    with open(run / "log.jsonl", "a") as file:
        file.write('{"kind": "train", "step": 420, "loss": NaN, "loss_classification": Infinity}\n')
    figure = curves_figure([run], ["run"])
    figure.savefig(tmp_path / "curves.png")
    assert np.isfinite(panels(figure)["loss, all terms"][1].get_ydata()).all()


def test_mistakes(tmp_path):
    with pytest.raises(UserError, match=r"none has no log.jsonl: name the folder of a run"):
        read_log(tmp_path / "none")
    (tmp_path / "empty").mkdir()
    (tmp_path / "empty" / "log.jsonl").write_text("")
    with pytest.raises(UserError, match="empty: nothing is logged yet"):
        curves_figure([tmp_path / "empty"], ["empty"])
    run = make_run(tmp_path / "run", distilled=False)
    log = run / "log.jsonl"
    log.write_text('"text"\n' + log.read_text())
    with pytest.raises(UserError, match=r"log.jsonl, line 1 is not an entry of a training log"):
        read_log(run)
