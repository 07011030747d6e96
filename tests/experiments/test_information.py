"""Bounds of the class information against channels whose information has a closed form."""

from math import log
from pathlib import Path

import pytest
import torch
from torch import Tensor

from robustbench_inv.errors import BadParameter
from robustbench_inv.experiments.information import (
    class_entropy,
    information_bound,
    measure_information,
)
from robustbench_inv.experiments.protocol import ExperimentRequest
from robustbench_inv.training.nuisance_probe import ProbeConfig

PLAN = ProbeConfig(
    hidden=(), epochs=8, batch_size=100, learning_rate=0.1, levels=0, precision=torch.float32
)


def channel(flips: float, count: int, seed: int) -> tuple[Tensor, Tensor]:
    """Four equally likely classes, one-hot; a share is replaced by one of the other three."""
    generator = torch.Generator().manual_seed(seed)
    labels = torch.arange(count) % 4
    wrong = torch.rand(count, generator=generator) < flips
    other = (labels + 1 + torch.randint(3, (count,), generator=generator)) % 4
    return torch.nn.functional.one_hot(torch.where(wrong, other, labels), 4).float(), labels


def test_entropy_of_labels():
    assert class_entropy(torch.arange(40) % 4) == pytest.approx(log(4))
    assert class_entropy(torch.tensor([0, 0, 0, 2])) == pytest.approx(
        -0.75 * log(0.75) - 0.25 * log(0.25)
    )


@pytest.mark.parametrize("flips", [0.1, 0.75])
def test_the_bound_of_a_symmetric_channel_reaches_its_capacity(flips):
    truth = log(4) + (1 - flips) * log(1 - flips) + flips * log(flips / 3)
    found = information_bound(channel(flips, 2000, 0), channel(flips, 20_000, 1), PLAN)
    assert found == pytest.approx(truth, abs=0.02)
    assert found <= truth + 0.02


def test_an_overconfident_classifier_gives_no_negative_bound():
    torch.manual_seed(0)
    noise, labels = torch.randn(200, 50), torch.arange(200) % 4
    plan = ProbeConfig(hidden=(32,), epochs=10, batch_size=20, levels=0, precision=torch.float32)
    assert 0 <= information_bound((noise, labels), (torch.randn(200, 50), labels), plan) < 0.1


def watermark() -> torch.nn.Module:
    """The ten pixels of the watermark are the logits, all others the nuisances."""
    from robustbench_inv.data.planted import PLANTED_FEATURES

    marked = PLANTED_FEATURES["pixel"][1](10, 28, 28).flatten(1).argmax(1)

    class Marked(torch.nn.Module):
        bounds, num_classes = (0.0, 1.0), 10
        rest = torch.tensor([k for k in range(784) if k not in marked.tolist()])

        def forward(self, x: Tensor) -> Tensor:
            return x.flatten(1)[:, marked]

        def encode(self, x: Tensor) -> Tensor:
            return x.flatten(1)[:, torch.cat([marked, self.rest])]

        def decode(self, z: Tensor) -> Tensor:
            return z[:, torch.cat([marked, self.rest]).argsort()].reshape(-1, 1, 28, 28)

        def split(self, z: Tensor) -> tuple[Tensor, Tensor]:
            return z[:, :10], z[:, 10:]

        def join(self, semantic: Tensor, nuisance: Tensor) -> Tensor:
            return torch.cat([semantic, nuisance], 1)

    return Marked()


def test_a_watermark_loses_all_its_information_in_the_shift_and_the_digit_none():
    probe = {"hidden": [32], "epochs": 4, "batch_size": 50, "learning_rate": 5e-3, "levels": 0}
    request = ExperimentRequest("mnist-planted", {"M": f"{Path(__file__)}:watermark"}, samples=500)
    measured = measure_information(request, "mnist-planted", probe, 0, 5000, 1500)
    numbers = {n.row.removesuffix(", in nats"): n.value for n in measured.numbers}
    entropy = numbers["h(y)"]
    assert entropy == pytest.approx(log(10), abs=1e-3)
    assert entropy - 0.05 <= numbers["I(y; z_s) before the shift"] <= entropy
    assert numbers["I(y; z_s) after the shift"] < 0.02
    before, after = (numbers[f"I(y; z_n) {when} the shift"] for when in ("before", "after"))
    assert before > 1.2
    assert after == pytest.approx(before, abs=1e-6), "the shift changes only the watermark"
    # softmax of a one-hot vector: −log(e / (e + 9)) for the true class
    own = log(10) + log(torch.e / (torch.e + 9))
    assert numbers["h(y) + E log softmax(z_s) before the shift"] == pytest.approx(own, abs=0.01)


def test_other_data_are_refused():
    with pytest.raises(BadParameter, match="no planted feature"):
        measure_information(ExperimentRequest("mnist5k", {}), "mnist-planted", {})
