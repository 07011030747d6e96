"""Every invertible layer against its inverse, its autograd Jacobian and a saved copy; squeeze, factor-out and logit transform."""

import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st
from torch.func import jacrev

from robustbench_inv.errors import BadParameter
from robustbench_inv.models.layers.bijection import (
    Bijection,
    Chain,
    FactorOut,
    LogitTransform,
    Squeeze,
)
from robustbench_inv.models.layers.coupling import (
    Additive,
    Affine,
    Coupling,
    convolutional,
    linear_conditioner,
)
from robustbench_inv.models.layers.linear import (
    ActNorm,
    CosineTransform,
    Flatten,
    Mixing,
    centre_first,
    low_pass_first,
)

MAPS, VECTORS = (4, 6, 2), (7,)


def over_maps(transform, norm=False, swap=False):
    outputs = 2 * transform.parameters
    return Coupling(convolutional(2, outputs, 5, norm=norm), transform, swap=swap)


def over_vectors(transform, swap):
    passive, active = (4, 3) if swap else (3, 4)
    network = linear_conditioner(passive, active * transform.parameters, 6)
    return Coupling(network, transform, swap=swap)


def multiscale():
    step = (ActNorm(4), Mixing(4), over_maps(Affine()))
    rest = Chain(Mixing(2), CosineTransform(6, 2), Flatten((2, 6, 2), low_pass_first(6, 2)))
    return Chain(*step, FactorOut(rest, MAPS))


LAYERS = {  # name: (builder, shape of a sample)
    "actnorm": (lambda: ActNorm(4), MAPS),
    "actnorm-vectors": (lambda: ActNorm(7), VECTORS),
    "mixing": (lambda: Mixing(4), MAPS),
    "mixing-vectors": (lambda: Mixing(7), VECTORS),
    "squeeze": (Squeeze, MAPS),
    "factor-out": (lambda: FactorOut(Flatten((2, 6, 2), centre_first(6, 2)), MAPS), MAPS),
    "cosine": (lambda: CosineTransform(6, 2), MAPS),
    "flatten": (lambda: Flatten(MAPS, low_pass_first(6, 2)), MAPS),
    "additive": (lambda: over_maps(Additive()), MAPS),
    "affine": (lambda: over_maps(Affine(), swap=True), MAPS),
    "affine-norm": (lambda: over_maps(Affine(), norm=True), MAPS),
    "additive-vectors": (lambda: over_vectors(Additive(), swap=False), VECTORS),
    "affine-vectors": (lambda: over_vectors(Affine(1.0), swap=True), VECTORS),
    "multiscale": (multiscale, MAPS),
}


VOLUME_KEEPING = {n for n in LAYERS if n.startswith(("squ", "cos", "flat", "add", "fac"))}


def randomised(name, seed):
    """The layer in float64 and evaluation mode with random weights."""
    build, shape = LAYERS[name]
    torch.manual_seed(seed)
    layer = build().double().eval()
    with torch.no_grad():
        for parameter in layer.parameters():
            parameter.add_(0.3 * torch.randn_like(parameter))
    return layer, shape


def sample(shape, seed, n=3):
    generator = torch.Generator().manual_seed(seed)
    return torch.randn(n, *shape, generator=generator, dtype=torch.float64)


@pytest.mark.parametrize("name", LAYERS)
@settings(max_examples=8, deadline=None, derandomize=True)
@given(seed=st.integers(0, 2**20))
def test_inverse_undoes_the_layer(name, seed):
    layer, shape = randomised(name, seed)
    x = sample(shape, seed)
    with torch.no_grad():
        y, log_det = layer(x)
        again = layer.inverse(y)
    assert y.dtype == again.dtype == torch.float64
    assert log_det.shape == (3,)
    assert again.shape == x.shape
    assert (again - x).abs().max() <= 1e-8


@pytest.mark.parametrize("name", LAYERS)
@pytest.mark.parametrize("seed", [0, 1])
def test_log_det_is_that_of_the_jacobian(name, seed):
    layer, shape = randomised(name, seed)
    x = sample(shape, seed)
    _, claimed = layer(x)
    for i, point in enumerate(x):

        def flat(v):
            return layer(v.reshape(1, *shape))[0].flatten()

        jacobian = jacrev(flat)(point.flatten())
        torch.testing.assert_close(claimed[i], torch.linalg.slogdet(jacobian)[1], rtol=0, atol=1e-8)


@pytest.mark.parametrize("name", sorted(VOLUME_KEEPING))
def test_volume_preserving_layers_have_log_determinant_zero(name):
    layer, shape = randomised(name, 0)
    assert (layer(sample(shape, 0))[1] == 0).all()


@pytest.mark.parametrize("name", sorted(LAYERS.keys() - VOLUME_KEEPING))
def test_the_other_layers_change_volumes(name):
    layer, shape = randomised(name, 0)
    assert (layer(sample(shape, 0))[1].abs() > 1e-3).all()


@pytest.mark.parametrize("name", LAYERS)
def test_a_saved_layer_is_the_same_function(name):
    layer, shape = randomised(name, 0)
    x = sample(shape, 1)
    torch.manual_seed(99)
    fresh = LAYERS[name][0]().double()
    fresh.load_state_dict(layer.state_dict())
    fresh.eval()
    for one, other in zip(layer(x), fresh(x), strict=True):
        torch.testing.assert_close(one, other, rtol=0, atol=0)


@pytest.mark.parametrize("name", sorted(LAYERS.keys() - {"affine-norm"}))
def test_training_mode_changes_nothing_once_the_statistics_are_set(name):
    layer, shape = randomised(name, 0)
    for part in layer.modules():
        if isinstance(part, ActNorm):
            part.initialised.fill_(True)
    x = sample(shape, 1)
    calm = layer(x)[0]
    # in training, products are taken in another order
    torch.testing.assert_close(layer.train()(x)[0], calm, rtol=1e-12, atol=1e-12)


@pytest.mark.parametrize("name", LAYERS)
def test_every_parameter_gets_a_gradient(name):
    layer, shape = randomised(name, 0)
    y, log_det = layer(sample(shape, 0))
    if not list(layer.parameters()):
        return
    (y.pow(3).sum() + log_det.sum()).backward()
    assert all(p.grad is not None and p.grad.abs().sum() > 0 for p in layer.parameters())


@pytest.mark.parametrize("name", LAYERS)
def test_the_flow_keeps_float32_under_autocast(name):
    build, shape = LAYERS[name]
    torch.manual_seed(0)
    layer = build().eval()
    x = sample(shape, 0).float()
    with torch.no_grad(), torch.autocast("cpu", torch.bfloat16):
        y, log_det = layer(x)
        again = layer.inverse(y)
    assert {y.dtype, log_det.dtype, again.dtype} == {torch.float32}
    torch.testing.assert_close(again, x, rtol=0, atol=1e-5)


def test_a_bfloat16_network_shifts_the_active_half_by_its_output():
    coupling = over_vectors(Additive(), swap=False)
    torch.nn.init.normal_(coupling.network[-1].weight)
    x = torch.randn(5, 7, generator=torch.Generator().manual_seed(0))
    with torch.no_grad(), torch.autocast("cpu", torch.bfloat16):
        shift = coupling.network(x[:, :3])
        y, _ = coupling(x)
    assert shift.dtype == torch.bfloat16
    torch.testing.assert_close(y[:, 3:], x[:, 3:] + shift.float(), rtol=0, atol=0)


def test_chain_adds_the_log_determinants():
    layers = [randomised("affine-vectors", seed)[0] for seed in (0, 1)]
    x = sample(VECTORS, 0)
    middle, first = layers[0](x)
    last, second = layers[1](middle)
    y, total = Chain(*layers)(x)
    assert torch.equal(y, last)
    torch.testing.assert_close(total, first + second)


def test_a_bijection_is_abstract():
    with pytest.raises(TypeError, match="abstract"):
        Bijection()


def images(*shape, seed=0):
    return torch.randn(*shape, generator=torch.Generator().manual_seed(seed))


def test_squeeze_turns_blocks_into_channels():
    x = torch.arange(16.0).reshape(1, 1, 4, 4)
    assert Squeeze()(x)[0][0, :, 0, 0].tolist() == [0, 1, 4, 5]


def test_factored_out_channels_are_the_end_of_the_code():
    x = images(2, 5, 2, 2)
    code, _ = FactorOut(Flatten((3, 2, 2), low_pass_first(2, 2)), (5, 2, 2))(x)
    assert torch.equal(code[:, 12:], x[:, 3:].flatten(1))


PIXELS = torch.rand(3, 1, 4, 2, generator=torch.Generator().manual_seed(0), dtype=torch.float64)


def test_the_logit_transform_is_inverted():
    layer = LogitTransform(0.01)
    assert (layer.inverse(layer(PIXELS)[0]) - PIXELS).abs().max() < 1e-14


def test_log_determinant_is_the_sum_of_log_derivatives():
    pixels = PIXELS.clone().requires_grad_()
    y, log_det = LogitTransform(0.01)(pixels)
    (gradients,) = torch.autograd.grad(y.sum(), pixels)  # each element depends on itself alone
    torch.testing.assert_close(log_det, gradients.log().flatten(1).sum(1))


def test_both_ends_are_finite_and_opposite():
    y, log_det = LogitTransform(1e-4)(torch.tensor([[0.0, 1.0, 0.5]]))
    assert y[0, 0] == -y[0, 1]
    assert y[0, 2] == 0
    assert torch.isfinite(log_det).all()


@pytest.mark.parametrize("alpha", [0.0, 0.5, -0.1])
def test_invalid_alphas_raise(alpha):
    with pytest.raises(BadParameter, match="invalid alpha"):
        LogitTransform(alpha)
