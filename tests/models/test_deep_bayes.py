"""Deep Bayes GBZ: its estimate against quadrature over z, and the protocol of stochastic classifiers."""

from math import log
from types import SimpleNamespace

import pytest
import torch
from torch import nn
from torch.distributions import Categorical, Independent, Normal

from robustbench_inv.errors import BadParameter
from robustbench_inv.models.deep_bayes import GBZ
from robustbench_inv.models.protocol import Classifier, Stochastic
from robustbench_inv.models.reject_option import reject
from robustbench_inv.models.stochastic import StochasticClassifier

CARD = SimpleNamespace(
    name="toy",
    implementation="robustbench_inv.models.deep_bayes:GBZ",
    parameters={"hidden": 8},
    weights_sha256=None,
    fits_dataset=False,
)
GENERATOR = torch.Generator().manual_seed(0)
IMAGES = torch.rand(3, 1, 28, 28, generator=GENERATOR, dtype=torch.float64)


def network(dimensions=2, classes=3):
    torch.manual_seed(0)
    return GBZ(classes, dimensions, hidden=8, variance=0.3).double().eval()


def draws(k, n, dimensions, seed=1):
    generator = torch.Generator().manual_seed(seed)
    return torch.randn(k, n, dimensions, generator=generator, dtype=torch.float64)


def joint(net, image, code):
    """Return log p(x, y, z) of one image for every class, (K, C), of codes (K, dimensions)."""
    pixels = Independent(Normal(net.draw(code), 0.3**0.5), 1)
    labels = Categorical(logits=net.judge(code)).logits
    prior = Independent(Normal(torch.zeros_like(code), 1.0), 1)
    return (pixels.log_prob(image.flatten()) + prior.log_prob(code))[:, None] + labels


@torch.no_grad()
def test_the_estimate_converges_to_the_integral_over_z():
    net, (steps, reach) = network(dimensions=1), (2001, 12.0)
    net.infer[1].bias[1] = 0.5  # q is wide, so that no weight is large
    grid = torch.linspace(-reach, reach, steps, dtype=torch.float64)[:, None]
    step = log(2 * reach / (steps - 1))
    exact = torch.stack([joint(net, image, grid).logsumexp(0) + step for image in IMAGES])
    even = torch.special.ndtri((torch.arange(400, dtype=torch.float64) + 0.5) / 400)
    estimate = net.averaged_logits(IMAGES, even[:, None, None].expand(-1, 3, 1))
    torch.testing.assert_close(estimate, exact, rtol=0, atol=1e-3)
    assert exact.std() > 0.5  # it is no constant that the estimate comes to


@torch.no_grad()
def test_a_log_weight_is_the_sum_of_the_log_densities():
    net, latent = network(), draws(1, 3, 2)
    posterior = net.posterior(IMAGES)
    answer = net.averaged_logits(IMAGES, latent)
    for i, image in enumerate(IMAGES):
        for k in range(3):
            proposal = Independent(
                Normal(posterior.mean[i, k], posterior.log_deviation[i, k].exp()), 1
            )
            code = proposal.base_dist.loc + proposal.base_dist.scale * latent[0, i]
            expected = joint(net, image, code[None])[0, k] - proposal.log_prob(code)
            torch.testing.assert_close(answer[i, k], expected)


@torch.no_grad()
def test_more_draws_raise_the_bound():
    net = network()
    means = [
        torch.stack([net.averaged_logits(IMAGES, draws(k, 3, 2, seed)) for seed in range(30)]).mean(
            0
        )
        for k in (1, 10)
    ]
    assert (means[1] > means[0]).all()


@torch.no_grad()
def test_one_class_at_a_time_is_that_column_of_all():
    net, noise = network(), draws(3, 1, 2)
    posterior = net.posterior(IMAGES)
    every = net.log_weights(IMAGES, posterior, noise)
    for label in range(3):
        labels = torch.full((3,), label)
        alone = net.log_weights(IMAGES, posterior.of(labels), noise, labels[:, None])
        torch.testing.assert_close(alone[:, 0], every[:, label])


@torch.no_grad()
def test_without_draws_it_uses_the_mean_of_q():
    net = network()
    torch.testing.assert_close(net(IMAGES), net.averaged_logits(IMAGES, torch.zeros(1, 3, 2)))


def test_it_is_a_stochastic_classifier_also_with_a_reject_option():
    model = StochasticClassifier(network(), draws=4, fixed_noise=False)
    rejecting = reject(model, "likelihood", torch.full((3,), -1000.0))
    for each in (model, rejecting):
        assert isinstance(each, Stochastic)
        assert isinstance(each, Classifier)
        assert each.latent_shape == (2,)
        images = IMAGES.clone().requires_grad_()
        logits = each.respond(images, draws(4, 3, 2)).logits
        (gradient,) = torch.autograd.grad((logits[:, 0] - logits[:, 1]).sum(), images)
        assert (gradient.flatten(1).norm(dim=1) > 0).all()
    accepted = rejecting.respond(IMAGES, draws(4, 3, 2))
    assert torch.equal(accepted.score, accepted.logits.amax(1))
    assert accepted.accepted.all()


@pytest.mark.parametrize(
    ("parameters", "draws", "fixed"),
    [({}, 10, False), ({"draws": 3}, 3, False), ({"noise": "fixed"}, 10, True)],
)
def test_it_averages_ten_draws_by_default(parameters, draws, fixed, build_card):
    model = build_card(CARD, parameters)
    assert (model.draws, model.fixed_noise) == (draws, fixed)


def test_with_noise_mean_it_is_a_plain_classifier(build_card):
    model = build_card(CARD, {"noise": "mean", "dtype": "float64"})
    assert not isinstance(model, Stochastic)
    torch.testing.assert_close(model(IMAGES).logits, model.module(IMAGES))
    with pytest.raises(BadParameter, match="noise=mean uses no draws"):
        build_card(CARD, {"noise": "mean", "draws": 3})


@pytest.mark.parametrize("part", ["draw", "judge"])
def test_decoded_images_depend_on_z_at_initialisation(part):
    torch.manual_seed(0)
    net, code = GBZ(), torch.randn(500, 64)
    layers = getattr(net, part)[0] if part == "draw" else net.judge
    assert isinstance(layers, nn.Sequential)
    assert layers(code).std(0).mean() > 0.5


@torch.no_grad()
def test_the_authors_variance_is_the_squared_distance_up_to_a_constant():
    torch.manual_seed(0)
    net, code = GBZ().double().eval(), draws(2, 1, 64)
    images = IMAGES[:2]
    of_image = net._of_image(images, code)[:, 0]
    squares = (net.draw(code)[:, 0] - images.flatten(1)).square().sum(1)
    torch.testing.assert_close(of_image[0] - of_image[1], squares[1] - squares[0])


def test_an_invalid_variance_raises():
    with pytest.raises(BadParameter, match="invalid variance"):
        GBZ(variance=0.0)
