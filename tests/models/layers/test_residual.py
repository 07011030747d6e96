"""Residual blocks: fixed-point inverse within the bound of lemma 4.5, and the log-determinant."""

from itertools import islice

import pytest
import torch

from robustbench_inv.models.layers.residual import (
    ResidualBlock,
    convolutional_residual,
    error_bound,
    fixed_point,
    fixed_point_iterates,
    linear_residual,
)

SHAPE = (3, 4, 6)


def block(coefficient=0.9, boundary="zeros", seed=0, scale=2.0):
    torch.manual_seed(seed)
    residual = convolutional_residual(
        SHAPE[0], 5, SHAPE[1:], coefficient, activate_first=False, boundary=boundary
    )
    with torch.no_grad():
        for layer in residual:
            if hasattr(layer, "bias"):
                layer.weight.mul_(scale)
                layer.bias.normal_()
    built = ResidualBlock(residual).double().train()
    built(torch.randn(2, *SHAPE).double())
    return built.eval().requires_grad_(False)


def inputs(n=7):
    sizes = torch.logspace(-3, 2, n, dtype=torch.float64)[:, None, None, None]
    return sizes * torch.randn(n, *SHAPE, generator=torch.Generator().manual_seed(0)).double()


def l2(x):
    return x.flatten(1).norm(dim=1)


@pytest.mark.parametrize("boundary", ["zeros", "circular"])
@pytest.mark.parametrize("coefficient", [0.9, 0.7, 0.5])
def test_the_error_of_each_sample_is_below_its_bound_after_each_iteration(coefficient, boundary):
    step, x = block(coefficient, boundary), inputs()
    y, _ = step(x)
    lipschitz = step.lipschitz()
    iterates = list(islice(fixed_point_iterates(step.residual, y), 120))
    first = l2(iterates[1] - iterates[0])
    rounding = 1e-13 * l2(y)
    for k, iterate in enumerate(iterates):
        assert (l2(iterate - x) <= error_bound(lipschitz, k, first) + rounding).all(), k
    assert (l2(iterates[5] - x) > rounding).any()


def test_the_lipschitz_constant_is_the_product_of_the_measured_norms():
    """Layers below c count with their own norm, not with c."""
    step = block(0.9, scale=1.0)
    layers = list(step.layers())
    with torch.no_grad():
        layers[1].weight.mul_(0.1 / layers[1].sigma)
        layers[1].measure()
    assert layers[1].lipschitz() == pytest.approx(0.1, rel=1e-5)
    measured = [layer.operator_norm() for layer in layers]
    assert step.lipschitz() == pytest.approx(measured[0] * measured[1] * measured[2], rel=1e-5)
    assert step.lipschitz() < 0.9**2 * 0.11


@pytest.mark.parametrize("dtype", [torch.float32, torch.float64])
def test_the_inverse_is_exact_up_to_rounding(dtype):
    step, x = block().to(dtype), inputs().to(dtype)
    y, _ = step(x)
    assert (l2(step.inverse(y) - x) <= 40 * torch.finfo(dtype).eps * l2(y)).all()


def test_a_sample_is_inverted_by_itself():
    step, x = block(), inputs()
    y, _ = step(x)
    together = step.inverse(y)
    for i in range(len(x)):
        torch.testing.assert_close(step.inverse(y[i : i + 1])[0], together[i], rtol=0, atol=1e-12)


def test_samples_that_have_converged_leave_the_batch():
    step, x = block(), inputs()
    y, _ = step(x)
    sizes = []

    def residual(part):
        sizes.append(len(part))
        return step.residual(part)

    loose = fixed_point(residual, y, step.lipschitz(), tolerance=1e-8)
    assert (l2(loose - x) <= 1e-8).all()
    assert sizes[0] == len(x)
    assert sizes[-1] < len(x)
    assert sizes == sorted(sizes, reverse=True)


def test_without_a_contraction_the_iteration_fails():
    step, x = block(None, scale=4.0), inputs()
    y, _ = step(x)
    assert step.lipschitz() > 1
    assert not bool((step.inverse(y) - x).abs().max() < 1e-2)


def test_a_block_of_vectors_is_inverted():
    torch.manual_seed(0)
    step = ResidualBlock(linear_residual((2, 8, 8, 2), 0.9)).double().eval()
    x = torch.randn(5, 2).double()
    assert (step.inverse(step(x)[0]) - x).abs().max() < 1e-12
