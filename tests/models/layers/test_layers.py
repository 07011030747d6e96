"""What single invertible layers do besides being invertible."""

import math

import pytest
import torch
from safetensors.torch import load, save

from robustbench_inv.errors import BadParameter
from robustbench_inv.models.layers.bijection import FactorOut, Squeeze
from robustbench_inv.models.layers.coupling import (
    Affine,
    ConditionalTransform,
    Coupling,
    convolutional,
    linear_conditioner,
    transform_named,
)
from robustbench_inv.models.layers.linear import (
    ActNorm,
    CosineTransform,
    Flatten,
    Mixing,
    low_pass_first,
)


def images(*shape, seed=0):
    return torch.randn(*shape, generator=torch.Generator().manual_seed(seed))


def test_actnorm_standardises_its_first_training_batch():
    x = 3 * images(50, 4, 5, 5) + torch.arange(4.0)[:, None, None]
    y, log_det = ActNorm(4)(x)
    torch.testing.assert_close(y.mean((0, 2, 3)), torch.zeros(4), rtol=0, atol=1e-5)
    torch.testing.assert_close(y.std((0, 2, 3), correction=0), torch.ones(4))
    expected = -25 * x.std((0, 2, 3), correction=0).log().sum()
    torch.testing.assert_close(log_det, expected.expand(50))


def test_actnorm_is_the_identity_until_it_has_been_initialised():
    layer, x = ActNorm(4).eval(), images(6, 4, 3, 3)
    y, log_det = layer(x)
    assert torch.equal(y, x)
    assert (log_det == 0).all()
    assert not layer.initialised


def test_loaded_actnorm_is_not_initialised_again():
    trained = ActNorm(4)
    trained(5 * images(8, 4, 3, 3) + 1)
    fresh = ActNorm(4)
    fresh.load_state_dict(load(save(trained.state_dict())))
    other = images(8, 4, 3, 3, seed=1)
    assert torch.equal(fresh(other)[0], trained(other)[0])
    assert torch.equal(fresh.shift, trained.shift)


def test_actnorm_of_a_constant_channel_stays_finite():
    y, log_det = ActNorm(2)(torch.ones(5, 2, 3, 3))
    assert y.isfinite().all()
    assert log_det.isfinite().all()


def test_mixing_starts_as_a_rotation():
    torch.manual_seed(0)
    layer, x = Mixing(6).double(), images(3, 6, 2, 2).double()
    y, log_det = layer(x)
    torch.testing.assert_close(y.norm(dim=1), x.norm(dim=1), rtol=0, atol=1e-6)
    torch.testing.assert_close(log_det, torch.zeros(3).double(), rtol=0, atol=1e-5)


def test_affine_scales_stay_inside_their_bound():
    raw = torch.tensor([[0.0, -1e9], [0.0, 1e9]])
    y, log_det = Affine(1.5).apply(torch.ones(2, 1), raw)
    torch.testing.assert_close(y.log().flatten(), torch.tensor([-1.5, 1.5]))
    torch.testing.assert_close(log_det, torch.tensor([-1.5, 1.5]))


@pytest.mark.parametrize("swap", [False, True])
def test_couplings_leave_the_passive_half_and_start_as_the_identity(swap):
    coupling = Coupling(linear_conditioner(3, 6, 5), Affine(), swap=swap)
    x = images(4, 6)
    assert torch.equal(coupling(x)[0], x)
    torch.nn.init.normal_(coupling.network[-1].weight)
    moved = (coupling(x)[0] != x).any(0).tolist()
    assert moved == [swap] * 3 + [not swap] * 3


def test_condition_alone_is_a_table_of_shifts_and_log_scales():
    layer = ConditionalTransform(2, 3, Affine(2.0))
    with torch.no_grad():
        layer.table.weight.copy_(torch.arange(12.0).reshape(4, 3) / 20)
    x, classes = images(3, 2), torch.eye(3)
    y, log_det = layer(x, classes)
    shift, raw = layer.table.weight.T.chunk(2, 1)
    log_scale = 2 * torch.tanh(raw / 2)
    torch.testing.assert_close(y, x * log_scale.exp() + shift)
    torch.testing.assert_close(log_det, log_scale.sum(1))


def test_condition_alone_says_when_there_is_no_condition():
    with pytest.raises(BadParameter, match="needs a condition"):
        ConditionalTransform(2, 3, Affine())(images(1, 2))


def test_unknown_transforms_are_named():
    with pytest.raises(BadParameter, match="additive or affine"):
        transform_named("rational")


def test_squeeze_turns_blocks_into_channels():
    x = torch.arange(16.0).reshape(1, 1, 4, 4)
    assert Squeeze()(x)[0][0, :, 0, 0].tolist() == [0, 1, 4, 5]


def test_factored_out_channels_are_the_end_of_the_code():
    x = images(2, 5, 2, 2)
    code, _ = FactorOut(Flatten((3, 2, 2), low_pass_first(2, 2)), (5, 2, 2))(x)
    assert torch.equal(code[:, 12:], x[:, 3:].flatten(1))


def test_lowest_frequency_is_the_scaled_mean_of_a_map():
    x = images(3, 4, 7, 5).double()
    y, _ = CosineTransform(7, 5)(x)
    torch.testing.assert_close(y[:, :, 0, 0], x.mean((2, 3)) * math.sqrt(35))
    torch.testing.assert_close(y.square().sum((2, 3)), x.square().sum((2, 3)))


def test_cosine_transform_separates_a_cosine():
    k = torch.cos(math.pi / 8 * 3 * (torch.arange(8).double() + 0.5))
    y, _ = CosineTransform(8, 8)(k.expand(1, 1, 8, 8))
    assert (y.abs() > 1e-9).nonzero().tolist() == [[0, 0, 0, 3]]


def test_code_begins_with_the_means_of_all_maps():
    x = images(2, 6, 3, 4).double()
    waves, _ = CosineTransform(3, 4)(x)
    code, _ = Flatten((6, 3, 4), low_pass_first(3, 4))(waves)
    torch.testing.assert_close(code[:, :6], x.mean((2, 3)) * math.sqrt(12))
    assert torch.equal(code[:, 6:12], waves[:, :, 0, 1])


def test_convolutional_conditioner_has_the_layers_of_appendix_b2():
    plain, normed = (convolutional(6, 8, 128, norm=norm) for norm in (False, True))
    kernels = [m.kernel_size for m in normed if isinstance(m, torch.nn.Conv2d)]
    assert kernels == [(3, 3), (1, 1), (3, 3)]
    weights = 9 * 6 * 128 + 128 * 128 + 9 * 128 * 8 + 8
    assert sum(p.numel() for p in plain.parameters()) == weights + 2 * 128
    assert sum(p.numel() for p in normed.parameters()) == weights + 4 * 128


def test_bottlenecks_start_from_zero_or_at_random():
    x = images(4, 3)
    assert (linear_conditioner(3, 5, 8)(x) == 0).all()
    assert (linear_conditioner(3, 5, 8, zeroed=False)(x) != 0).all()


def test_batch_norm_of_the_conditioner_differs_between_the_modes():
    network = convolutional(2, 2, 8, norm=True)
    torch.nn.init.normal_(network[-1].weight)
    x = 3 * images(4, 2, 5, 5)
    assert not torch.allclose(network.train()(x), network.eval()(x))
