"""Densities in the plane, and properties of invertible networks."""

import pytest
import torch

from robustbench_inv.experiments import planar_flows
from robustbench_inv.experiments.planar_flows import (
    PLANE_DATA,
    PlaneFlow,
    measure_densities,
    measure_properties,
    planar_log_determinant,
)
from robustbench_inv.experiments.protocol import ExperimentRequest
from robustbench_inv.models.layers.residual import (
    ResidualBlock,
    exact_log_determinant,
    linear_residual,
)

REQUEST = ExperimentRequest("plane", {}, samples=50)


def values(result):
    return {(number.row, number.column): number.value for number in result.numbers}


def test_the_log_determinant_in_the_plane_is_exact_and_has_a_gradient():
    torch.manual_seed(0)
    block = ResidualBlock(linear_residual((2, 8, 2), 0.9)).double().eval()
    x = torch.randn(5, 2, dtype=torch.float64)
    y, found = planar_log_determinant(block, x)
    torch.testing.assert_close(found, exact_log_determinant(block.residual, x))
    torch.testing.assert_close(y, x + block.residual(x))
    found.sum().backward()
    assert all(layer.weight.grad.abs().sum() > 0 for layer in block.layers())


@pytest.mark.parametrize("build", [PlaneFlow.glow, lambda *sizes: PlaneFlow.residual(*sizes, 0.9)])
def test_a_density_has_a_mass_of_one(build):
    torch.manual_seed(0)
    flow = build(2, 6)
    flow.steps.eval()
    axis = torch.linspace(-9, 9, 181)
    with torch.no_grad():
        density = flow.log_density(torch.cartesian_prod(axis, axis)).exp()
    assert float(density.sum()) * 0.1**2 == pytest.approx(1, abs=1e-3)


def test_densities_are_measured_and_drawn(monkeypatch):
    monkeypatch.setattr(planar_flows, "GRID", 12)
    found = measure_densities(REQUEST, steps=2, blocks=1, width=4)
    (grid,) = found.image_grids
    assert grid.images.shape == (len(PLANE_DATA), 3, 1, 12, 12)
    assert all(value > 0 for value in values(found).values())


def test_the_properties_of_the_architectures_are_those_of_table_5_2():
    numbers = values(measure_properties(REQUEST))
    assert [numbers["Free-form", each] for each in ("NICE", "Glow", "i-ResNet")] == [0, 0, 1]
    assert [numbers["Analytic inverse", each] for each in ("Real-NVP", "i-ResNet")] == [1, 0]
    assert [numbers["Non-volume preserving", each] for each in ("NICE", "Real-NVP")] == [0, 1]
    assert [numbers["Exact likelihood", each] for each in ("Glow", "i-ResNet")] == [1, 0]
    assert numbers["Unbiased stochastic log-determinant", "i-ResNet"] == 1
