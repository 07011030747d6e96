"""Removed vectors, and the linearisations of WideCIFAR and ThinCIFAR."""

from types import SimpleNamespace

import numpy as np
import pytest
import torch

from robustbench_inv.experiments import linearisations
from robustbench_inv.experiments.linearisations import (
    layer_sizes,
    measure_architectures,
    measure_conditions,
    measure_linearisations,
    measure_removal,
    removal_bound,
)
from robustbench_inv.experiments.protocol import ExperimentRequest
from robustbench_inv.models.iresnet import bijective
from robustbench_inv.models.plain_networks import StridedCNN

REQUEST = ExperimentRequest("mnist5k", {}, samples=2)


def values(result):
    return {(number.row, number.column): number.value for number in result.numbers}


def test_the_bound_of_lemma_3_6_is_attained_by_two_symmetric_vectors():
    rows = np.array([[1.0, 0.0], [0.1, 1.0], [-0.1, 1.0]])
    smallest = np.linalg.svd(rows[1:], compute_uv=False)[-1]
    assert removal_bound(rows, [1, 2], 0) == pytest.approx(smallest)


def test_relu_makes_a_well_conditioned_layer_unstable_within_the_bound():
    numbers = values(measure_removal(REQUEST, layers=50))
    for case in ("unbiased", "biased"):
        assert numbers[f"{case}, all vectors", "condition number"] < 1.5
        after = f"{case}, after ReLU"
        assert numbers[after, "condition number"] > 10
        bound = numbers[after, "bound of lemma 3.6"]
        assert numbers[after, "smallest singular value"] <= bound * (1 + 1e-9)
    assert numbers["50 random layers", "violations"] == 0


def test_the_networks_have_the_layers_of_table_3_1(monkeypatch):
    monkeypatch.setattr(linearisations, "_trained", lambda *_: None)
    names = {"WideCIFAR": "cifar10-wide", "ThinCIFAR": "cifar10-thin"}
    request = ExperimentRequest("cifar10", {}, samples=2)
    found = measure_architectures(request, names)
    maps = [values(found)[f"Layer {k}, feature maps", "ThinCIFAR"] for k in range(1, 7)]
    assert maps == [32, 32, 16, 16, 16, 32]
    assert values(found)["Layer 5, output units", "WideCIFAR"] == 32 * 16 * 16
    assert np.isnan(values(found)["Test error", "WideCIFAR"])


def test_layers_are_measured_and_networks_that_are_not_trained_keep_a_row(monkeypatch):
    torch.manual_seed(0)
    network = StridedCNN((2, 2, 1, 1, 1, 2), (1, 4, 4), 3, hidden=4)
    assert [units for _, units in layer_sizes(network, (1, 4, 4))] == [32, 8, 4, 4, 4, 2, 4, 3]
    model = SimpleNamespace(name="tiny", digest="0", classifier=network)
    monkeypatch.setattr(
        linearisations, "_trained", lambda _, column, __: model if column == "A" else None
    )
    tiny = SimpleNamespace(images=torch.rand(2, 1, 4, 4))
    monkeypatch.setattr(linearisations, "load_samples", lambda *_: tiny)
    found = measure_linearisations(REQUEST, {"A": "a", "B": "b"})
    numbers = values(found)
    assert numbers["Layer 1, Conv2d: non-zero singular values", "A"] == 16
    assert numbers["Layer 1, ReLU: non-zero singular values", "A"] <= 16
    assert numbers["Layer 6, Conv2d: output units", "A"] == 2
    assert np.isnan(numbers["Layer 1, Conv2d: condition number", "B"])
    decay, *curves = found.lines
    assert list(decay.panels[0].lines) == [f"layer {k}" for k in range(1, 7)]
    assert len(curves) == 3


def test_an_invertible_network_keeps_every_direction_and_relu_does_not(monkeypatch):
    torch.manual_seed(0)
    networks = {
        "CNN": StridedCNN((2, 2, 1, 1, 1, 2), (1, 4, 4), 3, hidden=4),
        "bijection": bijective((1, 4, 4), 3, blocks=(1, 1), width=4),
    }
    monkeypatch.setattr(
        linearisations,
        "_trained",
        lambda _, column, __: SimpleNamespace(
            name=column, digest="0", classifier=networks[column].double()
        ),
    )
    tiny = SimpleNamespace(images=torch.rand(2, 1, 4, 4))
    monkeypatch.setattr(linearisations, "load_samples", lambda *_: tiny)
    found = measure_conditions(REQUEST, {name: name for name in networks})
    numbers = values(found)
    full = "Layers of full rank at every image"
    assert numbers[full, "bijection"] == numbers["Layers", "bijection"]
    assert numbers[full, "CNN"] < numbers["Layers", "CNN"]
    assert numbers["Largest condition number of these", "bijection"] < 100
    assert [panels.title for panels in found.lines][-1] == "Condition number by layer"
