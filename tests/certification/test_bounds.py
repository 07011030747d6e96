"""Bounds contain every value, the exact ones of MILP too, and equal a slow implementation of CROWN."""

from itertools import pairwise

import pytest
import torch
from torch import nn

from robustbench_inv.certification.bounds import (
    Region,
    bound,
    lower_bounds,
    margins,
    optimised_margins,
    wrong_class_rows,
)
from robustbench_inv.certification.milp import Program
from robustbench_inv.certification.operations import Activation
from robustbench_inv.certification.tracing import trace
from robustbench_inv.errors import BadModel
from robustbench_inv.threat.budgets import project_perturbations


class Residual(nn.Module):
    """A convolution, a residual block with ELU, average pooling and a linear layer, on normalised images."""

    def __init__(self):
        super().__init__()
        self.first, self.second = nn.Conv2d(1, 3, 3, padding=1), nn.Conv2d(3, 3, 3, padding=1)
        self.norm, self.last = nn.BatchNorm2d(3), nn.Linear(12, 3)
        self.norm.running_mean.uniform_(-0.2, 0.2)
        self.norm.running_var.uniform_(0.5, 2)

    def forward(self, x):
        x = torch.relu(self.norm(self.first((x - 0.13) / 0.3)))
        x = nn.functional.elu(self.second(x)) + x
        return self.last(nn.functional.avg_pool2d(x, 3, 2, 1)[..., :].flatten(1) * 2)


def dense(*widths, activation=nn.ReLU):
    layers = [nn.Flatten()]
    for before, after in pairwise(widths):
        layers += [nn.Linear(before, after), activation()]
    return nn.Sequential(*layers[:-1])


def pooled():
    return nn.Sequential(
        nn.Conv2d(1, 4, 3), nn.LeakyReLU(0.1), nn.MaxPool2d(2), nn.Flatten(), nn.Linear(4, 3)
    )


NETWORKS = {
    "relu": lambda: dense(16, 12, 10, 3),
    "tanh": lambda: dense(16, 12, 10, 3, activation=nn.Tanh),
    "sigmoid": lambda: dense(16, 12, 10, 3, activation=nn.Sigmoid),
    "pooled": pooled,
    "residual": Residual,
}


def make(name):
    torch.manual_seed(sorted(NETWORKS).index(name))
    network = NETWORKS[name]().eval()
    with torch.no_grad():
        for weight in network.parameters():
            weight.mul_(2)
    return network, torch.rand(3, 1, 4, 4)


@pytest.mark.parametrize("norm", ["linf", "l2"])
@pytest.mark.parametrize("name", sorted(NETWORKS))
def test_random_points_stay_inside_all_bounds(name, norm):
    network, images = make(name)
    eps = 0.15 if norm == "linf" else 0.6
    traced = trace(network, (1, 4, 4), 3)
    bounds = bound(traced, Region.of(images, eps, norm, (0.0, 1.0)))
    proven = torch.maximum(
        margins(bounds, torch.tensor([0, 1, 2])),
        margins(bounds, torch.tensor([0, 1, 2]), linear=False),
    )
    better = optimised_margins(bounds, torch.tensor([0, 1, 2]), steps=3)
    for sample in range(3):
        noise = torch.randn(3400, 1, 4, 4)
        noise[1700:] = noise[1700:].sign()
        radii = torch.full((3400,), eps)
        noise = (
            eps * noise.clamp(-1, 1)
            if norm == "linf"
            else project_perturbations(9 * noise, radii, "l2")
        )
        points = (images[sample] + noise).clamp(0, 1)
        with torch.no_grad():
            logits = network(points).double()
        low, high = (each[sample] for each in bounds.steps[-1])
        assert (logits >= low).all()
        assert (logits <= high).all()
        rows, _ = wrong_class_rows(torch.tensor([sample]), 3)
        smallest = (logits @ rows.T).amin(0)
        assert (smallest >= proven[sample]).all()
        assert (smallest >= better[sample]).all()
        assert (better[sample] >= margins(bounds, torch.tensor([0, 1, 2]))[sample] - 1e-12).all()


def test_bounds_are_exact_for_a_linear_network():
    network, images = nn.Sequential(nn.Flatten(), nn.Linear(16, 2)), torch.full((1, 1, 4, 4), 0.5)
    weight = network[1].weight.detach().double()
    bounds = bound(trace(network, (1, 4, 4), 2), Region.of(images, 0.1, "l2", (0.0, 1.0)))
    difference = weight[0] - weight[1]
    with torch.no_grad():
        gap = network(images).double() @ torch.tensor([1.0, -1.0]).double()
    exact = gap - 0.1 * difference.norm()
    assert float(margins(bounds, torch.tensor([0]))) == pytest.approx(float(exact), abs=1e-4)


def slow_crown(layers, low, high):
    """Lower bounds of all logits of a dense ReLU network on a box, by loops over numbers (CROWN, theorem 3.2)."""
    bounds, matrices = [], []
    for depth, (weight, bias) in enumerate(layers):
        matrices.append((weight, bias))
        found = []
        for sign in (1, -1):
            values = []
            for row, start in zip(weight, bias, strict=True):
                coefficients, total = [sign * w for w in row], sign * start
                for (lows, highs), (inner, offsets) in zip(
                    reversed(bounds), reversed(matrices[:depth]), strict=True
                ):
                    passed = []
                    for c, lo, u in zip(coefficients, lows, highs, strict=True):
                        if u <= 0:
                            passed.append(0.0)
                        elif lo >= 0:
                            passed.append(c)
                        elif c >= 0:
                            passed.append(c if u > -lo else 0.0)
                        else:
                            passed.append(c * u / (u - lo))
                            total += c * -lo * u / (u - lo)
                    total += sum(c * b for c, b in zip(passed, offsets, strict=True))
                    coefficients = [
                        sum(c * inner[i][j] for i, c in enumerate(passed))
                        for j in range(len(inner[0]))
                    ]
                total += sum(
                    c * (lo if c > 0 else u)
                    for c, lo, u in zip(coefficients, low, high, strict=True)
                )
                values.append(sign * total)
            found.append(values)
        bounds.append(tuple(found))
    return bounds[-1]


@pytest.mark.parametrize("seed", [0, 1, 2])
def test_bounds_equal_those_of_a_slow_implementation(seed):
    torch.manual_seed(seed)
    network = dense(6, 8, 7, 4).double()
    images = torch.rand(1, 6, dtype=torch.float64)
    region = Region(images, torch.tensor([0.2], dtype=torch.float64), "linf", (0.0, 1.0))
    bounds = bound(trace(network, (6,), 4), region)
    layers = [(m.weight.tolist(), m.bias.tolist()) for m in network if isinstance(m, nn.Linear)]
    low, high = slow_crown(layers, *(each[0].tolist() for each in region.box))
    unit, owner = torch.eye(4, dtype=torch.float64), torch.zeros(4, dtype=torch.int64)
    assert lower_bounds(bounds, unit, owner).tolist() == pytest.approx(low, abs=1e-4)
    assert (-lower_bounds(bounds, -unit, owner)).tolist() == pytest.approx(high, abs=1e-4)


@pytest.mark.parametrize("seed", [0, 1])
def test_crown_contains_the_exact_minimum_and_milp_is_not_above_any_point(seed):
    torch.manual_seed(seed)
    network, images = dense(4, 6, 5, 3), torch.rand(1, 4)
    bounds = bound(trace(network, (4,), 3), Region.of(images, 0.2, "linf", (0.0, 1.0)))
    rows, owner = wrong_class_rows(torch.tensor([0]), 3)
    linear = lower_bounds(bounds, rows, owner)
    points = (images + 0.2 * (2 * torch.rand(3000, 4) - 1)).clamp(0, 1)
    with torch.no_grad():
        sampled = (network(points).double() @ rows.T).amin(0)
    for target in range(2):
        exact = Program(bounds, 0).minimum(rows[target], 20)
        assert linear[target] <= exact + 1e-5
        assert exact <= sampled[target]
        assert exact >= sampled[target] - 0.5


@pytest.mark.parametrize(
    ("layer", "name"),
    [(nn.GELU(), "gelu"), (nn.Softplus(), "softplus"), (nn.LayerNorm(16), "layer_norm")],
)
def test_other_operations_are_refused_by_name(layer, name):
    network = nn.Sequential(nn.Flatten(), layer, nn.Linear(16, 2))
    with pytest.raises(BadModel, match=name):
        trace(network, (1, 4, 4), 2)


def test_a_branch_on_the_input_is_refused():
    class Branching(nn.Module):
        def forward(self, x):
            return x.flatten(1)[:, :2] if x.sum() > 0 else -x.flatten(1)[:, :2]

    with pytest.raises(BadModel, match="cannot be traced"):
        trace(Branching(), (4,), 2)


def test_batch_norm_in_training_mode_is_refused():
    network = nn.Sequential(nn.Flatten(), nn.BatchNorm1d(16), nn.Linear(16, 2)).train()
    with pytest.raises(BadModel, match="batch_norm"):
        trace(network, (1, 4, 4), 2)


def test_lines_of_relu_are_sound_between_bounds_closer_than_rounding():
    low, high = torch.tensor([-1e-14, -1e-13]).double(), torch.tensor([1e-13, 1e-15]).double()
    lower, base, upper, roof = Activation("relu", torch.relu).lines(low, high)
    for share in (0.0, 0.5, 1.0):
        x = low + share * (high - low)
        assert (lower * x + base <= x.relu()).all()
        assert (x.relu() <= upper * x + roof).all()
