"""The shares of an invariance cell, from records whose answer is known."""

from dataclasses import replace

from robustbench_inv.results.oracle_error import OracleError
from robustbench_inv.results.rates import invariance_json, invariance_rates, wants_same_prediction
from robustbench_inv.results.record import Distances, ModelOutput


def shown(make, sample, adversarial, oracle, *, reached=False, status="ok", l0=5):
    return replace(
        make.record(sample, label=3, oracle=oracle, oracle_source="human", goal_reached=reached),
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
        "kept": (4, 6),
        "changed": (2, 6),
        "failed": (1, 6),
        "unknown": (1, 6),
        "agrees_with_oracle": (2, 5),
        "agrees_with_label": (2, 5),
    }
    error = OracleError("human", "catch trials", 20, 1, 2)
    told = invariance_json(records, error)
    assert told["oracle"] == "human"
    assert (told["oracle_wrong"]["successes"], told["oracle_unknown"]["successes"]) == (1, 2)
    assert invariance_json([], None)["oracle_wrong"] is None


def test_which_cells_keep_decisions():
    assert wants_same_prediction({"threat": {"goal": "keep-logits"}})
    assert not wants_same_prediction({"threat": {"goal": "misclassify"}})
