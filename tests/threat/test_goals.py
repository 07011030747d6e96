"""Goals: truth tables, and margins that are positive only where the output meets the goal."""

import itertools
from dataclasses import replace

import pytest
import torch

from robustbench_inv.errors import BadParameter
from robustbench_inv.tensors import Output
from robustbench_inv.threat.goals import (
    Goal,
    GoalInputs,
    KeepDecision,
    KeepLogits,
    Misclassify,
    MisclassifyAccepted,
    Target,
)

UNKNOWN = -1


def deciding(decision, accepted=None):
    logits = torch.zeros(1, 3)
    logits[0, decision] = 1.0
    return Output(logits, None, None if accepted is None else torch.tensor([accepted]))


def evidence(*, label=0, before=0, after=0, accepted=None, oracle=None):
    image = torch.zeros(1, 2)
    return GoalInputs(
        clean=image,
        adversarial=image + 1,
        labels=torch.tensor([label]),
        before=deciding(before),
        after=deciding(after, accepted),
        oracle=None if oracle is None else torch.tensor([oracle]),
    )


@pytest.mark.parametrize(("label", "after"), list(itertools.product(range(3), repeat=2)))
def test_misclassify(label, after):
    assert Misclassify().reached(evidence(label=label, after=after)).item() == (label != after)


@pytest.mark.parametrize(
    ("after", "oracle", "expected"),
    [
        (1, 0, True),
        (1, 1, False),
        (1, UNKNOWN, False),
        (1, None, True),
        (0, 0, False),
        (0, 1, False),
        (0, None, False),
    ],
)
def test_misclassify_while_the_class_stays(after, oracle, expected):
    goal = Misclassify(same_class=True)
    assert goal.reached(evidence(after=after, oracle=oracle)).item() is expected
    assert Misclassify().reached(evidence(after=after, oracle=oracle)).item() is (after != 0)


@pytest.mark.parametrize(
    ("label", "after", "expected"), [(0, 1, True), (0, 2, False), (0, 0, False), (1, 1, False)]
)
def test_target(label, after, expected):
    assert Target(1).reached(evidence(label=label, after=after)).item() is expected


@pytest.mark.parametrize(
    ("label", "after", "expected"), [(0, 1, True), (0, 2, False), (0, 0, False), (2, 0, True)]
)
def test_target_counted_from_the_label(label, after, expected):
    assert Target(offset=1).reached(evidence(label=label, after=after)).item() is expected


def test_offsets_reach_each_of_the_other_classes_once():
    labels = torch.arange(5)
    found = torch.stack([Target(offset=j).classes(labels, 5) for j in range(1, 5)], 1)
    assert [sorted([*row, label]) for label, row in enumerate(found.tolist())] == [[*range(5)]] * 5


def test_a_target_with_confidence_must_lead_by_it():
    output, labels = Output(torch.tensor([[1.0, 4.0, 2.0]])), torch.tensor([0])
    for confidence, margin in ((0.0, 2.0), (1.5, 0.5), (2.5, -0.5)):
        goal = Target(1, confidence=confidence)
        assert goal.margin(output, labels).item() == margin
        assert goal.output_reaches(output, labels).item() is (margin > 0)


def test_a_target_that_must_be_accepted():
    logits, clearance = torch.tensor([[1.0, 4.0, 2.0]]), torch.tensor([[0.0, 0.5, 9.0]])
    told = [
        (Output(logits, None, torch.tensor([True]), clearance), 0.5, True),
        (Output(logits, None, torch.tensor([False]), clearance - 1), -0.5, False),
        (Output(logits, None, torch.tensor([False])), 0.0, False),
        (Output(logits, None, torch.tensor([True])), 2.0, True),
        (Output(logits), 2.0, True),
    ]
    goal, labels = Target(1, accepted=True), torch.tensor([0])
    for output, margin, output_reaches in told:
        assert goal.margin(output, labels).item() == margin
        assert goal.output_reaches(output, labels).item() is output_reaches
        assert Target(1).output_reaches(output, labels).item()


@pytest.mark.parametrize(
    "wrong",
    [{}, {"label": 1, "offset": 1}, {"offset": 0}, {"label": 1, "confidence": -1.0}],
)
def test_a_target_is_one_class_or_one_for_each(wrong):
    with pytest.raises(BadParameter):
        Target(**wrong)


@pytest.mark.parametrize(
    ("after", "accepted", "expected"),
    [
        (1, True, True),
        (1, False, False),
        (1, None, True),
        (0, True, False),
        (0, False, False),
        (0, None, False),
    ],
)
def test_misclassify_accepted(after, accepted, expected):
    found = MisclassifyAccepted().reached(evidence(after=after, accepted=accepted))
    assert found.item() is expected


@pytest.mark.parametrize(
    ("before", "after", "oracle", "expected"),
    [
        (0, 0, 1, True),
        (0, 0, 0, False),
        (0, 0, UNKNOWN, False),
        (0, 0, None, False),
        (0, 1, 1, False),
        (0, 1, 0, False),
        (2, 2, 1, True),  # the decision stays what it was, right or wrong
    ],
)
def test_keep_decision(before, after, oracle, expected):
    found = KeepDecision().reached(evidence(before=before, after=after, oracle=oracle))
    assert found.item() is expected


@pytest.mark.parametrize("oracle", [1, 0, UNKNOWN, None])
@pytest.mark.parametrize(
    ("moved", "close"), [(0.0, True), (0.009, True), (0.011, False), (-0.02, False)]
)
def test_keep_logits(oracle, moved, close):
    given = evidence(oracle=oracle)
    given.after.logits[0, 2] += moved
    assert KeepLogits(tolerance=0.01).reached(given).item() is (close and oracle == 1)


@pytest.mark.parametrize("goal", [KeepDecision(), KeepLogits()])
@pytest.mark.parametrize(("accepted", "expected"), [(True, True), (False, False), (None, True)])
def test_a_rejected_input_keeps_no_prediction(goal, accepted, expected):
    given = evidence(oracle=1, accepted=accepted)
    assert goal.reached(given).item() is expected
    clean_rejected = replace(given, before=deciding(0, accepted=False))
    assert goal.reached(clean_rejected).item() is expected  # the changed input alone counts


@pytest.mark.parametrize("goal", [KeepDecision(), KeepLogits()])
def test_an_unchanged_input_has_no_new_class(goal):
    """An oracle that errs on a clean input made a success of every attack that returned it."""
    given = evidence(oracle=1)
    assert goal.reached(given).item()
    assert not goal.reached(replace(given, adversarial=given.clean)).item()


def test_each_sample_is_evaluated_by_itself():
    given = GoalInputs(
        clean=torch.zeros(4, 2),
        adversarial=torch.ones(4, 2),
        labels=torch.tensor([0, 0, 1, 2]),
        before=Output(torch.eye(3)[[0, 0, 1, 2]]),
        after=Output(torch.eye(3)[[0, 1, 1, 0]]),
        oracle=torch.tensor([1, 0, 1, 0]),
    )
    assert Misclassify().reached(given).tolist() == [False, True, False, True]
    assert Misclassify(same_class=True).reached(given).tolist() == [False, True, False, False]
    assert Target(0).reached(given).tolist() == [False, False, False, True]
    assert KeepDecision().reached(given).tolist() == [True, False, False, False]


@pytest.mark.parametrize(
    "goal",
    [
        *(Misclassify(), MisclassifyAccepted(), Target(1), Target(offset=2)),
        *(Target(offset=1, confidence=0.7), Target(1, accepted=True)),
    ],
)
def test_a_positive_margin_means_success(goal):
    generator = torch.Generator().manual_seed(0)
    logits, images = torch.randn(400, 3, generator=generator), torch.zeros(400, 2)
    labels = torch.arange(400) % 3
    output = Output(logits, None, torch.arange(400) % 2 == 0)
    aims = goal.classes(labels, 3) if isinstance(goal, Target) else labels + 1
    ours = aims != labels
    reached = goal.reached(GoalInputs(images, images, labels, output, output))
    assert torch.equal((goal.margin(output, labels) > 0)[ours], reached[ours])
    assert 0 < reached.sum() < 400


@pytest.mark.parametrize("goal", [KeepDecision(), KeepLogits()])
def test_margin_of_an_invariance_goal_decreases_when_the_class_changes(goal):
    labels = torch.tensor([0, 0])
    output = Output(torch.tensor([[3.0, 1.0, 0.0], [1.0, 3.0, 0.0]]))
    assert goal.margin(output, labels).tolist() == [2.0, -2.0]


def test_margin_without_rejection_is_the_plain_one():
    output, labels = Output(torch.tensor([[1.0, 3.0]])), torch.tensor([0])
    assert MisclassifyAccepted().margin(output, labels).item() == 2.0
    rejected = Output(output.logits, None, torch.tensor([False]))
    assert MisclassifyAccepted().margin(rejected, labels).item() <= 0


def test_all_are_goals_with_names_of_their_own():
    goals = [Misclassify(), Target(1), MisclassifyAccepted(), KeepDecision(), KeepLogits()]
    assert all(isinstance(goal, Goal) for goal in goals)
    assert len({goal.name for goal in goals}) == len(goals)
