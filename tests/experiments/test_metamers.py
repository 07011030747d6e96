"""Metamers of a network whose code is the image itself."""

import numpy as np
import pytest
import torch

from robustbench_inv.errors import BadModel
from robustbench_inv.experiments.metamers import measure_metamers, quantise_images


def test_metamers_of_the_image_itself_are_their_donors(make_request, by_row):
    measured = measure_metamers(make_request(), num_examples=5, photographs=0)
    found = by_row(measured)
    assert found["Largest error of a logit, decoded"].value < 1e-5
    for stage in ("decoded", "clipped", "rounded"):
        assert found[f"Prediction unchanged, {stage}"].value == 1
        assert found[f"Panel label: donor class, {stage}"].value > 0.9
        whose = ("donor class", "source class", "other class", "no class")
        assert sum(found[f"Panel label: {each}, {stage}"].value for each in whose) == pytest.approx(
            1
        )
    (grid,) = measured.image_grids
    assert grid.images.shape == (3, 5, 1, 28, 28)
    below = (slice(None), 0, slice(1, None))
    for metamer, donor in zip(grid.images[1], grid.images[2], strict=True):
        assert np.array_equal(metamer[below], donor[below])
    assert [words.partition(",")[0] for words in grid.words[1]] == ["0"] * 5


def test_a_model_without_a_code_has_no_metamers(make_request):
    with pytest.raises(BadModel, match="no metamers"):
        measure_metamers(make_request(columns={"C": "mnist-cnn"}), photographs=0)


def test_quantised_images_have_256_grey_levels_inside_the_bounds():
    found = quantise_images(torch.tensor([-0.2, 0.5, 1.3]), (0.0, 1.0))
    torch.testing.assert_close(found, torch.tensor([0.0, 128 / 255, 1.0]))
