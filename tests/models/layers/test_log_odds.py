"""Log-odds of pixels: their inverse, their volume, and the ends of the interval."""

import pytest
import torch

from robustbench_inv.errors import BadParameter
from robustbench_inv.models.layers.bijection import LogitTransform

PIXELS = torch.rand(3, 1, 4, 2, generator=torch.Generator().manual_seed(0), dtype=torch.float64)


def test_inverse_undoes_the_layer():
    layer = LogitTransform(0.01)
    assert (layer.inverse(layer(PIXELS)[0]) - PIXELS).abs().max() < 1e-14


def test_volume_is_the_product_of_the_slopes():
    pixels = PIXELS.clone().requires_grad_()
    y, log_det = LogitTransform(0.01)(pixels)
    (slopes,) = torch.autograd.grad(y.sum(), pixels)  # each element depends on itself alone
    torch.testing.assert_close(log_det, slopes.log().flatten(1).sum(1))


def test_both_ends_are_finite_and_opposite():
    y, log_det = LogitTransform(1e-4)(torch.tensor([[0.0, 1.0, 0.5]]))
    assert y[0, 0] == -y[0, 1]
    assert y[0, 2] == 0
    assert torch.isfinite(log_det).all()


@pytest.mark.parametrize("alpha", [0.0, 0.5, -0.1])
def test_unusable_alphas_are_refused(alpha):
    with pytest.raises(BadParameter, match="invalid alpha"):
        LogitTransform(alpha)
