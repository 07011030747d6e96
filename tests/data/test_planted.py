"""Planted features: they determine the class, are independent of it after the shift, and do not hide the digit."""

import pytest
import torch

from robustbench_inv.catalogue.datasets import load_dataset
from robustbench_inv.data.planted import PLANTED_FEATURES, PlantedFeatures
from robustbench_inv.data.protocol import Dataset, HasCounterparts
from robustbench_inv.data.registry import open_dataset
from robustbench_inv.errors import BadParameter


@pytest.fixture(scope="module")
def digits():
    return open_dataset("mnist5k")


def told_class(data, images, digits):
    """Return the class whose pattern explains what is brighter than the digit."""
    dark = digits == 0
    patterns = data._patterns[None]
    errors = ((images - patterns).abs() * dark).flatten(2).sum(2)
    return errors.argmin(1)


@pytest.mark.parametrize("feature", PLANTED_FEATURES)
def test_the_feature_is_that_of_the_label_and_then_of_a_random_class(digits, feature):
    data, ids = PlantedFeatures(digits, feature), torch.arange(0, 5000, 5)
    plain, labels = digits.batch(ids)
    images, ours = data.batch(ids)
    assert isinstance(data, Dataset)
    assert isinstance(data, HasCounterparts)
    assert torch.equal(ours, labels)
    shifted = told_class(data, data.counterparts(ids), plain)
    for expected, planted in (
        (told_class(data, images, plain), labels),
        (shifted, data.random_classes(ids)),
    ):
        assert (expected == planted).double().mean() > 0.99  # a digit may cover the pixel
    assert 0.07 < (shifted == labels).double().mean() < 0.13


@pytest.mark.parametrize("feature", PLANTED_FEATURES)
def test_the_feature_hides_no_pixel_of_the_digit(digits, feature):
    data, ids = PlantedFeatures(digits, feature, strength=0.4), torch.arange(0, 5000, 50)
    plain = digits.batch(ids)[0]
    for images in (data.batch(ids)[0], data.counterparts(ids)):
        assert (images >= plain).all()
        assert torch.equal(images[plain > 0.4], plain[plain > 0.4])
        assert images[plain == 0].max() == pytest.approx(0.4)
        assert images.max() <= 1


def test_random_classes_are_uniform_and_independent_of_the_label(digits):
    data = PlantedFeatures(digits)
    drawn = data.random_classes(torch.arange(5000))
    counts = torch.zeros(10, 10)
    counts.index_put_((digits.labels, drawn), torch.ones(5000), accumulate=True)
    chi_square = ((counts - 50) ** 2 / 50).sum()
    assert chi_square < 150  # 99 degrees of freedom: above 148 in 0.1 % of draws
    alone = torch.cat([data.counterparts([i]) for i in (7, 4000)])
    assert torch.equal(alone, data.counterparts([7, 4000]))


def test_a_shifted_data_set_returns_the_counterparts(digits):
    ids = [3, 800, 4999]
    shifted, plain = PlantedFeatures(digits, shifted=True), PlantedFeatures(digits)
    assert torch.equal(shifted.batch(ids)[0], plain.counterparts(ids))
    assert torch.equal(shifted.batch(ids)[1], plain.batch(ids)[1])
    assert PlantedFeatures(digits, seed=1).random_classes(torch.arange(99)).tolist() != (
        plain.random_classes(torch.arange(99)).tolist()
    )


def test_names_can_be_opened_and_differ(digits):
    made = [
        PlantedFeatures(digits),
        PlantedFeatures(digits, "texture"),
        PlantedFeatures(digits, "texture", 0.5),
        PlantedFeatures(digits, shifted=True),
        PlantedFeatures(digits, seed=3),
    ]
    assert len({data.digest for data in made}) == len({data.name for data in made}) == 5
    for data in made:
        assert load_dataset(data.name).digest == data.digest
    usual = PlantedFeatures(digits, strength=1.0)
    assert (usual.name, usual.digest) == (made[0].name, made[0].digest)


@pytest.mark.parametrize(
    ("wrong", "says"),
    [({"feature": "smell"}, "one of pixel, texture"), ({"strength": 1.5}, "0 to 1")],
)
def test_invalid_parameters_raise(digits, wrong, says):
    with pytest.raises(BadParameter, match=says):
        PlantedFeatures(digits, **wrong)
