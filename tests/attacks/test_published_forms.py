"""Attacks of a published name: published parameters, and step by step what Foolbox's implementation does."""

import pytest
import torch

from robustbench_inv.attacks.boundary import BoundaryAttack, _Window
from robustbench_inv.attacks.cw import CarliniWagner
from robustbench_inv.attacks.deepfool import DeepFool
from robustbench_inv.attacks.fast_minimum_norm import DDN, FMN
from robustbench_inv.attacks.hopskipjump import HopSkipJump
from robustbench_inv.catalogue.attacks import load_attack
from robustbench_inv.data.registry import open_dataset
from robustbench_inv.testing.toys import least_squares
from robustbench_inv.threat.budgets import Unbounded
from robustbench_inv.threat.threat_model import ThreatModel

PUBLISHED = {
    "boundary": BoundaryAttack(25000, 0.01, 0.01, 1.5, 10),
    "cw": CarliniWagner(10000, 9, 0.01, 1e-3, 0.0, abort_early=True),
    "ddn": DDN(100, 1.0, 0.05),
    "deepfool": DeepFool("l2", 50, 9, 0.02),
    "deepfool-linf": DeepFool("linf", 50, 9, 0.02),
    "fmn": FMN(100, 1.0, 0.05),
    "hopskipjump": HopSkipJump(40, 100, 10000, 1.0, 0.0),
}


@pytest.mark.parametrize("name", PUBLISHED)
def test_a_published_name_has_the_published_parameters(name):
    assert load_attack(name).attack == PUBLISHED[name]


@pytest.fixture(scope="module")
def digits():
    """A least-squares classifier, and digits that it classifies correctly, with pixels away from 0 and 1."""
    data = open_dataset("mnist5k")
    toy = least_squares(*data.batch([i for i in range(5000) if i % 5 < 2]))
    images, labels = data.batch(range(2, 5000, 100))
    images = 0.3 + 0.4 * images
    right = toy(images).decision == labels
    return toy, images[right], labels[right]


@pytest.mark.parametrize(
    ("name", "norm", "peer"),
    [
        ("ddn", "l2", "DDNAttack"),
        ("deepfool", "l2", "L2DeepFoolAttack"),
        ("deepfool-linf", "linf", "LinfDeepFoolAttack"),
        ("fmn", "l1", "L1FMNAttack"),
        ("fmn", "linf", "LInfFMNAttack"),
    ],
)
def test_it_ends_where_foolbox_ends(name, norm, peer, digits, lab):
    """Foolbox does not evaluate the last iterate, so that ours may end closer."""
    pytest.importorskip("foolbox")
    threat = ThreatModel(Unbounded(norm))
    ours, theirs = (
        lab.run(load_attack(each).attack, digits, threat) for each in (name, f"foolbox:{peer}")
    )
    assert torch.equal(ours.broken, theirs.broken)
    far, expected = (
        threat.budget.distance(digits[1], ran.images)[ours.broken] for ran in (ours, theirs)
    )
    last = 0.06 if name == "ddn" else 1e-3
    assert (far <= expected * (1 + 1e-3)).all()
    assert (far >= expected * (1 - last)).double().mean() >= 0.8


def test_each_step_of_a_gradient_attack_is_one_pass(digits, lab):
    for attack in (FMN(), DDN()):
        ran = lab.run(attack, digits, ThreatModel(Unbounded("l2")))
        assert (ran.meter.backward_passes == 100).all()
        assert (ran.meter.forward_passes == 101).all()


def test_a_success_rate_counts_once_its_window_is_full_and_then_empties_it():
    window = _Window(2, 4, (0.2, 0.5), torch.device("cpu"))
    hits = torch.tensor([[1, 0], [1, 0], [1, 1], [0, 0], [1, 0], [1, 0], [1, 0], [1, 0]]) > 0
    trends = [window.add(torch.arange(2), each).tolist() for each in hits]
    # three of four are too many for the first sample; for the second one of four is right, and later none is too few
    assert trends == [[0, 0]] * 3 + [[1, 0]] + [[0, 0]] * 2 + [[0, -1]] + [[1, 0]]
