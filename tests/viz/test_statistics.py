"""Histograms of general instances, as numbers and as a picture."""

from __future__ import annotations

import pytest
import torch
from matplotlib.backends.backend_agg import FigureCanvasAgg

from gid_cuda.viz.statistics import EDGES, InstanceStatistics, statistics_data, statistics_figure


def part(title: str = "early", *, empty: bool = False) -> InstanceStatistics:
    score, iou, iop = torch.tensor([[0.9, 1.0, 1.0 + 1e-6], [0.52, 0.3, 0.96], [0.1, 0.0, 0.0], [0.07, 0.2, 0.5]]).T
    kinds = ["positive", "semi-positive", "negative", "uncounted"]
    if empty:
        score, iou, iop, kinds = score[:0], iou[:0], iop[:0], []
    return InstanceStatistics(title, 2, score, iou, iop, kinds)


def bins(*numbers: int) -> list[int]:
    return [numbers.count(i) for i in range(20)]


def test_numbers_by_hand():
    data = statistics_data([part(), part("none", empty=True)])
    assert data["edges"] == pytest.approx(EDGES) and len(data["edges"]) == 21
    found, none = data["students"]
    assert (found["student"], found["images"], found["instances"]) == ("early", 2, 4)
    assert found["score"]["mean"] == pytest.approx(0.3975) and found["iop"]["counts"] == bins(19, 19, 0, 10)
    assert sum(found["score"]["counts"]) == sum(found["iou"]["counts"]) == 4 and found["iou"]["counts"][19] == 1
    assert found["kinds"] == {"positive": 1, "semi-positive": 1, "negative": 1, "uncounted": 1}
    assert none["instances"] == 0 and none["iou"] == {"mean": None, "counts": [0] * 20}


@pytest.mark.parametrize("count", [1, 2, 5])
def test_picture(count):
    parts = [part(f"run/best.pt, step {i}") for i in range(count)]
    parts[-1] = part("nothing", empty=True) if count > 2 else parts[-1]
    figure = statistics_figure(parts, "general instances")
    FigureCanvasAgg(figure).draw()
    score, iou, iop, kinds = figure.axes
    assert [len(axes.lines) for axes in (score, iou, iop)] == [0, 1, 2]  # the limits of eq. 11
    assert [line.get_xdata()[0] for line in (*iou.lines, *iop.lines)] == [0.5, 0.3, 0.7]
    steps = iop.patches
    assert len(steps) == count and steps[0].get_data().values == pytest.approx([n / 4 for n in bins(19, 19, 0, 10)])
    assert len({(tuple(s.get_edgecolor()), str(s.get_linestyle())) for s in steps}) == count
    assert len(kinds.patches) == 4 * count and kinds.patches[0].get_height() == 0.25
    texts = [text.get_text() for text in figure.legends[0].get_texts()]
    assert len(texts) == count and texts[0] == "run/best.pt, step 0: 4 instances in 2 images"
    width, height = figure.get_size_inches() * figure.dpi
    boxes = [axes.get_tightbbox() for axes in figure.axes] + [figure.legends[0].get_window_extent()]
    assert all(b.x0 >= 0 and b.y0 >= 0 and b.x1 <= width and b.y1 <= height for b in boxes)
    assert all(boxes[4].y1 <= b.y0 for b in boxes[:4])
