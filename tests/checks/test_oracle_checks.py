"""C34 and C35 fire on the cells that they are for and are silent on honest ones."""

from dataclasses import replace

import pytest

from robustbench_inv.checks.invariance_checks import check_oracle, check_oracle_agreement
from robustbench_inv.checks.suite import check_records
from robustbench_inv.results.oracle_error import OracleError
from robustbench_inv.results.record import ModelOutput
from robustbench_inv.testing.toy_cells import toy_cell

PANEL = {
    "name": "p",
    "digest": "1" * 64,
    "source": "panel p",
    "members": [{"name": "a", "digest": "2" * 64}],
}
ERROR = OracleError("panel p", "clean inputs", 100, 2, 3)


def cell(oracles=(5, 5, 3, None), *, oracle=PANEL, error=ERROR, source="panel p"):
    """Samples 0 and 1 are successes, 2 is none, 3 has no class; every decision stays at 3."""
    threat = {"norm": "l2", "epsilons": [], "goal": "keep-decision", "oracle": oracle}
    toy = toy_cell(
        "metamer", [0.1, 0.1, None, None], epsilons=(), threat=threat, attack={"kind": "invariance"},
        model={"name": "toy", "digest": "3" * 64},
    )  # fmt: skip
    same = ModelOutput(3, None, None)
    lines = tuple(
        replace(
            r, oracle_label=oracles[r.sample], oracle_source=source, clean=same, adversarial=same
        )
        for r in toy.records
    )
    return replace(toy, records=lines, oracle_error=error)


def grades(*cells):
    return {v.id: v.verdict for v in check_records(cells) if v.id in ("C34", "C35")}


def test_both_are_silent_on_an_honest_cell():
    verdict = check_oracle(cell())
    assert verdict.verdict == "PASS"
    assert "wrong on 2 of 100 clean inputs [0.6, 7.0] %, undecided on 3" in verdict.evidence
    assert grades(cell()) == {"C34": "PASS", "C35": "PASS"}


def test_they_are_asked_of_invariance_cells_alone():
    assert grades(toy_cell("pgd", [0.1, None])) == {}


def test_c34_needs_an_oracle_for_each_success():
    verdict = check_oracle(cell((None, 5, 3, None)))
    assert (verdict.verdict, verdict.value) == ("FAIL", 1)
    assert "samples 0" in verdict.evidence
    assert grades(cell(source=None))["C34"] == "FAIL"


@pytest.mark.parametrize(
    "oracle",
    [{**PANEL, "digest": "3" * 64}, {**PANEL, "members": [{"name": "a", "digest": "3" * 64}]}],
)
def test_c34_never_lets_the_model_judge_itself(oracle):
    verdict = check_oracle(cell(oracle=oracle))
    assert verdict.verdict == "FAIL"
    assert "toy is part of its own oracle" in verdict.evidence


@pytest.mark.parametrize(
    ("error", "oracle", "expected"),
    [
        (replace(ERROR, errors=11), PANEL, "WARN"),
        (replace(ERROR, errors=10), PANEL, "PASS"),
        (None, PANEL, "WARN"),
        (None, None, "PASS"),  # the data set's own
        (replace(ERROR, trials=0, errors=0), PANEL, "WARN"),
    ],
)
def test_c34_asks_how_often_a_proxy_errs(error, oracle, expected):
    assert grades(cell(error=error, oracle=oracle))["C34"] == expected


def test_c35_tells_both_agreements():
    verdict = check_oracle_agreement(cell((5, 5, None, 3)))
    assert "Of 2 changed inputs" in verdict.evidence  # the samples that held were not changed
    assert "0 are predicted as the oracle's class and 2 as the label" in verdict.evidence


@pytest.mark.parametrize(
    ("oracles", "expected"),
    [
        ((5, 5, None, None), "PASS"),
        ((5, None, None, None), "WARN"),
        ((None, None, None, None), "FAIL"),
    ],
)
def test_c35_wants_to_know(oracles, expected):
    assert grades(cell(oracles))["C35"] == expected
