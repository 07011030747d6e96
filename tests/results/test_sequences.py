"""Anytime-valid tests and intervals: second implementations, and simulations of runs that are looked at."""

from fractions import Fraction
from itertools import pairwise
from math import comb, isclose

import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st
from scipy.stats import betabinom

from robustbench_inv.deciding import stage_sizes
from robustbench_inv.results.rate import Rate
from robustbench_inv.results.sequences import (
    LEVEL,
    confidence_sequence,
    difference_sequence,
    evidence,
    log_evidence,
)

RUNS = 2000
LOOKS = np.array(list(stage_sizes(1000)))
counts = st.tuples(st.integers(0, 40), st.integers(0, 40))


def betting_product(outcomes):
    """Return the wealth of a bet on each outcome in turn, with the Krichevsky-Trofimov share: exact."""
    wealth, seen = Fraction(1), [0, 0]
    for outcome in outcomes:
        share = (Fraction(1, 2) + seen[outcome]) / (1 + sum(seen))
        wealth *= 2 * share
        seen[outcome] += 1
    return wealth


@settings(max_examples=25)
@given(counts, st.randoms(use_true_random=False))
def test_evidence_is_the_wealth_of_a_bet_on_each_discordant_sample(found, random):
    outcomes = [0] * found[0] + [1] * found[1]
    random.shuffle(outcomes)
    assert isclose(evidence(*found), float(betting_product(outcomes)), rel_tol=1e-9)


@settings(max_examples=25)
@given(st.integers(1, 60), st.data())
def test_sequence_holds_the_shares_that_the_mixture_does_not_reject(n, data):
    k = data.draw(st.integers(0, n))
    low, high = confidence_sequence(Rate(k, n))
    mixture = betabinom.pmf(k, n, 0.5, 0.5) / comb(n, k)
    for p in np.linspace(0.0005, 0.9995, 100):
        ratio = mixture / (p**k * (1 - p) ** (n - k))
        if abs(ratio * LEVEL - 1) > 1e-9:
            assert (low < p < high) == (ratio < 1 / LEVEL)


@settings(max_examples=25)
@given(st.integers(1, 40), st.data())
def test_finite_sequence_is_the_ratio_of_prior_and_posterior(size, data):
    n = data.draw(st.integers(1, size))
    k = data.draw(st.integers(0, n))
    kept = []
    for m in range(k, size - n + k + 1):  # Bayes' rule by hand
        likelihood = comb(m, k) * comb(size - m, n - k) / comb(size, n)
        evidence_of_data = betabinom.pmf(k, n, 0.5, 0.5)
        if evidence_of_data / likelihood < 1 / LEVEL * (1 - 1e-9):
            kept.append(m / size)
    low, high = confidence_sequence(Rate(k, n), population=size)
    assert low <= kept[0] + 1e-12
    assert high >= kept[-1] - 1e-12
    assert (low, high) == (kept[0], kept[-1])


@settings(max_examples=15)
@given(st.integers(1, 30), st.data())
def test_difference_sequence_holds_the_differences_that_neither_share_rejects(size, data):
    n = data.draw(st.integers(1, size))
    counts = [data.draw(st.integers(0, n)), 0]
    counts[1] = data.draw(st.integers(0, n - counts[0]))
    kept = []
    for k in counts:
        seen = betabinom.pmf(k, n, 0.5, 0.5)
        places = range(k, size - n + k + 1)
        odds = {m: comb(m, k) * comb(size - m, n - k) / comb(size, n) for m in places}
        kept.append([m for m in places if seen / odds[m] < 2 / LEVEL * (1 - 1e-9)])
    low, high = difference_sequence(*counts, n, size)
    every = [(a - b) / size for a in kept[0] for b in kept[1]]
    assert (low, high) == pytest.approx((min(every), max(every)))


def test_the_difference_on_a_data_set_is_covered_at_every_look():
    first, second = shuffled_data_set((0.15, 0.05), runs=100)
    wrong = np.zeros(len(first), bool)
    for look in (0, 3, 9, 20):
        for run, pair in enumerate(zip(first[:, look], second[:, look], strict=True)):
            low, high = difference_sequence(*map(int, pair), int(LOOKS[look]), 1000)
            wrong[run] |= not low - 1e-9 <= 0.1 <= high + 1e-9
    assert wrong.mean() <= LEVEL


def test_all_samples_of_a_data_set_leave_no_doubt_and_none_leave_all():
    assert confidence_sequence(Rate(7, 20), population=20) == (0.35, 0.35)
    assert confidence_sequence(Rate(0, 0)) == (0.0, 1.0)


def outcomes_of_pairs(gained, lost, size=1000, runs=RUNS):
    """Return how many samples only the second, only the first model kept after each look, (runs, looks)."""
    draws = np.random.default_rng(5).random((runs, size), dtype=np.float32)
    second, first = draws < gained, (draws >= gained) & (draws < gained + lost)
    return tuple(each.cumsum(1, dtype=np.int32)[:, LOOKS - 1] for each in (second, first))


def shuffled_data_set(shares, size=1000, runs=RUNS):
    """Return the same counts of a data set with exactly these shares, in random order."""
    kinds = np.repeat([0, 1, 2], [round(share * size) for share in (*shares, 1 - sum(shares))])
    drawn = np.random.default_rng(6).permuted(np.tile(kinds.astype(np.int8), (runs, 1)), axis=1)
    return tuple((drawn == kind).cumsum(1, dtype=np.int32)[:, LOOKS - 1] for kind in (0, 1))


@pytest.mark.parametrize(
    "draw", [lambda p: outcomes_of_pairs(p, p), lambda p: shuffled_data_set((p, p))]
)
@pytest.mark.parametrize("share", [0.01, 0.1])
def test_equal_models_are_rarely_told_apart_however_often_one_looks(draw, share):
    first, second = draw(share)
    decided = (log_evidence(first, second) >= np.log(1 / LEVEL)).any(1)
    assert decided.mean() <= LEVEL


@pytest.mark.parametrize(("difference", "most"), [(0.2, 40), (0.1, 100), (0.05, 270)])
def test_different_models_are_told_apart_after_few_samples(difference, most):
    gained, lost = outcomes_of_pairs(difference + 0.01, 0.01)
    reached = log_evidence(gained, lost) >= np.log(1 / LEVEL)
    needed = np.where(reached.any(1), LOOKS[reached.argmax(1)], 1001)
    assert np.median(needed) <= most
    wrong = (lost > gained)[np.arange(RUNS), reached.argmax(1)] & reached.any(1)
    assert wrong.mean() <= LEVEL / 2


def misses(kept, truth, population=None):
    """Return the share of runs in which an interval misses the truth at any of 20 looks; and of Wilson intervals."""
    wrong, fixed = np.zeros(len(kept), bool), np.zeros(len(kept), bool)
    for look in np.linspace(3, len(LOOKS) - 1, 20).astype(int):
        n = LOOKS[look]
        seen = kept[:, look]
        table = {
            int(k): (Rate(int(k), int(n)), confidence_sequence(Rate(int(k), int(n)), population))
            for k in np.unique(seen)
        }
        bad = {k: not low - 1e-12 <= truth <= high + 1e-12 for k, (_, (low, high)) in table.items()}
        bad_fixed = {k: not rate.low <= truth <= rate.high for k, (rate, _) in table.items()}
        wrong |= np.vectorize(bad.get)(seen)
        fixed |= np.vectorize(bad_fixed.get)(seen)
    return wrong.mean(), fixed.mean()


def test_sequences_cover_at_every_look_and_fixed_intervals_do_not():
    mine, fixed = misses(outcomes_of_pairs(0.4, 0.0)[0], 0.4)
    assert mine <= LEVEL
    assert fixed > 0.2  # the simulation sees what repeated looks do
    of_data_set, _ = misses(shuffled_data_set((0.4, 0.0))[0], 0.4, population=1000)
    assert of_data_set <= LEVEL


def test_stages_grow_by_a_tenth_and_end_with_the_last_sample():
    sizes = list(stage_sizes(3333))
    assert sizes[-1] == 3333
    assert all(b - a <= max(10, a // 10) for a, b in pairwise(sizes))
    assert list(stage_sizes(7)) == [7]
