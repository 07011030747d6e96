"""Singular values of a network's linearisation by layer, and the ReLU layers of a network."""

import pytest
import torch
from torch import nn

from robustbench_inv.errors import BadModel
from robustbench_inv.experiments.preimages import relu_layers
from robustbench_inv.experiments.stability import (
    LayerSpectrum,
    linear_units,
    measure_spectra,
    visit_jacobians,
)
from robustbench_inv.models.iresnet import bijective, residual_flow


def jacobian_of(network, x, name):
    found = []
    visit_jacobians(network, x, [name], lambda *visited: found.append(visited[-1].clone()))
    (jacobian,) = found
    return jacobian


class Small(nn.Module):
    bounds, num_classes = (0.0, 1.0), 3

    def __init__(self):
        super().__init__()
        self.conv = nn.Conv2d(1, 2, 3, padding=1)
        self.act = nn.ReLU()
        self.last = nn.Linear(32, 3)

    def forward(self, x):
        return self.last(self.act(self.conv(x)).flatten(1))


def small():
    torch.manual_seed(0)
    model = Small()
    nn.init.constant_(model.conv.bias, 0.5)
    return model.double().eval().requires_grad_(False), torch.rand(2, 1, 4, 4).double()


def test_jacobians_are_those_of_backward_derivatives():
    model, x = small()
    for name, part in (("conv", model.conv), ("act", nn.Sequential(model.conv, model.act))):
        found = jacobian_of(model, x[0], name)
        truth = torch.func.jacrev(lambda v, part=part: part(v[None]).flatten())(x[0])
        torch.testing.assert_close(found, truth.flatten(1))


def test_singular_values_ranks_and_condition_numbers():
    model, x = small()
    layers = {layer.name: layer for layer in measure_spectra(model, x)}
    assert list(layers) == ["conv", "act", "last"]
    truth = torch.func.jacrev(lambda v: model(v[None])[0])(x[0]).flatten(1)
    expected = torch.linalg.svdvals(truth)
    torch.testing.assert_close(torch.tensor(layers["last"].values[0]).double(), expected)
    assert layers["last"].ranks == (3, 3)
    assert layers["last"].conditions[0] == pytest.approx(float(expected[0] / expected[-1]))
    assert layers["act"].size == 32
    rank = int(torch.linalg.matrix_rank(jacobian_of(model, x[0], "act")))
    assert layers["act"].ranks[0] == rank


def test_a_layer_that_is_called_twice_has_two_spectra_in_the_order_of_the_calls():
    torch.manual_seed(0)
    act = nn.ReLU()
    model = nn.Sequential(nn.Linear(6, 5), act, nn.Linear(5, 4), act, nn.Linear(4, 3)).double()
    x = torch.rand(1, 6).double()
    layers = measure_spectra(model.requires_grad_(False), x, pattern="[12]")
    assert [layer.name for layer in layers] == ["1", "2", "1 (call 2)"]
    for layer, parts in zip(layers, (model[:2], model[:3], model[:4]), strict=True):
        truth = torch.func.jacrev(lambda v, parts=parts: parts(v[None])[0])(x[0])
        expected = torch.linalg.svdvals(truth).tolist()
        assert layer.values[0] == pytest.approx(expected, abs=1e-12)


def test_zero_singular_values_do_not_count_in_the_condition_number():
    layer = LayerSpectrum("a", "Linear", 3, 3, ((4.0, 2.0, 1e-17), (0.0, 0.0, 0.0)))
    assert layer.ranks == (2, 0)
    assert layer.conditions == (2.0, 0.0)
    assert LayerSpectrum("a", "Linear", 2, 3000, ((1.0, 3e-13),)).ranks == (1,)


def test_relu_layers_are_found_with_their_matrix_and_input():
    model, x = small()
    (layer,) = relu_layers(model, x[0])
    assert layer.name == "conv"
    before = torch.from_numpy(layer.weight @ layer.x + layer.bias)
    torch.testing.assert_close(before, model.conv(x[:1]).flatten())
    assert layer.kind in {"unique", "bounded", "unbounded"}
    assert list(relu_layers(model, x[0], largest=10)) == []


def test_a_relu_in_place_is_found_as_any():
    model, x = small()
    nn.init.constant_(model.conv.bias, -0.2)
    assert (model.conv(x[:1]) < 0).any()
    (expected,) = relu_layers(model, x[0])
    for part in model.modules():
        if isinstance(part, nn.ReLU):
            part.inplace = True
    (found,) = relu_layers(model, x[0])
    assert found.name == expected.name
    assert (found.x == expected.x).all()


class Shortcut(nn.Module):
    """ReLU of the sum of a linear layer and a shortcut, added in place."""

    def __init__(self):
        super().__init__()
        self.linear, self.shortcut, self.act = nn.Linear(3, 4), nn.Linear(3, 4), nn.ReLU()

    def forward(self, x):
        residual, shortcut = self.linear(x), self.shortcut(x)
        shortcut += residual
        return self.act(shortcut)


def test_a_layer_whose_output_is_changed_before_relu_is_none_with_a_preimage():
    torch.manual_seed(0)
    assert list(relu_layers(Shortcut().eval(), torch.rand(3))) == []


def test_blocks_with_an_estimated_log_determinant_have_the_same_jacobian():
    torch.manual_seed(0)
    flow = residual_flow((1, 4, 4), 2, blocks=(1, 1), width=4).double().eval().requires_grad_(False)
    x = torch.rand(1, 4, 4).double()
    (name, block), *_ = [
        (name, unit) for name, unit in linear_units(flow) if type(unit).__name__ == "ResidualBlock"
    ]
    found = jacobian_of(flow, x, name)
    block.log_determinant = None
    expected = jacobian_of(flow, x, name)
    torch.testing.assert_close(found, expected)


class Several(nn.Module):
    """A leaf that takes a keyword and returns several tensors."""

    def forward(self, *, x):
        return x, x.sum()


class Mixed(nn.Module):
    def __init__(self):
        super().__init__()
        self.several, self.linear, self.act = Several(), nn.Linear(3, 4), nn.ReLU()

    def forward(self, x):
        return self.act(self.linear(self.several(x=x)[0]))


def test_preimages_are_found_beside_layers_of_other_signatures():
    torch.manual_seed(0)
    (layer,) = relu_layers(Mixed().eval(), torch.rand(3))
    assert layer.name == "linear"
    flow = bijective((1, 4, 4), 3, blocks=(1, 1), width=4).eval()
    assert list(relu_layers(flow, torch.rand(1, 4, 4))) == []


def test_invertible_layers_count_as_one_unit_and_have_full_rank():
    torch.manual_seed(0)
    model = bijective((1, 4, 4), 3, blocks=(1, 1), width=4).double().eval().requires_grad_(False)
    units = dict(linear_units(model))
    assert [type(unit).__name__ for unit in units.values()].count("ResidualBlock") == 2
    layers = measure_spectra(model, torch.rand(1, 1, 4, 4).double())
    assert all(layer.ranks == (16,) for layer in layers)
    assert all(max(layer.conditions) < 100 for layer in layers)


def test_a_network_without_forward_derivatives_is_refused():
    class Rounding(torch.autograd.Function):
        @staticmethod
        def forward(_, x):
            return x.round()

    class Model(nn.Module):
        def __init__(self):
            super().__init__()
            self.one = nn.Linear(2, 2)
            self.two = nn.ReLU()

        def forward(self, x):
            return self.two(Rounding.apply(self.one(x)))

    with pytest.raises(BadModel, match="linearised"):
        jacobian_of(Model().double(), torch.ones(2).double(), "two")
