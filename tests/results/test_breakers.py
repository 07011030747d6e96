"""Who broke what, counted by hand and told of records that a search did not decide."""

from dataclasses import replace

import pytest

from robustbench_inv.results.rates import EnsembleBreakdown, ensemble_breakdown
from robustbench_inv.testing.toy_cells import toy_cell

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
