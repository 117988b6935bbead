"""The GI-score heat map, and the picture of general instances."""

from __future__ import annotations

from dataclasses import replace

import numpy as np
import pytest
import torch
from matplotlib.backends.backend_agg import FigureCanvasAgg
from torch import Tensor

from gid_cuda.detectors.outputs import BoxCoder, DetectorOutputs
from gid_cuda.viz.heat_map import gi_heat_map
from gid_cuda.viz.instances import STYLES, InstancesOfImage, instances_figure

STRIDES, PER_CELL = (8, 16), 3


def outputs_of(height: int, width: int, *, seen: tuple[int, int] | None = None) -> DetectorOutputs:
    """Anchors of torchvision's kind: centres at multiples of the stride, ordered by level, row, column, shape."""
    features, anchors = [], []
    for stride in STRIDES:
        h, w = height // stride, width // stride
        features.append(torch.zeros(1, 4, h, w))
        y, x = torch.meshgrid(torch.arange(h) * stride, torch.arange(w) * stride, indexing="ij")
        center = torch.stack([x, y], dim=-1).reshape(-1, 1, 2).float()
        half = torch.arange(1, PER_CELL + 1).view(1, -1, 1) * stride
        anchors.append(torch.cat([center - half, center + half], dim=-1).reshape(-1, 4))
    anchors = torch.cat(anchors)
    empty = torch.zeros(1, len(anchors), 2)
    sizes = torch.tensor([seen or (height, width)])
    return DetectorOutputs(features, list(STRIDES), empty, empty.repeat(1, 1, 2), BoxCoder("deltas"), anchors, sizes)


def scores_with(outputs: DetectorOutputs, level: int, row: int, column: int, shape: int, value: float = 0.7) -> Tensor:
    scores = torch.zeros(len(outputs.anchors))
    cells = [f.shape[2] * f.shape[3] for f in outputs.features]
    cell = sum(cells[:level]) + row * outputs.features[level].shape[3] + column
    scores[cell * PER_CELL + shape] = value
    return scores


@pytest.mark.parametrize("level, row, column", [(0, 3, 5), (1, 1, 4), (0, 0, 0), (0, 7, 11), (1, 3, 5)])
def test_the_peak_is_at_the_anchor_centre(level, row, column):
    outputs = outputs_of(64, 96)
    heat = gi_heat_map(scores_with(outputs, level, row, column, 2), outputs, 0, (64, 96))
    assert heat.shape == (64, 96)
    peak = divmod(int(heat.argmax()), 96)
    stride = STRIDES[level]
    assert abs(peak[0] + 0.5 - row * stride) <= 0.5 and abs(peak[1] + 0.5 - column * stride) <= 0.5
    assert 0.7 * (1 - 0.5 / stride) ** 2 - 1e-6 <= heat.max() <= 0.7  # half a pixel beside the centre
    far = heat.clone()
    far[max(0, (row - 1) * stride) : (row + 1) * stride, max(0, (column - 1) * stride) : (column + 1) * stride] = 0
    rows = slice((outputs.features[level].shape[2] - 1) * stride, None)  # continued beyond the last centres
    columns = slice((outputs.features[level].shape[3] - 1) * stride, None)
    far[rows], far[:, columns] = 0, 0
    assert far.max() == 0


def test_a_pixel_takes_the_maximum_over_shapes_and_levels():
    outputs = outputs_of(64, 96)
    few = scores_with(outputs, 0, 2, 4, 0, 0.2) + scores_with(outputs, 0, 2, 4, 1, 0.5)
    both = few + scores_with(outputs, 1, 1, 2, 2, 0.9)  # the same place, a level up
    assert gi_heat_map(few, outputs, 0, (64, 96))[16, 32] == pytest.approx(0.5 * (1 - 0.5 / 8) ** 2)
    assert gi_heat_map(both, outputs, 0, (64, 96))[16, 32] == pytest.approx(0.9 * (1 - 0.5 / 16) ** 2)


def test_it_is_given_in_the_pixels_of_the_image_file_and_without_the_padding():
    outputs = outputs_of(64, 96, seen=(48, 80))  # the network saw the image at 48x80, padded to 64x96
    heat = gi_heat_map(scores_with(outputs, 0, 3, 5, 0), outputs, 0, (96, 160))
    peak = divmod(int(heat.argmax()), 160)
    assert abs(peak[0] + 0.5 - 2 * 24) <= 0.5 and abs(peak[1] + 0.5 - 2 * 40) <= 0.5
    outside = gi_heat_map(scores_with(outputs, 0, 7, 11, 0), outputs, 0, (96, 160))
    assert outside.max() == 0


def test_a_single_cell_covers_all_and_nan_is_nothing():
    outputs = outputs_of(16, 16)
    scores = scores_with(outputs, 1, 0, 0, 1)
    scores[0] = torch.nan
    assert torch.equal(gi_heat_map(scores, outputs, 0, (10, 10)), torch.full((10, 10), 0.7))


@pytest.mark.parametrize("size", [(64, 96), (128, 192)])
def test_boxes_in_another_order_are_spots_at_their_centres(size):
    outputs = outputs_of(64, 96)
    scores = scores_with(outputs, 1, 1, 4, 2)  # centre (64, 16)
    order = torch.randperm(len(scores), generator=torch.Generator().manual_seed(0))
    outputs.anchors = outputs.anchors[order]
    heat = gi_heat_map(scores[order], outputs, 0, size)
    zoom = size[0] // 64
    spot = torch.zeros(size)
    spot[8 * zoom : 32 * zoom, 56 * zoom : 80 * zoom] = 0.7  # cells of 8 pixels: its own, and those around it
    assert torch.equal(heat, spot)


def test_boxes_that_are_not_equally_many_a_cell_are_spots_too():
    outputs = outputs_of(64, 96)
    outputs.anchors = torch.tensor([[20.0, 20, 28, 28], [-40, 0, -20, 20]])  # the second lies outside
    heat = gi_heat_map(torch.tensor([0.4, 0.9]), outputs, 0, (64, 96))
    assert heat.max() == pytest.approx(0.4) and heat[24, 24] == heat.max() and heat[0, 0] == 0


def instances(count: int = 4) -> InstancesOfImage:
    boxes = torch.tensor([[20.0, 20, 60, 60], [90, 10, 150, 50], [30, 80, 70, 110], [110, 70, 150, 110]])[:count]
    heat = torch.zeros(120, 160)
    heat[90:, 120:] = 0.8
    kinds = ["positive", "semi-positive", "negative", "uncounted"][:count]
    return InstancesOfImage("best.pt", boxes, torch.linspace(0.8, 0.2, count), kinds, heat)


def pixels(figure) -> np.ndarray:
    canvas = FigureCanvasAgg(figure)
    canvas.draw()
    return np.asarray(canvas.buffer_rgba())[..., :3].astype(int)


def near(image: np.ndarray, colour: str) -> np.ndarray:
    target = [int(colour[i : i + 2], 16) for i in (1, 3, 5)]
    return (np.abs(image - target).max(axis=2) < 40).any(axis=None)


def test_every_kind_that_is_there_has_its_colour_in_picture_and_legend():
    image = torch.full((3, 120, 160), 90, dtype=torch.uint8)
    truth = torch.tensor([[15.0, 15, 62, 64]])
    drawn = pixels(instances_figure(image, truth, [instances()], "image 1"))
    legend = drawn[-45:]
    for colour, _, _ in STYLES.values():
        assert near(drawn[:-45, : drawn.shape[1] // 2], colour)
        assert near(legend, colour)
    fewer = pixels(instances_figure(image, truth, [instances(1)], "image 1"))
    assert near(fewer[-45:], STYLES["positive"][0]) and not near(fewer[-45:], STYLES["negative"][0])


def test_the_heat_map_is_bright_where_the_score_is_high():
    image = torch.full((3, 120, 160), 90, dtype=torch.uint8)
    figure = instances_figure(image, torch.zeros(0, 4), [instances()], "image 1")
    right = figure.axes[1]
    drawn = pixels(figure)
    box = right.get_window_extent()
    panel = drawn[
        int(drawn.shape[0] - box.y1) + 2 : int(drawn.shape[0] - box.y0) - 2, int(box.x0) + 2 : int(box.x1) - 2
    ]
    h, w = panel.shape[:2]
    assert panel[-h // 8 :, -w // 8 :].sum(axis=2).mean() > 2 * panel[: h // 2, : w // 2].sum(axis=2).mean()


@pytest.mark.parametrize("count", [2, 3, 5])
def test_several_students_are_columns_on_one_scale(count):
    image = torch.full((3, 120, 160), 90, dtype=torch.uint8)
    parts = [instances() for _ in range(count)]
    for i, part in enumerate(parts):
        part.heat.mul_((count - i) / count)
    parts = [replace(part, title=f"distilled/best.pt, step {i}") for i, part in enumerate(parts)]
    figure = instances_figure(image, torch.zeros(0, 4), parts, "image 1")
    FigureCanvasAgg(figure).draw()
    pictures, maps = figure.axes[:count], figure.axes[count : 2 * count]
    assert [axes.get_title() for axes in pictures] == [part.title for part in parts]
    assert all(axes.images[1].norm.vmax == pytest.approx(0.8) for axes in maps)
    places = [axes.get_window_extent() for axes in pictures]
    below = [axes.get_window_extent() for axes in maps]
    titles = [axes.title.get_window_extent() for axes in pictures]
    for i in range(count):
        assert below[i].x0 == places[i].x0 and below[i].y1 < places[i].y0
        assert np.array_equal(maps[i].images[1].get_array(), parts[i].heat)
        if i:
            assert places[i].x0 > places[i - 1].x1 and titles[i].x0 > titles[i - 1].x1
    assert titles[0].x0 >= 0 and titles[-1].x1 <= figure.get_figwidth() * figure.dpi


def test_a_long_title_keeps_its_end():
    part = replace(instances(), title="a/rather/long/folder/" * 5 + "best.pt, step 5000")
    figure = instances_figure(torch.zeros(3, 120, 160, dtype=torch.uint8), torch.zeros(0, 4), [part, part], "x")
    FigureCanvasAgg(figure).draw()
    left, right = (axes.title.get_window_extent() for axes in figure.axes[:2])
    assert left.x1 < right.x0 and left.x0 >= 0
    assert figure.axes[0].get_title().startswith("…") and figure.axes[0].get_title().endswith("best.pt, step 5000")


@pytest.mark.parametrize("height, width", [(40, 400), (400, 40)])
def test_no_instance_no_ground_truth_and_odd_shapes(height, width):
    nothing = InstancesOfImage("a", torch.zeros(0, 4), torch.zeros(0), [], torch.zeros(height, width))
    image = torch.zeros(3, height, width, dtype=torch.uint8)
    figure = instances_figure(image, torch.zeros(0, 4), [nothing], "x" * 300)
    assert pixels(figure).shape[1] == pytest.approx(1020, abs=30) and not figure.legends


@pytest.mark.parametrize("count, note", [(1, ""), (2, "of them teach: positive, semi-positive")])
def test_small_scores_and_the_note_stand_within_the_figure(count, note):
    image = torch.full((3, 120, 160), 90, dtype=torch.uint8)
    part = instances()
    part.heat.mul_(1.2e-3 / 0.8)
    figure = instances_figure(image, torch.tensor([[1.0, 1, 20, 20]]), [part] * count, "image 1", note=note)
    canvas = FigureCanvasAgg(figure)
    canvas.draw()
    labels = figure.axes[-1].get_yticklabels()
    assert max(len(label.get_text()) for label in labels) >= 6  # 0.0012
    assert max(label.get_window_extent().x1 for label in labels) < figure.get_figwidth() * figure.dpi
    said = [text for text in figure.texts if text.get_text() == note]
    assert len(said) == (1 if note else 0)
    if note:
        place, legend = said[0].get_window_extent(), figure.legends[0].get_window_extent()
        assert 0 <= place.y0 and place.y1 <= legend.y0 + 3 and legend.y1 < figure.axes[-1].get_window_extent().y0
