"""Layers before and after regularisation: the file, the table, the figures and the page."""

import re
from xml.etree import ElementTree

import numpy as np
import pytest

from robustbench_inv.catalogue.reproduction import Measurement
from robustbench_inv.catalogue.reproduction_file import load_reproduction, read_reproduction
from robustbench_inv.errors import BadCatalogue, BadResults
from robustbench_inv.reporting.layer_figures import RegularizationEffect, draw_layers, layer_table
from robustbench_inv.reporting.reproduction.reproduction_report import (
    find_results,
    report_from_results,
)
from robustbench_inv.reporting.table_formats import to_markdown
from robustbench_inv.results.experiment_result import ExperimentResult, result_to_gzip

SAMPLES, CLASSES = 24, 3


def view(model, *widths, term=0.5):
    """A view whose every MMD² term is ``term``, and chance a tenth of it."""
    points = np.random.default_rng(0).normal(size=(CLASSES, SAMPLES, 2))
    return {
        "model": model,
        "digest": "d" * 64,
        "accuracy": 0.75,
        "widths": dict.fromkeys(widths, 2.0),
        "mmd2": {name: [term] * CLASSES for name in widths},
        "chance": {name: [term / 10] * CLASSES for name in widths},
        "plane": points.tolist(),
        "explained": [[0.6, 0.3]] * CLASSES,
    }


def effect():
    both = ("median", "training")
    pairs = {
        "C-DV": {"before": view("m-dv", *both), "after": view("m-dv-ie", *both, term=0.25)},
        "C-JS": {"before": view("m-js", "median"), "after": view("m-js-ie", "median")},
    }
    labels = [i % CLASSES for i in range(SAMPLES)]
    return {"dataset": "mnist", "labels": labels, "pairs": pairs}


def measured(layers):
    return ExperimentResult("mnist", SAMPLES, {"m-dv": "d" * 64}, layers=layers)


@pytest.fixture
def folder(tmp_path):
    (tmp_path / "measured-mnist.json.gz").write_bytes(result_to_gzip(measured(effect())))
    return tmp_path


def test_plain_values_are_read():
    found = RegularizationEffect.from_json(effect())
    before, after = found.pairs["C-DV"]
    assert (found.dataset, found.labels.tolist()) == ("mnist", effect()["labels"])
    assert (before.model, after.model, after.widths["training"]) == ("m-dv", "m-dv-ie", 2.0)
    assert before.plane.shape == (CLASSES, SAMPLES, 2)
    np.testing.assert_array_equal(before.plane, effect()["pairs"]["C-DV"]["before"]["plane"])


@pytest.mark.parametrize("layers", [{}, {**effect(), "pairs": 3}], ids=["no keys", "no pairs"])
def test_damaged_layers_are_one_line(tmp_path, layers):
    (tmp_path / "measured-x.json.gz").write_bytes(result_to_gzip(measured(layers)))
    with pytest.raises(BadResults) as caught:
        report_from_results(load_reproduction("guess-first/figure-2"), find_results([tmp_path]))
    assert "\n" not in str(caught.value)


def test_the_table_sums_over_hypotheses():
    table = layer_table(RegularizationEffect.from_json(effect()))
    assert table.frame["model"].tolist() == ["m-dv"] * 2 + ["m-dv-ie"] * 2 + ["m-js", "m-js-ie"]
    assert table.frame["mmd2"].tolist() == pytest.approx([1.5, 1.5, 0.75, 0.75, 1.5, 1.5])
    assert table.frame["chance"].tolist() == pytest.approx((table.frame["mmd2"] / 10).tolist())
    assert "| m-dv-ie | yes | 75.0 | 2 [training] | 0.75 [0.075] |" in to_markdown(table)


def test_the_figures_show_every_network_and_hypothesis():
    pictures = draw_layers(RegularizationEffect.from_json(effect()))
    texts = [_texts(picture.svg) for picture in pictures]
    assert [picture.name for picture in pictures] == ["terms-mnist", "plane-mnist", "planes-mnist"]
    assert {"C-DV: σ 2 (median)", "C-DV: σ 2 (training)", "C-JS: σ 2 (median)"} <= texts[0]
    assert {"m-dv", "m-dv-ie", "m-js", "m-js-ie", "true label is 1", "is another"} <= texts[1]
    assert {f"k = {k}" for k in range(CLASSES)} <= texts[2]
    assert pictures[2].svg.count("<image") == 4 * CLASSES
    assert "1.5 before, 0.75 after" in pictures[0].alt


def test_terms_stand_where_their_values_are():
    """Heights in the drawing: of the lines at 0.0 and 0.4, and of a mark for every term."""
    svg = draw_layers(RegularizationEffect.from_json(effect()))[0].svg
    line = r'"ytick_\d+">.*?<path d="M [\d.]+ ([\d.]+).*?>([\d.]+)</text>'
    heights = {text: float(y) for y, text in reversed(re.findall(line, svg, re.DOTALL))}
    marks = {float(y) for y in re.findall(r'<use[^>]* y="([\d.]+)"', svg)}
    low, high = heights["0.0"], heights["0.4"]
    for term in (0.5, 0.25, 0.05, 0.025):
        wanted = low + (high - low) * term / 0.4
        assert min(abs(y - wanted) for y in marks) < 0.05, term


def test_the_page_holds_everything(folder):
    item = load_reproduction("guess-first/figure-2")
    found = report_from_results(item, find_results([folder]))
    page = folder / "figure-2.html"
    found.write(page)
    html = page.read_text()
    assert html.count("<svg") == 3
    assert item.title in html
    assert not re.findall(r'(?:src|href)="http', html)
    assert (folder / "figure-2_files" / "tables" / "mmd-mnist.csv").is_file()
    again = report_from_results(item, find_results([folder / "figure-2_files"]))
    assert again.to_json() == found.to_json()
    assert len(found.to_json()["parts"][0]["layers"]) == 6


def test_the_shipped_figure_compares_what_the_paper_regularises():
    item = load_reproduction("guess-first/figure-2")
    pairs = item.measurement.filled("mnist")["pairs"]
    assert [after for _, after in pairs.values()] == ["mnist-c-dv-ie-200", "mnist-c-js-ie-200"]
    assert not item.trials
    assert item.samples == 1000


def test_a_definition_has_trials_or_a_measurement(tmp_path):
    path = tmp_path / "figure-9.toml"
    text = 'version = 1\ntitle = "t"\nsummary = "s"\npaper = "p"\ndatasets = ["mnist"]\n'
    path.write_text(text)
    with pytest.raises(BadCatalogue, match="or a measurement"):
        read_reproduction(path)
    path.write_text(text + '[measurement]\nby = "logits"\n')
    assert read_reproduction(path).measurement == Measurement("logits")


def _texts(svg):
    return {"".join(node.itertext()) for node in ElementTree.fromstring(svg).iter("{http://www.w3.org/2000/svg}text")}  # fmt: skip
