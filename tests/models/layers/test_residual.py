"""Residual blocks: fixed-point inverse within the bound of lemma 4.5, and the log-determinant."""

from itertools import islice

import pytest
import torch

from robustbench_inv.errors import BadParameter
from robustbench_inv.models.layers.residual import (
    LogDeterminant,
    ResidualBlock,
    convolutional_residual,
    error_bound,
    exact_log_determinant,
    fixed_point,
    fixed_point_iterates,
    linear_residual,
    neumann_series,
    power_series,
    truncation_bound,
    truncation_terms,
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


def vectors(lipschitz=0.8, d=6, n=4):
    """A residual map of vectors whose Jacobian is far from constant, and inputs."""
    torch.manual_seed(2)
    step = ResidualBlock(linear_residual((d, 12, d), lipschitz**0.5)).double()
    with torch.no_grad():
        for layer in step.layers():
            layer.weight.mul_(3)
    return step.eval().requires_grad_(False), torch.randn(n, d).double()


def unit_probes(d):
    """Probes whose mean is the exact trace."""
    return (torch.eye(d) * d**0.5)[:, None].double()


@pytest.mark.parametrize("terms", [1, 2, 5, 10, 40])
def test_the_truncated_series_is_within_its_bound_of_slogdet(terms):
    step, x = vectors()
    truth = exact_log_determinant(step.residual, x)
    _, found = power_series(step.residual, x, unit_probes(6), [1.0] * terms, graph=False)
    assert ((found - truth).abs() <= truncation_bound(step.lipschitz(), terms, 6)).all()
    if terms == 40:
        torch.testing.assert_close(found, truth, rtol=0, atol=1e-6)


@pytest.mark.parametrize(("lipschitz", "terms"), [(0.1, 15), (0.125, 20), (0.5, 60), (0.9, 300)])
def test_a_small_bound_is_the_sum_of_the_further_terms(lipschitz, terms):
    first = lipschitz ** (terms + 1) / (terms + 1)
    assert first < truncation_bound(lipschitz, terms) <= first / (1 - lipschitz)


def test_the_number_of_terms_keeps_the_tolerance():
    terms = truncation_terms(0.73, 1e-4)
    assert truncation_bound(0.73, terms) <= 1e-4 < truncation_bound(0.73, terms - 1)


def test_the_gradient_converges_at_the_rate_of_theorem_5_9():
    step, x = vectors()
    lipschitz, weights = step.lipschitz(), [layer.weight for layer in step.layers()]

    def gradient(terms):
        for weight in weights:
            weight.requires_grad_()
        _, found = power_series(step.residual, x, unit_probes(6), [1.0] * terms, graph=True)
        grads = torch.autograd.grad(found.sum(), weights)
        return torch.cat([grad.flatten() for grad in grads])

    truth = gradient(80)
    errors = [float((gradient(n) - truth).abs().max()) for n in (2, 6, 10, 14)]
    scaled = [error / lipschitz**n for error, n in zip(errors, (2, 6, 10, 14), strict=True)]
    assert errors[0] > 1e-3
    assert max(scaled) <= 2 * scaled[0]


def parameter_gradient(step, log_determinants):
    weights = [layer.weight for layer in step.layers()]
    return torch.cat([g.flatten() for g in torch.autograd.grad(log_determinants.sum(), weights)])


@pytest.mark.parametrize("factors", [[1.0] * 7, [1.0, 1.0, 1.8, 3.2]])
def test_the_neumann_series_has_value_and_expected_gradient_of_the_power_series(factors):
    step, x = vectors()
    step.requires_grad_()
    y, expected = power_series(step.residual, x, unit_probes(6), factors, graph=True)
    z, found = neumann_series(step.residual, x, unit_probes(6), factors)
    torch.testing.assert_close(z, y)
    torch.testing.assert_close(found, expected)
    gradients = [parameter_gradient(step, each) for each in (found, expected)]
    torch.testing.assert_close(*gradients)
    assert gradients[0].abs().max() > 1e-2


def test_log_determinants_are_those_of_normflows():
    """The library that continues the code of Residual Flows, with the same residual map and vectors v."""
    flows = pytest.importorskip("normflows.flows.residual")
    step, x = vectors()
    step.requires_grad_()
    peer = flows.iResBlock(step.residual, n_power_series=9, exact_trace=True).double()
    step.eval()  # fixes the norms of the layers, which the library's block shares
    _, theirs = peer(x.clone(), x.new_zeros(len(x), 1))
    _, ours = power_series(step.residual, x, unit_probes(6), [1.0] * 9, graph=False)
    torch.testing.assert_close(ours, -theirs[:, 0].detach())
    peer = flows.iResBlock(step.residual, n_power_series=8).double()
    step.eval()
    torch.manual_seed(3)
    _, theirs = peer(x.clone(), x.new_zeros(len(x), 1))
    torch.manual_seed(3)
    _, ours = neumann_series(step.residual, x, torch.randn_like(x)[None], [1.0] * 9)
    torch.testing.assert_close(parameter_gradient(step, ours), -parameter_gradient(step, theirs))


def hutchinson(estimator, terms, draws=2000):
    step, x = vectors(n=1)
    plan = LogDeterminant(terms=terms, estimator=estimator, continuation=0.7)
    generator = torch.Generator().manual_seed(0)
    found = []
    for _ in range(draws // 50):
        probes = torch.randn(1, 50, 6, generator=generator).double()
        factors = plan.factors(generator)
        found.append(power_series(step.residual, x.expand(50, -1), probes, factors, graph=False)[1])
    batches = torch.stack(found).mean(1)
    error = float(batches.std() / len(batches) ** 0.5)
    return float(batches.mean() - exact_log_determinant(step.residual, x)), error


def test_the_roulette_has_no_bias_where_the_truncated_estimate_has_one():
    bias, error = hutchinson("truncated", 1)
    assert abs(bias) > 5 * error
    bias, error = hutchinson("roulette", 1)
    assert abs(bias) < 3 * error
    assert error < 0.1


def test_hutchinsons_estimate_of_many_terms_has_no_bias():
    bias, error = hutchinson("truncated", 30, draws=1000)
    assert abs(bias) < 3 * error


def test_a_block_in_evaluation_estimates_its_log_determinant_in_every_batch_alike():
    torch.manual_seed(2)
    plan = LogDeterminant(evaluation_probes=4000, evaluation_tolerance=1e-5)
    step = ResidualBlock(linear_residual((3, 8, 3), 0.7), plan).double().eval()
    x = torch.randn(4, 3).double()
    with torch.inference_mode():
        y, found = step(x)
        torch.testing.assert_close(step(x[2:])[1], found[2:])
    torch.testing.assert_close(y, x + step.residual(x))
    truth = exact_log_determinant(step.residual.requires_grad_(False), x)
    torch.testing.assert_close(found, truth, rtol=0, atol=0.03)


def test_draws_in_training_depend_on_the_step_alone():
    plan = LogDeterminant(terms=3)
    step, other = (ResidualBlock(linear_residual((3, 8, 3), 0.7), plan, seed=5) for _ in range(2))
    x = torch.randn(4, 3)
    first = step.train()(x)[1]
    step(x)
    other.load_state_dict({name: value.clone() for name, value in step.state_dict().items()})
    third = step(x)[1]
    assert not torch.equal(first, third)
    torch.testing.assert_close(other.train()(x)[1], third)


@pytest.mark.parametrize(
    "fields", [{"terms": 0}, {"estimator": "exact"}, {"continuation": 1.0}, {"probes": 0}]
)
def test_bad_estimators_are_refused(fields):
    with pytest.raises(BadParameter):
        LogDeterminant(**fields)
