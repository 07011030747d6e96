"""The figure of decisions on planes."""

import json
from dataclasses import replace
from xml.etree import ElementTree

import numpy as np

from robustbench_inv.reporting.experiment_figures import DecisionPlanes, draw_decision_planes

SIZE = 7


def plane(name, points, outer_right):
    half = ["0" * SIZE] * 4 + ["1" * SIZE] * (SIZE - 4)
    return {
        "name": name,
        "points": points,
        "extent": 12.0,
        "decisions": {"logits": half, "nuisances": ["1" * SIZE] * SIZE},
        "right": {"logits": [1.0, outer_right], "nuisances": [0.0, 1.0]},
    }


def planes():
    found = {
        "dataset": "spheres:d=6,n=1,r1=1,r2=10",
        "model": "spheres-firevnet",
        "radii": [1.0, 10.0],
        "planes": [
            plane("data", {"x₁": [1.0, 0.0], "x₂": [3.0, 9.5]}, 1.0),
            plane("metamer", {"x": [1.0, 0.0], "x_met": [-30.0, 40.0]}, 0.774),
        ],
    }
    return DecisionPlanes.from_json(json.loads(json.dumps(found)))


def test_planes_are_read_as_they_were_measured():
    read = planes()
    assert [each.name for each in read.planes] == ["data", "metamer"]
    np.testing.assert_array_equal(read.planes[0].decisions["logits"][:, 0], [0, 0, 0, 0, 1, 1, 1])
    assert read.planes[1].right["logits"] == (1.0, 0.774)


def test_the_figure_shows_every_plane_for_every_classifier():
    picture = draw_decision_planes(planes())
    ElementTree.fromstring(picture.svg)
    for text in ("classifier of the logits", "classifier of the nuisances", "x₁", "x₂"):
        assert text in picture.svg
    assert picture.svg.count("<image") == 4
    assert "Plane of x and its metamer: the logits classify 100.0 % of the inner" in picture.alt
    assert "77.4 % of the outer circle" in picture.alt


def test_a_point_outside_the_picture_is_marked_in_its_direction():
    svg = draw_decision_planes(planes()).svg
    assert "to x_met, at 50" in svg


def test_a_second_look_at_a_plane_is_drawn_and_not_told_again():
    first = planes()
    afar = replace(first.planes[1], name="metamer, wide", extent=55.0)
    picture = draw_decision_planes(replace(first, planes=(*first.planes, afar)))
    assert "the same plane, wide" in picture.svg
    assert picture.alt == draw_decision_planes(first).alt


def test_the_same_planes_give_the_same_figure():
    assert draw_decision_planes(planes()).svg == draw_decision_planes(planes()).svg
