"""ROC/LDA and networks on synthetic spectra: their ordering, and attacks on inputs of one dimension."""

import pytest
import torch

from robustbench_inv.experiments.protocol import ExperimentRequest
from robustbench_inv.experiments.tissue_spectra import (
    FEATURES,
    balanced_accuracy,
    measure_tissue_methods,
)

NETWORKS = {"ResidualNet": "isotopes-residual-net", "IsotopeNet": "isotopes-isotope-net"}


def values(result):
    return {(number.row, number.column): number.value for number in result.numbers}


def test_the_balanced_accuracy_is_the_mean_over_the_classes():
    labels = torch.tensor([0, 0, 0, 1])
    assert balanced_accuracy(torch.tensor([0, 0, 1, 1]), labels) == pytest.approx((2 / 3 + 1) / 2)


def test_the_linear_method_is_measured_and_attacked():
    request = ExperimentRequest("isotopes", {}, samples=40)
    found = measure_tissue_methods(
        request,
        {"easy": "bins=64,peptides=2,informative=0.5"},
        {},
        train_size=32,
        attacks={"PGD": ("pgd:steps=2", "linf=0.05")},
        attacked=4,
    )
    numbers = values(found)
    assert numbers["easy", "ROC/LDA, worst K"] <= numbers["easy", "ROC/LDA, best K"]
    assert numbers["easy", "generator"] > 0.8
    assert 0 <= numbers["PGD", "ROC/LDA, best K"] <= 1
    assert found.samples == 40


@pytest.mark.slow
def test_the_ordering_is_that_of_the_thesis_if_spectra_are_misaligned_by_an_isotope():
    """1 Da is 6 bins. With up to 1 bin the linear method is as good as the networks."""
    request = ExperimentRequest("isotopes", {}, samples=1_000)
    row, task = "task", "bins=512,peptides=10,shift=6"
    numbers = values(measure_tissue_methods(request, {row: task}, NETWORKS, runs=1))
    linear, residual, isotope = (
        numbers[row, column] for column in ("ROC/LDA, best K", "ResidualNet", "IsotopeNet")
    )
    assert linear < residual < isotope
    assert max(FEATURES) == 100
