"""Experiments by name: unknown names and parameters raise one-line errors."""

from pathlib import Path

import pytest

from robustbench_inv.errors import BadCatalogue, UnknownName
from robustbench_inv.experiments import protocol
from robustbench_inv.experiments.protocol import ExperimentRequest, run_experiment

NETWORKS = Path(__file__).parent / "toy_networks.py"


READER = f"{NETWORKS}:reader"


def make_request(**options):
    return ExperimentRequest(
        **{"dataset": "mnist5k", "columns": {"R": READER}, "samples": 60, **options}
    )


def test_unknown_experiments_and_parameters_raise():
    with pytest.raises(BadCatalogue, match="does not take these parameters"):
        run_experiment("error-rates", make_request(), {"hidden": 3})
    with pytest.raises(BadCatalogue, match="did you mean error-rates"):
        run_experiment("errors-rates", make_request(), {})
    with pytest.raises(BadCatalogue, match="is no experiment"):
        run_experiment("robustbench_inv.experiments.error_rates:BLOCK", make_request(), {})


def test_a_model_that_is_not_trained_yet_is_left_out(monkeypatch):
    known = {name: path for name, path in protocol.entries("models").items() if name != "mnist-mlp"}
    monkeypatch.setattr(protocol, "entries", lambda _: known)
    request = make_request(columns={"A": "mnist-mlp", "B": "mnist-lenet5"})
    measured = run_experiment(
        "error-rates", request, {"train": "mnist5k", "first": 0, "last": 5000}
    )
    assert {number.column for number in measured.numbers} == {"B"}
    assert measured.left_out == {"A": "mnist-mlp is not trained yet"}
    with pytest.raises(UnknownName):  # a name without a recipe stays an error
        make_request(columns={"A": "mnist-mpl"}).open_models()
