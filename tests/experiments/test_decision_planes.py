"""Decision planes through the spheres, for a network whose predictions have a closed form."""

import math

import pytest
import torch
from torch import Tensor, nn

from robustbench_inv.data.spheres import Spheres
from robustbench_inv.errors import BadModel, BadParameter
from robustbench_inv.experiments.decision_planes import (
    decision_plane,
    decision_planes,
    measure_planes,
)
from robustbench_inv.experiments.protocol import ExperimentRequest
from robustbench_inv.models.firevnet import fully_connected
from robustbench_inv.models.protocol import swap_nuisance
from robustbench_inv.models.wrapping import ModuleClassifier, wrap_module


def make_request(**options):
    return ExperimentRequest(**{"dataset": "mnist5k", "columns": {}, "samples": 60, **options})


SPHERES = Spheres(d=6, n=1, r1=1.0, r2=10.0, size=8)


HALF = 5.5


class FirstTwo(nn.Module):
    """The code is the point itself: outer if the second coordinate is beyond the first."""

    bounds, num_classes = (-10.0, 10.0), 2

    def forward(self, x: Tensor) -> Tensor:
        return x[:, :2]

    def encode(self, x: Tensor) -> Tensor:
        return x

    def decode(self, z: Tensor) -> Tensor:
        return z

    def split(self, z: Tensor) -> tuple[Tensor, Tensor]:
        return z[:, :2], z[:, 2:]

    def join(self, semantic: Tensor, nuisance: Tensor) -> Tensor:
        return torch.cat([semantic, nuisance], 1)


def by_norm(x: Tensor) -> Tensor:
    beyond = x.norm(dim=1) - HALF
    return torch.stack([-beyond, beyond], 1)


def axis(i: int, length: float) -> Tensor:
    return length * torch.eye(6)[i]


def test_the_optimal_classifier_is_correct_on_both_circles():
    marked = {"a": axis(0, 1.0), "b": axis(1, 10.0) + axis(0, 2.0)}
    plane = decision_plane(marked, {"norm": by_norm}, SPHERES, (12.0, 25))
    assert plane["right"] == {"norm": [1.0, 1.0]}
    assert plane["extent"] == 12.0
    (ax, ay), (bx, by) = plane["points"]["a"], plane["points"]["b"]
    assert (ax, ay) == pytest.approx((1, 0))
    assert (bx, by) == pytest.approx((2, 10))
    grid = plane["decisions"]["norm"]
    for row, y in zip(grid, torch.linspace(-12, 12, 25).tolist(), strict=True):
        for digit, x in zip(row, torch.linspace(-12, 12, 25).tolist(), strict=True):
            assert int(digit) == (math.hypot(x, y) > HALF), (x, y)


def test_rows_run_from_the_lowest_y_and_x_runs_inside_them():
    def right_or_upper(x: Tensor) -> Tensor:
        return torch.stack([torch.zeros(len(x)), x[:, 0] + 3 * x[:, 1]], 1)

    marked = {"a": axis(0, 1.0), "b": axis(1, 1.0)}
    grid = decision_plane(marked, {"f": right_or_upper}, SPHERES, (12.0, 2))["decisions"]["f"]
    assert grid == ["00", "11"]
    flipped = decision_plane(
        dict(reversed(marked.items())), {"f": right_or_upper}, SPHERES, (12.0, 2)
    )
    assert flipped["decisions"]["f"] == ["01", "01"]


def test_a_linear_classifier_is_wrong_on_half_of_each_circle():
    def upper(x: Tensor) -> Tensor:
        return torch.stack([-x[:, 1], x[:, 1]], 1)

    marked = {"a": axis(0, 1.0), "b": axis(1, 1.0)}
    inner, outer = decision_plane(marked, {"f": upper}, SPHERES, (12.0, 3))["right"]["f"]
    assert inner == pytest.approx(0.5, abs=1e-3)
    assert outer == pytest.approx(0.5, abs=1e-3)


def test_planes_of_a_network_have_predictions_of_logits_and_nuisances():
    model = wrap_module(FirstTwo(), "first two")
    sizes = []

    def nuisance(z: Tensor) -> Tensor:
        sizes.append(z.shape[1])
        return by_norm(z)

    data, metamer = decision_planes(model, nuisance, SPHERES, resolution=5)
    assert (data["name"], metamer["name"]) == ("data", "metamer")
    assert list(data["points"]) == ["x₁", "x₂"]
    assert list(metamer["points"]) == ["x", "x_met"]
    assert set(data["decisions"]) == {"logits", "nuisances"}
    assert set(sizes) == {4}
    x, y = SPHERES.batch([0, 1])[0].float()
    expected = torch.cat([x[:2], y[2:]]).norm().item()
    assert math.hypot(*metamer["points"]["x_met"]) == pytest.approx(expected, rel=1e-5)


class Sheared(FirstTwo):
    """The first element loses ten times the third on the way: metamers lie far out."""

    def forward(self, x: Tensor) -> Tensor:
        return self.encode(x)[:, :2]

    def encode(self, x: Tensor) -> Tensor:
        return torch.cat([x[:, :1] - 10 * x[:, 2:3], x[:, 1:]], 1)

    def decode(self, z: Tensor) -> Tensor:
        return torch.cat([z[:, :1] + 10 * z[:, 2:3], z[:, 1:]], 1)


def test_a_distant_metamer_has_a_wide_plane():
    model = wrap_module(Sheared(), "sheared")
    _, metamer, afar = decision_planes(model, by_norm, SPHERES, resolution=3)
    distance = math.hypot(*metamer["points"]["x_met"])
    assert distance > 12
    assert (metamer["extent"], afar["extent"]) == (12.0, pytest.approx(1.1 * distance))
    assert afar["points"] == metamer["points"]
    assert afar["right"] == metamer["right"]


def test_metamers_have_the_logits_of_their_sources():
    torch.manual_seed(0)
    network = fully_connected(6, 2, width=8)
    for parameter in network.parameters():
        nn.init.normal_(parameter, std=0.3)
    model = wrap_module(network.double(), "network")
    points, labels = SPHERES.batch(range(8))
    sources, donors = points[labels == 0], points[labels == 1]
    with torch.no_grad():
        metamers = swap_nuisance(model, sources, donors)
        torch.testing.assert_close(model(metamers).logits, model(sources).logits)
        nuisance = model.split(model.encode(metamers))[1]
        torch.testing.assert_close(nuisance, model.split(model.encode(donors))[1])


def test_a_model_without_a_code_raises():
    plain = ModuleClassifier(nn.Linear(6, 2), (-10.0, 10.0), 2)
    with pytest.raises(BadModel, match="no nuisance variables"):
        decision_planes(plain, by_norm, SPHERES)


def test_planes_of_spheres_come_with_accuracies():
    spheres = "spheres:d=4,n=1,r1=1,r2=10,size=400"
    request = make_request(
        dataset=spheres, columns={"M": f"{__file__}:code_of_points"}, samples=200
    )
    probe = {"hidden": [16], "epochs": 2, "levels": 0, "batch_size": 50}
    measured = measure_planes(request, f"{spheres},seed=1", probe, resolution=9)
    assert [plane["name"] for plane in measured.planes["planes"]][:2] == ["data", "metamer"]
    assert {number.column for number in measured.numbers} == {"M"}
    assert len(measured.numbers) == 17
    parts = [n.value for n in measured.numbers if n.row.startswith("Part of the inner circle")]
    assert parts == [pair[0] for pair in measured.planes["planes"][1]["right"].values()]
    with pytest.raises(BadParameter, match="need spheres"):
        measure_planes(make_request(), "mnist5k", probe)


def code_of_points():
    from robustbench_inv.models.firevnet import fully_connected

    torch.manual_seed(0)
    return fully_connected(4, blocks=1, width=4).requires_grad_(False)
