"""HopSkipJump: gradient estimates, binary search, batches and models with a reject option."""

import pytest
import torch

from robustbench_inv.attacks import hopskipjump
from robustbench_inv.attacks.decision_based import DecisionOracle
from robustbench_inv.attacks.hopskipjump import HopSkipJump
from robustbench_inv.attacks.protocol import Batch
from robustbench_inv.errors import BadParameter
from robustbench_inv.tensors import Output, norm
from robustbench_inv.testing.analytic_problems import linear_problem
from robustbench_inv.testing.harness import check_attack
from robustbench_inv.threat.budgets import Unbounded
from robustbench_inv.threat.goals import Misclassify, MisclassifyAccepted, Target
from robustbench_inv.threat.threat_model import ThreatModel

NORMS = ("l2", "linf")
THREATS = {norm: ThreatModel(Unbounded(norm)) for norm in NORMS}


def test_it_keeps_to_the_rules_and_ends_within_a_quarter_of_the_optimum():
    check_attack(HopSkipJump(steps=10), max_distance_ratio=1.5)


@pytest.mark.parametrize("measured", NORMS)
def test_it_is_at_the_optimum_in_the_end(measured, lab):
    """Of two classes: at a corner between three it may end on the further one's boundary."""
    model, images, labels = linear_problem(8, 2, shape=(1, 4, 4))
    ran = lab.run(HopSkipJump(), (model, images, labels), THREATS[measured])
    ratio = norm(ran.images - images, measured) / model.distance(images, labels, measured)
    assert 1 - 1e-9 <= ratio.min() <= ratio.max() <= 1.02


@pytest.mark.parametrize("measured", NORMS)
@pytest.mark.parametrize("momentum", [0.0, 0.7])
def test_a_sample_does_not_depend_on_its_batch(measured, momentum, lab):
    on, attack = lab.problem(8), HopSkipJump(steps=4, initial_queries=20, momentum=momentum)
    whole = lab.in_parts(attack, 8, on, THREATS[measured])
    for size in (1, 3):
        parts = lab.in_parts(attack, size, on, THREATS[measured])
        assert (parts - whole).abs().max() <= 1e-9


def test_the_size_of_a_query_is_bounded(lab, monkeypatch):
    linear, images, labels = linear_problem(6, 3, shape=(1, 4, 4))
    most, asked = [], []
    for elements in (2**20, 7 * 16):
        monkeypatch.setattr(hopskipjump, "MAX_BATCH_ELEMENTS", elements)
        model = lab.Changed(linear)
        ran = lab.run(
            HopSkipJump(steps=1, initial_queries=30), (model, images, labels), THREATS["l2"]
        )
        most.append(model.most)
        asked.append(ran.meter.forward_passes)
        assert ran.broken.all()
    assert most == [6 * 30, 7]
    assert (asked[0] - asked[1]).abs().max() < 20  # the same number of probes, but other steps


def test_one_failed_start_does_not_affect_other_samples(lab):
    """Whatever is given as of class labels[1] stays of that class: those samples have no start."""
    linear, images, labels = linear_problem(3, 2, shape=(1, 4, 4))

    def stubborn(output, _):
        return Output(output.logits + 1e6 * (labels[1] == torch.arange(2)))

    ran = lab.run(
        HopSkipJump(steps=3), (lab.Changed(linear, stubborn), images, labels), THREATS["linf"]
    )
    lost = labels == labels[1]
    assert lost.any()
    assert not lost.all()
    assert ran.meter.failures == {int(row): "no_start" for row in lost.nonzero()[:, 0]}
    assert torch.equal(ran.images[lost], images[lost])
    assert ran.broken[~lost].all()


def test_only_decisions_are_used(lab):
    """Logits that are all alike but for their order."""
    linear, images, labels = linear_problem(4, 3, shape=(1, 4, 4))
    ranks = lab.Changed(
        linear, lambda output, _: Output(output.logits.argsort(1).argsort(1).double())
    )
    plain, ranked = (
        lab.run(HopSkipJump(steps=3), (model, images, labels), THREATS["l2"])
        for model in (linear, ranks)
    )
    assert torch.equal(plain.images, ranked.images)
    assert not ranked.meter.backward_passes.any()


@pytest.mark.parametrize("goal", [Misclassify(), Target(2), MisclassifyAccepted()])
@pytest.mark.parametrize("measured", NORMS)
def test_more_steps_end_nearer(goal, measured, lab):
    model, images, labels = linear_problem(9, 3, shape=(1, 5, 5))
    on = (model, images[labels != 2], labels[labels != 2])
    threat = THREATS[measured].with_goal(goal)
    few, more = (lab.run(HopSkipJump(steps=n), on, threat) for n in (1, 10))
    if isinstance(goal, Target):
        assert (model(more.images).decision == 2).all()
    assert more.broken.all()
    nearer = norm(more.images - on[1], measured) < norm(few.images - on[1], measured)
    assert nearer.double().mean() > 0.8


def test_the_number_of_queries_is_that_of_the_paper(lab):
    """100·(1 + √2 + √3) probes and those of 4 searches for the boundary, besides the start's and the steps'."""
    model, images, labels = linear_problem(5, 3, shape=(1, 4, 4))
    ran = lab.run(HopSkipJump(steps=3), (model, images, labels), THREATS["l2"])
    initial_queries, halvings = 100 + 141 + 173, 4 * 6
    assert ran.meter.forward_passes.min() >= initial_queries + halvings + 3
    assert ran.meter.forward_passes.max() <= initial_queries + halvings + 3 * 20 + 30


@pytest.mark.parametrize(
    "wrong",
    [
        {"steps": 0},
        {"initial_queries": 0},
        {"max_queries": 0},
        {"gamma": 0},
        {"momentum": 1},
        {"momentum": -0.1},
    ],
)
def test_settings_are_checked(wrong):
    with pytest.raises(BadParameter, match=f"unusable {next(iter(wrong))}"):
        HopSkipJump(**wrong)


@pytest.mark.parametrize("measured", NORMS)
def test_the_binary_search_ends_at_the_boundary(measured):
    """The boundary is at a mean of 0.8: on the line from 0.4 to 1, and at a clipping by 0.4."""
    clean = torch.full((2, 1, 3, 3), 0.4, dtype=torch.float64)
    batch = Batch(clean, torch.zeros(2, dtype=torch.int64), torch.arange(2))

    def bright(images, _):
        above = images.flatten(1).mean(1) - 0.8
        return Output(torch.stack([-above, above], 1))

    decisions = DecisionOracle(bright, batch, Misclassify())
    ends = decisions.binary_search(torch.ones_like(clean), torch.arange(2), 20, measured)
    assert ((ends - 0.8) > 0).all()
    assert ((ends - 0.8) < 1e-5).all()
