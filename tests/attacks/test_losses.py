"""Losses: closed forms, gradients by finite differences, and logits that break careless formulas."""

import math

import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st

from robustbench_inv.attacks.losses import LOSSES, losses_for
from robustbench_inv.errors import BadParameter, CapabilityMismatch
from robustbench_inv.tensors import Output
from robustbench_inv.threat.goals import KeepDecision, Misclassify, Target

NAMES = sorted(LOSSES)
ROWS = {
    "ordinary": [2.0, -1.0, 0.5, 1.0],
    "all negative": [-10.0, -50.0, -60.0, -11.0],
    "huge": [1e8, -1e8, 3.0, 0.0],
    "all equal": [3.0, 3.0, 3.0, 3.0],
}


def value(name, row, label, goal=None, dtype=torch.float64):
    (loss,) = losses_for(name, goal or Misclassify())
    return loss(Output(torch.tensor([row], dtype=dtype)), torch.tensor([label])).item()


def gradient(name, row, label, goal=None, dtype=torch.float64):
    (loss,) = losses_for(name, goal or Misclassify())
    logits = torch.tensor([row], dtype=dtype, requires_grad=True)
    loss(Output(logits), torch.tensor([label])).sum().backward()
    return logits.grad[0]


def test_cross_entropy_is_minus_log_softmax():
    row = ROWS["ordinary"]
    expected = -row[0] + math.log(sum(map(math.exp, row)))
    assert value("ce", row, 0) == pytest.approx(expected, rel=1e-12)


def test_margin_of_negative_logits():
    assert value("margin", ROWS["all negative"], 0) == -1.0
    assert value("margin", ROWS["all negative"], 1) == 40.0


def test_probability_margin_is_that_of_the_softmax_outputs():
    p = torch.tensor(ROWS["ordinary"]).double().softmax(0)
    others = torch.cat([p[:1], p[2:]])
    assert value("probability-margin", ROWS["ordinary"], 1) == pytest.approx(others.max() - p[1])
    assert value("probability-margin", [0.0, 0.0], 0) == 0.0
    assert value("probability-margin", [900.0, 0.0], 0) == -1.0


def test_dlr_closed_form():
    # sorted 2, 1, 0.5, -1: (1 - 2) / (2 - 0.5)
    assert value("dlr", ROWS["ordinary"], 0) == pytest.approx(-1 / 1.5)
    assert value("dlr", ROWS["ordinary"], 1) == pytest.approx(3 / 1.5)


def test_scaled_cross_entropy_forgets_the_scale():
    row = ROWS["ordinary"]
    scaled = [value("scaled-ce", [k * z for z in row], 0) for k in (1e-3, 1, 1e6)]
    assert scaled == pytest.approx([scaled[0]] * 3, rel=1e-9)
    assert scaled[0] == pytest.approx(value("ce", [4 * z for z in row], 0))


def test_targeted_closed_forms():
    row, goal = ROWS["ordinary"], Target(3)
    assert value("margin", row, 0, goal) == -1.0
    assert value("ce", row, 0, goal) == pytest.approx(-value("ce", row, 3))
    # (z_3 - z_0) / (z_(1) - (z_(3) + z_(4)) / 2)
    assert value("dlr", row, 0, goal) == pytest.approx((1 - 2) / (2 - (0.5 - 1) / 2))


def test_targets_counted_from_the_label_are_those_of_each_sample():
    logits, labels = torch.tensor([ROWS["ordinary"]] * 4), torch.arange(4)
    for name in NAMES:
        (loss,) = losses_for(name, Target(offset=1))
        alone = [
            value(name, ROWS["ordinary"], k, Target((k + 1) % 4), torch.float32) for k in range(4)
        ]
        assert loss(Output(logits), labels).tolist() == alone


def test_confidence_is_part_of_the_margin_and_of_no_other_loss():
    goal, sure = Target(3), Target(3, confidence=2.0)
    for name in NAMES:
        less = value(name, ROWS["ordinary"], 0, goal) - value(name, ROWS["ordinary"], 0, sure)
        assert less == (2.0 if name == "margin" else 0.0)


@pytest.mark.parametrize(("clearance", "climbed"), [(-5.0, -5.0), (5.0, None)])
def test_an_accepted_target_maximizes_the_smaller_of_margin_and_clearance(clearance, climbed):
    row, goal = ROWS["ordinary"], Target(3, accepted=True)
    output = Output(torch.tensor([row]), None, torch.tensor([False]), torch.full((1, 4), clearance))
    for name in ("ce", "dlr", "log-odds", "scaled-ce"):
        (loss,) = losses_for(name, goal)
        expected = value(name, row, 0, Target(3), torch.float32) if climbed is None else climbed
        assert loss(output, torch.tensor([0])).item() == expected


def test_at_an_unknown_threshold_the_score_of_a_reached_target_is_maximized():
    score = torch.tensor([4.0], requires_grad=True)
    output = Output(torch.tensor([ROWS["ordinary"]]), score, torch.tensor([False]))
    (reached,) = losses_for("ce", Target(0, accepted=True))
    reached(output, torch.tensor([1])).sum().backward()
    assert score.grad.item() == 1.0


@pytest.mark.parametrize("name", ["dlr", "margin"])
def test_two_classes_have_the_margin(name):
    assert value(name, [3.0, 1.0], 0) == -2.0
    assert value(name, [3.0, 1.0], 0, Target(1)) == -2.0


@pytest.mark.parametrize("goal", [Misclassify(), Target(2)])
@pytest.mark.parametrize("row", ROWS.values(), ids=ROWS)
@pytest.mark.parametrize("name", NAMES)
def test_values_and_gradients_are_finite(name, row, goal):
    for dtype in (torch.float32, torch.float64):
        assert math.isfinite(value(name, row, 0, goal, dtype))
        assert gradient(name, row, 0, goal, dtype).isfinite().all()


@pytest.mark.parametrize("goal", [Misclassify(), Target(2)])
@pytest.mark.parametrize("name", ["ce", "dlr", "log-odds", "margin", "probability-margin"])
def test_gradient_equals_finite_differences(name, goal):
    row, step = ROWS["ordinary"], 1e-6
    for j, slope in enumerate(gradient(name, row, 0, goal).tolist()):
        up = [z + step * (i == j) for i, z in enumerate(row)]
        down = [z - step * (i == j) for i, z in enumerate(row)]
        difference = (value(name, up, 0, goal) - value(name, down, 0, goal)) / (2 * step)
        assert slope == pytest.approx(difference, abs=1e-6)


def test_scaled_gradient_is_that_of_ce_at_a_constant_scale():
    row = ROWS["ordinary"]  # margin -1: logits are multiplied by 4
    expected = 4 * gradient("ce", [4 * z for z in row], 0)
    assert torch.allclose(gradient("scaled-ce", row, 0), expected)


def test_sure_predictions_keep_the_gradient_of_the_true_logit():
    naive = torch.tensor([[60.0, 0.0]], requires_grad=True)
    torch.nn.functional.cross_entropy(naive, torch.tensor([0])).backward()
    assert naive.grad[0, 0] == 0
    assert gradient("ce", [60.0, 0.0], 0, dtype=torch.float32)[0] < 0
    assert gradient("ce", [200.0, 0.0], 0, dtype=torch.float32)[0] == 0
    for name in ("log-odds", "margin", "dlr", "scaled-ce"):
        assert gradient(name, [200.0, 0.0], 0, dtype=torch.float32)[0] < -1e-6


@settings(max_examples=50, deadline=None)
@given(st.lists(st.integers(-50, 50), min_size=2, max_size=6), st.integers(-100, 100))
def test_losses_do_not_see_a_shift(row, shift):
    for name in NAMES:
        shifted, plain = ([float(z + by) for z in row] for by in (shift, 0))
        assert value(name, shifted, 0) == pytest.approx(value(name, plain, 0), rel=1e-9, abs=1e-12)


@settings(max_examples=50, deadline=None)
@given(st.lists(st.integers(-30, 30), min_size=2, max_size=6))
def test_decision_losses_are_positive_exactly_when_wrong(row):
    wrong = max(row[1:]) > row[0]
    for name in ("margin", "dlr", "probability-margin"):
        assert (value(name, [float(z) for z in row], 0) > 0) == wrong


def test_other_rows_do_not_matter():
    logits = torch.tensor([ROWS["ordinary"], ROWS["all negative"], ROWS["huge"]]).double()
    for name in NAMES:
        (loss,) = losses_for(name, Misclassify())
        together = loss(Output(logits), torch.zeros(3, dtype=torch.int64))
        alone = [value(name, row, 0) for row in logits.tolist()]
        assert together.tolist() == pytest.approx(alone)


def test_names_are_taken_in_turn():
    assert losses_for("margin+ce", Misclassify()) == (LOSSES["margin"], LOSSES["ce"])


def test_an_unknown_loss_lists_the_known_ones():
    with pytest.raises(
        BadParameter, match="ce, dlr, log-odds, margin, probability-margin, scaled-ce"
    ):
        losses_for("hinge", Misclassify())


def test_no_loss_leads_to_keeping_the_decision():
    with pytest.raises(CapabilityMismatch, match="invariance"):
        losses_for("ce", KeepDecision())


@settings(deadline=None)
@given(
    st.lists(st.integers(-300, 300), min_size=2, max_size=6, unique=True),
    st.lists(st.integers(0, 6), min_size=1, max_size=4),
)
def test_a_ruled_out_class_leaves_value_and_gradient_as_without_it(row, places):
    row = [z / 10 for z in row]
    wide, kept = list(row), list(range(len(row)))
    for place in places:
        place = min(place, len(wide))
        wide.insert(place, -math.inf)
        kept.insert(place, None)
    where = [kept.index(k) for k in range(len(row))]
    for name in NAMES:
        for goal, wide_goal in ((Misclassify(), Misclassify()), (Target(1), Target(where[1]))):
            without = value(name, row, 0, goal)
            assert value(name, wide, where[0], wide_goal) == pytest.approx(without, rel=1e-9)
            found = gradient(name, wide, where[0], wide_goal)
            assert torch.allclose(found[where], gradient(name, row, 0, goal), rtol=1e-9)
            assert found.abs().sum().item() == pytest.approx(found[where].abs().sum().item())


@pytest.mark.parametrize(
    ("row", "expected"),
    [
        ([-math.inf, 1.0, 2.0, 0.0, 3.0], math.inf),  # the true class is ruled out
        ([1.0, *[-math.inf] * 4], -math.inf),  # all other classes are
        ([1.0, 2.0, math.inf, 0.0, 3.0], math.inf),
    ],
)
@pytest.mark.parametrize("name", NAMES)
def test_an_infinite_difference_has_its_sign_and_no_gradient(name, row, expected):
    bounded = name in ("ce", "scaled-ce") and expected < 0
    assert value(name, row, 0) == (0 if bounded else expected)
    if name != "margin":
        assert gradient(name, row, 0).tolist() == [0.0] * 5
    assert gradient(name, row, 0).isfinite().all()


@pytest.mark.parametrize("name", NAMES)
def test_a_target_that_is_ruled_out_never_wins(name):
    row = [1.0, -math.inf, 2.0, 0.0, 3.0]
    assert value(name, row, 0, Target(1)) == -math.inf
    assert gradient(name, row, 0, Target(1)).isfinite().all()


def test_other_samples_of_a_batch_keep_their_loss():
    rows = torch.tensor([[1.0, 3.0, 2.0, 0.0], [-math.inf, 1.0, 2.0, 3.0]], requires_grad=True)
    for name in NAMES:
        (loss,) = losses_for(name, Misclassify())
        found = loss(Output(rows), torch.tensor([0, 0]))
        (gradients,) = torch.autograd.grad(found.sum(), rows)
        assert found[0].item() == value(name, rows[0].tolist(), 0, dtype=torch.float32)
        assert torch.equal(gradients[0], gradient(name, rows[0].tolist(), 0, dtype=torch.float32))
