"""Table 3 and Figure 2 of SDIM on a network with one parameter, so that every number can be computed by hand."""

from functools import partial
from pathlib import Path

import pytest
import torch

from robustbench_inv.catalogue.models import load_model
from robustbench_inv.errors import BadModel
from robustbench_inv.experiments import ood_detection
from robustbench_inv.experiments.ood_detection import (
    measure_ood_detection,
    measure_score_distributions,
    threshold_margins,
)
from robustbench_inv.experiments.protocol import ExperimentRequest
from robustbench_inv.tensors import Output

NETWORKS = Path(__file__).parent / "toy_networks.py"


MODEL = f"{NETWORKS}:level"


make_request = partial(ExperimentRequest, "own", {})


def by_place(measured):
    return {(n.row, n.column): n for n in measured.numbers}


def test_below_is_per_class_and_rejected_uses_the_predicted_class(rejecting):
    scores = torch.tensor([[3.0, 1.0], [0.5, 0.0], [-1.0, 4.0]])
    model = rejecting(f"{MODEL}:reject=likelihood,percentile=1")
    model.classifier.thresholds.copy_(torch.tensor([1.0, 2.0]))
    clear = threshold_margins(model, Output(scores), torch.tensor([0, 0, 1]))
    assert clear.below.tolist() == [[False, True], [True, True], [True, False]]
    assert clear.rejected.tolist() == [False, True, False]
    with pytest.raises(BadModel, match="no reject option"):
        threshold_margins(load_model(MODEL), Output(scores), torch.tensor([0, 0, 1]))


@pytest.mark.usefixtures("data", "rejecting")
def test_ood_inputs_are_counted_per_class_and_by_the_predicted_class():
    pair = {
        "column": "C",
        "data": "own",
        "ood": "others",
        "models": {"M": f"{MODEL}:reject=likelihood,percentile=1"},
    }
    found = by_place(measure_ood_detection(make_request(), [pair]))
    # 0.3 reaches the threshold of class 0 and no other does: 7 of 8 there, 8 of 8 for class 1
    assert found["M", "C"].value == pytest.approx((7 / 8 + 1) / 2)
    assert found["M", "C"].trials == 8
    assert found["M, OOD inputs rejected", "C"].value == 7 / 8
    assert found["M, in-distribution inputs rejected", "C"].value == 2 / 8
    assert found["M, in-distribution inputs rejected", "C"].counted == (3, 7)


@pytest.mark.usefixtures("data", "rejecting")
def test_exclusive_scores_have_a_high_rate_by_construction():
    """At most one class has positive log-odds, so that with two classes the rate is at least one half."""
    name = f"{MODEL}:reject=max-softmax,percentile=20"
    pair = {"column": "C", "data": "own", "ood": "others", "models": {"M": name}}
    found = by_place(measure_ood_detection(make_request(), [pair]))
    assert found["M", "C"].value >= 0.5
    assert found["M", "C"].value == 0.5 + found["M, OOD inputs rejected", "C"].value / 2


@pytest.mark.usefixtures("data", "rejecting")
def test_outputs_are_computed_once_for_all_thresholds(monkeypatch):
    counted = []
    collect = ood_detection.collect_outputs
    monkeypatch.setattr(
        ood_detection, "collect_outputs", lambda *of: counted.append(of) or collect(*of)
    )
    names = {f"{p}": f"{MODEL}:reject=likelihood,percentile={p}" for p in (1, 2, 5)}
    pair = {"column": "C", "data": "own", "ood": "others", "models": names}
    measured = measure_ood_detection(make_request(), [pair])
    assert len(counted) == 2
    rows = [n.row for n in measured.numbers]
    assert rows[:4] == ["1", "2", "5", "1, OOD inputs rejected"]
    assert rows[-1] == "5, in-distribution inputs rejected"
    assert len(measured.models) == 3


@pytest.mark.usefixtures("data", "rejecting")
def test_histograms_have_common_bins_and_both_thresholds(monkeypatch):
    columns = {f"{p}": f"{MODEL}:reject=likelihood,percentile={p}" for p in (1, 20)}
    named = type("Entry", (), {"classes": ("dark", "bright")})
    monkeypatch.setattr(ood_detection, "dataset_entry", lambda _: named)
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
    (only,) = measure_score_distributions(ExperimentRequest("own", columns, samples=1), "others").histograms  # fmt: skip
    assert sorted(sum(next(iter(p.counts.values()))) for p in only.panels) == [0, 1]
    found = by_place(measured)
    assert found["dark: OOD inputs below threshold", "1"].value == 7 / 8
    assert found["dark: inputs of the class below threshold", "1"].value == 1 / 4
    assert found["Mean OOD inputs below threshold", "1"].value == pytest.approx(15 / 16)
