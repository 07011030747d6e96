"""Threat models: sweeps, and what changes and what stays when one is narrowed."""

import pytest

from robustbench_inv.errors import BadParameter
from robustbench_inv.threat.budgets import LpBall, OnSphere, Unbounded
from robustbench_inv.threat.goals import KeepDecision, Misclassify
from robustbench_inv.threat.threat_model import ThreatModel


def test_one_eps_of_a_sweep():
    sweep = ThreatModel(LpBall("linf", 0.3), access="score", sweep=(0.1, 0.2, 0.3))
    single = sweep.at(0.2)
    assert single.budget == LpBall("linf", 0.2)
    assert (single.sweep, single.access, single.norm) == ((), "score", "linf")
    assert single.goal == Misclassify()
    assert sweep.sweep == (0.1, 0.2, 0.3)


def test_another_goal():
    threat = ThreatModel(LpBall("l2", 1.0), sweep=(0.5, 1.0))
    assert threat.with_goal(KeepDecision()) == ThreatModel(
        LpBall("l2", 1.0), KeepDecision(), sweep=(0.5, 1.0)
    )


@pytest.mark.parametrize(
    ("budget", "bounded"), [(LpBall("l1", 1), True), (OnSphere(1), True), (Unbounded(), False)]
)
def test_bounded(budget, bounded):
    assert ThreatModel(budget).bounded is bounded


def test_a_transfer_attack_needs_a_substitute():
    with pytest.raises(BadParameter, match=r"write linf=0\.1:substitute=MODEL") as error:
        ThreatModel(LpBall("linf", 0.3), access="transfer")
    assert "\n" not in str(error.value)
    sweep = ThreatModel(LpBall("linf", 0.3), access="transfer", sweep=(0.1, 0.3), substitute="m")
    assert sweep.at(0.1).is_transfer
    assert sweep.at(0.1).substitute == "m"


@pytest.mark.parametrize("access", ["white-box", "decision"])
def test_a_substitute_is_of_use_for_two_kinds_of_access(access):
    assert not ThreatModel(LpBall("linf", 0.3), access="score", substitute="m").is_transfer
    with pytest.raises(BadParameter, match=f"got 'access {access}', expected transfer or score"):
        ThreatModel(LpBall("linf", 0.3), access=access, substitute="m")


@pytest.mark.parametrize("sweep", [(0.2, 0.1), (0.1, 0.1), (0.3, 0.1, 0.2)])
def test_a_sweep_ascends(sweep):
    with pytest.raises(BadParameter, match="ascending, distinct"):
        ThreatModel(LpBall("linf", 0.3), sweep=sweep)
