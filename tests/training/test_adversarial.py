"""Adversarial training against the worst case of a linear classifier, which has a closed form."""

import pytest
import torch
from torch import Tensor, nn
from torch.nn.functional import softplus

from robustbench_inv.attacks.budget_geometry import Ball
from robustbench_inv.errors import BadParameter
from robustbench_inv.randomness import SampleRNG
from robustbench_inv.threat.budgets import LpBall
from robustbench_inv.training.objectives import AdversarialCrossEntropy

LABELS = torch.tensor([0, 1, 1, 0, 1])
NOISE = SampleRNG(0, torch.arange(5))


class TwoClasses(nn.Module):
    """Logits (0, w·x): batch norm is there to be left alone by the search."""

    bounds = (0.0, 1.0)

    def __init__(self) -> None:
        super().__init__()
        self.norm = nn.BatchNorm1d(3, affine=False)
        self.weight = nn.Parameter(torch.tensor([2.0, -1.0, 0.5]))

    def forward(self, images: Tensor) -> Tensor:
        rises = self.norm(images.flatten(1)) @ self.weight
        return torch.stack([torch.zeros_like(rises), rises], 1)


@pytest.fixture
def network():
    model = TwoClasses()
    model.norm.momentum = 0.0  # statistics stay at mean 0 and variance 1
    return model


def images():
    return 0.3 + 0.4 * torch.rand(5, 1, 3, generator=torch.Generator().manual_seed(0))


@pytest.mark.parametrize(("norm", "dual"), [("linf", 1), ("l2", 2)])
def test_the_search_reaches_the_worst_input_of_a_linear_classifier(network, norm, dual):
    objective = AdversarialCrossEntropy(eps=0.1, norm=norm, steps=20)
    worst = objective._attack(
        network.eval(), Ball(images(), LpBall(norm, 0.1), network.bounds), LABELS, NOISE
    )
    rise = (images().flatten(1) @ network.weight) / (1 + 1e-5) ** 0.5
    signed = torch.where(LABELS == 1, rise, -rise)
    expected = softplus(-(signed - 0.1 * network.weight.norm(dual)))
    logits = network(worst)
    found = nn.functional.cross_entropy(logits, LABELS, reduction="none")
    torch.testing.assert_close(found, expected, rtol=1e-3, atol=1e-4)


def test_eps_grows_over_the_ramp(network):
    """At progress 0 the loss is the clean one, at the end of the ramp that of the whole ball."""
    objective = AdversarialCrossEntropy(eps=0.1, ramp=0.5)
    loss = [objective(network, images(), LABELS, NOISE, p)[0].item() for p in (0.0, 0.25, 0.5, 1.0)]
    clean = nn.functional.cross_entropy(network(images()), LABELS).item()
    assert loss[0] == pytest.approx(clean, abs=1e-6)
    assert loss[0] < loss[1] < loss[2]
    assert loss[2] == pytest.approx(loss[3], rel=1e-4)


def test_the_network_is_trained_in_training_mode_on_inputs_found_in_evaluation_mode(network):
    seen = []
    network.norm.register_forward_hook(lambda module, *_: seen.append(module.training))
    loss, scores = AdversarialCrossEntropy(eps=0.1, steps=2)(network, images(), LABELS, NOISE)
    assert seen == [False, False, True]
    assert scores.shape == (5, 2)
    loss.backward()
    assert network.weight.grad.abs().max() > 0


@pytest.mark.parametrize(
    "fields", [{"eps": 0.0}, {"eps": 0.1, "norm": "l1"}, {"eps": 0.1, "ramp": 1.0}]
)
def test_what_cannot_be_used_is_refused(fields):
    with pytest.raises(BadParameter):
        AdversarialCrossEntropy(**fields)
