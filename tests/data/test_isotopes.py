"""Synthetic mass spectra: isotope patterns, bins, and classes that differ in abundances."""

from math import comb

import pytest
import torch

from robustbench_inv.catalogue.datasets import load_dataset
from robustbench_inv.data.isotopes import (
    IsotopePatterns,
    MassAxis,
    isotope_pattern,
    pattern_bins,
)
from robustbench_inv.data.protocol import check_dataset
from robustbench_inv.errors import BadParameter


def test_a_pattern_is_binomial_in_the_number_of_heavy_carbon_atoms():
    carbon = round(2000 / 111.1254 * 4.9384)
    shares = [comb(carbon, k) * 0.0107**k * 0.9893 ** (carbon - k) for k in range(8)]
    found = isotope_pattern(2000)
    expected = [share / max(shares) for share in shares]
    assert found == pytest.approx(expected[: len(found)])
    assert max(found) == 1
    assert min(found) >= 0.005 > expected[len(found)]


def test_heavier_peptides_have_more_isotopes():
    counts = [len(isotope_pattern(mass)) for mass in (600, 1500, 3000, 5000)]
    assert counts == sorted(set(counts))
    assert max(isotope_pattern(3000)) == isotope_pattern(3000)[1]


def test_bins_have_their_mean_width_and_grow_with_the_mass():
    axis = MassAxis()
    assert float(axis.widths.mean()) == pytest.approx(0.163)
    assert bool((axis.widths.diff() > 0).all())
    assert axis.position(float(axis.edges[100])) == pytest.approx(100)
    ratio = float(axis.widths[-1] / axis.widths[0])
    assert ratio == pytest.approx((float(axis.edges[-1]) / 600) ** 0.5, rel=1e-3)


def test_a_pattern_has_fewer_bins_at_a_larger_mass_between_the_jumps():
    """Figure 7.3: without a new isotope the number of bins falls."""
    axis = MassAxis()
    masses = list(range(700, 4800, 20))
    bins = [pattern_bins(axis, mass) for mass in masses]
    same = [
        after < before
        for (mass, before), (larger, after) in zip(
            zip(masses, bins, strict=True), list(zip(masses, bins, strict=True))[1:], strict=False
        )
        if len(isotope_pattern(mass)) == len(isotope_pattern(larger))
    ]
    assert len(same) > 100
    assert all(same)


def test_a_spectrum_depends_on_its_id_alone():
    data, larger = IsotopePatterns(size=20), IsotopePatterns(size=40)
    spectra, labels = data.batch([3, 8])
    torch.testing.assert_close(larger.batch([8])[0][0], spectra[1], rtol=0, atol=1e-6)
    assert labels.tolist() == [1, 0]
    other = IsotopePatterns(size=20, split="train").batch([3])[0][0]
    assert float((other - spectra[0]).abs().max()) > 0.05


def test_the_classes_differ_in_the_informative_patterns_only():
    data = IsotopePatterns(bins=512, peptides=8, size=2000, noise=0.0, shift=0.0)
    spectra, labels = data.batch(torch.arange(2000))
    means = torch.stack([spectra[labels == k].mean(0) for k in (0, 1)])
    assert float((means[1] - means[0]).abs().max()) > 0.02
    same = IsotopePatterns(bins=512, peptides=8, size=2000, noise=0.0, shift=0.0, informative=0.0)
    spectra, labels = same.batch(torch.arange(2000))
    means = torch.stack([spectra[labels == k].mean(0) for k in (0, 1)])
    assert float((means[1] - means[0]).abs().max()) < 0.02


def test_the_data_set_keeps_the_rules_and_opens_by_its_name():
    data = IsotopePatterns(bins=128, peptides=3, size=10)
    check_dataset(data)
    again = load_dataset(data.name)
    assert again.digest == data.digest
    assert load_dataset("isotopes:bins=128,peptides=3,size=10").name == data.name


@pytest.mark.parametrize("fields", [{"bins": 8}, {"noise": -1.0}, {"split": "dev"}, {"size": 0}])
def test_bad_parameters_are_refused(fields):
    with pytest.raises(BadParameter):
        IsotopePatterns(**fields)


def test_the_oracle_knows_the_class_of_most_spectra_and_of_changed_abundances():
    data = IsotopePatterns(bins=512, peptides=10, size=200, shift=3.0)
    spectra, labels = data.batch(torch.arange(200))
    assert float((data.classify(spectra) == labels).double().mean()) > 0.95
    assert data.classify(torch.rand(3, 512)).tolist() == [-1, -1, -1]
    patterns = data._peaks[0]
    sure = [(1 + 0.5 * sign * data._effect) @ patterns for sign in (-1, 1)]
    assert data.classify(torch.stack(sure)).tolist() == [0, 1]
