"""The BoundaryAttack attack: every sample walks by itself, whatever becomes of the others."""

import pytest
import torch

from robustbench_inv.attacks.boundary import BoundaryAttack
from robustbench_inv.attacks.hopskipjump import HopSkipJump
from robustbench_inv.errors import BadParameter
from robustbench_inv.tensors import Output, norm
from robustbench_inv.testing.analytic_problems import linear_problem
from robustbench_inv.testing.harness import check_attack
from robustbench_inv.threat.budgets import Unbounded
from robustbench_inv.threat.goals import Misclassify, MisclassifyAccepted, Target
from robustbench_inv.threat.threat_model import ThreatModel

THREAT = ThreatModel(Unbounded("l2"))
FAST = {"spherical_step": 0.1, "source_step": 0.1, "update_interval": 1}
"""Longer first steps that adapt sooner than the published ones, for a few hundred queries."""


def test_it_passes_the_harness():
    check_attack(BoundaryAttack(60, **FAST), max_distance_ratio=8.0)


def test_it_is_within_a_quarter_of_the_optimum(lab):
    model, images, labels = linear_problem(8, 3, shape=(1, 4, 4))
    ran = lab.run(BoundaryAttack(500, **FAST), (model, images, labels), THREAT)
    max_distance_ratio = norm(ran.images - images, "l2") / model.distance(images, labels, "l2")
    assert 1 - 1e-9 <= max_distance_ratio.min() <= max_distance_ratio.max() <= 1.25


def test_a_sample_does_not_depend_on_its_batch(lab):
    on, attack = lab.problem(6), BoundaryAttack(steps=60)
    alone = lab.in_parts(attack, 1, on, THREAT)
    assert torch.equal(alone, lab.in_parts(attack, 6, on, THREAT))


def test_one_failed_start_does_not_affect_other_samples(lab):
    """Whatever is as bright as the second image is of its class: nothing of that brightness is a success."""
    linear, images, labels = linear_problem(3, 2, shape=(1, 4, 4))

    def stubborn(output, adversarial):
        logits = output.logits.clone()
        own = (adversarial.flatten(1)[:, :1] >= 0).expand_as(logits) & (
            labels[1] == torch.arange(2)
        )
        return Output(logits + 1e6 * own)

    model = lab.Changed(linear, stubborn)
    # all of class labels[1]: its samples have no start, the others are wrong to begin with
    ran = lab.run(BoundaryAttack(steps=50), (model, images, labels), THREAT)
    for row in range(3):
        status = ran.meter.failures.get(row)
        assert status == ("no_start" if labels[row] == labels[1] else None)
    lost = torch.tensor([row in ran.meter.failures for row in range(3)])
    assert torch.equal(ran.images[lost], images[lost])
    assert ran.broken[~lost].all()


def test_only_decisions_are_used(lab):
    """Logits that are all alike but for their order."""
    linear, images, labels = linear_problem(4, 3, shape=(1, 4, 4))
    ranks = lab.Changed(
        linear, lambda output, _: Output(output.logits.argsort(1).argsort(1).double())
    )
    plain = lab.run(BoundaryAttack(steps=40), (linear, images, labels), THREAT)
    ranked = lab.run(BoundaryAttack(steps=40), (ranks, images, labels), THREAT)
    assert torch.equal(plain.images, ranked.images)
    assert not ranked.meter.backward_passes.any()


@pytest.mark.parametrize("goal", [Misclassify(), Target(2), MisclassifyAccepted()])
def test_more_steps_end_nearer(goal, lab):
    model, images, labels = linear_problem(9, 3, shape=(1, 5, 5))
    on = (model, images[labels != 2], labels[labels != 2])
    threat = THREAT.with_goal(goal)
    few, more = (lab.run(BoundaryAttack(steps=n), on, threat) for n in (20, 200))
    nearer = norm(more.images - on[1], "l2") < norm(few.images - on[1], "l2")
    assert nearer.double().mean() > 0.8


@pytest.mark.parametrize("attack", [BoundaryAttack(steps=100), HopSkipJump(steps=5)], ids=repr)
def test_a_rejected_input_is_no_success(attack, lab):
    linear, images, labels = linear_problem(4, 2, shape=(1, 4, 4))

    def cautious(output, _):
        sure = (output.logits[:, 0] - output.logits[:, 1]).abs() > 0.3
        return Output(output.logits, accepted=sure)

    model = lab.Changed(linear, cautious)
    ran = lab.run(attack, (model, images, labels), THREAT.with_goal(MisclassifyAccepted()))
    assert model(ran.images).accepted.all()
    assert ran.broken.all()


@pytest.mark.parametrize(
    "wrong",
    [
        {"steps": 0},
        {"update_interval": 0},
        {"spherical_step": 1.5},
        {"step_adaptation": 0},
    ],
)
def test_settings_are_checked(wrong):
    with pytest.raises(BadParameter, match=f"unusable {next(iter(wrong))}"):
        BoundaryAttack(**wrong)
