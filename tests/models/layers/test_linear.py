"""ActNorm, channel mixing and cosine transform: initialisation, closed forms and ordering."""

import math

import torch

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
