"""Tables 1 and 2 of SDIM on a network with one parameter, so that every number can be computed by hand."""

import json
from functools import partial
from pathlib import Path

import numpy as np
import pytest

from robustbench_inv.errors import BadData, MissingData
from robustbench_inv.experiments import selective_accuracy
from robustbench_inv.experiments.protocol import ExperimentRequest, run_experiment
from robustbench_inv.experiments.selective_accuracy import (
    measure_accuracies,
    measure_selective_accuracy,
)
from robustbench_inv.results.experiment_result import ExperimentResult

NETWORKS = Path(__file__).parent / "toy_networks.py"


MODEL = f"{NETWORKS}:level"


make_request = partial(ExperimentRequest, "own", {})


def by_place(measured):
    return {(n.row, n.column): n for n in measured.numbers}


@pytest.mark.usefixtures("data", "rejecting")
def test_accepted_inputs_are_classified_correctly():
    about = {"row": "R", "data": "own", "model": MODEL, "score": "likelihood"}
    found = by_place(measure_selective_accuracy(make_request(), [about], {"1st": 1}))
    assert found["R, accuracy", "Original"].value == 7 / 8
    assert (found["R, accuracy", "1st"].value, found["R, accuracy", "1st"].trials) == (1, 6)
    assert found["R, rejected", "1st"].counted == (3, 7)


@pytest.mark.usefixtures("rejecting")
def test_rejecting_everything_has_no_accuracy(data, monkeypatch):
    monkeypatch.setitem(data, "own", data["others"])
    about = {"row": "R", "data": "own", "model": MODEL, "score": "margin"}
    monkeypatch.setattr(
        selective_accuracy,
        "threshold_margins",
        lambda *_: type("C", (), {"rejected": np.ones(8, dtype=bool)}),
    )
    found = by_place(measure_selective_accuracy(make_request(), [about], {"1st": 1}))
    assert ("R, accuracy", "1st") not in found
    assert found["R, rejected", "1st"].value == 1


@pytest.mark.usefixtures("data", "rejecting")
def test_parameters_and_accuracy_of_each_column():
    rows = [{"row": name, "data": name, "models": {"M": MODEL}} for name in ("own", "others")]
    measured = measure_accuracies(make_request(), rows)
    found = by_place(measured)
    assert found["Parameters, millions", "M"].value == pytest.approx(2e-6)
    assert found["Parameters, millions", "M"].trials == 0
    assert found["own", "M"].value == 7 / 8
    assert found["others", "M"].counted == (0, 1, 2, 3, 4, 5, 6)
    assert [n.row for n in measured.numbers[:2]] == [
        "Parameters, millions", "Parameters at inference, millions",
    ]  # fmt: skip
    assert measured.dataset == "own, others"


@pytest.mark.usefixtures("data")
def test_the_critic_of_sdim_is_counted_separately():
    rows = [{"row": "own", "data": "own", "models": {"S": f"{NETWORKS}:small_sdim"}}]
    found = by_place(measure_accuracies(make_request(), rows))
    whole, answering = (
        found[name, "S"].value
        for name in ("Parameters, millions", "Parameters at inference, millions")
    )
    # 1 × 1 layers on 256 features and a code of 64, of 256, 256 and 1 units
    critic = (256 + 64) * 256 + 256 + 256 * 256 + 256 + 256 + 1
    assert whole - answering == pytest.approx(critic / 1e6)


@pytest.mark.usefixtures("data", "rejecting")
def test_a_row_without_its_data_is_left_out_and_damaged_data_are_not(monkeypatch):
    opened, absent = ExperimentRequest.open_dataset, {"others"}

    def open_dataset(self, name=""):
        if name in absent:
            raise MissingData(f"cannot find the files of {name}")
        return opened(self, name)

    monkeypatch.setattr(ExperimentRequest, "open_dataset", open_dataset)
    rows = [{"row": name, "data": name, "models": {"M": MODEL}} for name in ("own", "others")]
    measured = run_experiment("accuracies", make_request(), {"rows": rows})
    assert measured.dataset == "own"
    assert "others" not in {number.row for number in measured.numbers}
    assert measured.left_out == {"others": "cannot find the files of others"}
    assert ExperimentResult.from_json(json.loads(json.dumps(measured.to_json()))) == measured
    absent.add("own")
    with pytest.raises(MissingData, match="others"):
        measure_accuracies(make_request(), rows)

    def damaged(_, name=""):
        raise BadData(f"{name} is damaged")

    monkeypatch.setattr(ExperimentRequest, "open_dataset", damaged)
    with pytest.raises(BadData, match="own is damaged"):
        measure_accuracies(make_request(), rows)


def test_parts_of_one_name_are_left_out_one_by_one(monkeypatch):
    def open_dataset(_, name=""):
        if name == "others":
            raise MissingData("cannot find the files of others")

    monkeypatch.setattr(ExperimentRequest, "open_dataset", open_dataset)
    parts = [{"column": "C", "data": "own"}, {"column": "C", "data": "others"}]
    assert make_request().available(parts, "column", "data") == parts[:1]
