"""Objectives of networks with likelihoods: their values in closed form, and that they train."""

from math import log

import pytest
import torch
from torch import nn
from torch.nn.functional import cross_entropy

from robustbench_inv.models.conditional_flow import glow
from robustbench_inv.models.deep_bayes import GBZ
from robustbench_inv.randomness import SampleRNG
from robustbench_inv.training.objectives import ClassLikelihood, EvidenceLowerBound

NOISE = SampleRNG(0, torch.arange(4), "train/0")
LABELS = torch.tensor([0, 2, 1, 1])
IMAGES = torch.rand(4, 1, 28, 28, generator=torch.Generator().manual_seed(0))


class Fixed(nn.Module):
    """Log-likelihoods that do not depend on the images."""

    def __init__(self):
        super().__init__()
        self.scores = nn.Parameter(-100 * torch.rand(4, 3, generator=torch.Generator()))

    def forward(self, images):
        return self.scores


def gbz():
    torch.manual_seed(0)
    return GBZ(3, dimensions=4, hidden=8).eval()


def test_likelihood_of_the_true_class_in_nats_for_each_element():
    model, images = Fixed(), torch.zeros(4, 1, 5, 5)
    loss, scores = ClassLikelihood()(model, images, LABELS, NOISE)
    own = torch.stack([model.scores[i, y] for i, y in enumerate(LABELS)])
    torch.testing.assert_close(loss, -own.mean() / 25)
    assert torch.equal(scores, model.scores)
    more, _ = ClassLikelihood(classification=0.5)(model, images, LABELS, NOISE)
    torch.testing.assert_close(more - loss, 0.5 * cross_entropy(model.scores, LABELS))


def test_a_flow_of_images_of_one_class_each_learns_to_tell_them_apart():
    torch.manual_seed(0)
    model = glow((1, 4, 4), 3, stages=1, blocks=1, width=4).train()
    images = IMAGES[:, :, :4, :4] / 3 + LABELS[:, None, None, None] / 3
    optimiser = torch.optim.Adam(model.parameters(), 0.02)
    losses = []
    for _ in range(60):
        loss, scores = ClassLikelihood(0.01)(model, images, LABELS, NOISE)
        optimiser.zero_grad()
        loss.backward()
        optimiser.step()
        losses.append(loss.item())
    assert losses[-1] < losses[0] - 0.5
    assert torch.equal(scores.argmax(1), LABELS)


def test_the_evidence_bound_is_the_mean_weight_of_the_true_class():
    model = gbz()
    loss, scores = EvidenceLowerBound(warm_up=0.0)(model, IMAGES, LABELS, NOISE)
    latent = NOISE.normal((4,))
    with torch.no_grad():
        every = model.averaged_logits(IMAGES, latent[None])
    torch.testing.assert_close(loss, -every.gather(1, LABELS[:, None]).mean())
    torch.testing.assert_close(scores, model(IMAGES))
    assert not scores.requires_grad


@pytest.mark.parametrize(("progress", "share"), [(0.0, 0.0), (0.1, 0.5), (0.2, 1.0), (0.9, 1.0)])
def test_what_z_costs_is_counted_step_by_step(progress, share):
    model = gbz()
    free, whole, now = (
        EvidenceLowerBound(warm_up)(model, IMAGES, LABELS, NOISE, at)[0]
        for warm_up, at in ((1.0, 0.0), (0.0, 0.0), (0.2, progress))
    )
    torch.testing.assert_close(now, torch.lerp(free, whole, share))
    assert (whole - free).abs() > 0.01


def test_every_parameter_gets_a_gradient():
    model = gbz().train()
    EvidenceLowerBound()(model, IMAGES, LABELS, NOISE)[0].backward()
    for name, parameter in model.named_parameters():
        assert parameter.grad is not None, name
        assert parameter.grad.abs().sum() > 0, name


def test_random_logits_cost_what_classes_do():
    model = Fixed()
    with torch.no_grad():
        model.scores.fill_(-7.0)
    loss, _ = ClassLikelihood(2.0)(model, torch.zeros(4, 7), LABELS, NOISE)
    assert loss.item() == pytest.approx(1 + 2 * log(3))
