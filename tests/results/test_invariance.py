"""The shares of an invariance cell, from records whose answer is known."""

from dataclasses import replace

from robustbench_inv.results.cell_parts import ThreatInfo
from robustbench_inv.results.oracle_error import OracleError
from robustbench_inv.results.rates import invariance_rates, invariance_to_json
from robustbench_inv.results.record import Distances, ModelOutput
from robustbench_inv.testing.toy_cells import toy_cell


def shown(make, sample, adversarial, oracle, *, reached=False, status="ok", l0=5):
    return replace(
        make.record(sample, label=3, oracle_label=oracle, oracle_source="human", goal_reached=reached),
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


def test_which_goals_keep_the_prediction():
    assert ThreatInfo("l2", goal="keep-logits").wants_same_prediction
    assert not ThreatInfo("l2", goal="misclassify").wants_same_prediction
