"""Couplings, transforms and their networks: initialisation, bounds and layers of the paper."""

import pytest
import torch
from safetensors.torch import load, save
from torch import nn

from robustbench_inv.errors import BadParameter
from robustbench_inv.models.layers.coupling import (
    Affine,
    ConditionalTransform,
    Coupling,
    LogitCoupling,
    convolutional,
    linear_conditioner,
    transform_named,
)
from robustbench_inv.models.layers.linear import (
    ActNorm,
)


def images(*shape, seed=0):
    return torch.randn(*shape, generator=torch.Generator().manual_seed(seed))


def test_loaded_actnorm_is_not_initialised_again():
    trained = ActNorm(4)
    trained(5 * images(8, 4, 3, 3) + 1)
    fresh = ActNorm(4)
    fresh.load_state_dict(load(save(trained.state_dict())))
    other = images(8, 4, 3, 3, seed=1)
    assert torch.equal(fresh(other)[0], trained(other)[0])
    assert torch.equal(fresh.shift, trained.shift)


def test_affine_scales_stay_inside_their_bound():
    raw = torch.tensor([[0.0, -1e9], [0.0, 1e9]])
    y, log_det = Affine(1.5).apply(torch.ones(2, 1), raw)
    torch.testing.assert_close(y.log().flatten(), torch.tensor([-1.5, 1.5]))
    torch.testing.assert_close(log_det, torch.tensor([-1.5, 1.5]))


@pytest.mark.parametrize("swap", [False, True])
def test_couplings_keep_the_passive_half_and_start_as_the_identity(swap):
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
    torch.testing.assert_close(layer.inverse(y, classes), x)


def test_unknown_transforms_raise():
    with pytest.raises(BadParameter, match="additive or affine"):
        transform_named("rational")


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


def jacobian_log_det(function, point):
    jacobian = torch.autograd.functional.jacobian(lambda x: function(x[None])[0].flatten(), point)
    return torch.linalg.slogdet(jacobian.reshape(point.numel(), point.numel())).logabsdet.item()


def test_a_changed_logit_changes_only_its_own_pixels():
    network = nn.Sequential(nn.Flatten(), nn.Linear(144, 3))
    layer = LogitCoupling(network, (1, 12, 12), 3, pixels=4, gain=10.0).double()
    images = torch.rand(5, 1, 12, 12, dtype=torch.float64)
    code, log_det = layer(images)
    assert log_det[0].item() == pytest.approx(3 * torch.tensor(10.0).log().item(), abs=1e-6)
    assert log_det[0].item() == pytest.approx(
        jacobian_log_det(lambda x: layer(x)[0], images[0]), abs=1e-6
    )
    torch.testing.assert_close(layer.inverse(code), images, rtol=0, atol=1e-12)
    code[:, 1] += 5.0
    changed = (layer.inverse(code) - images).flatten(1)
    assert (changed.abs() > 1e-12).sum(1).tolist() == [4] * 5
    assert changed.norm(dim=1).tolist() == pytest.approx([0.5] * 5)  # 5 logits at a gain of 10
    assert changed.sum(1).abs().max() < 1e-12  # half of the pixels up, half down


@pytest.mark.parametrize("pixels", [0, 3, 48])
def test_invalid_pixels_raise(pixels):
    with pytest.raises(BadParameter, match="invalid pixels"):
        LogitCoupling(nn.Identity(), (1, 12, 12), 3, pixels=pixels)
