"""Outcomes of samples: worst cases, samples of one class, and the file that stores them."""

import gzip
from dataclasses import replace
from math import inf, nan

import numpy as np
import pandas as pd
import pytest

from robustbench_inv.catalogue.reproduction_file import load_reproduction
from robustbench_inv.errors import BadResults
from robustbench_inv.reporting.reproduction.comparison import find_datasets
from robustbench_inv.reporting.reproduction.curve_panels import (
    accuracy_curves,
    curves_frame,
    draw_panels,
)
from robustbench_inv.reporting.reproduction.outcomes import (
    CERTIFIED,
    ReproductionOutcomes,
    outcomes_to_gzip,
    rate_of,
    read_outcomes,
)

HERE = {"mnist": "mnist"}

SPHERES = load_reproduction("thesis/figure-6.3")
COLUMN = SPHERES.columns[0]


def test_the_worst_case_is_taken_sample_by_sample(item, outcome_frame):
    frame = outcome_frame([[0.1, inf, inf, 0.0], [inf, 0.2, inf, 0.0]])
    outcomes = ReproductionOutcomes(item, frame, HERE)
    clean, tenth, fifth = item.rows
    cnn = item.columns[0]
    assert outcomes.robust(clean, cnn, "published", "mnist", 0).tolist() == [
        True,
        True,
        True,
        False,
    ]
    assert outcomes.robust(tenth, cnn, "adaptive", "mnist", 0.1).tolist() == [
        False,
        True,
        True,
        False,
    ]
    assert outcomes.robust(fifth, cnn, "adaptive", "mnist", 0.2).tolist() == [
        False,
        False,
        True,
        False,
    ]


def test_certified_samples_are_a_lower_bound_of_each_panel(item, outcome_frame, addresses):
    frame = outcome_frame([[0.2, inf, inf, 0.0], [inf] * 4])
    without = ReproductionOutcomes(item, frame, HERE)
    assert not rate_of(without.certified(item.panels[0], item.columns[0], "mnist", 0.1)).trials
    assert "certified" not in curves_frame(without, accuracy_curves(without))
    frame[addresses[0] + CERTIFIED] = [0.15, 0.05, 0.2, 0.0]
    outcomes = ReproductionOutcomes(item, frame, HERE)
    curves = accuracy_curves(outcomes)
    proven = [rate.successes for rate in curves[0].certified.values()]
    robust = [rate.successes for rate in curves[0].rates.values()]
    assert (list(curves[0].certified), proven, robust) == ([0, 0.1, 0.2], [3, 2, 1], [3, 3, 2])
    assert curves_frame(outcomes, curves)["certified"][:3].tolist() == [0.75, 0.5, 0.25]
    (figure,) = draw_panels(outcomes, curves, {"CNN": "C0", "JS": "C1"})
    assert "proven robust" in figure.caption


def test_a_panel_of_an_attack_without_a_budget_reaches_to_its_largest_distance(item, outcome_frame):
    trials = tuple(replace(trial, threat="none") for trial in item.trials)
    searched = replace(item, trials=trials)
    frame = outcome_frame([[1.0, 4.0, inf, 0.0], [2.0, inf, inf, 0.0]])
    frame.columns = [
        f"mnist-cnn | {trial.attack} | {threat}"
        for trial in trials
        for threat in searched.threats(trial, "mnist")
    ]
    outcomes = ReproductionOutcomes(searched, frame, HERE)
    curves = accuracy_curves(outcomes)
    published, adaptive = (curve.rates for curve in curves)
    assert (len(published), max(published)) == (41, 4)
    assert [published[eps].successes for eps in (0, 0.9, 1, 3.9, 4)] == [3, 3, 2, 2, 1]
    assert adaptive[2.0].successes == 2
    (figure,) = draw_panels(outcomes, curves, {"CNN": "C0", "JS": "C1"})
    assert "ε in ℓ2" in figure.svg


def test_an_eps_of_ten_digits_is_the_eps_of_the_row(item, outcome_frame):
    """The file holds ten digits, and 8/255 is rounded up: a sample broken there counted as robust at 8/255."""
    assert float(f"{8 / 255:.10g}") > 8 / 255
    frame = outcome_frame([[0.1 * (1 + 4e-11), 0.2, inf]])
    outcomes = ReproductionOutcomes(item, frame, HERE)
    row, cnn = item.rows[1], item.columns[0]
    assert outcomes.robust(row, cnn, "published", "mnist", 0.1).tolist() == [False, True, True]


def test_only_samples_of_all_cells_are_combined(item, outcome_frame):
    frame = outcome_frame([[inf, inf, 0.1], [nan, inf, nan]])
    outcomes = ReproductionOutcomes(item, frame, HERE)
    row, cnn = item.rows[1], item.columns[0]
    assert outcomes.robust(row, cnn, "published", "mnist", 0.1).tolist() == [True, True, False]
    assert outcomes.robust(row, cnn, "adaptive", "mnist", 0.1).tolist() == [True]


def test_the_file_separates_robust_from_not_requested_and_is_reproducible(outcome_frame, tmp_path):
    frame = outcome_frame([[inf, nan, 0.0], [0.1, 1 / 3, inf]])
    data = outcomes_to_gzip(frame)
    assert data == outcomes_to_gzip(frame.copy())
    assert data[4:8] == bytes(4), "no time of writing"
    lines = gzip.decompress(data).decode().splitlines()
    assert lines[1:] == ["mnist,0,0,,0.1", "mnist,1,1,-,0.3333333333", "mnist,2,2,0,"]
    (tmp_path / "o.csv.gz").write_bytes(data)
    read = read_outcomes(tmp_path / "o.csv.gz")
    assert np.array_equal(read.isna(), frame.isna())
    assert read.index.equals(frame.index)


@pytest.mark.parametrize("data", [b"", b"no gzip", gzip.compress(b"a,b\n1,2\n", mtime=0)])
def test_a_damaged_file_is_one_line(tmp_path, data):
    (tmp_path / "o.csv.gz").write_bytes(data)
    with pytest.raises(BadResults, match="cannot read") as caught:
        read_outcomes(tmp_path / "o.csv.gz")
    assert "\n" not in str(caught.value)


@pytest.fixture
def sphere_outcomes():
    """Two inner and three outer points of each data set; the attack breaks every outer one at 0.4."""
    rows = [(name, i, i % 2) for name in SPHERES.datasets for i in (0, 1, 2, 3, 5)]
    (address,) = map(
        str, SPHERES.addresses(SPHERES.trial("perturbation"), COLUMN, SPHERES.datasets[0])
    )
    index = pd.MultiIndex.from_tuples(rows, names=["dataset", "sample", "label"])
    broken_at = [0.4 if label else float("inf") for _, _, label in rows]
    return pd.DataFrame({address: broken_at}, index=index)


def test_a_data_set_is_found_even_if_other_names_start_with_its_name(sphere_outcomes):
    assert find_datasets(SPHERES, sphere_outcomes) == {name: name for name in SPHERES.datasets}


def test_a_panel_counts_the_samples_of_its_class_alone(sphere_outcomes):
    outcomes = ReproductionOutcomes(
        SPHERES, sphere_outcomes, find_datasets(SPHERES, sphere_outcomes)
    )
    panels = {panel.title: panel for panel in SPHERES.panels}
    expected = {
        "perturbation, outer sphere": (0, 3),
        "perturbation, inner sphere": (2, 2),
        "perturbation, both": (2, 5),
    }
    for title, counts in expected.items():
        mask = outcomes.robust(panels[title], COLUMN, "published", SPHERES.datasets[0], 0.4)
        rate = rate_of(mask)
        assert (rate.successes, rate.trials) == counts, title
