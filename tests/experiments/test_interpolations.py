"""Interpolations between an image and its metamer, for a network whose code is the image itself."""

from pathlib import Path

import numpy as np
import pytest

from robustbench_inv.experiments.interpolations import measure_interpolations

NETWORKS = Path(__file__).parent / "toy_networks.py"


def test_interpolations_go_from_the_source_to_the_donor(make_request, by_row):
    measured = measure_interpolations(make_request(), num_examples=4, steps=3)
    found = by_row(measured)
    assert found["Panel label: source class, at 0 %"].value == pytest.approx(1, abs=0.1)
    assert found["Panel label: source class, at 100 %"].value == 0
    assert found["Panel label: donor class, at 0 %"].value == 0
    (grid,) = measured.image_grids
    assert grid.rows == ("0 %", "50 %", "100 %", "nuisances of")
    first, middle, last, donor = grid.images[..., 1:, :].astype(float)
    assert np.array_equal(last, donor)
    assert np.abs(middle - (first + last) / 2).max() <= 1
    assert not np.array_equal(first, last)


def test_predictions_below_the_images_are_those_of_the_table(make_request, by_row):
    """The caption said that all images of a column share a prediction; once drawn, half of them had another one."""
    request = make_request(columns={"D": f"{NETWORKS}:difference"})
    measured = measure_interpolations(request, num_examples=request.samples, steps=3)
    (grid,) = measured.image_grids
    *path, _ = grid.words
    source = path[0]  # at 0 % the image is the source, up to rounding
    unchanged = np.mean([k == s for k, s in zip(path[-1], source, strict=True)])
    found = by_row(measured)
    assert found["Prediction unchanged, rounded, at 0 %"].value == 1
    assert found["Prediction unchanged, rounded, at 100 %"].value == pytest.approx(unchanged)
    assert 0 < unchanged < 1
    assert grid.heads == ()


def test_all_models_use_the_same_samples_and_donors(make_request, reader):
    measured = measure_interpolations(
        make_request(columns={"R": reader, "S": reader}), num_examples=3, steps=2
    )
    left, right = np.split(measured.image_grids[0].images, 2, axis=1)
    assert np.array_equal(left, right)
    assert measured.image_grids[0].groups == (("R", 3), ("S", 3))
