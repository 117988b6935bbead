"""Boxes over images: colours where they belong, labels that can be read."""

from __future__ import annotations

import numpy as np
import pytest
import torch
from PIL import Image

from gid_cuda.viz import drawing
from gid_cuda.viz.drawing import DASHES, PALETTE, DrawnBox, detection_boxes, draw_boxes, ink_on, shorten, to_picture


def rgb(colour: str) -> tuple[int, ...]:
    return tuple(int(colour[i : i + 2], 16) for i in (1, 3, 5))


def gray(width: int = 800, height: int = 600) -> Image.Image:
    return Image.new("RGB", (width, height), (128, 128, 128))


def test_the_border_has_the_colour_and_the_inside_is_untouched():
    picture = draw_boxes(gray(), [DrawnBox((100, 200, 300, 400), "#E69F00")])
    for at in [(101, 300), (299, 300), (200, 201), (200, 399)]:
        assert picture.getpixel(at) == rgb("#E69F00")
    for at in [(200, 300), (105, 300), (50, 300), (350, 300)]:
        assert picture.getpixel(at) == (128, 128, 128)


def test_a_small_image_is_enlarged_and_its_boxes_with_it():
    picture = draw_boxes(gray(192, 144), [DrawnBox((48, 36, 96, 72), "#56B4E9")])
    assert picture.size == (800, 600)
    for at in [(201, 200), (399, 200), (300, 151), (300, 299)]:
        assert picture.getpixel(at) == rgb("#56B4E9")


def test_a_large_image_keeps_its_size_and_gets_thicker_lines():
    picture = draw_boxes(gray(3000, 1500), [DrawnBox((1000, 500, 2000, 1000), "#E69F00")])
    assert picture.size == (3000, 1500)
    assert picture.getpixel((1008, 750)) == rgb("#E69F00")


def test_the_image_given_is_not_drawn_on():
    picture = gray()
    draw_boxes(picture, [DrawnBox((100, 100, 200, 200), "#E69F00", None, ("a", "b"))])
    assert np.ptp(np.asarray(picture)) == 0


def test_dashes_leave_gaps_and_styles_differ():
    rows = []
    for dash in DASHES:
        picture = draw_boxes(gray(), [DrawnBox((100, 100, 500, 500), "#E69F00", dash)])
        row = [picture.getpixel((x, 101)) == rgb("#E69F00") for x in range(100, 500)]
        assert all(row) == (dash is None)
        assert row[0] and row[-1]  # corners are closed
        rows.append(tuple(row))
    assert len(set(rows)) == len(DASHES)


@pytest.mark.parametrize("box", [(-50, -50, 900, 700), (799, 599, 900, 700), (5, 5, 5, 5), (700, 500, -3, -3)])
@pytest.mark.parametrize("dash", [None, (2, 2)])
def test_boxes_at_and_beyond_the_edges_are_drawn_inside(box, dash):
    picture = draw_boxes(gray(), [DrawnBox(box, "#E69F00", dash, ("label",))])
    assert (np.asarray(picture) == rgb("#E69F00")).all(axis=2).any()


def test_the_first_box_lies_on_top():
    picture = draw_boxes(gray(), [DrawnBox((10, 10, 90, 90), "#E69F00"), DrawnBox((10, 10, 90, 90), "#56B4E9")])
    assert picture.getpixel((11, 50)) == rgb("#E69F00")


def labels_of(monkeypatch: pytest.MonkeyPatch, picture: Image.Image, boxes: list[DrawnBox]) -> list[drawing.Rectangle]:
    """The rectangles of the labels that draw_boxes wrote."""
    places = []
    original = drawing._label

    def spy(*arguments):
        places.append(original(*arguments))
        return places[-1]

    monkeypatch.setattr(drawing, "_label", spy)
    draw_boxes(picture, boxes)
    return places


def test_labels_stay_inside_and_do_not_cover_each_other(monkeypatch):
    corners = [(x, y) for x in (0, 100, 200, 640) for y in (0, 60, 300, 560)]
    boxes = [DrawnBox((x, y, x + 160, y + 40), "#E69F00", None, ("some class 0.93", "some class")) for x, y in corners]
    places = labels_of(monkeypatch, gray(), boxes)
    assert len(places) == len(boxes)
    for i, (x1, y1, x2, y2) in enumerate(places):
        assert x1 >= 0 and y1 >= 0 and x2 < 800 and y2 < 600
        assert all(x2 <= a[0] or a[2] <= x1 or y2 <= a[1] or a[3] <= y1 for a in places[:i])


def test_a_shorter_label_stands_in_where_there_is_no_room(monkeypatch):
    boxes = [DrawnBox((10, 250, 150, 280), "#E69F00", None, ("x" * 20, "xx")) for _ in range(9)]
    widths = {x2 - x1 for x1, _, x2, _ in labels_of(monkeypatch, gray(400, 300), boxes)}
    assert len(widths) == 2


def test_detections_are_sorted_coloured_by_class_and_cut_at_the_threshold():
    classes = [f"class {i}" for i in range(len(PALETTE) + 1)]
    boxes = torch.tensor([[0.0, 0, 10, 10], [0, 0, 20, 20], [0, 0, 30, 30]])
    drawn = detection_boxes(
        boxes, torch.tensor([0, len(PALETTE), 1]), torch.tensor([0.6, 0.904, 0.2]), classes, threshold=0.3
    )
    assert [d.texts[0] for d in drawn] == [f"class {len(PALETTE)} 0.90", "class 0 0.60"]
    assert [d.xyxy[2] for d in drawn] == [20, 10]
    assert drawn[0].colour == drawn[1].colour and drawn[0].dash != drawn[1].dash  # one round of colours further
    assert detection_boxes(boxes[:0], torch.zeros(0, dtype=torch.int64), torch.zeros(0), classes) == []


def test_small_helpers():
    assert shorten("short") == "short"
    assert shorten("x" * 40) == "x" * 27 + "…"
    assert [ink_on(c) for c in ("#FFFFFF", "#F0E442", "#0072B2", "#000000")] == ["#000000"] * 2 + ["#FFFFFF"] * 2
    image = torch.arange(24, dtype=torch.uint8).view(3, 2, 4)
    assert to_picture(image).size == (4, 2)
    assert to_picture(image).getpixel((3, 1)) == (7, 15, 23)
