"""Metamers on the outer sphere against their closed form, and Example 6 against the beta distribution."""

import math

import pytest
import torch
from torch import Tensor, nn

from robustbench_inv.data.spheres import Spheres
from robustbench_inv.errors import BadParameter
from robustbench_inv.experiments.outer_sphere import (
    expected_errors,
    measure_ignored_coordinate,
    metamer_numbers,
    metamers_on_path,
    raw_metamers,
)
from robustbench_inv.experiments.protocol import ExperimentRequest
from robustbench_inv.models.wrapping import wrap_module

SPHERES = Spheres(d=6, n=1, r1=1.0, r2=10.0, size=40)


class FirstTwo(nn.Module):
    """The code is the point itself, and the first two coordinates are the logits."""

    bounds, num_classes = (-10.0, 10.0), 2

    def __init__(self, gain: float = 1.0) -> None:
        super().__init__()
        self.gain = gain

    def forward(self, x: Tensor) -> Tensor:
        return x[:, :2]

    def encode(self, x: Tensor) -> Tensor:
        return torch.cat([x[:, :2], x[:, 2:] / self.gain], 1)

    def decode(self, z: Tensor) -> Tensor:
        return torch.cat([z[:, :2], z[:, 2:] * self.gain], 1)

    def split(self, z: Tensor) -> tuple[Tensor, Tensor]:
        return z[:, :2], z[:, 2:]

    def join(self, semantic: Tensor, nuisance: Tensor) -> Tensor:
        return torch.cat([semantic, nuisance], 1)


def pairs():
    points, labels = SPHERES.batch(range(40))
    return points[labels == 0].float(), points[labels == 1].float()


def test_the_norm_of_a_raw_metamer_is_that_of_its_two_parts():
    inner, outer = pairs()
    expected = (inner[:, :2].square().sum(1) + outer[:, 2:].square().sum(1)).sqrt()
    found = raw_metamers(wrap_module(FirstTwo(), "first two"), SPHERES, 20)
    torch.testing.assert_close(found.norm(dim=1), expected)


def test_the_path_meets_the_outer_sphere_at_the_root_of_a_quadratic():
    points, position = metamers_on_path(wrap_module(FirstTwo(), "first two"), SPHERES, 20)
    inner, outer = pairs()
    assert points.norm(dim=1) == pytest.approx(torch.full((20,), 10.0), rel=1e-6)
    torch.testing.assert_close(points[:, :2], inner[:, :2])  # the logits, to the bit
    start, step = inner[:, 2:].double(), (outer - inner)[:, 2:].double()
    a, b = step.square().sum(1), (start * step).sum(1)
    c = start.square().sum(1) + inner[:, :2].double().square().sum(1) - 100
    torch.testing.assert_close(position.double(), (-b + (b**2 - a * c).sqrt()) / a)
    assert (position > 1).any(), "metamers of this network fall short of the sphere"


def test_a_path_that_never_reaches_the_sphere_has_no_point():
    points, _ = metamers_on_path(wrap_module(FirstTwo(gain=0.0), "flat"), SPHERES, 20)
    assert len(points) == 0


def test_metamers_on_the_sphere_fool_the_logits_and_not_the_nuisances():
    class Sign(FirstTwo):
        def forward(self, x: Tensor) -> Tensor:
            return torch.stack([5.5 - x[:, :2].norm(dim=1), x[:, :2].norm(dim=1) - 5.5], 1)

    def by_norm(z: Tensor) -> Tensor:
        return torch.stack([5.5 - z.norm(dim=1), z.norm(dim=1) - 5.5], 1)

    model = wrap_module(Sign(), "sign")
    numbers = {n.row: n for n in metamer_numbers("S", model, SPHERES, by_norm)}
    where = "Accuracy on metamers where their path meets the outer sphere"
    assert numbers[f"{where}, logits"].value == 0
    assert numbers[f"{where}, nuisance classifier"].value == 1
    lengths = raw_metamers(model, SPHERES, 20).norm(dim=1)
    assert numbers["Norm of raw metamers, median"].value == pytest.approx(
        lengths.quantile(0.5).item()
    )
    assert numbers["Raw metamers within 10 % of R2"].value == pytest.approx(
        ((lengths - 10).abs() <= 1).double().mean().item()
    )


def test_errors_of_the_classifier_follow_the_beta_distribution():
    """In three dimensions the last coordinate is uniform (Archimedes): |x_3| > R2 √(1 − (b/R2)²)."""
    spheres = Spheres(d=3, n=1, r1=1.0, r2=1.3, size=4000)
    expected = 2000 * (1 - math.sqrt(1 - (1.15 / 1.3) ** 2))
    assert expected_errors(spheres) == pytest.approx(expected, rel=1e-12)
    request = ExperimentRequest("spheres:d=3,n=1,r1=1,r2=1.3", {})
    numbers = {n.row: n.value for n in measure_ignored_coordinate(request, "D", 4000).numbers}
    errors = 4000 * (1 - numbers["Accuracy"])
    assert errors == pytest.approx(expected, abs=4 * math.sqrt(expected))
    assert numbers["Inner points on the outer sphere after the shift"] == 1
    assert numbers["Accuracy after the shift"] == pytest.approx(0.5 - errors / 4000)


def test_example_6_makes_no_error_and_falls_to_chance():
    request = ExperimentRequest("spheres:d=500,n=1", {})
    numbers = {n.row: n for n in measure_ignored_coordinate(request, "D", 200).numbers}
    assert (numbers["Accuracy"].value, numbers["Accuracy"].trials) == (1, 200)
    assert numbers["Accuracy after the shift"].value == 0.5
    assert numbers["Expected errors, closed form"].value < 1e-20
    assert numbers["Smallest norm that D uses, outer sphere"].value > 1.15


@pytest.mark.parametrize("data", ["mnist5k", "spheres:d=5,n=0"])
def test_other_data_are_refused(data):
    with pytest.raises(BadParameter, match="example 6 needs spheres"):
        measure_ignored_coordinate(ExperimentRequest(data, {}), "D", 10)
