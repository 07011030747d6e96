"""What a score tells apart: closed forms, brute force, and intervals that cover."""

import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from robustbench_inv.reporting.rejection_scores import (
    aupr,
    auroc,
    detection_at,
    fpr_at,
    risk_coverage,
)
from robustbench_inv.results.summary import Rate

scores = st.lists(st.integers(0, 6).map(float), min_size=2, max_size=12)


@settings(max_examples=60, deadline=None)
@given(scores, scores)
def test_auroc_counts_pairs(clean, shown):
    pairs = [(x > y) + 0.5 * (x == y) for x in clean for y in shown]
    area = auroc(clean, shown)
    assert area.value == pytest.approx(np.mean(pairs))
    assert 0 <= area.interval.low <= area.value <= area.interval.high <= 1


@settings(max_examples=60, deadline=None)
@given(scores, scores)
def test_aupr_is_the_mean_precision_at_each_detected_input(clean, shown):
    """Precision when all that scores as low is rejected, averaged over what ought to be rejected."""
    precisions = []
    for score in shown:
        found = sum(y <= score for y in shown)
        precisions.append(found / (found + sum(x <= score for x in clean)))
    area = aupr(clean, shown)
    assert area.value == pytest.approx(np.mean(precisions))
    assert 0 <= area.interval.low <= area.value <= area.interval.high <= 1


@settings(max_examples=60, deadline=None)
@given(scores, scores, st.floats(0, 0.9))
def test_no_more_clean_inputs_are_rejected_than_borne(clean, shown, false):
    detected = detection_at(clean, shown, false)
    rejected = detection_at(clean, clean, false)
    assert rejected.value <= false
    assert detected.trials == len(shown)
    assert detected.successes <= detection_at(clean, shown, 0.9).successes


def test_fpr_at_95_is_what_detection_at_5_leaves():
    clean, shown = [float(k) for k in range(100)], [0.0, 3.5, 4.5, 5.5, 200.0]
    assert detection_at(clean, shown, 0.05) == Rate(3, 5)
    assert fpr_at(clean, shown) == Rate(2, 5)


def test_without_inputs_nothing_is_said():
    assert auroc([], [1.0, 2.0]) is None
    assert aupr([1.0, 2.0], [1.0]) is None
    assert detection_at([], [1.0], 0.01) == Rate(0, 0)
    assert np.isnan(risk_coverage([], []).area)


def test_the_interval_of_auroc_covers():
    """Normal scores a standard deviation apart: the probability of the right order is 0.760."""
    generator = np.random.default_rng(0)
    covered = 0
    for _ in range(200):
        x, y = generator.normal(1, 1, 60), generator.normal(0, 1, 60)
        interval = auroc(list(x), list(y)).interval
        covered += interval.low <= 0.7602 <= interval.high
    assert 180 <= covered <= 199


def test_perfect_order_is_not_certainty():
    area = auroc([2.0] * 20, [1.0] * 20)
    assert area.value == 1
    assert 0.8 < area.interval.low < 0.95


def test_risk_falls_with_coverage_where_errors_are_unsure():
    curve = risk_coverage([5.0, 4.0, 3.0, 2.0], [True, True, False, False])
    assert curve.coverage.tolist() == [0.25, 0.5, 0.75, 1.0]
    assert curve.risk.tolist() == pytest.approx([0, 0, 1 / 3, 1 / 2])
    assert curve.area == pytest.approx((1 / 3 + 1 / 2) / 4)
    assert curve.at(0.5) == Rate(0, 2)
    assert curve.at(1.0) == Rate(2, 4)


def test_equal_scores_are_answered_together():
    first = risk_coverage([1.0, 1.0], [True, False])
    second = risk_coverage([1.0, 1.0], [False, True])
    assert first.risk.tolist() == second.risk.tolist() == [0.5, 0.5]
