"""Certificates are read as they were written, and the interval counts each sample once."""

from dataclasses import replace

import pytest

from robustbench_inv.checks.comparisons import check_certificates
from robustbench_inv.errors import BadResults
from robustbench_inv.results.certificates import (
    CERTIFICATES_FILE,
    Certificates,
    SampleCertificate,
    read_certificates,
    sandwiches,
    write_certificates,
)
from robustbench_inv.results.rates import cell_to_json
from robustbench_inv.testing.toy_cells import toy_cell

FOUND = Certificates(
    "linf",
    (
        SampleCertificate(0, 0.2, "crown"),
        SampleCertificate(1, 0.1, "milp"),
        SampleCertificate(2, 0.0, "", 0.2, "milp"),
    ),
    1.5,
)


def test_a_written_file_is_read_again_and_damage_is_noticed(tmp_path):
    assert read_certificates(tmp_path) is None
    write_certificates(tmp_path, FOUND)
    assert read_certificates(tmp_path) == FOUND
    path = tmp_path / CERTIFICATES_FILE
    path.write_text(path.read_text().replace("0.1", "0.3"))
    with pytest.raises(BadResults, match=CERTIFICATES_FILE):
        read_certificates(tmp_path)


@pytest.mark.parametrize(
    "change",
    [
        {"radius": [0.2, -0.1, 0.0]},
        {"sample": [0, 0, 2]},
        {"method": ["", 3, ""]},
        {"radius": [0.1]},
    ],
)
def test_impossible_values_are_refused(change):
    with pytest.raises((ValueError, TypeError)):
        Certificates.from_json({**FOUND.to_json(), **change})


def test_the_interval_counts_certified_broken_and_open_samples():
    # sample 0 is certified at 0.2, 1 at 0.1, 2 broken by a verifier at 0.2, 3 by the attack at 0.1, 4 open
    cell = replace(toy_cell("pgd", [None, None, None, 0.1, None]), certificates=FOUND)
    small, large = sandwiches(cell)
    assert (small.certified.successes, small.attacked.successes, small.open) == (2, 4, 2)
    assert (large.certified.successes, large.attacked.successes, large.open) == (1, 3, 2)
    assert (small.by_verifier, large.by_verifier) == (0, 1)
    assert cell_to_json(cell)["certified"][1]["open"] == 2
    assert large.certified.trials == 5


def test_certificates_of_another_norm_or_goal_give_no_interval():
    cell = toy_cell("pgd", [None, None, None])
    assert sandwiches(replace(cell, certificates=replace(FOUND, norm="l2"))) == []
    targeted = toy_cell("pgd", [None, None, None], threat={"goal": "target"})
    assert sandwiches(replace(targeted, certificates=FOUND)) == []


def test_merged_findings_keep_the_better_of_each():
    later = Certificates("linf", (SampleCertificate(1, 0.3, "milp"), SampleCertificate(5)), 2.0)
    both = later.merged(FOUND)
    assert [each.sample for each in both.samples] == [0, 1, 2, 5]
    assert (both.by_sample[1].radius, both.by_sample[2].broken_at, both.seconds) == (0.3, 0.2, 3.5)
    assert later.merged(replace(FOUND, norm="l2")) == later


def test_c46_fails_where_any_attack_contradicts_a_certificate():
    good = replace(toy_cell("pgd", [None, 0.2, None]), certificates=FOUND)
    (verdict,) = check_certificates([good])
    assert verdict.verdict == "PASS"
    wrong = replace(toy_cell("pgd", [0.2, None, None]), certificates=FOUND)
    (verdict,) = check_certificates([wrong])
    assert (verdict.id, verdict.verdict) == ("C46", "FAIL")
    assert "samples 0" in verdict.evidence
    # an attack in another cell, and a clean input that is misclassified
    (verdict,) = check_certificates([good, toy_cell("square", [0.1, None, None])])
    assert verdict.verdict == "FAIL"
    (verdict,) = check_certificates([good, toy_cell("square", [0, None, None])])
    assert verdict.verdict == "FAIL"
    assert check_certificates([toy_cell("pgd", [0.1])]) == []


def test_c46_ignores_inputs_outside_the_box_and_of_another_distance():
    cell = toy_cell("pgd", [0.2])
    outside = replace(cell.records[0], within_budget=False)
    (verdict,) = check_certificates([replace(cell, records=(outside,), certificates=FOUND)])
    assert verdict.verdict == "PASS"
    nearer = replace(FOUND, samples=(SampleCertificate(0, 0.1, "crown"),))
    (verdict,) = check_certificates([replace(cell, certificates=nearer)])
    assert verdict.verdict == "PASS"
