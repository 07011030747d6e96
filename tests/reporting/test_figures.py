"""Curves against counts, and figures that are well-formed, self-contained and the same each time."""

import re
import xml.etree.ElementTree as ElementTree
from dataclasses import replace
from math import inf

import matplotlib as mpl
import numpy as np
import pytest
from hypothesis import given
from hypothesis import strategies as st
from matplotlib.cbook import pts_to_prestep
from matplotlib.figure import Figure

from robustbench_inv.reporting import curves
from robustbench_inv.reporting.canvas import INK, inline_svg
from robustbench_inv.reporting.curves import Curve
from robustbench_inv.reporting.figures import (
    FIGURES,
    FigureContext,
    broken_curve,
    cell_curve,
    draw_figures,
    robust_curve,
)
from robustbench_inv.reporting.run_results import read_runs
from robustbench_inv.reporting.statistics import wilson
from robustbench_inv.testing.toy_cells import toy_cell

SVG = "{http://www.w3.org/2000/svg}"


def plot_of(run, columns=2):
    return FigureContext(
        tuple(c for result in read_runs([run]) for c in result.cells), wilson, columns
    )


def texts(svg):
    return [
        "".join(element.itertext()) for element in ElementTree.fromstring(svg).iter(f"{SVG}text")
    ]


@given(st.lists(st.floats(0, 5) | st.just(inf), min_size=1, max_size=50))
def test_held_and_fallen_are_complements_at_each_distance(distances):
    held, fallen = robust_curve(np.array(distances), wilson), broken_curve(distances, wilson)
    assert held.x == fallen.x
    assert np.add(held.y, fallen.y) == pytest.approx(100)
    for x, y, low, high in zip(held.x, held.y, held.low, held.high, strict=True):
        assert y == pytest.approx(100 * sum(d > x for d in distances) / len(distances))
        assert low <= y + 1e-9
        assert y <= high + 1e-9


def test_a_sweep_starts_at_clean_accuracy(writer, record):
    records = [record(0, status="already_wrong"), record(1, broken_at=0.1), record(2), record(3)]
    plot = plot_of(writer.cell(records, epsilons=[0.1, 0.2]).finish())
    curve = cell_curve(plot.cells[0], wilson)
    assert (curve.x, curve.y, curve.stepped) == ((0.0, 0.1, 0.2), (75.0, 50.0, 50.0), False)


def test_a_long_curve_is_thinned_but_keeps_its_ends():
    curve = robust_curve(np.arange(1.0, 5001.0), wilson)
    assert len(curve.x) <= 240
    assert (curve.x[0], curve.x[-1], curve.y[-1]) == (0.0, 5000.0, 0.0)


def test_an_invariance_search_has_a_curve_for_each_norm():
    threat = {"norm": "l2", "epsilons": [], "goal": "keep-decision"}
    kind = {"kind": "invariance"}
    cell = toy_cell("x", [1.0, 2.0, None], epsilons=(), threat=threat, attack=kind)
    values = {"smallest_distance_linf": [0.5, 2.0, None], "smallest_distance_l2": [2.0, 4.0, None]}
    event = {"event": "sample_values", "samples": [0, 1, 2], "values": values}
    none = toy_cell("y", [None] * 3, epsilons=(), threat=threat, attack=kind)
    (figure,) = draw_figures(
        "distances", FigureContext((replace(cell, events=(event,)), none), wilson)
    )
    assert {"ℓ2 distance", "ℓ∞ distance", "x", "y"} <= set(texts(figure.svg))
    assert draw_figures("distances", FigureContext((none,), wilson)) == []


@pytest.mark.parametrize("kind", FIGURES)
def test_figures_are_the_same_each_time_and_leave_settings_alone(full_run, kind):
    before = dict(mpl.rcParams)
    first, second = (draw_figures(kind, plot_of(full_run)) for _ in range(2))
    assert first
    assert [picture.svg for picture in first] == [picture.svg for picture in second]
    assert dict(mpl.rcParams) == before


@pytest.mark.parametrize("kind", FIGURES)
def test_figures_are_well_formed_and_need_nothing_else(full_run, kind):
    for picture in draw_figures(kind, plot_of(full_run)):
        root = ElementTree.fromstring(picture.svg)
        assert root.tag == f"{SVG}svg"
        links = [v for e in root.iter() for k, v in e.attrib.items() if k.endswith("href")]
        assert all(link.startswith(("#", "data:image/png;base64,")) for link in links)
        assert "<dc:date>" not in picture.svg
        assert picture.alt
        assert picture.caption


def test_names_are_drawn_as_text_and_never_as_mathematics(writer, sweep_records):
    records = sweep_records(10, [5], [0.1])
    run = writer.cell(records, model="$x$_model").cell(records, model="other").finish()
    (picture,) = draw_figures("curves", plot_of(run))
    assert {"$x$_model", "other", "Worst case over attacks", "pgd"} <= set(texts(picture.svg))


def test_long_names_are_shortened(writer, sweep_records):
    long = "thesis/experiments/" * 12 + "model.py:build:width=32"
    for model in (long, "other"):
        writer.cell(sweep_records(10, [5], [0.1]), model=model)
    (picture,) = draw_figures("curves", plot_of(writer.finish()))
    assert long not in texts(picture.svg)
    assert texts(picture.svg).count("thesis/exper…py:build:width=32") == 2


def test_a_name_that_begins_with_an_underscore_is_in_the_legend(writer, sweep_records):
    for model in ("_mine", "other"):
        writer.cell(sweep_records(10, [5], [0.1]), model=model)
    (picture,) = draw_figures("curves", plot_of(writer.finish()))
    drawn = [text.strip("\u2060") for text in texts(picture.svg)]
    assert drawn.count("_mine") == drawn.count("other")


def test_more_models_than_colours_have_no_legend(writer, sweep_records):
    for i in range(9):
        writer.cell(sweep_records(10, [5], [0.1]), model=f"m{i}")
    (picture,) = draw_figures("curves", plot_of(writer.finish()))
    assert texts(picture.svg).count("m0") == 1


def test_a_model_has_one_colour_everywhere(full_run):
    plot = plot_of(full_run)
    some = plot.only(tuple(c for c in plot.cells if c.model != "mnist-cnn"))
    assert some.colour("mnist-vib") == plot.colour("mnist-vib") != plot.colour("mnist-cnn")


def test_spheres_show_both_attacks_split_by_class(full_run):
    (picture,) = draw_figures("classes", plot_of(full_run))
    said = set(texts(picture.svg))
    assert {"inner sphere", "outer sphere", "spheres-perturbation", "spheres-invariance"} <= said
    assert (
        "spheres-perturbation on spheres-misaligned breaks 0.0 % of 20 attacked (inner sphere)"
        in picture.alt
    )
    assert "100.0 % of 20 attacked (outer sphere)" in picture.alt


def test_a_caption_by_class_does_not_count_clean_errors_as_broken(writer, record):
    about = {"dataset": "spheres:d=5", "kind": "minimum-norm", "epsilons": [], "classes": 2}
    records = [
        record(0, label=0, status="already_wrong"),
        record(1, label=0),
        record(2, label=1, broken_at=0.5, distance=0.5),
        record(3, label=1, status="already_wrong"),
    ]
    (picture,) = draw_figures("classes", plot_of(writer.cell(records, **about).finish()))
    assert "0.0 % of 1 attacked (inner sphere), 100.0 % of 1 attacked (outer sphere)" in picture.alt


def test_images_show_clean_adversarial_and_difference_of_every_model(full_run):
    pictures = {
        p.title.split(":")[0]: p for p in draw_figures("images", plot_of(full_run, columns=4))
    }
    assert set(pictures) == {"noise", "fgsm", "pgd"}
    assert pictures["pgd"].name == "images-mnist5k-linf-misclassify-pgd"
    root = ElementTree.fromstring(pictures["pgd"].svg)
    assert len(list(root.iter(f"{SVG}image"))) == 4 * (1 + 2 * 2)
    assert {"0 → 1", "clean", "mnist-cnn", "mnist-vib"} <= set(texts(pictures["pgd"].svg))


def test_images_prefer_what_the_attack_broke_one_of_each_class(writer, record):
    records = [
        record(0, label=0, status="already_wrong"), record(1, label=0, broken_at=0.1),
        record(2, label=0, broken_at=0.1), record(3, label=5, oracle_label=2),
    ]  # fmt: skip
    clean = np.zeros((4, 1, 8, 8), np.float32)
    images = {"samples": np.arange(4), "clean": clean, "adversarial": clean + 0.1}
    (picture,) = draw_figures("images", plot_of(writer.cell(records, images=images).finish()))
    assert {"0 → 1", "0.1", "5 → 5 (is 2)", "0.1 robust"} <= set(texts(picture.svg))
    assert "wrong before" not in texts(picture.svg)


def test_inputs_that_are_no_images_are_passed_over(writer, record):
    images = {
        "samples": np.arange(1),
        "clean": np.zeros((1, 500)),
        "adversarial": np.zeros((1, 500)),
    }
    run = writer.cell([record(0)], shape=[500], images=images).finish()
    assert draw_figures("images", plot_of(run)) == []


def test_inline_figures_share_no_ids_and_take_the_colours_of_the_page(full_run):
    pictures = draw_figures("curves", plot_of(full_run)) + draw_figures(
        "distances", plot_of(full_run)
    )
    bodies = [inline_svg(p.svg, f"{p.name}-") for p in pictures]
    ids = [name for body in bodies for name in re.findall(r'\bid="([^"]+)"', body)]
    used = {name for body in bodies for name in re.findall(r'(?:href="#|url\(#)([^")]+)', body)}
    assert len(ids) == len(set(ids))
    assert used <= set(ids)
    for body in bodies:
        ElementTree.fromstring(body)
        assert INK not in body
        assert "<metadata>" not in body


def test_seven_attacks_on_one_model_have_a_colour_and_a_line_each():
    names = ["a", "b", "c", "d", "e", "f", "g"]
    cells = [toy_cell(name, [0.1, None, 0.2], epsilons=[0.1, 0.2]) for name in names]
    plot = FigureContext(tuple(cells)).ranking(cells)
    assert len({plot.line_colour(cell) for cell in cells}) == 7
    styles = [plot.style(name) for name in names]
    assert len({(each["marker"], str(each["linestyle"])) for each in styles}) == 7
    two = [toy_cell("a", [0.1], model={"name": name}) for name in "xy"]
    plot = FigureContext(tuple(two)).ranking(two)
    assert [plot.line_colour(cell) for cell in two] == [plot.colour("x"), plot.colour("y")]


def test_the_legend_of_one_panel_lies_beside_it_and_is_not_cut():
    cells = [toy_cell(f"an-attack-with-a-long-name-of-its-own-{i}", [0.1, None]) for i in range(7)]
    (figure,) = draw_figures("curves", FigureContext(tuple(cells)))
    root = ElementTree.fromstring(figure.svg)
    width, height = (float(root.get(side).removesuffix("pt")) for side in ("width", "height"))
    names = [e for e in root.iter(f"{SVG}text") if "…" in (e.text or "")]
    assert len(names) == 7
    for name in names:
        x, y = float(name.get("x")), float(name.get("y"))
        assert 0 < x < width - 100
        assert 0 < y < height


def test_a_certified_accuracy_claims_between_two_eps_what_is_proven_at_the_larger(monkeypatch):
    share = Curve((0.0, 0.25), (100.0, 40.0), (96.0, 30.0), (100.0, 50.0), False)
    attacked = Curve((0.0, 0.25), (100.0, 90.0), (96.0, 85.0), (100.0, 95.0), False)
    monkeypatch.setattr(curves, "certified_curve", lambda *_: share)
    monkeypatch.setattr(curves, "worst_curve", lambda *_: attacked)
    axes = Figure().subplots()
    curves.draw_certified(axes, (), wilson, INK)
    hatched, interval = (each.get_paths()[0] for each in axes.collections)
    x, y = pts_to_prestep(*axes.lines[0].get_data())
    assert (axes.lines[0].get_drawstyle(), np.interp(0.1, x, y)) == ("steps-pre", 40)
    assert interval.contains_point((0.1, 45))
    assert not interval.contains_point((0.1, 75))
    assert hatched.contains_point((0.1, 45))
    assert not hatched.contains_point((0.1, 35))
    assert not hatched.contains_point((0.1, 98))
