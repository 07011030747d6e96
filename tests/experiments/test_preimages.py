"""Preimages of ReLU layers, decided by linear programming, against the exact solution in the plane."""

import numpy as np
import pytest

from robustbench_inv.experiments.preimages import is_omnidirectional, preimage_kind


def widest_gap(rows):
    """The largest angle between neighbouring directions of vectors in the plane."""
    angles = np.sort(np.arctan2(rows[:, 1], rows[:, 0]))
    return np.diff(np.append(angles, angles[0] + 2 * np.pi)).max()


@pytest.mark.parametrize("seed", range(40))
def test_omnidirectional_vectors_in_the_plane_leave_no_half_plane_free(seed):
    rows = np.random.default_rng(seed).normal(size=(2 + seed % 5, 2))
    assert is_omnidirectional(rows) == (widest_gap(rows) < np.pi)


def test_vectors_that_span_too_little_are_not_omnidirectional():
    assert not is_omnidirectional(np.array([[1.0, 0.0], [-1.0, 0.0], [2.0, 0.0]]))
    assert is_omnidirectional(np.zeros((3, 0)))


def exact_kind(weight, bias, x):
    """The kind of preimage in the plane, from the directions along which the output stays."""
    before = weight @ x + bias
    active, inactive = weight[before > 1e-12], weight[before <= 1e-12]
    rank = np.linalg.matrix_rank(active) if len(active) else 0
    if rank == 2:
        return "unique"
    if rank == 1:
        direction = np.array([-active[0, 1], active[0, 0]])
        along = inactive @ direction
        tight = along[np.abs(inactive @ x + bias[before <= 1e-12]) < 1e-12]
        if (tight > 0).any() and (tight < 0).any():
            return "unique"
        return "bounded" if (along > 0).any() and (along < 0).any() else "unbounded"
    if len(inactive) >= 3 and widest_gap(inactive) < np.pi:
        tight = inactive[np.abs(inactive @ x + bias) < 1e-12]
        return "unique" if len(tight) >= 3 and widest_gap(tight) < np.pi else "bounded"
    return "unbounded"


def test_preimages_in_the_plane_are_those_of_the_exact_solution():
    found = []
    for seed in range(150):
        rng = np.random.default_rng(seed)
        weight = rng.normal(size=(2 + seed % 4, 2))
        bias, x = rng.normal(size=len(weight)) - 0.8, rng.normal(size=2)
        found.append(preimage_kind(weight, bias, x))
        assert found[-1] == exact_kind(weight, bias, x), seed
    assert set(found) == {"unique", "bounded", "unbounded"}


def test_hyperplanes_that_meet_in_the_input_make_its_preimage_one_point():
    """Figure 3.2: (a) omnidirectional for p; (b) a free half-space; (d) no common point."""
    point = np.array([0.3, -0.2])
    fan = np.array([[1.0, 0.0], [-0.5, 0.9], [-0.5, -0.9]])
    assert preimage_kind(fan, -fan @ point, point) == "unique"
    half = np.array([[1.0, 0.0], [0.0, 1.0], [-1.0, 0.2]])
    assert preimage_kind(half, -half @ point, point) == "unbounded"
    assert preimage_kind(fan, -fan @ point - 0.1, point) == "bounded"


def test_bounded_preimages_keep_the_output_only_up_to_their_border():
    """A random walk inside the preimage of an output of a wide layer stays near; that of an unbounded one need not."""
    rng = np.random.default_rng(0)
    weight, x = rng.normal(size=(40, 4)), rng.normal(size=4) * 0.01
    bias = -np.abs(rng.normal(size=40)) - 0.5
    assert preimage_kind(weight, bias, x) == "bounded"
    directions = rng.normal(size=(200, 4))
    assert ((weight @ (x[:, None] + 1e4 * directions.T) + bias[:, None]) > 0).any(0).all()


@pytest.mark.parametrize("seed", range(8))
def test_inactive_rows_in_the_span_of_the_active_ones_bound_nothing(seed):
    """All rows lie in five dimensions of eight, so that the other three are free; their projections are rounding errors."""
    rng = np.random.default_rng(seed)
    weight = rng.normal(size=(40, 5)) @ rng.normal(size=(5, 8))
    x = rng.normal(size=8)
    assert preimage_kind(weight, rng.normal(size=40), x) == "unbounded"
