"""The nuisance classifier finds class information at any scale, and only where there is some."""

import pytest
import torch
from torch import nn

from robustbench_inv.errors import BadModel
from robustbench_inv.training.nuisance_probe import (
    ProbeConfig,
    Standardise,
    encode_nuisance,
    probe_nuisance,
)
from robustbench_inv.training.objectives import TrainingData


class Plain:
    """The code is the input: element 0 and 1 are the logits, the rest the nuisances."""

    def encode(self, images):
        return images

    def decode(self, code):
        return code

    def split(self, code):
        return code[:, :2], code[:, 2:]

    def join(self, semantic, nuisance):
        return torch.cat([semantic, nuisance], 1)


def vectors(count, tell, seed=0):
    """Two classes; with ``tell``, nuisance 3 of 6 depends on the class at a small scale."""
    generator = torch.Generator().manual_seed(seed)
    labels = torch.randint(2, (count,), generator=generator)
    points = torch.randn(count, 8, generator=generator)
    points[:, 5] *= 1e-4
    if tell:
        points[:, 5] += 1e-3 * labels
    return TrainingData(torch.arange(count) + 10_000 * seed, points, labels)


PROBING = ProbeConfig(
    hidden=(16,), epochs=6, batch_size=50, learning_rate=1e-2, levels=0, precision=torch.float32
)


@pytest.mark.parametrize(("tell", "low", "high"), [(True, 0, 2), (False, 35, 65)])
def test_a_probe_finds_class_information_at_any_scale_and_only_if_present(tell, low, high):
    found = probe_nuisance(Plain(), vectors(1000, tell), vectors(100, tell, seed=1), PROBING)
    assert found.trials == 100
    assert low <= found.errors <= high
    assert found.train_trials == 1000


def test_a_probe_is_the_same_for_the_same_seed():
    first, second = (
        probe_nuisance(Plain(), vectors(200, tell=True), vectors(50, tell=True, seed=1), PROBING)
        for _ in range(2)
    )
    for a, b in zip(
        first.classifier.state_dict().values(), second.classifier.state_dict().values(), strict=True
    ):
        assert torch.equal(a, b)


def test_a_model_without_nuisances_raises():
    with pytest.raises(BadModel, match="no nuisance variables"):
        encode_nuisance(nn.Linear(2, 2), torch.zeros(1, 2))


def test_standardising_follows_the_running_statistics():
    layer, drawn = Standardise(2), torch.randn(500, 2) * torch.tensor([3.0, 1e-3]) + 7
    for _ in range(50):
        layer.update(drawn, 0.3)
    assert (layer(drawn).std(0) - 1).abs().max() < 1e-3
