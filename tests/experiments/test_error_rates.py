"""Error rates of logits and nuisance classifiers, and accuracies with a planted feature, on networks with known codes."""

from pathlib import Path

import numpy as np
import pytest

from robustbench_inv.errors import BadCatalogue, BadParameter
from robustbench_inv.experiments.error_rates import measure_errors, measure_feature_shift

NETWORKS = Path(__file__).parent / "toy_networks.py"


PROBE = {"name": "nuisances", "hidden": [32], "epochs": 8, "learning_rate": 5e-3, "levels": 0}


def test_logits_of_blank_pixels_are_uninformative_and_nuisances_are_not(make_request, by_row):
    found = by_row(measure_errors(make_request(samples=400), "mnist5k", 0, 5000, [PROBE]))
    assert found["Test error, logits"].value == pytest.approx(0.9, abs=0.01)  # all say 0
    assert found["Test error, nuisances"].value < 0.2
    assert {number.trials for number in found.values()} == {400}
    counted = found["Test error, logits"].counted
    assert len(counted) == round(400 * found["Test error, logits"].value)


def test_a_model_without_nuisances_has_no_row_for_them(make_request, by_row):
    measured = measure_errors(make_request(columns={"C": "mnist-cnn"}), "mnist5k", 0, 5000, [PROBE])
    assert set(by_row(measured)) == {"Test error, logits", "Train error, logits"}


def test_a_probe_with_an_unknown_field_is_refused(make_request):
    with pytest.raises(BadCatalogue, match="probe nuisances: unknown key hiden"):
        measure_errors(make_request(), "mnist5k", 0, 5000, [{"hiden": [3], "name": "nuisances"}])


def test_a_model_of_the_feature_has_chance_accuracy_after_the_shift(make_request):
    columns = {"CNN": "mnist-cnn", "W": f"{NETWORKS}:Watermark"}
    request = make_request(dataset="mnist-planted", columns=columns, samples=200)
    measured = measure_feature_shift(request, "mnist-planted", 0, 5000)
    numbers = {(n.row, n.column): n.value for n in measured.numbers}
    assert numbers["Accuracy with the feature", "W"] == 1
    assert numbers["Accuracy with the feature of a random class", "W"] == pytest.approx(
        0.1, abs=0.07
    )
    assert numbers["Accuracy without a feature", "W"] == pytest.approx(0.1)  # all say 0
    assert all(numbers[row, "CNN"] > 0.95 for row, column in numbers if column == "CNN")
    planted, random, bare = measured.image_grids[0].images
    assert (planted[:, 0, 1].max(1) == 255).all()
    assert not (bare[:, 0, 1].max(1) == 255).any()
    assert not np.array_equal(planted, random)
    with pytest.raises(BadParameter, match="no planted feature"):
        measure_feature_shift(make_request(), "mnist-planted")
