"""Nuisance probe: a classifier that measures how well the nuisance variables of a trained model predict the class."""

from collections.abc import Callable, Sequence
from dataclasses import dataclass
from itertools import pairwise

import torch
from torch import Tensor, nn
from torch.nn.functional import cross_entropy

from robustbench_inv.errors import BadParameter
from robustbench_inv.models.protocol import require_split_code
from robustbench_inv.randomness import SampleRNG
from robustbench_inv.tensors import blocks
from robustbench_inv.training.loop import dequantise, random_shift
from robustbench_inv.training.objectives import TrainingData
from robustbench_inv.training.optimisation import cosine, epoch_order

__all__ = [
    "NuisanceProbe",
    "ProbeConfig",
    "Standardise",
    "encode_nuisance",
    "fit_classifier",
    "perceptron",
    "probe_nuisance",
]


BLOCK = 500
"""Samples that are encoded at a time."""

CLIP = 10.0
"""Standardised variables are clipped to ±CLIP, so that rare values do not dominate the training."""


class Standardise(nn.Module):
    """(x − mean) / deviation for each of d features, clipped to ±CLIP, so that features of all scales count equally."""

    mean: Tensor
    deviation: Tensor

    def __init__(self, features: int) -> None:
        super().__init__()
        self.register_buffer("mean", torch.zeros(features))
        self.register_buffer("deviation", torch.ones(features))

    def forward(self, x: Tensor) -> Tensor:
        return ((x - self.mean) / self.deviation).clamp(-CLIP, CLIP)

    @torch.no_grad()
    def fit(self, x: Tensor) -> None:
        """Set mean and deviation to those of (n, d) samples."""
        self.mean.copy_(x.mean(0))
        self.deviation.copy_(x.std(0).clamp_min(torch.finfo(x.dtype).tiny))

    @torch.no_grad()
    def update(self, x: Tensor, momentum: float) -> None:
        """Update running mean and deviation with those of (n, d) samples."""
        self.mean.lerp_(x.mean(0), momentum)
        self.deviation.lerp_(x.std(0), momentum)


@dataclass(frozen=True)
class NuisanceProbe:
    """A nuisance classifier, trained after the model, and its errors.

    Args:
        classifier: maps nuisances (n, d − C) to logits (n, C).
        train_errors: misclassified samples in the last training epoch.
        train_trials: number of training samples.
        errors: misclassified held-out samples.
        trials: number of held-out samples.
    """

    classifier: nn.Module
    train_errors: int
    train_trials: int
    errors: int
    trials: int


@dataclass(frozen=True)
class ProbeConfig:
    """Training of a nuisance classifier: Adam with a learning rate that decays to 0 along half a cosine.

    Args:
        hidden: widths of the hidden layers.
        epochs: passes over the training samples.
        batch_size: samples per batch.
        learning_rate: initial learning rate.
        seed: seed of initialisation, order and dequantisation.
        levels: number of grey levels for dequantising training and held-out samples; 0 disables it.
        draws: number of encodings of the training samples, each with its own dequantisation, used by the epochs in
            turn.
        shift: largest random translation of training images in pixels, drawn again for each encoding.
        precision: dtype of matrix products in training.

    References:
        Jacobsen et al., Excessive invariance, ICLR 2019, appendices B.1 and B.2.
    """

    hidden: Sequence[int] = (512, 512, 512)
    epochs: int = 30
    batch_size: int = 250
    learning_rate: float = 1e-3
    seed: int = 0
    levels: int = 256
    draws: int = 6
    shift: int = 0
    precision: torch.dtype = torch.bfloat16

    def __post_init__(self) -> None:
        if min(self.epochs, self.batch_size, self.draws) < 1 or self.learning_rate <= 0:
            got = (self.epochs, self.batch_size, self.draws, self.learning_rate)
            problem = "invalid epochs, batch_size, draws or learning_rate of a nuisance probe"
            raise BadParameter(problem, got=got, expected="positive numbers")


def probe_nuisance(
    model: object,
    train: TrainingData,
    held_out: TrainingData,
    config: ProbeConfig | None = None,
    *,
    report: Callable[[int, float], None] | None = None,
) -> NuisanceProbe:
    """Train a classifier on the nuisances z_n of a model, and test it on held-out samples.

    Its accuracy is a lower bound of the class information in z_n: a better classifier may find more.

    Args:
        model: an invertible model that splits its code, in evaluation mode.
        train: N samples.
        held_out: M samples that were used to train neither the model nor the probe.
        config: settings of the training; None for the paper's network with 512 units per layer.
        report: called after each epoch with its number, from 1, and the training error.

    Raises:
        BadModel: if the model has no nuisance variables.
    """
    plan = config or ProbeConfig()
    draws = min(plan.draws, plan.epochs) if plan.levels or plan.shift else 1
    codes = [_encode(model, train, plan, f"probe/{draw}", plan.shift) for draw in range(draws)]
    network, wrong = fit_classifier(codes, train.labels, plan, report)
    with torch.no_grad():
        predicted = network(_encode(model, held_out, plan, "probe/held-out")).argmax(1)
    errors = int((predicted != held_out.labels).sum())
    return NuisanceProbe(network, wrong, len(train.ids), errors, len(held_out.ids))


def fit_classifier(
    codes: Sequence[Tensor],
    labels: Tensor,
    plan: ProbeConfig,
    report: Callable[[int, float], None] | None = None,
) -> tuple[nn.Module, int]:
    """Train a classifier of codes, and return it in evaluation mode with its errors in the last epoch.

    Args:
        codes: one or more encodings (N, k) of the same samples, which the epochs use in turn.
        labels: (N,) classes.
        plan: settings of the training.
        report: called after each epoch with its number, from 1, and the training error.
    """
    features, classes = codes[0].shape[1], int(labels.max()) + 1
    torch.manual_seed(plan.seed)
    standardise = Standardise(features)
    standardise.fit(codes[0])
    network = nn.Sequential(standardise, perceptron(features, plan.hidden, classes))
    optimiser = torch.optim.Adam(network.parameters(), lr=plan.learning_rate)
    wrong = 0
    for epoch in range(plan.epochs):
        wrong = _run_epoch(network, optimiser, codes[epoch % len(codes)], labels, (plan, epoch))
        if report is not None:
            report(epoch + 1, wrong / len(labels))
    return network.eval(), wrong


def encode_nuisance(model: object, images: Tensor) -> Tensor:
    """Return z_n (n, d − C) of images.

    Raises:
        BadModel: if the model is not invertible, or does not split its code.
    """
    network = require_split_code(model)
    return network.split(network.encode(images))[1]


def perceptron(
    features: int, hidden: Sequence[int], classes: int, dropout: float = 0.0
) -> nn.Sequential:
    """Return linear layers with ReLU and dropout between, (n, features) to (n, classes)."""
    layers: list[nn.Module] = []
    for before, after in pairwise((features, *hidden)):
        layers += [nn.Linear(before, after), nn.ReLU()]
        layers += [nn.Dropout(dropout)] if dropout else []
    return nn.Sequential(*layers, nn.Linear((features, *hidden)[-1], classes))


@torch.no_grad()
def _encode(
    model: object, data: TrainingData, plan: ProbeConfig, stream: str, shift: int = 0
) -> Tensor:
    """Return the nuisances (N, d − C) of all samples, translated and dequantised with a stream of random numbers."""
    codes = []
    for rows in blocks(torch.arange(len(data.ids)), BLOCK):
        images, rng = data.images[rows], SampleRNG(plan.seed, data.ids[rows], stream)
        if shift:
            images = random_shift(images, rng, shift)
        if plan.levels:
            images = dequantise(images, rng, plan.levels)
        codes.append(encode_nuisance(model, images))
    return torch.cat(codes)


def _run_epoch(
    network: nn.Module,
    optimiser: torch.optim.Optimizer,
    nuisances: Tensor,
    labels: Tensor,
    position: tuple[ProbeConfig, int],
) -> int:
    """Train for one epoch on nuisances (N, d − C), and return the number of misclassified samples."""
    (plan, epoch), wrong = position, 0
    batches = blocks(epoch_order(plan.seed, epoch, len(labels)), plan.batch_size)
    low = plan.precision != torch.float32
    for step, rows in enumerate(batches):
        progress = (epoch + step / len(batches)) / plan.epochs
        optimiser.param_groups[0]["lr"] = plan.learning_rate * cosine(progress)
        with torch.autocast(nuisances.device.type, plan.precision, low):
            logits = network(nuisances[rows]).float()
        loss = cross_entropy(logits, labels[rows])
        optimiser.zero_grad(set_to_none=True)
        loss.backward()  # type: ignore[no-untyped-call]
        optimiser.step()
        wrong += int((logits.argmax(1) != labels[rows]).sum())
    return wrong
