"""PGD against a hand-written loop of the published algorithm."""

import pytest
import torch

from robustbench_inv.attacks.budget_geometry import Ball
from robustbench_inv.attacks.pgd import PGD
from robustbench_inv.attacks.protocol import Batch
from robustbench_inv.attacks.queries import CountingModel
from robustbench_inv.catalogue.attacks import load_attack
from robustbench_inv.catalogue.datasets import load_dataset
from robustbench_inv.catalogue.models import load_model
from robustbench_inv.data.sampling import select_samples
from robustbench_inv.errors import BadParameter
from robustbench_inv.randomness import SampleRNG
from robustbench_inv.tensors import broadcast, norm
from robustbench_inv.threat.budgets import LpBall
from robustbench_inv.threat.threat_model import ThreatModel


@pytest.fixture(scope="module")
def digits():
    data, model = load_dataset("mnist5k"), load_model("mnist-cnn:dtype=float64").classifier
    images, labels = data.batch(list(select_samples(data.labels, 40)))
    return model, images.double(), labels


def run(attack, model, images, labels, budget):
    ids = torch.arange(len(labels))
    batch, rng, threat = Batch(images, labels, ids), SampleRNG(0, ids), ThreatModel(budget)
    return attack.run(CountingModel(model, batch, threat, rng), batch, threat, rng)


def published_iterates(model, images, labels, budget, start, steps=40):
    """Madry et al.: x ← Π(x + α·sign(∇ cross-entropy)) in linf; in l2 along the normalized gradient."""
    eps, step = budget.eps, 2.5 * budget.eps / steps
    x, iterates = start, [start]
    for _ in range(steps):
        x = x.clone().requires_grad_(True)
        loss = torch.nn.functional.cross_entropy(model(x).logits, labels, reduction="sum")
        (gradient,) = torch.autograd.grad(loss, x)
        if budget.norm == "linf":
            x = (x.detach() + step * gradient.sign() - images).clamp(-eps, eps) + images
        else:
            moved = (
                x.detach() + step * gradient / broadcast(norm(gradient, "l2"), gradient) - images
            )
            x = images + moved * broadcast((eps / norm(moved, "l2")).clamp_max(1), moved)
        x = x.clamp(0, 1)
        iterates.append(x)
    return torch.stack(iterates)


@pytest.mark.parametrize("budget", [LpBall("linf", 0.05), LpBall("l2", 0.9)])
def test_pgd_returns_the_best_iterate_of_the_published_algorithm(digits, budget):
    model, images, labels = digits
    ids = torch.arange(len(labels))
    start = Ball(images, budget, (0.0, 1.0)).draw(SampleRNG(0, ids), 0)
    iterates = published_iterates(model, images, labels, budget, start)
    with torch.no_grad():
        broken = torch.stack([model(x).decision != labels for x in iterates])
    adversarial = run(load_attack("pgd").attack, model, images, labels, budget)
    ours = model(adversarial).decision != labels
    assert 0 < broken[-1].sum() < len(labels)
    assert torch.equal(ours, broken.any(0)), "at least what the last iterate breaks"
    first_broken = iterates[broken.int().argmax(0), ids]
    # kinks of the network amplify rounding differences over 40 steps
    torch.testing.assert_close(adversarial[ours], first_broken[ours], rtol=0, atol=1e-3)


def test_the_first_step_has_the_published_length():
    model = load_model("mnist-cnn").classifier
    images = torch.full((1, 1, 28, 28), 0.5)
    label = model(images).decision
    budget = LpBall("l2", 0.01)
    for steps in (1, 5, 50):
        attack = PGD(steps=steps, random_start=False)
        assert attack._rel_step(0) == attack._rel_step(steps - 1) == 2.5 / steps
    adversarial = run(PGD(steps=1, random_start=False, rel_step=0.5), model, images, label, budget)
    assert norm(adversarial - images, "l2").item() == pytest.approx(0.005, rel=1e-3)


def test_the_presets_are_the_published_and_the_tuned_attack():
    assert load_attack("pgd").attack == PGD(40, 1, None, decay=False, loss="ce", random_start=True)
    assert load_attack("pgd-tuned").attack == PGD(40, 1, 1.0, decay=True, loss="scaled-ce")


@pytest.mark.parametrize("bad", [{"rel_step": 0.0}, {"rel_step": -1.0}, {"steps": 0}])
def test_parameters_are_checked(bad):
    with pytest.raises(BadParameter, match=next(iter(bad))):
        PGD(**bad)
