"""Every minimum-norm preset ends close to the optimum on a linear classifier."""

from pathlib import Path

import pytest
import torch

from robustbench_inv.catalogue.attacks import load_attack
from robustbench_inv.catalogue.cards import read_attack
from robustbench_inv.testing.analytic_problems import linear_problem
from robustbench_inv.threat.budgets import Unbounded
from robustbench_inv.threat.threat_model import ThreatModel

PRESETS = Path(__file__).parents[2] / "attacks" / "presets"

QUICK = {
    "boundary": {"steps": 400},
    "cw": {"steps": 100, "learning_rate": 0.05, "initial_constant": 1.0},
    "hopskipjump": {"steps": 15},
}
"""Fewer steps, for as few inputs are enough."""


def minimal():
    """Return the presets of minimum-norm attacks, but for those on spheres."""
    cards = [read_attack(path) for path in sorted(PRESETS.glob("*.toml"))]
    return [c.name for c in cards if c.kind == "minimum-norm" and not c.name.startswith("spheres")]


def test_all_presets_are_looked_at():
    wanted = {
        "boundary",
        "cw",
        "cw-adaptive",
        "ddn",
        "deepfool",
        "deepfool-linf",
        "fmn",
        "hopskipjump",
        "local-search",
    }
    assert wanted <= set(minimal())


def fewest_elements(model, images, labels):
    """Return the least number of elements to move to an end of the box, (n,), for another class to win."""
    low, high = model.bounds
    slopes = model.weights - model.weights[labels][:, None]
    flat = images.flatten(1)[:, None]
    gains = torch.maximum(slopes * (high - flat), slopes * (low - flat))
    reached = gains.sort(dim=2, descending=True).values.cumsum(2)
    logits = model(images).logits
    gaps = logits.gather(1, labels[:, None]) - logits
    needed = (reached <= gaps[..., None]).sum(2) + 1
    return needed.scatter(1, labels[:, None], 10**6).amin(1)


@pytest.mark.parametrize("name", minimal())
def test_a_card_agrees_with_its_attack(name):
    card = read_attack(PRESETS / f"{name}.toml")
    attack = load_attack(name).attack
    assert card.kind == attack.kind
    assert set(card.norms) == attack.norms
    assert card.paper


@pytest.mark.parametrize("size", [3, 8])
@pytest.mark.parametrize("name", minimal())
def test_it_ends_within_a_quarter_of_the_optimum(name, size, lab):
    attack = load_attack(name, **QUICK.get(name, {})).attack
    model, images, labels = linear_problem(8, 3, shape=(1, 4, 4))
    for norm in attack.norms:
        threat = ThreatModel(Unbounded(norm))
        adversarial = lab.in_parts(attack, size, (model, images, labels), threat)
        assert (model(adversarial).decision != labels).all()
        if norm == "l0":  # without a closed form here
            continue
        ratio = threat.budget.distance(images, adversarial) / model.distance(images, labels, norm)
        assert ratio.max() <= 1.25
        assert ratio.min() >= 1 - 1e-9
