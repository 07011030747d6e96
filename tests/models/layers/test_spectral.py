"""Spectrally normalised layers: the norm of the operator, not of the reshaped kernel."""

import pytest
import torch

from robustbench_inv.errors import BadParameter
from robustbench_inv.models.layers.spectral import (
    SpectralConv2d,
    SpectralLinear,
    circular_singular_values,
    largest_singular_value,
)


def dense(layer, weight=None):
    """The matrix of a layer's operator, from its values on unit vectors."""
    weight = layer.weight if weight is None else weight
    size = torch.Size(layer.shape).numel()
    basis = torch.eye(size, dtype=weight.dtype).reshape(size, *layer.shape)
    with torch.no_grad():
        return layer.operate(basis, weight).flatten(1).T


LAYERS = {
    f"{boundary}-{inputs}-{outputs}-{kernel}": (boundary, inputs, outputs, kernel, size)
    for boundary in ("zeros", "circular")
    for inputs, outputs, kernel, size in ((2, 5, 3, (6, 5)), (4, 3, 1, (4, 4)), (1, 2, 5, (3, 4)))
}


def convolution(name, coefficient=0.7):
    boundary, inputs, outputs, kernel, size = LAYERS[name]
    torch.manual_seed(1)
    return SpectralConv2d(inputs, outputs, kernel, size, coefficient, boundary=boundary).double()


@pytest.mark.parametrize("name", LAYERS)
def test_the_measured_norm_is_that_of_the_dense_operator(name):
    layer = convolution(name)
    truth = torch.linalg.matrix_norm(dense(layer), 2)
    torch.testing.assert_close(layer.spectral_norm(layer.weight), truth, rtol=1e-6, atol=0)


@pytest.mark.parametrize("name", LAYERS)
def test_the_transpose_is_the_adjoint(name):
    layer = convolution(name)
    x = torch.randn(1, *layer.shape, dtype=torch.float64)
    y = torch.randn_like(layer.operate(x, layer.weight))
    forward = (layer.operate(x, layer.weight) * y).sum()
    torch.testing.assert_close(forward, (x * layer.transpose(y, layer.weight)).sum())


@pytest.mark.parametrize("name", LAYERS)
@pytest.mark.parametrize("scale", [3.0, 1e-3])
def test_the_scaled_operator_has_norm_at_most_c_after_training(name, scale):
    """A norm below c stays as it is (equation 4.9)."""
    layer = convolution(name).train()
    with torch.no_grad():
        layer.weight.mul_(scale)
    for _ in range(3):
        layer(torch.randn(2, *layer.shape, dtype=torch.float64))
    layer.eval()
    norm = float(torch.linalg.matrix_norm(dense(layer, layer.scaled_weight()), 2))
    plain = float(torch.linalg.matrix_norm(dense(layer), 2))
    assert norm == pytest.approx(min(0.7, plain), rel=1e-3)
    assert layer.operator_norm() == pytest.approx(norm, rel=1e-5)
    assert layer.lipschitz() == pytest.approx(norm, rel=1e-5)


def test_loaded_weights_are_measured():
    """Rounding changes a norm by up to 5e-4; the stored one would be wrong by so much."""
    layer, rounded = convolution("circular-2-5-3").eval(), convolution("circular-2-5-3").eval()
    with torch.no_grad():
        layer.weight.mul_(3)
    state = {name: value.half() for name, value in layer.state_dict().items()}
    rounded.load_state_dict(state)
    truth = torch.linalg.matrix_norm(dense(rounded), 2)
    assert float(rounded.sigma) == pytest.approx(float(truth), rel=1e-9)
    assert float(state["sigma"]) != pytest.approx(float(truth), rel=1e-2)


def test_the_norm_of_the_reshaped_kernel_would_be_too_small():
    layer = convolution("zeros-2-5-3")
    reshaped = torch.linalg.matrix_norm(layer.weight.flatten(1), 2)
    assert layer.spectral_norm(layer.weight) > 1.2 * reshaped


def test_power_iteration_in_training_approaches_the_norm():
    layer = convolution("zeros-2-5-3").train()
    x = torch.randn(1, *layer.shape, dtype=torch.float64)
    for _ in range(200):
        layer(x)
    norm = torch.linalg.matrix_norm(dense(layer, layer.scaled_weight().detach()), 2)
    assert norm == pytest.approx(0.7, rel=1e-3)
    layer.scaled_weight().sum().backward()
    assert layer.weight.grad is not None


def test_a_linear_layer_has_the_norm_of_its_matrix():
    torch.manual_seed(0)
    layer = SpectralLinear(4, 6, 0.5).double()
    with torch.no_grad():
        layer.weight.mul_(3)
    layer.eval()
    assert torch.linalg.matrix_norm(layer.scaled_weight().detach(), 2) == pytest.approx(0.5)


def test_all_singular_values_of_a_circular_convolution_come_from_its_fourier_transform():
    layer = convolution("circular-2-5-3")
    expected = torch.linalg.svdvals(dense(layer))
    found = circular_singular_values(layer.weight.detach(), (6, 5)).flatten()
    torch.testing.assert_close(found.sort(descending=True)[0], expected, rtol=1e-9, atol=1e-9)


def test_the_lanczos_norm_of_a_rotation_is_one():
    matrix = torch.linalg.qr(torch.randn(6, 6, dtype=torch.float64))[0]
    norm = largest_singular_value(lambda x: x @ matrix.T, lambda y: y @ matrix, (6,))
    assert norm == pytest.approx(1)


def test_bad_parameters_are_refused():
    with pytest.raises(BadParameter, match="coefficient"):
        SpectralLinear(2, 2, 1.0)
    with pytest.raises(BadParameter, match="boundary"):
        SpectralConv2d(1, 1, 3, (4, 4), 0.9, boundary="mirror")
    with pytest.raises(BadParameter, match="kernel"):
        SpectralConv2d(1, 1, 2, (4, 4), 0.9)
