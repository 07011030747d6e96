"""The class-conditional flow: its densities integrate to one and agree with the change of variables."""

from math import log, pi

import pytest
import torch
from torch.func import jacrev
from torch.nn.functional import one_hot

from robustbench_inv.models.conditional_flow import bits_per_dimension, glow
from robustbench_inv.models.layers.bijection import LogitTransform
from robustbench_inv.models.reject_option import fit_quantiles, reject
from robustbench_inv.models.wrapping import wrap_module
from robustbench_inv.tensors import Output


def randomised(shape=(1, 4, 4), classes=3, strength=0.3, **architecture):
    """A flow in float64 with random weights."""
    torch.manual_seed(0)
    flow = glow(shape, classes, **{"blocks": 2, "width": 4, "stages": 1, **architecture})
    with torch.no_grad():
        for parameter in flow.parameters():
            parameter.add_(strength * torch.randn_like(parameter))
    return flow.double().eval()


def pixels(n, shape=(1, 4, 4)):
    generator = torch.Generator().manual_seed(1)
    return torch.rand(n, *shape, generator=generator, dtype=torch.float64)


@pytest.mark.parametrize("stages", [1, 2])
def test_likelihood_is_that_of_the_change_of_variables(stages):
    flow = randomised(stages=stages)
    images = pixels(2)
    for label in range(3):
        own = one_hot(torch.tensor([label]), 3).double()

        def normal(flat, own=own):
            code, _ = flow.flow(flat.reshape(1, 1, 4, 4))
            return flow.prior(code, own)[0][0]

        for image, claimed in zip(images, flow(images)[:, label], strict=True):
            y, jacobian = normal(image.flatten()), jacrev(normal)(image.flatten())
            density = -y.square().sum() / 2 - 8 * log(2 * pi)
            expected = density + torch.linalg.slogdet(jacobian).logabsdet
            torch.testing.assert_close(claimed, expected, rtol=0, atol=1e-8)


@torch.no_grad()
def test_the_density_of_each_class_integrates_to_one():
    flow = randomised((1, 2, 2), classes=2, strength=0.1)
    flow.flow.steps[1] = LogitTransform(0.05)
    low, high, steps = _support(0.05), 1 - _support(0.05), 20
    middles = low + (high - low) * (torch.arange(steps, dtype=torch.float64) + 0.5) / steps
    grid = torch.cartesian_prod(*[middles] * 4).reshape(-1, 1, 2, 2)
    mass = flow(grid).exp().sum(0) * ((high - low) / steps) ** 4
    torch.testing.assert_close(mass, torch.ones(2, dtype=torch.float64), rtol=0, atol=2e-3)


def _support(alpha):
    """The least value of a pixel to which the flow gives a density."""
    cell = -alpha / (1 - 2 * alpha)
    return (256 * cell - 0.5) / 255


def test_all_classes_at_once_are_each_class_alone_and_take_one_pass():
    flow, images = randomised(stages=2), pixels(5)
    passes = []
    flow.flow.register_forward_hook(lambda *_: passes.append(1))
    together = flow(images)
    assert len(passes) == 1
    for label in range(3):
        for image, claimed in zip(images, together[:, label], strict=True):
            code, log_det = flow.flow(image[None])
            y, more = flow.prior(code, one_hot(torch.tensor([label]), 3).double())
            alone = torch.distributions.Normal(0, 1).log_prob(y).sum() + log_det + more
            torch.testing.assert_close(claimed, alone[0])


def test_classes_differ_by_their_priors_alone():
    flow, images = randomised(), pixels(3)
    with torch.no_grad():
        flow.prior.table.weight[:, 2] = flow.prior.table.weight[:, 0]
    likelihoods = flow(images)
    assert torch.equal(likelihoods[:, 2], likelihoods[:, 0])
    assert (likelihoods[:, 1] != likelihoods[:, 0]).all()


def test_a_uniform_density_of_dequantised_pixels_costs_eight_bits():
    uniform = torch.tensor(-784 * log(256 / 255), dtype=torch.float64)  # on (−½/255, 1 + ½/255)
    assert bits_per_dimension(uniform, 784).item() == pytest.approx(8.0, abs=1e-12)
    one_bit_less = uniform + 784 * log(2)
    assert bits_per_dimension(one_bit_less, 784).item() == pytest.approx(7.0, abs=1e-12)


def test_every_parameter_gets_a_gradient():
    flow = randomised(stages=2)
    flow(pixels(4))[:, 1].sum().backward()
    assert all(p.grad is not None and p.grad.abs().sum() > 0 for p in flow.parameters())


def test_it_rejects_by_the_likelihood_of_the_predicted_class():
    flow, images = randomised(), pixels(200)
    classifier = wrap_module(flow, "flow")
    with torch.no_grad():
        output = Output(classifier(images).logits[:, :2])
    decided = output.decision
    limits = fit_quantiles(output, decided, {}, classes=2).thresholds("likelihood", 10)
    answer = reject(classifier, "likelihood", torch.cat([limits, limits[:1]]))(images)
    own = answer.logits.gather(1, answer.decision[:, None])[:, 0]
    assert torch.equal(answer.score, own)
    assert 0 < (~answer.accepted).sum() < 200
