"""Refinement: exact nearest points across a linear boundary inside a box, and examples that never end further away."""

import pytest
import torch

from robustbench_inv.attacks.best_so_far import ClosestAdversarial
from robustbench_inv.attacks.minimum_norm import MinimumNorm
from robustbench_inv.attacks.protocol import Batch
from robustbench_inv.attacks.queries import CountingModel
from robustbench_inv.attacks.refinement import nearest_across, refine
from robustbench_inv.data.registry import open_dataset
from robustbench_inv.randomness import SampleRNG
from robustbench_inv.tensors import norm
from robustbench_inv.testing.analytic_problems import linear_problem
from robustbench_inv.testing.toys import least_squares
from robustbench_inv.threat.budgets import Unbounded
from robustbench_inv.threat.goals import Misclassify
from robustbench_inv.threat.threat_model import ThreatModel

NORMS = ("l1", "l2", "linf")


@pytest.mark.parametrize("name", NORMS)
def test_the_nearest_point_lies_on_the_boundary_and_no_other_is_nearer(name):
    generator = torch.Generator().manual_seed(0)
    clean = torch.rand(6, 2, 5, generator=generator, dtype=torch.float64).round(decimals=1)
    slope = torch.randn(6, 2, 5, generator=generator, dtype=torch.float64)
    slope[:, 0, 0] = 0
    room = torch.where(slope > 0, 1 - clean, clean)
    most = (slope.abs() * room).flatten(1).sum(1)
    needed = torch.tensor([0.05, 0.2, 0.5, 0.8, 0.99, 1.0]) * most
    delta = nearest_across(clean, slope, needed, (0.0, 1.0), name)
    assert torch.allclose((slope * delta).flatten(1).sum(1), needed)
    assert ((clean + delta >= 0) & (clean + delta <= 1)).all()
    others = torch.rand(2000, *clean.shape, generator=generator, dtype=torch.float64) - clean
    reached = (slope * others).flatten(2).sum(2)
    scale = (needed / reached)[..., None, None]
    others = (others * scale).where((reached > 0)[..., None, None] & (scale <= 1), torch.inf)
    assert (norm(others.flatten(0, 1), name).reshape(2000, 6) >= norm(delta, name) - 1e-9).all()


def test_all_elements_move_to_the_bound_where_the_box_ends_before_the_boundary():
    clean, slope = torch.tensor([[0.25, 0.5, 1.0]]), torch.tensor([[1.0, -2.0, 0.0]])
    for name in NORMS:
        delta = nearest_across(clean, slope, torch.tensor([9.0]), (0.0, 1.0), name)
        assert torch.allclose(delta, torch.tensor([[0.75, -0.5, 0.0]]))


def searched(model, images, labels, name, refinements):
    batch = Batch(images, labels, torch.arange(len(labels)))
    threat, rng = ThreatModel(Unbounded(name)), SampleRNG(0, batch.ids)
    meter = CountingModel(model, batch, threat, rng)
    return MinimumNorm(steps=20, bisections=6, refinements=refinements).run(
        meter, batch, threat, rng
    )


@pytest.mark.parametrize("name", NORMS)
def test_a_linear_model_is_left_at_the_optimum(name):
    model, images, labels = linear_problem(8, 2, shape=(1, 4, 4))
    best = model.distance(images, labels, name)
    near = norm(searched(model, images, labels, name, 5) - images, name)
    assert torch.allclose(near, best, rtol=1e-4)
    rough = norm(searched(model, images, labels, name, 0) - images, name)
    assert (rough > best * 1.001).any()


@pytest.mark.parametrize("name", NORMS)
def test_a_refined_example_is_adversarial_in_any_batch_and_never_further(name):
    images, labels = open_dataset("mnist5k").batch(range(0, 5000, 40))
    toy = least_squares(images, labels)
    images, labels = images[::10], labels[::10]
    right = toy(images).decision == labels
    images, labels = images[right], labels[right]
    rough, fine = (searched(toy, images, labels, name, count) for count in (0, 10))
    before, after = norm(rough - images, name), norm(fine - images, name)
    assert (after <= before).all()
    assert after.median() < before.median()
    assert all(
        toy(image[None]).decision != label for image, label in zip(fine, labels, strict=True)
    )


def test_samples_without_an_example_cost_nothing():
    model, images, labels = linear_problem(3, 2)
    batch = Batch(images, labels, torch.arange(3))
    threat = ThreatModel(Unbounded("l2"), goal=Misclassify())
    meter = CountingModel(model, batch, threat, SampleRNG(0, batch.ids))
    refine(meter, ClosestAdversarial(batch, threat, meter), 10)
    assert not meter.forward_passes.any()
