"""Samples of one class, and data sets whose names begin alike."""

import pandas as pd
import pytest

from robustbench_inv.catalogue.reproduction_file import load_reproduction
from robustbench_inv.reporting.reproduction.comparison import find_datasets
from robustbench_inv.reporting.reproduction.outcomes import ReproductionOutcomes, rate_of

ITEM = load_reproduction("thesis/figure-6.3")
COLUMN = ITEM.columns[0]


@pytest.fixture
def outcomes():
    """Two inner and three outer points of each data set; the attack breaks every outer one at 0.4."""
    rows = [(name, i, i % 2) for name in ITEM.datasets for i in (0, 1, 2, 3, 5)]
    (address,) = map(str, ITEM.addresses(ITEM.trial("perturbation"), COLUMN, ITEM.datasets[0]))
    index = pd.MultiIndex.from_tuples(rows, names=["dataset", "sample", "label"])
    fell = [0.4 if label else float("inf") for _, _, label in rows]
    return pd.DataFrame({address: fell}, index=index)


def test_a_data_set_is_its_own_place_even_if_other_names_begin_so(outcomes):
    assert find_datasets(ITEM, outcomes) == {name: name for name in ITEM.datasets}


def test_a_panel_counts_the_samples_of_its_class_alone(outcomes):
    evidence = ReproductionOutcomes(ITEM, outcomes, find_datasets(ITEM, outcomes))
    panels = {panel.title: panel for panel in ITEM.panels}
    expected = {
        "perturbation, outer sphere": (0, 3),
        "perturbation, inner sphere": (2, 2),
        "perturbation, both": (2, 5),
    }
    for title, counts in expected.items():
        held = evidence.held("published", panels[title], COLUMN, ITEM.datasets[0], 0.4)
        rate = rate_of(held)
        assert (rate.successes, rate.trials) == counts, title
