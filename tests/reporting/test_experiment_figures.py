"""Figures and tables of experiments: decision planes, histograms, logits."""

import json
from dataclasses import replace
from math import nan
from xml.etree import ElementTree

import numpy as np

from robustbench_inv.reporting.experiment_figures import (
    DecisionPlanes,
    draw_decision_planes,
    draw_histograms,
    draw_lines,
    logit_table,
)
from robustbench_inv.results.experiment_result import (
    ExperimentResult,
    Histogram,
    HistogramPanels,
    LinePanel,
    LinePanels,
    LogitRow,
    LogitSheet,
    read_result,
    result_to_gzip,
)

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


def spread(panels=3):
    each = [
        Histogram(
            f"class {k}", (0.0, 1.0, 2.0), {"own": (0, 4), "others": (5, k)}, {"1st": 1.5}, "n"
        )
        for k in range(panels)
    ]
    return HistogramPanels("s", "title", "caption", "nats", tuple(each))


def test_a_spread_survives_its_file(tmp_path):
    path = tmp_path / "measured-x.json.gz"
    path.write_bytes(result_to_gzip(ExperimentResult("d", 3, {}, histograms=(spread(),))))
    assert read_result(path).histograms == (spread(),)


def test_every_panel_is_drawn_with_its_limits():
    picture = draw_histograms(spread(), "mnist")
    assert picture.name == "s-mnist"
    for word in ("class 0", "class 2", "own", "others", "1st", "nats"):
        assert f">{word}<" in picture.svg
    assert picture.alt == "class 0: 1st 1.5; n. class 1: 1st 1.5; n. class 2: 1st 1.5; n."


def test_the_same_spread_is_the_same_picture():
    assert draw_histograms(spread()).svg == draw_histograms(spread()).svg


def rows_of(*lines):
    return logit_table(LogitSheet("s", "Logits", "c", ("0", "1"), lines), "mnist").rows


def test_the_largest_logit_is_marked_by_its_outcome():
    rows = rows_of(
        LogitRow("threshold", (1.0, 2.0)),
        LogitRow("right", (5.0, -2.25), accepted=True),
        LogitRow("detected", (-7.0, -3.0), accepted=False, wrong=True),
        LogitRow("undetected", (-7.0, 3.0), accepted=True, wrong=True),
    )
    assert [[cell.tone for cell in row[1:]] for row in rows] == [
        ["", ""],
        ["pass", ""],
        ["", "warn"],
        ["", "fail"],
    ]
    assert [cell.text for cell in rows[1]] == ["right", "5.0", "−2.2"]


def test_missing_logits_are_blank():
    ((_, *cells),) = rows_of(LogitRow("x: not reached", (nan, nan)))
    assert [cell.text for cell in cells] == ["—", "—"]


def test_the_table_holds_every_number_for_programs():
    table = logit_table(LogitSheet("s", "Logits", "c", ("0", "1"), (LogitRow("a", (1.0, 2.0)),)))
    assert (table.name, table.columns) == ("s", ("image", "0", "1"))
    assert table.frame[["row", "column", "value"]].to_numpy().tolist() == [["a", "0", 1.0], ["a", "1", 2.0]]  # fmt: skip


def test_lines_survive_their_file_and_are_drawn_with_their_ends(tmp_path):
    panels = tuple(
        LinePanel(title, {"a": ((1.0, 2.0), (4.0, 0.0)), "b": ((1.0, 2.0), (3.0, 2.0))})
        for title in ("left", "right")
    )
    lines = LinePanels("n", "t", "c", "layer", "value", panels, log=True)
    path = tmp_path / "measured-x.json.gz"
    path.write_bytes(result_to_gzip(ExperimentResult("x", 1, {}, lines=(lines,))))
    assert read_result(path).lines == (lines,)
    figure = draw_lines(lines)
    assert "left: a from 4 at 1 to 0 at 2; b from 3 at 1 to 2 at 2." in figure.alt
    assert all(f">{text}<" in figure.svg for text in ("left", "right", "layer", "value", "a", "b"))
    thin = draw_lines(LinePanels("n", "t", "c", "x", "y", panels, thin=True))
    assert thin.alt == "t"
    assert ">b<" not in thin.svg


def test_a_logarithmic_axis_has_plain_numbers():
    panel = LinePanel("", {"a": ((1.0, 2.0), (1e-6, 10.0))})
    figure = draw_lines(LinePanels("n", "t", "c", "x", "y", (panel,), log=True))
    assert "$" not in figure.svg
    assert any(f">{number}<" in figure.svg for number in ("0.001", "1"))
