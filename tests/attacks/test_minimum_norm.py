"""Every minimum-norm preset ends near the nearest adversarial input of a linear classifier."""

from pathlib import Path

import pytest

from robustbench_inv.catalogue.cards import read_attack
from robustbench_inv.catalogue.load import load_attack
from robustbench_inv.testing.linear import linear_problem
from robustbench_inv.threat.budgets import Unbounded
from robustbench_inv.threat.threat_model import ThreatModel

PRESETS = Path(__file__).parents[2] / "attacks" / "presets"

QUICK = {
    "boundary": {"steps": 2000},
    "hopskipjump": {"steps": 6, "initial_gradient_eval_steps": 30},
}
"""Fewer steps, for as few inputs are enough."""

CLASSES = {"ddn": 2}
"""DDN climbs the cross-entropy, whose gradient points between two other classes that are about as near."""

SLOW = {"boundary", "cw", "hopskipjump"}
"""Presets that take seconds in small batches."""


def minimal():
    """Return the presets of minimum-norm attacks that another library runs."""
    cards = [read_attack(path) for path in sorted(PRESETS.glob("*.toml"))]
    foreign = [card for card in cards if card.implementation.startswith("foolbox:")]
    return [card.name for card in foreign if card.kind == "minimal"]


def test_all_presets_are_looked_at():
    wanted = {"boundary", "cw", "ddn", "deepfool", "deepfool-linf", "fmn", "hopskipjump"}
    assert wanted <= set(minimal())


@pytest.mark.parametrize("name", minimal())
def test_a_card_says_what_its_attack_is(name):
    card = read_attack(PRESETS / f"{name}.toml")
    attack = load_attack(name).attack
    assert card.kind == attack.kind
    assert set(card.norms) == attack.norms
    assert card.parameters
    assert card.paper


@pytest.mark.parametrize(
    ("name", "size"),
    [
        pytest.param(name, size, marks=pytest.mark.slow if name in SLOW and size < 8 else ())
        for name in minimal()
        for size in (1, 3, 8)
    ],
)
def test_it_ends_within_a_quarter_of_the_optimum(name, size, lab):
    attack = load_attack(name, **QUICK.get(name, {})).attack
    model, images, labels = linear_problem(8, CLASSES.get(name, 3), shape=(1, 4, 4))
    for norm in attack.norms:
        threat = ThreatModel(Unbounded(norm))
        shown = lab.in_parts(attack, size, (model, images, labels), threat)
        assert (model(shown).decision != labels).all()
        ratio = threat.budget.distance(images, shown) / model.distance(images, labels, norm)
        assert ratio.max() <= 1.25
        assert ratio.min() >= 1 - 1e-9
