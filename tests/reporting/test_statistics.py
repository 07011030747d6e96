"""Intervals and tests against scipy, closed forms, published examples and the definitions themselves."""

from math import inf, isclose, sqrt

import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st
from scipy.optimize import minimize_scalar
from scipy.stats import binom, binomtest

from robustbench_inv.errors import BadParameter
from robustbench_inv.reporting.statistics import (
    Interval,
    PairedOutcomes,
    clopper_pearson,
    mcnemar,
    mean_interval,
    median_of,
    tango,
    wilson,
)
from robustbench_inv.results.summary import Rate

counts = st.integers(0, 60)
rates = st.integers(1, 200).flatmap(lambda n: st.integers(0, n).map(lambda k: Rate(k, n)))
pairs = st.builds(PairedOutcomes, counts, counts, counts, counts).filter(lambda p: p.total > 0)


@settings(max_examples=40)
@given(rates)
def test_clopper_pearson_is_scipys(rate):
    expected = binomtest(rate.successes, rate.trials).proportion_ci(method="exact")
    found = clopper_pearson(rate)
    assert found.low == pytest.approx(expected.low, abs=1e-12)
    assert found.high == pytest.approx(expected.high, abs=1e-12)


@settings(max_examples=40)
@given(rates)
def test_wilson_is_scipys(rate):
    expected = binomtest(rate.successes, rate.trials).proportion_ci(method="wilson")
    assert wilson(rate).low == pytest.approx(expected.low, abs=1e-12)
    assert wilson(rate).high == pytest.approx(expected.high, abs=1e-12)


def test_clopper_pearson_covers_as_often_as_it_says():
    n = 12
    intervals = [clopper_pearson(Rate(k, n)) for k in range(n + 1)]
    for share in np.linspace(0.001, 0.999, 97):
        covered = sum(binom.pmf(k, n, share) for k in range(n + 1) if share in intervals[k])
        assert covered >= 0.95


def test_no_trials_exclude_nothing():
    assert (clopper_pearson(Rate(0, 0)).low, clopper_pearson(Rate(0, 0)).high) == (0.0, 1.0)


@given(st.lists(st.tuples(st.booleans(), st.booleans()), max_size=30))
def test_pairs_count_every_sample_once(outcomes):
    first, second = [a for a, _ in outcomes], [b for _, b in outcomes]
    found = PairedOutcomes.of(first, second)
    assert found.total == len(outcomes)
    assert found.both + found.first == sum(first)
    assert found.both + found.second == sum(second)


def test_pairs_of_different_samples_are_refused():
    with pytest.raises(BadParameter, match="not paired"):
        PairedOutcomes.of([True], [True, False])


@given(pairs)
def test_mcnemar_is_the_exact_sign_test(p):
    discordant = p.first + p.second
    expected = binomtest(p.first, discordant).pvalue if discordant else 1.0
    assert mcnemar(p) == pytest.approx(expected, abs=1e-12)


def test_a_mean_has_students_interval_and_a_difference_welchs():
    """Quantiles of t at 97.5 %: 4.30265 with 2 degrees of freedom, 2.77645 with 4."""
    assert isclose(mean_interval([1, 2, 3]).high, 2 + 4.30265 / sqrt(3), abs_tol=1e-5)
    found = mean_interval([1, 2, 3], [5, 6, 7])
    half = 2.77645 * sqrt(2 / 3)
    assert isclose(found.low, -4 - half, abs_tol=1e-5)
    assert isclose(found.high, -4 + half, abs_tol=1e-5)
    # the second varies little: degrees of freedom are near those of the first alone
    found = mean_interval([1, 2, 3], [5, 5.001, 5.002])
    assert isclose(found.high, -3.001 + 4.30265 / sqrt(3), abs_tol=1e-4)


def test_a_single_training_says_nothing_about_the_next():
    unknown = Interval(-inf, inf)
    assert mean_interval([0.5]) == mean_interval([0.5, 0.6], [0.4]) == unknown
    assert mean_interval([0.5, 0.5]) == Interval(0.5, 0.5)
    assert mean_interval([0.5, 0.5], [0.25, 0.25]) == Interval(0.25, 0.25)


def test_tango_agrees_with_the_published_example():
    """Airway hyper-responsiveness before and after transplantation: Fagerland et al., Statistics in Medicine 2014."""
    interval = tango(PairedOutcomes(both=1, first=1, second=7, neither=12))
    assert (round(interval.low, 3), round(interval.high, 3)) == (-0.517, -0.026)


@given(pairs)
def test_tango_excludes_zero_exactly_when_the_score_test_rejects(p):
    discordant = p.first + p.second
    z = abs(p.first - p.second) / sqrt(discordant) if discordant else 0.0
    if not isclose(z, 1.959963984540054, abs_tol=1e-6):
        assert (0 in tango(p)) == (z < 1.959963984540054)


@given(pairs)
def test_tango_holds_the_difference_and_turns_with_the_order(p):
    interval, turned = tango(p), tango(PairedOutcomes(p.both, p.second, p.first, p.neither))
    assert p.difference in interval
    assert -1 <= interval.low <= interval.high <= 1
    assert turned.low == pytest.approx(-interval.high, abs=1e-9)
    assert turned.high == pytest.approx(-interval.low, abs=1e-9)


@given(st.integers(1, 500))
def test_tango_without_discordant_samples_has_a_closed_form(n):
    z = 1.959963984540054
    interval = tango(PairedOutcomes(n, 0, 0, 0))
    assert interval.high == pytest.approx(z * z / (n + z * z), abs=1e-9)
    assert interval.low == pytest.approx(-interval.high, abs=1e-9)


def test_tango_ends_where_the_constrained_likelihood_says():
    """At an end of the interval, the statistic with q fitted numerically under Δ is the normal quantile."""
    p = PairedOutcomes(both=20, first=9, second=3, neither=18)
    n, b, c, a = p.total, p.first, p.second, p.both + p.neither
    for end, sign in ((tango(p).low, 1), (tango(p).high, -1)):

        def negative_likelihood(q, end=end):
            return -(b * np.log(q + end) + c * np.log(q) + a * np.log(1 - 2 * q - end))

        bounds = (max(0.0, -end) + 1e-9, (1 - end) / 2 - 1e-9)
        q = minimize_scalar(
            negative_likelihood, bounds=bounds, method="bounded", options={"xatol": 1e-12}
        ).x
        z = (b - c - n * end) / sqrt(n * (2 * q + end * (1 - end)))
        assert z == pytest.approx(sign * 1.959963984540054, abs=1e-4)


def test_no_samples_exclude_no_difference():
    assert (tango(PairedOutcomes(0, 0, 0, 0)).low, tango(PairedOutcomes(0, 0, 0, 0)).high) == (
        -1,
        1,
    )


@given(st.integers(6, 80))
def test_the_median_interval_covers_and_the_next_one_would_not(n):
    interval = median_of(range(1, n + 1)).interval
    r = interval.low
    assert interval.high == n + 1 - r
    assert binom.cdf(r - 1, n, 0.5) <= 0.025 < binom.cdf(r, n, 0.5)


@given(st.lists(st.floats(0, 100) | st.just(inf), min_size=1, max_size=30))
def test_the_median_is_numpys_and_inside_its_interval(values):
    found = median_of(values)
    with np.errstate(invalid="ignore"):
        expected = float(np.median(values))
    assert found.value == expected or (found.value == inf and expected == inf)
    assert (found.interval is None) == (len(values) < 6)
    assert found.interval is None or found.value in found.interval


def test_no_values_have_no_median():
    assert median_of([]) is None
