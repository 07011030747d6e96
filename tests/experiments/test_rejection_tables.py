"""Tables 1 to 3 and Figure 2 of SDIM on a network of one number, so that every share can be counted by hand."""

from functools import partial
from pathlib import Path

import numpy as np
import pytest
import torch

from robustbench_inv.catalogue.models import load_model
from robustbench_inv.data.arrays import ArrayDataset
from robustbench_inv.errors import BadData, BadModel
from robustbench_inv.experiments import ood_detection as strangers
from robustbench_inv.experiments import selective_accuracy as selection
from robustbench_inv.experiments.calibration import CalibrationData, calibrate
from robustbench_inv.experiments.ood_detection import (
    measure_ood_detection,
    measure_score_distributions,
    threshold_margins,
)
from robustbench_inv.experiments.protocol import ExperimentRequest
from robustbench_inv.experiments.selective_accuracy import (
    measure_accuracies,
    measure_selective_accuracy,
)
from robustbench_inv.tensors import Output

NETWORKS = Path(__file__).parent / "networks.py"
MODEL = f"{NETWORKS}:level"

TRAIN = [*np.linspace(0.2, 0.4, 101), *np.linspace(0.6, 0.8, 101)]
"""The 1st percentile of each class lies 0.002 from its outer end, where −|x − mean| is least at either end."""

OWN = [0.3, 0.31, 0.29, 0.45, 0.7, 0.71, 0.69, 0.49]
"""Of these, 0.45 and 0.49 are far from their class's mean, and 0.49 is decided for the wrong one."""

OTHERS = [0.0, 0.1, 0.3, 0.5, 0.9, 1.0, 0.95, 0.05]
"""One of them, 0.3, looks like class 0."""


def greys(name, levels):
    values = torch.tensor(levels, dtype=torch.float32)
    images = values.reshape(-1, 1, 1, 1).expand(-1, 1, 2, 2).contiguous()
    labels = (torch.arange(len(levels)) >= len(levels) // 2).long()
    return ArrayDataset(images, labels, name)


@pytest.fixture
def data(monkeypatch):
    known = {"own": greys("own", OWN), "others": greys("others", OTHERS)}
    monkeypatch.setattr(
        ExperimentRequest, "open_dataset", lambda asked, name="": known[name or asked.dataset]
    )
    return known


@pytest.fixture
def rejecting(tmp_path, monkeypatch):
    """Loads the network with thresholds of its own where it is to reject."""
    path = tmp_path / "thresholds.safetensors"
    train = greys("train", TRAIN)
    path.write_bytes(calibrate(load_model(MODEL), CalibrationData(train, 0, len(train))).to_bytes())

    def load(name, **parameters):
        wanted = {"thresholds": str(path)} if "reject" in name or "reject" in parameters else {}
        parameters.pop("device", None)
        return load_model(name, **wanted, **parameters)

    monkeypatch.setattr(strangers, "load_model", load)
    monkeypatch.setattr(selection, "load_model", load)
    monkeypatch.setattr("robustbench_inv.experiments.protocol.load_model", load)
    return load


asked = partial(ExperimentRequest, "own", {})


def by_place(measured):
    return {(n.row, n.column): n for n in measured.numbers}


def test_below_is_about_each_class_and_rejected_about_the_decision(rejecting):
    scores = torch.tensor([[3.0, 1.0], [0.5, 0.0], [-1.0, 4.0]])
    model = rejecting(f"{MODEL}:reject=likelihood,percentile=1")
    model.classifier.thresholds.copy_(torch.tensor([1.0, 2.0]))
    clear = threshold_margins(model, Output(scores), torch.tensor([0, 0, 1]))
    assert clear.below.tolist() == [[False, True], [True, True], [True, False]]
    assert clear.rejected.tolist() == [False, True, False]
    with pytest.raises(BadModel, match="a model that rejects is needed"):
        threshold_margins(load_model(MODEL), Output(scores), torch.tensor([0, 0, 1]))


@pytest.mark.usefixtures("data", "rejecting")
def test_strangers_are_counted_for_each_class_and_by_the_decision():
    pair = {
        "column": "C",
        "data": "own",
        "others": "others",
        "models": {"M": f"{MODEL}:reject=likelihood,percentile=1"},
    }
    found = by_place(measure_ood_detection(asked(), [pair]))
    # 0.3 reaches the threshold of class 0 and no other does: 7 of 8 there, 8 of 8 for class 1
    assert found["M", "C"].value == pytest.approx((7 / 8 + 1) / 2)
    assert found["M", "C"].trials == 8
    assert found["M, strangers rejected", "C"].value == 7 / 8
    assert found["M, own inputs rejected", "C"].value == 2 / 8
    assert found["M, own inputs rejected", "C"].counted == (3, 7)


@pytest.mark.usefixtures("data", "rejecting")
def test_classes_that_exclude_one_another_reach_their_share_by_construction():
    """By log-odds at most one class is above 0, whatever is shown: half of two classes are told for nothing."""
    name = f"{MODEL}:reject=max-softmax,percentile=20"
    pair = {"column": "C", "data": "own", "others": "others", "models": {"M": name}}
    found = by_place(measure_ood_detection(asked(), [pair]))
    assert found["M", "C"].value >= 0.5
    assert found["M", "C"].value == 0.5 + found["M, strangers rejected", "C"].value / 2


@pytest.mark.usefixtures("data", "rejecting")
def test_a_network_answers_once_however_many_thresholds_are_tried(monkeypatch):
    counted = []
    monkeypatch.setattr(strangers, "answers", lambda *of: counted.append(of) or answers(*of))
    answers = selection.answers
    names = {f"{p}": f"{MODEL}:reject=likelihood,percentile={p}" for p in (1, 2, 5)}
    pair = {"column": "C", "data": "own", "others": "others", "models": names}
    measured = measure_ood_detection(asked(), [pair])
    assert len(counted) == 2
    rows = [n.row for n in measured.numbers]
    assert rows[:4] == ["1", "2", "5", "1, strangers rejected"]
    assert rows[-1] == "5, own inputs rejected"
    assert len(measured.models) == 3


@pytest.mark.usefixtures("data", "rejecting")
def test_scores_are_spread_over_common_bins_with_both_limits(monkeypatch):
    columns = {f"{p}": f"{MODEL}:reject=likelihood,percentile={p}" for p in (1, 20)}
    named = type("Entry", (), {"classes": ("dark", "bright")})
    monkeypatch.setattr(strangers, "entry", lambda _: named)
    measured = measure_score_distributions(ExperimentRequest("own", columns), "others")
    (spread,) = measured.histograms
    dark, bright = spread.panels
    assert (dark.title, bright.title) == ("dark", "bright")
    assert list(dark.limits) == ["1", "20"]
    assert dark.limits["1"] < dark.limits["20"]
    for panel in (dark, bright):
        own, others = panel.counts.values()
        assert (sum(own), sum(others)) == (4, 8)
        assert len(panel.edges) == len(own) + 1
        assert list(panel.edges) == sorted(panel.edges)
    assert dark.note == "87.5 % below"
    found = by_place(measured)
    assert found["dark: strangers below", "1"].value == 7 / 8
    assert found["dark: its own below", "1"].value == 1 / 4
    assert found["Mean of strangers below", "1"].value == pytest.approx(15 / 16)


@pytest.mark.usefixtures("data", "rejecting")
def test_what_is_left_after_rejection_is_right():
    about = {"row": "R", "data": "own", "model": MODEL, "score": "likelihood"}
    found = by_place(measure_selective_accuracy(asked(), [about], {"1st": 1}))
    assert found["R, accuracy", "Original"].value == 7 / 8
    assert (found["R, accuracy", "1st"].value, found["R, accuracy", "1st"].trials) == (1, 6)
    assert found["R, rejected", "1st"].counted == (3, 7)


@pytest.mark.usefixtures("rejecting")
def test_what_rejects_everything_has_no_accuracy(data, monkeypatch):
    monkeypatch.setitem(data, "own", data["others"])
    about = {"row": "R", "data": "own", "model": MODEL, "score": "margin"}
    monkeypatch.setattr(
        selection,
        "threshold_margins",
        lambda *_: type("C", (), {"rejected": np.ones(8, dtype=bool)}),
    )
    found = by_place(measure_selective_accuracy(asked(), [about], {"1st": 1}))
    assert ("R, accuracy", "1st") not in found
    assert found["R, rejected", "1st"].value == 1


@pytest.mark.usefixtures("data", "rejecting")
def test_parameters_and_accuracy_of_each_column():
    rows = [{"row": name, "data": name, "models": {"M": MODEL}} for name in ("own", "others")]
    measured = measure_accuracies(asked(), rows)
    found = by_place(measured)
    assert found["Parameters, millions", "M"].value == pytest.approx(2e-6)
    assert found["Parameters, millions", "M"].trials == 0
    assert found["own", "M"].value == 7 / 8
    assert found["others", "M"].counted == (0, 1, 2, 3, 4, 5, 6)
    assert [n.row for n in measured.numbers[:2]] == [
        "Parameters, millions", "Parameters that answer, millions",
    ]  # fmt: skip
    assert measured.dataset == "own, others"


@pytest.mark.usefixtures("data")
def test_the_critic_of_sdim_is_counted_apart():
    rows = [{"row": "own", "data": "own", "models": {"S": f"{NETWORKS}:small_sdim"}}]
    found = by_place(measure_accuracies(asked(), rows))
    whole, answering = (
        found[name, "S"].value
        for name in ("Parameters, millions", "Parameters that answer, millions")
    )
    # 1 × 1 layers on 256 features and a code of 64, of 256, 256 and 1 units
    critic = (256 + 64) * 256 + 256 + 256 * 256 + 256 + 256 + 1
    assert whole - answering == pytest.approx(critic / 1e6)


@pytest.mark.usefixtures("data", "rejecting")
def test_a_row_whose_files_are_not_there_is_left_out_if_it_is_optional(monkeypatch):
    opened = ExperimentRequest.open_dataset

    def open_dataset(self, name=""):
        if name == "others":
            raise BadData("cannot find the files of others")
        return opened(self, name)

    monkeypatch.setattr(ExperimentRequest, "open_dataset", open_dataset)
    rows = [{"row": name, "data": name, "models": {"M": MODEL}} for name in ("own", "others")]
    with pytest.raises(BadData, match="others"):
        measure_accuracies(asked(), rows)
    measured = measure_accuracies(asked(), [rows[0], {**rows[1], "optional": True}])
    assert measured.dataset == "own"
    assert "others" not in {number.row for number in measured.numbers}
