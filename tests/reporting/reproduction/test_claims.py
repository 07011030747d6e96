"""Claims: each verdict against counts whose answer is plain."""

from dataclasses import replace

import pytest

from robustbench_inv.catalogue.reproduction import Claim
from robustbench_inv.reporting.reproduction.claims import ClaimFinding, Contrast, evaluate_claims
from robustbench_inv.reporting.reproduction.paper_report import build_paper_report
from robustbench_inv.reporting.statistics import Interval, PairedOutcomes, tango


def contrast(low, high, row="F"):
    return Contrast(row, "A", "B", (low + high) / 2, Interval(low, high), 100)


def finding(*contrasts, by=0.0, needs="every"):
    claim = Claim("c", ("A",), ("F",), ("B",), by, needs)
    return ClaimFinding(claim, {"paper": (), "published": contrasts, "adaptive": ()})


@pytest.mark.parametrize(
    ("low", "high", "by", "status"),
    [
        (0.01, 0.2, 0, "holds"),
        (0.0, 0.2, 0, "undecided"),
        (-0.2, -0.01, 0, "does not hold"),
        (0.01, 0.2, 5, "undecided"),
        (-0.008, 0.2, -1, "holds"),
        (-0.2, 0.1, -1, "undecided"),
    ],
)
def test_an_interval_decides(low, high, by, status):
    assert contrast(low, high).status_against(by) == status


GOOD, BAD, OPEN = contrast(0.1, 0.2), contrast(-0.2, -0.1), contrast(-0.1, 0.1)


@pytest.mark.parametrize(
    ("contrasts", "every", "most"),
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
def test_several_comparisons_make_one_verdict(contrasts, every, most):
    assert finding(*contrasts).status("published") == every
    assert finding(*contrasts, needs="most").status("published") == most


def test_what_speaks_most_against_a_claim_is_named():
    assert finding(GOOD, OPEN, GOOD).least("published") is OPEN


def test_claims_are_judged_on_three_sets_of_numbers(item, run):
    beats, clean = build_paper_report(item, [run]).findings
    verdicts = [beats.status(basis) for basis in ("paper", "published", "adaptive")]
    assert verdicts == ["holds", "holds", "undecided"]
    first = beats.contrasts["published"][0]
    # 36 digits of 40 against 20, the 20 among the 36
    assert first.difference == pytest.approx(0.4)
    assert first.interval == tango(PairedOutcomes(both=20, first=16, second=0, neither=4))
    assert (first.samples, first.title) == (40, "JS − CNN, F 0.1")
    assert clean.status("paper") == clean.status("adaptive") == "not measured"
    assert clean.status("published") == "undecided"  # 40 of 40 may still be 91 %
    against = clean.contrasts["published"][0]
    assert (against.right, against.difference) == ("", pytest.approx(0.01))


def test_claims_without_rows_are_not_judged(item, run):
    evidence = build_paper_report(item, [run]).evidence
    rows = tuple(row for row in item.rows if row.label == "Clean")
    only = replace(evidence, item=replace(item, rows=rows))
    assert [found.claim.text for found in evaluate_claims(only)] == ["Clean is as published."]


def test_json_holds_every_comparison(item, run):
    told = build_paper_report(item, [run]).findings[0].to_json()
    assert (told["claim"], told["adaptive"]) == ("JS beats CNN.", "undecided")
    assert len(told["contrasts"]) == 6
    assert {each["basis"] for each in told["contrasts"]} == {"paper", "published", "adaptive"}
