"""Budgets: projections are allowed, closest, and do not change allowed inputs."""

import itertools

import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st

from robustbench_inv.errors import BadParameter
from robustbench_inv.tensors import norm
from robustbench_inv.threat.budgets import (
    Budget,
    LpBall,
    OnSphere,
    Unbounded,
    project_perturbations,
)

DUAL = {"l1": "linf", "l2": "l2", "linf": "l1"}
CLEAN = torch.tensor([[0.3, -1.0, 0.0, 2.0, 0.7]], dtype=torch.float64)

values = st.lists(st.floats(-5, 5), min_size=5, max_size=5)
radii = st.floats(0, 12)


@settings(deadline=None)
@given(st.sampled_from(sorted(DUAL)), values, radii)
def test_projection_is_inside_and_nearest(name, delta, eps):
    delta = torch.tensor([delta], dtype=torch.float64)
    moved = LpBall(name, eps).project(CLEAN, CLEAN + delta) - CLEAN
    assert norm(moved, name).item() <= eps + 1e-12
    # p is nearest to v in a convex set if and only if ⟨v − p, z − p⟩ ≤ 0 for all its z;
    # over a ball the largest ⟨v − p, z⟩ is eps times the dual norm of v − p.
    rest = delta - moved
    assert eps * norm(rest, DUAL[name]).item() - (rest * moved).sum().item() <= 1e-9


@settings(deadline=None)
@given(st.sampled_from(sorted(DUAL)), values, st.floats(0.1, 12))
def test_projection_does_not_change_inputs_inside(name, delta, eps):
    delta = torch.tensor([delta], dtype=torch.float64)
    inside = CLEAN + delta * (0.99 * eps / norm(delta, name).clamp_min(eps))
    assert torch.allclose(LpBall(name, eps).project(CLEAN, inside), inside, rtol=0, atol=1e-15)


@settings(deadline=None)
@given(values, st.integers(0, 6))
def test_l0_projection_is_the_best_of_all_choices(delta, count):
    delta = torch.tensor(delta, dtype=torch.float64)
    moved = LpBall("l0", count).project(CLEAN, CLEAN + delta) - CLEAN
    # Subtracting the clean image again causes rounding errors of 1e-16, which l0 counts.
    assert (moved.abs() > 1e-12).sum() <= count
    choices = itertools.combinations(range(5), min(count, 5))
    best = min(sum(delta[i].item() ** 2 for i in set(range(5)) - set(kept)) for kept in choices)
    assert (delta - moved).pow(2).sum().item() == pytest.approx(best, abs=1e-9)


@pytest.mark.parametrize("name", ["l0", "l1", "l2", "linf"])
def test_each_sample_is_projected_by_itself(name):
    generator = torch.Generator().manual_seed(0)
    clean, moved = (torch.rand(6, 1, 4, 4, generator=generator) for _ in range(2))
    ball = LpBall(name, 1.0)
    together = ball.project(clean, moved)
    alone = [ball.project(clean[i : i + 1], moved[i : i + 1]) for i in range(6)]
    assert torch.allclose(torch.cat(alone), together, atol=1e-7)
    assert ball.contains(clean, together).all()
    assert ball.project(clean[:0], moved[:0]).shape == (0, 1, 4, 4)


@pytest.mark.parametrize("count", [0, 1, 9, 60, 784, 2000])
def test_of_equal_elements_the_first_are_kept_whatever_the_other_samples_keep(count):
    """Saturated pixels change by the same amount; ``topk`` of 60 and of 700 chooses others of them."""
    generator = torch.Generator().manual_seed(0)
    delta = torch.randn(8, 784, generator=generator).clamp(-1, 1)
    counts = torch.full((8,), float(count))
    counts[1::2] = torch.tensor([700.0, 3.0, 900.0, 0.0])
    together = project_perturbations(delta, counts, "l0")
    alone = [project_perturbations(delta[k : k + 1], counts[k : k + 1], "l0") for k in range(8)]
    assert torch.equal(torch.cat(alone), together)
    for row, kept in enumerate(counts.int().tolist()):
        order = sorted(range(784), key=lambda k: -abs(delta[row, k].item()))[:kept]
        expected = torch.zeros(784).index_copy(0, torch.tensor(order).long(), delta[row, order])
        assert torch.equal(together[row], expected)


def test_in_l0_elements_that_are_no_numbers_count_as_the_largest():
    delta = torch.tensor([[1.0, torch.nan, 2.0, -torch.inf, 0.5]])
    kept = [project_perturbations(delta, torch.tensor([k]), "l0") != 0 for k in (1.0, 2.0, 3.0)]
    assert [each[0].nonzero()[:, 0].tolist() for each in kept] == [[1], [1, 3], [1, 2, 3]]


@pytest.mark.parametrize("name", ["l0", "l1", "l2", "linf"])
@pytest.mark.parametrize("eps", [0.1, 1.0, 2.0, 20.0])
def test_projections_of_whole_images_are_allowed_in_float32(name, eps):
    generator = torch.Generator().manual_seed(0)
    clean, moved = (torch.rand(64, 3, 32, 32, generator=generator) for _ in range(2))
    ball = LpBall(name, eps)
    projected = ball.project(clean, moved)
    assert ball.contains(clean, projected).all()
    if name != "l0" and ball.distance(clean, moved).min() > eps:
        assert ball.distance(clean, projected).min() > eps * (1 - 1e-4)


@pytest.mark.parametrize("name", ["l1", "l2"])
@pytest.mark.parametrize(("eps", "far"), [(1.0, 1.0), (1.0, 5.0), (5.0, 5.0)])
def test_projections_of_images_of_imagenets_size_are_allowed(name, eps, far):
    """Sums of 150,528 squares in float32 are wrong by 4e-6, and rounding undoes a change by a hundred-thousandth."""
    generator = torch.Generator().manual_seed(0)
    clean = torch.rand(16, 150_528, generator=generator)
    change = torch.randn(16, 150_528, generator=generator)
    moved = clean + far * eps * change / norm(change, name)[:, None]
    projected = LpBall(name, eps).project(clean, moved)
    lengths = norm(projected.double() - clean.double(), name)
    assert lengths.max() <= eps + 1.0001e-6 * max(eps, 1)
    assert lengths.min() >= eps * (1 - (1e-4 if name == "l2" else 2e-2))
    assert LpBall(name, eps).contains(clean, projected).all()


@pytest.mark.parametrize("name", ["l0", "l1", "l2", "linf"])
def test_each_sample_has_a_radius_of_its_own(name):
    delta = torch.rand(5, 1, 3, 4, generator=torch.Generator().manual_seed(0)).double() - 0.5
    radii = torch.tensor([0.0, 1.0, 0.5, 2.7, 100.0], dtype=torch.float64)
    clean = torch.zeros_like(delta[:1])
    alone = [LpBall(name, r).project(clean, delta[i : i + 1]) for i, r in enumerate(radii.tolist())]
    assert torch.allclose(project_perturbations(delta, radii, name), torch.cat(alone), atol=1e-12)
    assert torch.equal(project_perturbations(delta, radii, name)[-1], delta[-1])


@pytest.mark.parametrize("name", ["l0", "l1", "l2", "linf"])
def test_no_budget_no_change(name):
    moved = LpBall(name, 0).project(CLEAN, CLEAN + 1)
    assert torch.equal(moved, CLEAN)
    assert torch.equal(LpBall(name, 3).project(CLEAN, CLEAN), CLEAN)


@pytest.mark.parametrize(("name", "radius"), [("l1", 2.0), ("l2", 2.0), ("linf", 2.0), ("l0", 1)])
def test_contains_up_to_rounding(name, radius):
    clean = torch.zeros(4, 3, dtype=torch.float64)
    shown = torch.zeros(4, 3, dtype=torch.float64)
    shown[:, 1] = torch.tensor([1.0, 2.0, 2 + 1e-10, 2.1])
    if name == "l0":
        shown[3, 0] = 1e-9
    ball = LpBall(name, radius)
    assert ball.contains(clean, shown).tolist() == [True, True, True, False]
    assert ball.contains(clean.float(), shown.float()).tolist() == [True, True, True, False]


def test_contains_is_no_looser_than_rounding():
    clean = torch.zeros(1, 3, dtype=torch.float64)
    assert not LpBall("linf", 0.3).contains(clean, clean + 0.3 + 1e-7).item()
    assert not LpBall("linf", 0.3).contains(clean.float(), clean.float() + 0.3 + 1e-4).item()


@pytest.mark.parametrize(("name", "eps"), [("linf", 1.0), ("linf", 5.1), ("l2", 1.0), ("l1", 20.0)])
def test_rounding_is_relative_to_the_size_of_the_inputs(name, eps):
    """Grey levels up to 255 are rounded by more than inputs up to 1; what is beyond that is still outside."""
    generator = torch.Generator().manual_seed(0)
    clean = 100 + 155 * torch.rand((200, 784), generator=generator)
    moved = clean + 9 * torch.randn((200, 784), generator=generator)
    ball = LpBall(name, eps)
    projected = ball.project(clean, moved)
    assert ball.contains(clean, projected).all()
    assert not ball.contains(clean, clean + 1.001 * (projected - clean)).any()


def test_a_count_has_no_rounding():
    clean = torch.full((1, 3), 2e6)
    assert not LpBall("l0", 1).contains(clean, clean + torch.tensor([1.0, 1, 0])).item()


def test_on_sphere():
    sphere = OnSphere(1.3)
    points = torch.randn(5, 20, generator=torch.Generator().manual_seed(0), dtype=torch.float64)
    projected = sphere.project(points, points)
    assert sphere.contains(points, projected).all()
    assert not sphere.contains(points, projected * (1 + 1e-6)).any()
    # The nearest point of a sphere is on the same ray, at a distance of the difference of the norms.
    expected = (norm(points, "l2") - 1.3).abs()
    assert torch.allclose(sphere.distance(points, projected), expected, rtol=1e-12)
    assert sphere.contains(points.float(), projected.float()).all()


def test_unbounded():
    anywhere = Unbounded("linf")
    far = CLEAN + torch.tensor([[1e6, 0, 0, -2e6, 0]])
    assert anywhere.contains(CLEAN, far).tolist() == [True]
    assert anywhere.distance(CLEAN, far).tolist() == [2e6]
    assert torch.equal(anywhere.project(CLEAN, far), far)


def test_all_are_budgets():
    for budget in (LpBall("l2", 1), Unbounded(), OnSphere(1)):
        assert isinstance(budget, Budget)
        assert budget == type(budget)(**vars(budget))


@pytest.mark.parametrize(
    ("name", "eps"), [("l3", 1), ("", 1), ("l2", -0.1), ("l2", float("inf")), ("l2", float("nan"))]
)
def test_wrong_balls_are_refused(name, eps):
    with pytest.raises(BadParameter, match=r"expected"):
        LpBall(name, eps)
