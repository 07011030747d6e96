"""The networks of Supervised Deep InfoMax: layers and parameters of the paper, densities of their Gaussians."""

import math

import pytest
import torch
from torch import nn
from torch.distributions import MultivariateNormal

from robustbench_inv.errors import BadModel, BadParameter
from robustbench_inv.models.resnet import ResNetClassifier, ResNetEncoder
from robustbench_inv.models.sdim import LOG_SIGMA_RATE, SDIM, ClassConditionals

IMAGES = torch.rand(4, 1, 28, 28, generator=torch.Generator().manual_seed(0))


def parameters(module: nn.Module) -> int:
    return sum(p.numel() for p in module.parameters())


@pytest.mark.parametrize(("blocks", "channels", "millions"), [(1, 1, 1.25), (3, 3, 4.39)])
def test_the_baselines_have_the_parameters_of_table_1(blocks, channels, millions):
    model = ResNetClassifier(blocks=blocks, channels=channels)
    assert parameters(model) / 1e6 == pytest.approx(millions, abs=0.005)


@pytest.mark.parametrize(("blocks", "depth"), [(1, 10), (3, 26)])
def test_the_encoder_has_8n_plus_2_layers_but_for_the_hidden_one(blocks, depth):
    layers = [m for m in ResNetEncoder(blocks).modules() if isinstance(m, nn.Conv2d | nn.Linear)]
    assert len(layers) == depth + 1
    shapes = []
    for layer in layers:
        layer.register_forward_hook(lambda _m, _i, out: shapes.append(tuple(out.shape[1:])))
    encoder = ResNetEncoder(blocks).eval()
    sides = []
    for stage in encoder.stages:
        stage.register_forward_hook(lambda _m, _i, out: sides.append(tuple(out.shape[1:])))
    local, code = encoder(IMAGES)
    assert sides == [(32, 32, 32), (64, 16, 16), (128, 8, 8), (256, 4, 4)]
    assert (local.shape, code.shape) == ((4, 256, 4, 4), (4, 64))


def test_small_images_are_padded_with_zeros_inside_the_model():
    encoder = ResNetEncoder().eval()
    framed = nn.functional.pad(IMAGES, (2, 2, 2, 2))
    assert torch.equal(encoder(IMAGES)[1], encoder(framed)[1])
    with pytest.raises(BadModel, match="too large"):
        encoder(torch.zeros(1, 1, 34, 34))


def test_small_images_are_resized_on_request():
    """Bilinear: a linear ramp stays linear away from the borders, with 28/32 of its slope."""
    encoder = ResNetEncoder(resize=True).eval()
    seen = []
    encoder.stem.register_forward_hook(lambda _m, inputs, _out: seen.append(inputs[0]))
    ramp = torch.linspace(0, 1, 28).expand(1, 1, 28, 28)
    encoder(ramp)
    assert seen[0].shape == (1, 1, 32, 32)
    steps = seen[0][0, 0, 5].diff()
    torch.testing.assert_close(steps[1:-1], torch.full((29,), 28 / 32 / 27))
    assert (SDIM(resize=True).encoder.resize, ResNetClassifier(resize=True).encoder.resize) == (
        True,
        True,
    )


def test_a_shortcut_is_every_second_pixel_with_zeros_for_the_new_channels():
    block = ResNetEncoder().stages[1][0].eval()
    nn.init.zeros_(block.residual[-1].weight)  # batch norm: the residual is its shift, 0
    maps = torch.rand(2, 32, 32, 32)
    expected = torch.cat([maps[:, :, ::2, ::2], torch.zeros(2, 32, 16, 16)], 1)
    assert torch.equal(block(maps), expected)


@pytest.mark.parametrize("kind", ["isotropic", "diagonal"])
def test_class_conditionals_are_gaussian_densities(kind):
    torch.manual_seed(1)
    conditionals = ClassConditionals(3, 5, kind).double()
    nn.init.normal_(conditionals.paced, std=0.1)
    assert conditionals.paced.shape == (3, 1 if kind == "isotropic" else 5)
    code = torch.randn(7, 5, dtype=torch.float64)
    for k, mean in enumerate(conditionals.mean):
        variance = (2 * LOG_SIGMA_RATE * conditionals.paced[k]).exp().expand(5)
        density = MultivariateNormal(mean, torch.diag(variance)).log_prob(code)
        torch.testing.assert_close(conditionals(code)[:, k], density)


def test_the_rate_of_log_sigma_is_a_parameter():
    conditionals = ClassConditionals(3, 5, log_sigma_rate=1.0)
    nn.init.constant_(conditionals.paced, 0.3)
    torch.testing.assert_close(conditionals.log_deviation, torch.full((3, 1), 0.3))
    with pytest.raises(BadParameter, match="log_sigma_rate"):
        SDIM(log_sigma_rate=0.0)


def test_the_mean_scale_divides_by_d_and_keeps_predictions():
    whole, scaled = SDIM().eval(), SDIM(scale="mean").eval()
    scaled.load_state_dict(whole.state_dict())
    torch.testing.assert_close(scaled(IMAGES) * 64, whole(IMAGES))
    assert torch.equal(scaled(IMAGES).argmax(1), whole(IMAGES).argmax(1))


def test_cross_entropy_has_a_gradient_at_the_training_margin_only_at_the_mean_scale():
    likelihoods = torch.tensor([[0.0] + [-10.0] * 9], requires_grad=True)
    for factor, least, most in ((64, 0.0, 0.0), (1, 1e-5, 1e-3)):
        loss = nn.functional.cross_entropy(likelihoods * factor, torch.tensor([0]))
        (gradient,) = torch.autograd.grad(loss, likelihoods)
        assert least <= gradient.abs().max() <= most
    assert math.exp(-10.0) > 1e-5


@pytest.mark.parametrize(("key", "value"), [("scale", "max"), ("covariance", "full")])
def test_unknown_names_are_refused(key, value):
    with pytest.raises(BadParameter, match=f"unknown {key}"):
        SDIM(**{key: value})


def test_every_parameter_gets_a_gradient():
    model = SDIM().train()
    model(IMAGES).sum().backward()
    assert all(p.grad is not None and p.grad.abs().sum() > 0 for p in model.parameters())


def test_the_code_is_not_computed_in_bfloat16():
    encoder = ResNetEncoder().eval()
    with torch.autocast("cpu", torch.bfloat16):
        local, code = encoder(IMAGES)
    assert (local.dtype, code.dtype) == (torch.bfloat16, torch.float32)
    assert encoder.double()(IMAGES.double())[1].dtype == torch.float64
