"""Rates of cells whose outcome is known: invariance, and members of ensemble attacks."""

from dataclasses import replace
from math import inf, isnan

import numpy as np
import pytest

from robustbench_inv.results.cell_parts import ThreatInfo
from robustbench_inv.results.oracle_error import OracleError
from robustbench_inv.results.rate import ChangeDetection
from robustbench_inv.results.rates import (
    EnsembleBreakdown,
    InvarianceRates,
    agreement_rates,
    corrected_failure_rate,
    corrected_rate,
    distances_by_norm,
    ensemble_breakdown,
    invariance_rates,
    invariance_to_json,
)
from robustbench_inv.results.record import Distances, ModelOutput
from robustbench_inv.results.summary import Rate, distance_curve
from robustbench_inv.testing.toy_cells import toy_cell


def shown(make, sample, adversarial, oracle, *, reached=False, status="ok", l0=5):
    return replace(
        make.record(sample, label=3, oracle_label=oracle, oracle_source="human", goal_reached=reached,
                    broken_at=1.0 if reached else None),
        clean=ModelOutput(3, None, None), adversarial=ModelOutput(adversarial, None, None), status=status,
        distance=Distances(l0, 1.0, 1.0, 1.0),
    )  # fmt: skip


def test_shares(make):
    records = [
        shown(make, 0, 3, 5, reached=True),  # the failure
        shown(make, 1, 5, 5),  # decision and class move together
        shown(make, 2, 3, 3),  # nothing happened but pixels
        shown(make, 3, 5, 3),  # too sensitive
        shown(make, 4, 3, None),  # nobody knows
        shown(make, 5, 3, 3, l0=0),  # not changed at all
        shown(make, 6, 4, 5, reached=True, status="already_wrong"),
    ]
    found = invariance_rates(records)
    counts = {name: (rate.successes, rate.trials) for name, rate in vars(found).items()}
    assert counts == {
        "same_prediction": (4, 6),
        "reportable": (3, 6),
        "class_changed": (2, 6),
        "success": (1, 6),
        "oracle_undecided": (1, 6),
        "agrees_with_oracle": (2, 5),
        "agrees_with_label": (2, 5),
    }
    error = OracleError("human", "catch trials", 20, 1, 2)
    cell = replace(toy_cell("metamer", []), records=tuple(records), oracle_error=error)
    value = invariance_to_json(cell)
    assert value["oracle"] == "human"
    assert value["oracle_error_rate"]["successes"] == 1
    assert value["oracle_undecided_rate"]["successes"] == 2
    assert invariance_to_json(toy_cell("metamer", []))["oracle_error_rate"] is None


def test_a_rejected_input_keeps_no_prediction_and_agrees_with_nothing(make):
    records = [
        replace(shown(make, k, 3, oracle), adversarial=ModelOutput(3, 0.0, accepted))
        for k, (oracle, accepted) in enumerate([(5, True), (5, False), (3, True), (3, False)])
    ]
    found = invariance_rates(records)
    assert (found.same_prediction.successes, found.class_changed.successes) == (2, 2)
    assert found.agrees_with_oracle == Rate(1, 4)
    assert found.agrees_with_label == Rate(2, 4)
    altered = toy_cell("altered-input", [], attack={"kind": "fixed-input"})
    rates = agreement_rates(replace(altered, records=tuple(records)))
    assert (rates.agrees_with_oracle, rates.agrees_with_label) == (Rate(1, 4), Rate(2, 4))


def with_failures(failures, kept, attacked):
    """Return the rates of a cell with some failures among inputs of unchanged prediction."""
    none = Rate(0, 0)
    kept_rate, success = Rate(kept, attacked), Rate(failures, attacked)
    return InvarianceRates(kept_rate, kept_rate, none, success, none, none, none)


def test_the_corrected_rate_is_that_of_rogan_and_gladen():
    detection = ChangeDetection("altered digits", 100, 60, 100, 10)
    found = corrected_failure_rate(with_failures(40, 80, 100), detection)
    assert found.value == pytest.approx((0.4 - 0.8 * 0.1) / (0.6 - 0.1))
    assert 0 < found.low < 0.4 - 0.8 * 0.1 < found.value < found.high <= 0.9


@pytest.mark.parametrize(
    ("failures", "kept", "detection", "expected"),
    [
        (0, 80, ChangeDetection("a", 100, 60, 100, 10), 0.0),
        (80, 80, ChangeDetection("a", 100, 60, 100, 0), 0.8),  # more than all are not possible
        (10, 80, ChangeDetection("a", 100, 10, 100, 10), 0.8),  # the oracle says nothing
    ],
)
def test_a_corrected_rate_stays_among_unchanged_predictions(failures, kept, detection, expected):
    found = corrected_failure_rate(with_failures(failures, kept, 100), detection)
    assert found.value == pytest.approx(expected)
    assert 0 <= found.low <= found.value <= found.high <= 1


def test_a_rate_without_a_measured_oracle_is_not_corrected():
    rates = with_failures(4, 8, 10)
    assert corrected_failure_rate(rates, None) is None
    assert corrected_failure_rate(rates, ChangeDetection("a", 0, 0, 100, 10)) is None
    assert corrected_failure_rate(with_failures(0, 0, 0), ChangeDetection("a", 9, 5, 9, 1)) is None


def test_without_reported_changes_the_interval_contains_what_may_have_been_missed():
    """Of 20 failures with a true rate of 30 %, a recall of 38 % and no false reports, 9 % of searches report none."""
    detection = ChangeDetection("altered digits", 157, 60, 193, 10)
    found = corrected_failure_rate(with_failures(0, 20, 20), detection)
    assert found.value == 0 == found.low
    assert 0.29 < found.high < 0.4


def test_only_changed_inputs_within_the_budget_can_be_reported_falsely(make):
    """Of 1,000 samples 100 are changed; all are failures, and a recall of 59 % reports 59 of them."""
    reported = [shown(make, k, 3, 5, reached=True) for k in range(60)]
    missed = [shown(make, k, 3, 3) for k in range(60, 100)]
    unmoved = [shown(make, k, 3, 3, l0=0) for k in range(100, 900)]
    outside = [replace(shown(make, k, 3, 5), within_budget=False) for k in range(900, 1000)]
    rates = invariance_rates(reported + missed + unmoved + outside)
    assert rates.same_prediction == Rate(1000, 1000)
    assert rates.reportable == Rate(100, 1000)
    found = corrected_failure_rate(rates, ChangeDetection("a", 100, 60, 100, 10))
    assert found.value == pytest.approx((0.06 - 0.1 * 0.1) / (0.6 - 0.1))
    assert found.low > 0.01


def test_detection_in_older_and_newer_files_is_read():
    older = {"measured_on": "a", "changed": 9, "found": 5, "unchanged": 9, "false": 1}
    error = OracleError("p", "clean inputs", 10, 0, 0).to_json()
    read = OracleError.from_json({**error, "detection": {**older, "later": 3}}).detection
    assert read == ChangeDetection("a", 9, 5, 9, 1)


def test_a_search_by_the_oracle_has_no_estimate(make):
    detection = ChangeDetection("altered digits", 157, 60, 193, 10)
    rates = with_failures(23, 150, 150)
    alone = corrected_failure_rate(rates, detection)
    found = corrected_failure_rate(rates, detection, by_oracle=True)
    assert (found.low, found.high) == (0, alone.high)
    assert isnan(found.value)
    assert found.to_json()["value"] is None
    panel = {"source": "p", "digest": "1" * 64, "members": [{"name": "a", "digest": "2" * 64}]}
    error = OracleError("panel p", "clean inputs", 10, 0, 0, detection)
    for oracle, unknown in [(panel, True), ({**panel, "members": []}, False)]:
        threat = {"goal": "keep-decision", "oracle": oracle}
        attack = {"implementation": "a:InvarianceStandard"}
        cell = toy_cell("invariance-standard", [], attack=attack, threat=threat)
        judged = replace(cell, records=(shown(make, 0, 3, 5),), oracle_error=error)
        assert isnan(corrected_rate(judged).value) == unknown


@pytest.mark.parametrize("truth", [0.02, 0.3, 0.9])
@pytest.mark.parametrize("easier", [0.0, 0.3], ids=["same recall", "easier changes"])
@pytest.mark.parametrize("fewer", [0.0, 0.08], ids=["same false reports", "no false reports"])
@pytest.mark.parametrize("n", [20, 200])
def test_the_corrected_interval_covers_the_truth(truth, easier, fewer, n):
    """Simulation: also where the attack's inputs differ from those on which recall and false reports were measured."""
    rng, recall, false, covered, runs = np.random.default_rng(1), 0.6, 0.08, 0, 100
    for _ in range(runs):
        seen = ChangeDetection("a", 157, rng.binomial(157, recall), 193, rng.binomial(193, false))
        kept = rng.binomial(n, 0.95)
        failing = rng.binomial(kept, truth / 0.95)
        reported = rng.binomial(failing, recall + easier) + rng.binomial(
            kept - failing, false - fewer
        )
        found = corrected_failure_rate(with_failures(reported, kept, n), seen)
        covered += found.low <= truth <= found.high
    assert covered / runs >= 0.93


def smallest(distances):
    """An invariance cell whose search reports distances in linf; sample 2 is not confirmed, sample 3 has none."""
    threat = {"norm": "l2", "epsilons": [], "goal": "keep-decision"}
    broken = [1.0, 2.0, None, 3.0, 0]
    cell = toy_cell("x", broken, epsilons=(), threat=threat, attack={"kind": "invariance"})
    values = {"smallest_distance_linf": distances, "smallest_distance_l2": [9.0] * 5}
    event = {"event": "sample_values", "samples": [0, 1, 2, 3, 4], "values": values}
    return replace(cell, events=(event,))


def test_distances_in_other_norms_are_those_of_confirmed_failures_and_never_above_the_record():
    found = distances_by_norm(smallest([0.5, 5.0, 0.1, None, 0.2]))
    lists = {norm: distances.tolist() for norm, distances in found.items()}
    assert lists == {"l2": [2.0, 4.0, inf, 6.0], "linf": [0.5, 2.0, inf, 3.0]}


def test_the_curve_of_failures_over_distance_is_in_the_json():
    told = invariance_to_json(smallest([0.5, 5.0, 0.1, None, 0.2]))["distances"]
    assert list(told) == ["l2", "linf"]
    assert told["linf"]["median"] == 2.5
    assert told["linf"]["at_any_distance"]["successes"] == 3
    steps = [(each["distance"], each["successes"]) for each in told["linf"]["curve"]]
    assert steps == [(0.0, 0), (0.5, 1), (2.0, 2), (3.0, 3)]
    assert told["linf"]["curve"][1]["low"] < 0.25 < told["linf"]["curve"][1]["high"]


def test_without_failures_the_median_is_infinite_and_null_in_json():
    threat = {"norm": "l2", "epsilons": [], "goal": "keep-decision"}
    cell = toy_cell("x", [None] * 3, epsilons=(), threat=threat, attack={"kind": "invariance"})
    assert distance_curve(distances_by_norm(cell)["l2"]).median == inf
    assert invariance_to_json(cell)["distances"]["l2"]["median"] is None


def test_which_goals_keep_the_prediction():
    assert ThreatInfo("l2", goal="keep-logits").wants_same_prediction
    assert not ThreatInfo("l2", goal="misclassify").wants_same_prediction


MEMBERS = [
    {"type": "x.apgd:APGD", "target_classes": 0},
    {"type": "x.fmn:FMN"},
    {"type": "x.apgd:APGD", "target_classes": 9},
    {"type": "x.scouted:Scouted"},
]


def told(broken, *numbers, members=MEMBERS):
    """Tell of a cascade on the samples 0, 1, …, which fell at these eps to members of these numbers."""
    notes = [
        {
            "event": "sample_values",
            "samples": list(each),
            "values": {"ensemble_member": list(each.values())},
        }
        for each in numbers
    ]
    cell = toy_cell("standard", broken, parameters={"members": members})
    return ensemble_breakdown(replace(cell, events=tuple(notes)))


def test_each_sample_counts_for_the_member_that_broke_it():
    """Sample 0 falls at the first eps, 2 and 3 at the second; 1 was wrong before, 4 holds."""
    found = told([0.1, 0.0, 0.2, 0.2, None], {0: 1, 2: 0, 3: 0, 4: 0}, {2: 3, 3: 1, 4: 0})
    members = {"APGD": 2, "FMN": 0, "APGD toward 9 classes": 1, "Square with APGD": 0}
    assert found == EnsembleBreakdown(members, 0, misclassified_clean=1, robust=1)
    assert found.text.startswith("broken by APGD 2, FMN 0, APGD toward 9 classes 1,")
    assert found.text.endswith("; misclassified before 1, robust 1")
    assert EnsembleBreakdown(**found.to_json()) == found


def test_a_number_without_a_member_is_counted_with_the_search():
    """The counts add up to all samples, whatever the attack reported."""
    found = told([0.1, 0.1, None], {0: 1, 1: 7, 2: 0})
    assert (found.broken_by["APGD"], found.broken_during_search, found.robust) == (1, 1, 1)


def test_an_unchanged_input_has_no_changed_class(make):
    """An oracle that errs on clean inputs counted as a changed class."""
    records = [shown(make, 0, 3, 5, l0=0), shown(make, 1, 3, 5), shown(make, 2, 3, 3)]
    assert invariance_rates(records).class_changed == Rate(1, 3)


def test_records_say_what_fell_and_not_the_search():
    """Sample 0 fell, the search says, and does not on the original model; 1 fell to a query on the way."""
    found = told([None, 0.1], {0: 2, 1: 0})
    assert set(found.broken_by.values()) == {0}
    assert (found.broken_during_search, found.robust) == (1, 1)
    assert "during the search 1; robust 1" in found.text


def test_members_of_one_name_are_numbered():
    found = told([0.1, 0.1, 0.1], {0: 1, 1: 2, 2: 2}, members=[{"type": "a:B"}, {"type": "c:B"}])
    assert found.broken_by == {"B (1)": 1, "B (2)": 2}


@pytest.mark.parametrize("parameters", [{}, {"members": []}, {"steps": 40}])
def test_an_attack_without_members_has_none(parameters):
    cell = toy_cell("pgd", [0.1], parameters=parameters)
    note = {"event": "sample_values", "samples": [0], "values": {"ensemble_member": [1]}}
    assert ensemble_breakdown(replace(cell, events=(note,))) is None
    assert told([0.1]) is None
    assert ensemble_breakdown(cell) is None


def test_runs_through_larger_budgets_are_named():
    far = {
        "type": "robustbench_inv.attacks.apgd:APGD",
        "target_classes": 2,
        "radius_schedule": [3.0],
    }
    found = told([0.1, None], {0: 1, 1: 0}, members=[far])
    assert found.broken_by == {"APGD from larger budgets": 1}
