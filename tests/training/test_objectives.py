"""Objectives against closed forms."""

from math import exp, log

import pytest
import torch
from torch import nn

from robustbench_inv.errors import BadParameter
from robustbench_inv.models.vib import BottleneckCNN
from robustbench_inv.randomness import SampleRNG
from robustbench_inv.training.objectives import (
    F_DIVERGENCES,
    ConvexConjugate,
    CrossEntropy,
    DonskerVaradhan,
    EnergyBased,
    InformationBottleneck,
)

VALUES = torch.tensor([[1.0, -2.0], [0.5, 0.25], [3.0, 1.0]])
LABELS = torch.tensor([0, 1, 0])
NOISE = SampleRNG(0, torch.arange(3))


def test_donsker_varadhan_is_equation_4():
    joint = (1.0 + 0.25 + 3.0) / 3
    marginal = log(sum(exp(v) for row in VALUES.tolist() for v in row) / 6)
    loss, logits = DonskerVaradhan()(nn.Identity(), VALUES, LABELS, NOISE)
    assert abs(loss.item() - (marginal - joint)) < 1e-6
    assert torch.equal(logits, VALUES)


def test_donsker_varadhan_ignores_a_constant():
    shifted, _ = DonskerVaradhan()(nn.Identity(), VALUES + 7, LABELS, NOISE)
    plain, _ = DonskerVaradhan()(nn.Identity(), VALUES, LABELS, NOISE)
    torch.testing.assert_close(shifted, plain)


def test_donsker_varadhan_is_tight_at_the_true_log_ratio():
    """With deterministic, balanced labels the bound of I(x; y) = log C is reached as T grows."""
    certain = 50 * torch.eye(4)
    loss, _ = DonskerVaradhan()(nn.Identity(), certain, torch.arange(4), NOISE)
    assert abs(loss.item() + log(4)) < 1e-5


def test_energy_based_with_all_labels_is_cross_entropy_and_so_are_its_gradients():
    """Equation 6: the losses differ by the constant log C."""
    scores = torch.randn(7, 5, dtype=torch.float64, requires_grad=True)
    labels = torch.tensor([0, 4, 2, 2, 1, 3, 0])
    energy, likelihood = (
        EnergyBased().score_loss(scores, labels),
        CrossEntropy().score_loss(scores, labels),
    )
    assert abs((likelihood - energy).item() - log(5)) < 1e-12
    slopes = [torch.autograd.grad(loss, scores)[0] for loss in (energy, likelihood)]
    torch.testing.assert_close(*slopes, rtol=1e-12, atol=1e-12)


def test_energy_based_never_exceeds_donsker_varadhan_in_tightness():
    """log mean exp over all pairs is at least the mean over x of log mean exp over y (Jensen)."""
    scores, labels = torch.randn(20, 5), torch.arange(20) % 5
    assert EnergyBased().score_loss(scores, labels) <= DonskerVaradhan().score_loss(scores, labels)


def test_cross_entropy_matches_its_definition():
    loss, _ = CrossEntropy()(nn.Identity(), VALUES, LABELS, NOISE)
    expected = -VALUES.log_softmax(1)[torch.arange(3), LABELS].mean()
    torch.testing.assert_close(loss, expected)


def test_rate_is_the_kl_divergence_to_the_standard_normal():
    torch.manual_seed(0)
    model, images = BottleneckCNN().eval(), torch.rand(3, 1, 28, 28)
    mean, deviation = model.encode(images)
    normal = torch.distributions.Normal
    rate = (
        torch.distributions.kl_divergence(normal(mean, deviation), normal(0.0, 1.0)).sum(1).mean()
    )
    without, _ = InformationBottleneck(beta=0.0)(model, images, LABELS, NOISE)
    with_rate, _ = InformationBottleneck(beta=0.5)(model, images, LABELS, NOISE)
    torch.testing.assert_close(with_rate - without, 0.5 * rate, rtol=1e-4, atol=1e-3)


def test_jensen_shannon_is_equation_2():
    joint = sum(-log(1 + exp(-v)) for v in (1.0, 0.25, 3.0)) / 3
    marginal = sum(-log(1 + exp(v)) for row in VALUES.tolist() for v in row) / 6
    loss, _ = ConvexConjugate("js")(nn.Identity(), VALUES, LABELS, NOISE)
    assert abs(loss.item() + joint + marginal + 2 * log(2)) < 1e-6


F = {
    "js": lambda u: u * log(u) - (u + 1) * log((u + 1) / 2),
    "kl": lambda u: u * log(u),
    "reverse-kl": lambda u: -log(u),
    "pearson": lambda u: (u - 1) ** 2,
}


@pytest.mark.parametrize("name", F_DIVERGENCES)
@pytest.mark.parametrize("ratio", [0.2, 1.0, 3.5])
def test_the_bound_is_tight_at_the_true_ratio_and_nowhere_above(name, ratio):
    """sup_T of g(T) ratio − f*(g(T)) is f(ratio), by the definition of the conjugate."""
    inside, conjugate = F_DIVERGENCES[name]
    values = torch.linspace(-8, 8, 200_001, dtype=torch.float64)
    bound = ratio * inside(values) - conjugate(values)
    assert abs(bound.max().item() - F[name](ratio)) < 1e-6


def test_an_unknown_divergence_is_one_line():
    with pytest.raises(BadParameter, match="js, kl"):
        ConvexConjugate("jensen")
