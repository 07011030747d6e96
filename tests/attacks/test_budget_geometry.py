"""The geometry of a budget: projections stay inside ball and box, directions have length one, draws are uniform."""

import numpy as np
import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st
from scipy.optimize import minimize

from robustbench_inv.attacks.budget_geometry import (
    Ball,
    project_onto_l1_and_box,
    steepest_direction,
)
from robustbench_inv.errors import CapabilityMismatch
from robustbench_inv.randomness import SampleRNG
from robustbench_inv.tensors import norm
from robustbench_inv.threat.budgets import LpBall, Unbounded
from robustbench_inv.threat.threat_model import ThreatModel

NORMS = ["l2", "linf"]


def ball(name, eps, n=50, dtype=torch.float64, shape=(3, 4)):
    clean = SampleRNG(1, torch.arange(n)).uniform(shape, dtype=dtype)
    return Ball(clean, LpBall(name, eps), (0.0, 1.0))


def inside(ball, images):
    box = (images >= 0).all() and (images <= 1).all()
    return bool(box and ball.budget.contains(ball.clean, images).all())


@settings(max_examples=40, deadline=None)
@given(st.sampled_from(NORMS), st.floats(0, 3), st.floats(0, 100), st.booleans())
def test_projection_ends_inside_ball_and_box(name, eps, length, single):
    some = ball(name, eps, n=3, dtype=torch.float32 if single else torch.float64)
    far = some.clean + length * (
        SampleRNG(2, torch.arange(3)).normal((3, 4), dtype=some.clean.dtype)
    )
    assert inside(some, some.project(far))


@pytest.mark.parametrize("name", NORMS)
def test_projection_does_not_change_allowed_inputs(name):
    some = ball(name, 0.2)
    drawn = some.draw(SampleRNG(3, torch.arange(50)), 0)
    assert torch.allclose(some.project(drawn), drawn, atol=1e-12)


@pytest.mark.parametrize("name", NORMS)
def test_draws_are_inside_and_differ_by_restart(name):
    some, rng = ball(name, 0.2), SampleRNG(3, torch.arange(50))
    first, second = some.draw(rng, 0), some.draw(rng, 1)
    assert inside(some, first)
    assert not torch.equal(first, second)
    assert torch.equal(
        first[7:9], some[torch.tensor([7, 8])].draw(rng.rows(torch.tensor([7, 8])), 0)
    )


def test_l2_draws_fill_the_ball_uniformly():
    clean = torch.full((4000, 2), 0.5, dtype=torch.float64)
    some = Ball(clean, LpBall("l2", 0.4), (0.0, 1.0))
    radius = norm(some.draw(SampleRNG(0, torch.arange(4000)), 0) - clean, "l2")
    # in two dimensions half of the area is within 1/sqrt(2) of the radius
    assert (radius < 0.4 / 2**0.5).double().mean() == pytest.approx(0.5, abs=0.03)


def test_far_l2_draws_are_at_distance_eps():
    clean = torch.full((20, 9), 0.5, dtype=torch.float64)
    some = Ball(clean, LpBall("l2", 0.3), (0.0, 1.0))
    far = norm(some.draw_far(SampleRNG(0, torch.arange(20)), 0) - clean, "l2")
    assert torch.allclose(far, torch.full_like(far, 0.3))


@pytest.mark.parametrize("scale", [1e-30, 1e-3, 1.0, 1e30])
def test_steepest_direction_has_length_one_at_any_scale(scale):
    gradient = scale * SampleRNG(0, torch.arange(4)).normal((1, 5, 5))
    assert torch.allclose(norm(steepest_direction(gradient, "l2"), "l2"), torch.ones(4))
    assert (steepest_direction(gradient, "linf").abs() == 1).all()


@pytest.mark.parametrize("name", NORMS)
def test_useless_gradients_lead_nowhere(name):
    useless = torch.tensor([[0.0, 0.0], [float("nan"), float("inf")]])
    assert torch.equal(steepest_direction(useless, name), torch.zeros(2, 2))
    half = torch.tensor([[float("nan"), 2.0]])
    assert torch.equal(steepest_direction(half, name), torch.tensor([[0.0, 1.0]]))


@pytest.mark.parametrize("budget", [Unbounded("l2"), LpBall("l1", 1.0)])
def test_other_budgets_are_refused(budget):
    with pytest.raises(CapabilityMismatch, match="fixed budget"):
        Ball.of(ThreatModel(budget), torch.zeros(1, 2), (0.0, 1.0))


@settings(max_examples=40, deadline=None)
@given(st.floats(0, 8), st.floats(0, 20), st.booleans())
def test_l1_projection_ends_inside_ball_and_box(eps, length, single):
    some = ball("l1", eps, n=3, dtype=torch.float32 if single else torch.float64)
    far = some.clean + length * (
        SampleRNG(2, torch.arange(3)).normal((3, 4), dtype=some.clean.dtype)
    )
    assert inside(some, some.project(far))


@pytest.mark.parametrize("dimension", [2, 5, 9])
@pytest.mark.parametrize("eps", [0.0, 0.05, 0.6, 3.0])
def test_l1_projection_is_the_nearest_point(dimension, eps):
    """Held against a general solver, on the difference of two non-negative vectors."""
    n = 6
    clean = SampleRNG(1, torch.arange(n)).uniform((dimension,), dtype=torch.float64)
    clean[:, 0] = clean[:, 0].round()  # at a bound
    far = clean + 1.5 * SampleRNG(2, torch.arange(n)).normal((dimension,), dtype=torch.float64)
    found = (project_onto_l1_and_box(clean, far, eps, (0.0, 1.0)) - clean).numpy()
    for i in range(n):
        wanted, room = (far - clean)[i].numpy(), clean[i].numpy()
        solved = minimize(
            lambda z, w=wanted: ((z[:dimension] - z[dimension:] - w) ** 2).sum(),
            np.zeros(2 * dimension),
            bounds=[*((0, 1 - x) for x in room), *((0, x) for x in room)],
            constraints=[{"type": "ineq", "fun": lambda z: eps - z.sum()}],
            options={"ftol": 1e-13, "maxiter": 300},
        ).x
        assert found[i] == pytest.approx(solved[:dimension] - solved[dimension:], abs=1e-5)


def test_draws_in_l1_are_uniform_in_depth():
    """The share of a ball's volume within r of its centre is r to the power of the dimension."""
    some = Ball(torch.zeros(4000, 3, dtype=torch.float64), LpBall("l1", 2.0), (-9.0, 9.0))
    drawn = norm(some.draw(SampleRNG(0, torch.arange(4000)), 0), "l1") / 2
    assert drawn.max() <= 1 + 1e-9
    assert (drawn**3).mean().item() == pytest.approx(0.5, abs=0.02)
    assert ((drawn**3) < 0.25).double().mean().item() == pytest.approx(0.25, abs=0.03)


def test_the_l1_projection_of_dense_changes_is_allowed_in_float32():
    """Rounding to the nearest number undoes a thousandth of 3,072 small changes."""
    generator = torch.Generator().manual_seed(0)
    clean, change = (draw(48, 3072, generator=generator) for draw in (torch.rand, torch.randn))
    moved = clean + 1.001 * 0.5 * change / norm(change, "l1")[:, None]
    projected = project_onto_l1_and_box(clean, moved, 0.5, (0.0, 1.0))
    assert norm(projected.double() - clean.double(), "l1").max() <= 0.5 + 1.0001e-6
