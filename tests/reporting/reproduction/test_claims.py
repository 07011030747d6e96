"""Claims and expectations: each verdict against counts whose answer is known."""

from dataclasses import replace

import pytest

from robustbench_inv.reporting.reproduction.claims import (
    ClaimFinding,
    Comparison,
    Limits,
    evaluate_claims,
)
from robustbench_inv.reporting.reproduction.reproduction_report import report_from_runs
from robustbench_inv.reporting.statistics import Interval, PairedOutcomes, tango


def comparison(low, high, row="F"):
    return Comparison(row, "A", "B", (low + high) / 2, Interval(low, high), 100)


def finding(*comparisons, at_least=0.0, needs="every"):
    by_basis = {"paper": (), "published": comparisons, "adaptive": ()}
    return ClaimFinding("c", Limits(at_least, is_strict=True), by_basis, needs)


@pytest.mark.parametrize(
    ("low", "high", "at_least", "status"),
    [
        (0.01, 0.2, 0, "holds"),
        (0.0, 0.2, 0, "undecided"),
        (-0.2, -0.01, 0, "does not hold"),
        (0.01, 0.2, 5, "undecided"),
        (-0.008, 0.2, -1, "holds"),
        (-0.2, 0.1, -1, "undecided"),
        (0.0, 0.0, 0, "does not hold"),  # equal numbers of the paper
    ],
)
def test_the_interval_decides_a_claim(low, high, at_least, status):
    assert Limits(at_least, is_strict=True).status(comparison(low, high)) == status


@pytest.mark.parametrize(
    ("low", "high", "status"),
    [
        (0.0, 0.05, "holds"),
        (-0.01, 0.05, "undecided"),
        (0.01, 0.06, "undecided"),
        (0.06, 0.07, "does not hold"),
        (-0.2, -0.1, "does not hold"),
    ],
)
def test_limits_of_an_expectation_are_inclusive(low, high, status):
    assert Limits(0, 5).status(comparison(low, high)) == status


GOOD, BAD, OPEN = comparison(0.1, 0.2), comparison(-0.2, -0.1), comparison(-0.1, 0.1)


@pytest.mark.parametrize(
    ("comparisons", "every", "most"),
    [
        ((GOOD, GOOD), "holds", "holds"),
        ((GOOD, GOOD, BAD), "does not hold", "holds"),
        ((GOOD, GOOD, OPEN), "undecided", "holds"),
        ((GOOD, OPEN), "undecided", "undecided"),
        ((GOOD, BAD), "does not hold", "does not hold"),
        ((OPEN, OPEN), "undecided", "undecided"),
        ((), "not measured", "not measured"),
    ],
)
def test_several_comparisons_give_one_verdict(comparisons, every, most):
    assert finding(*comparisons).status("published") == every
    assert finding(*comparisons, needs="most").status("published") == most


@pytest.mark.parametrize(
    ("comparisons", "missing", "every", "most"),
    [
        ((GOOD, GOOD), 1, "undecided", "holds"),
        ((GOOD, GOOD), 2, "undecided", "undecided"),
        ((GOOD, BAD), 1, "does not hold", "undecided"),
        ((BAD, BAD), 2, "does not hold", "does not hold"),
        ((), 2, "not measured", "not measured"),
    ],
)
def test_a_comparison_without_records_counts_as_undecided(comparisons, missing, every, most):
    counts = {"published": missing}
    assert replace(finding(*comparisons), missing=counts).status("published") == every
    assert replace(finding(*comparisons, needs="most"), missing=counts).status("published") == most


def test_a_claim_does_not_hold_while_cells_have_no_records(item, run, outcomes_of, addresses):
    outcomes = outcomes_of(item, run)
    beats, _ = evaluate_claims(outcomes)
    assert beats.missing == {"paper": 0, "published": 0, "adaptive": 0}
    for missing in addresses:
        fewer = replace(outcomes, outcomes=outcomes.outcomes.drop(columns=missing))
        found, _ = evaluate_claims(fewer)
        assert found.missing == {"paper": 0, "published": 2 * ("fgsm" in missing), "adaptive": 2}
        assert found.status("adaptive") == "not measured"


def test_a_claim_quotes_the_smallest_difference_of_its_verdict_and_an_expectation_the_first():
    assert finding(GOOD, OPEN, GOOD).decisive("published") is OPEN
    lower, wide = comparison(-0.06, -0.01), comparison(-0.3, 0.2)
    assert finding(wide, lower).decisive("published") is lower
    better = comparison(0.2, 0.3)
    assert finding(better, GOOD, BAD, needs="most").decisive("published") is GOOD
    by_basis = {"paper": (), "published": (GOOD, OPEN, BAD), "adaptive": ()}
    assert ClaimFinding("e", Limits(0, 100), by_basis).decisive("published") is BAD


def test_claims_are_evaluated_on_three_sets_of_numbers(item, run):
    beats, clean = report_from_runs(item, [run]).parts[0].findings
    verdicts = [beats.status(basis) for basis in ("paper", "published", "adaptive")]
    assert verdicts == ["holds", "holds", "undecided"]
    first = beats.comparisons["published"][0]
    # 36 digits of 40 against 20, the 20 among the 36
    assert first.value == pytest.approx(0.4)
    assert first.interval == tango(PairedOutcomes(both=20, first=16, second=0, neither=4))
    assert (first.samples, first.title) == (40, "JS − CNN, F 0.1")
    assert clean.status("paper") == clean.status("adaptive") == "not measured"
    assert clean.status("published") == "undecided"  # 40 of 40 may still be 91 %
    against = clean.comparisons["published"][0]
    assert (against.right, against.value) == ("published", pytest.approx(0.01))


def test_claims_without_rows_are_not_evaluated(item, run, outcomes_of):
    outcomes = outcomes_of(item, run)
    rows = tuple(row for row in item.rows if row.label == "Clean")
    only = replace(outcomes, item=replace(item, rows=rows))
    assert [found.text for found in evaluate_claims(only)] == ["Clean is as published."]


def test_json_has_every_comparison(item, run):
    found = report_from_runs(item, [run]).parts[0].findings[0].to_json()
    assert (found["claim"], found["adaptive"]) == ("JS beats CNN.", "undecided")
    assert len(found["comparisons"]) == 6
    assert {each["basis"] for each in found["comparisons"]} == {"paper", "published", "adaptive"}
