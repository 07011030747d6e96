"""Histograms: they survive the file, and show each panel with its limits."""

from robustbench_inv.reporting.experiment_figures import draw_histograms
from robustbench_inv.results.experiment_result import (
    ExperimentResult,
    Histogram,
    HistogramPanels,
    read_result,
    result_to_gzip,
)


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
