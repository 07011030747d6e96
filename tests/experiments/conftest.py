"""Networks with known codes and scores, requests to experiment on them, and two data sets whose scores are known."""

from pathlib import Path

import numpy as np
import pytest
import torch

from robustbench_inv.catalogue.models import load_model
from robustbench_inv.data.arrays import ArrayDataset
from robustbench_inv.experiments import ood_detection, selective_accuracy
from robustbench_inv.experiments.calibration import CalibrationData, calibrate
from robustbench_inv.experiments.protocol import ExperimentRequest

NETWORKS = Path(__file__).parent / "toy_networks.py"


MODEL = f"{NETWORKS}:level"


TRAIN = [*np.linspace(0.2, 0.4, 101), *np.linspace(0.6, 0.8, 101)]
"""The 1st percentile of each class lies 0.002 from its outer end, where −|x − mean| is least at either end."""


OWN = [0.3, 0.31, 0.29, 0.45, 0.7, 0.71, 0.69, 0.49]
"""Of these, 0.45 and 0.49 are far from their class's mean, and 0.49 is misclassified."""


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
        ExperimentRequest, "open_dataset", lambda request, name="": known[name or request.dataset]
    )
    return known


@pytest.fixture
def rejecting(tmp_path, monkeypatch):
    """Load the network, with fitted thresholds if it has a reject option."""
    path = tmp_path / "thresholds.safetensors"
    train = greys("train", TRAIN)
    path.write_bytes(calibrate(load_model(MODEL), CalibrationData(train, 0, len(train))).to_bytes())

    def load(name, **parameters):
        wanted = {"thresholds": str(path)} if "reject" in name or "reject" in parameters else {}
        parameters.pop("device", None)
        return load_model(name, **wanted, **parameters)

    monkeypatch.setattr(ood_detection, "load_model", load)
    monkeypatch.setattr(selective_accuracy, "load_model", load)
    monkeypatch.setattr("robustbench_inv.experiments.protocol.load_model", load)
    return load


@pytest.fixture
def reader():
    """Name of a network whose metamers differ from their donors in ten pixels."""
    return f"{NETWORKS}:reader"


@pytest.fixture
def make_request(reader):
    """Return a function that makes a request for a few digits and the reader, options replaced."""

    def make(**options):
        return ExperimentRequest(
            **{"dataset": "mnist5k", "columns": {"R": reader}, "samples": 60, **options}
        )

    return make


@pytest.fixture
def by_row():
    """Return a function from a result to its numbers by row."""
    return lambda measured: {number.row: number for number in measured.numbers}
