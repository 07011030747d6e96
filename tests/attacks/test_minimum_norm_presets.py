"""Every minimum-norm preset ends close to the optimum on a linear classifier."""

from pathlib import Path

import pytest
import torch

from robustbench_inv.attacks.minimum_norm import MinimumNorm
from robustbench_inv.catalogue.attacks import load_attack
from robustbench_inv.catalogue.cards import read_attack
from robustbench_inv.data.registry import open_dataset
from robustbench_inv.testing.analytic_problems import linear_problem
from robustbench_inv.testing.toys import least_squares
from robustbench_inv.threat.budgets import Unbounded
from robustbench_inv.threat.threat_model import ThreatModel

PRESETS = Path(__file__).parents[2] / "attacks" / "presets"

QUICK = {
    "boundary": {"steps": 400, "spherical_step": 0.1, "source_step": 0.1, "update_interval": 1},
    "cw": {"steps": 100, "learning_rate": 0.05, "initial_constant": 1.0},
    "hopskipjump": {"steps": 15},
    "minimum-norm": {"lagrangian_steps": 10},
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
        "ddn",
        "deepfool",
        "deepfool-linf",
        "fmn",
        "hopskipjump",
        "local-search",
        "local-search-log-odds",
        "minimum-norm",
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


@pytest.mark.parametrize("name", minimal())
def test_it_ends_within_a_quarter_of_the_optimum(name, lab):
    attack = load_attack(name, **QUICK.get(name, {})).attack
    model, images, labels = linear_problem(8, 3, shape=(1, 4, 4))
    for norm in attack.norms:
        threat = ThreatModel(Unbounded(norm))
        adversarial = lab.run(attack, (model, images, labels), threat).images
        assert (model(adversarial).decision != labels).all()
        if norm == "l0":  # without a closed form here
            continue
        ratio = threat.budget.distance(images, adversarial) / model.distance(images, labels, norm)
        # the cross-entropy of DDN may push a class whose boundary is not the nearest
        assert ratio.max() <= (1.35 if name == "ddn" else 1.25)
        assert ratio.min() >= 1 - 1e-9


@pytest.mark.parametrize("norm", ["l1", "l2", "linf"])
def test_a_second_loss_and_bisections_never_lengthen_a_result(norm, lab):
    threat = lab.threat_for(MinimumNorm(), norm)
    once, twice, fine = (
        lab.run(attack, threat=threat)
        for attack in (
            MinimumNorm(8, "margin", 1.0, 0.3, 0, 0),
            MinimumNorm(8, "margin+scaled-ce", 1.0, 0.3, 0, 0),
            MinimumNorm(8, "margin+scaled-ce", 1.0, 0.3, 12, 0),
        )
    )
    far = [
        threat.budget.distance(ran.meter.batch.images, ran.images) for ran in (once, twice, fine)
    ]
    assert fine.broken.all()
    assert (far[1] <= far[0]).all()
    assert (far[2] <= far[1] * (1 + 1e-12)).all()
    assert far[2].sum() < far[0].sum()


@pytest.mark.parametrize(
    ("name", "norm", "peer"),
    [
        ("deepfool", "l2", "foolbox:L2DeepFoolAttack"),
        ("deepfool-linf", "linf", "foolbox:LinfDeepFoolAttack"),
        ("ddn", "l2", "foolbox:DDNAttack:steps=100"),
        ("minimum-norm:lagrangian_steps=0", "l2", "foolbox:DDNAttack:steps=100"),
    ],
)
def test_a_preset_is_as_strong_as_the_same_attack_of_foolbox(name, norm, peer, lab):
    digits = open_dataset("mnist5k")
    toy = least_squares(*digits.batch([i for i in range(5000) if i % 5 < 2]))
    images, labels = digits.batch(range(2, 5000, 100))
    right = toy(images).decision == labels
    on, threat = (toy, images[right], labels[right]), ThreatModel(Unbounded(norm))
    ours, theirs = (lab.run(load_attack(each).attack, on, threat) for each in (name, peer))
    assert ours.broken.all()
    found, expected = (
        threat.budget.distance(on[1], ran.images).where(ran.broken, torch.inf).median()
        for ran in (ours, theirs)
    )
    assert found <= expected * 1.01  # the box shortens single steps here, their sum in Foolbox
