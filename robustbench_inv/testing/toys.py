"""Toy models and attacks that each make a validity check fire, and honest ones that leave all silent."""

from collections.abc import Callable, Sequence
from copy import deepcopy
from dataclasses import dataclass, replace
from typing import ClassVar

import torch
from torch import Tensor, nn

from robustbench_inv.attacks.protocol import Batch, Kind, Queries
from robustbench_inv.models.reject_option import RejectingClassifier, reject
from robustbench_inv.randomness import SampleRNG
from robustbench_inv.tensors import NORMS, Output, flatten, margin
from robustbench_inv.threat.budgets import LpBall
from robustbench_inv.threat.threat_model import ThreatModel

__all__ = [
    "CrashingAttack",
    "ForgetfulAttack",
    "IdleAttack",
    "OverBudgetAttack",
    "RandomGradientToy",
    "StochasticToy",
    "Toy",
    "adding_noise",
    "batch_dependent",
    "confident",
    "constant",
    "dead_relu",
    "detached",
    "in_train_mode",
    "input_optimising",
    "least_squares",
    "narrow_band",
    "offset",
    "one_pixel_gradient",
    "other_classes",
    "other_inputs",
    "probabilities",
    "quantised",
    "rejecting_all",
    "squashed",
    "untrained",
    "wrong_bounds",
    "wrong_gradient",
]


@dataclass(frozen=True)
class Toy:
    """A classifier made of a module that returns logits.

    Args:
        module: maps (n, …) inputs to (n, num_classes) logits.
        num_classes: number of logits.
        bounds: smallest and largest value of an input element.
        dtype: what it computes in.
    """

    module: nn.Module
    num_classes: int
    bounds: tuple[float, float] = (0.0, 1.0)
    dtype: torch.dtype = torch.float32

    def __call__(self, images: Tensor) -> Output:
        return Output(self.module(images))


@dataclass(frozen=True)
class StochasticToy:
    """A classifier that is stochastic by declaration: it adds normal numbers to its logits.

    Args:
        toy: the model without noise.
        scale: standard deviation of the noise.
        draws: number of averaged outputs.
        fixed_noise: use the same draws of a sample in every query.
    """

    toy: Toy
    scale: float = 1.0
    draws: int = 4
    fixed_noise: bool = False

    @property
    def num_classes(self) -> int:
        return self.toy.num_classes

    @property
    def bounds(self) -> tuple[float, float]:
        return self.toy.bounds

    @property
    def dtype(self) -> torch.dtype:
        return self.toy.dtype

    @property
    def latent_shape(self) -> tuple[int, ...]:
        return (self.num_classes,)

    def __call__(self, images: Tensor) -> Output:
        return self.toy(images)

    def respond(self, images: Tensor, latent: Tensor) -> Output:
        logits = self.toy(images).logits + self.scale * latent
        return Output(logits.softmax(-1).mean(0).log())


@dataclass(frozen=True)
class RandomGradientToy(StochasticToy):
    """A stochastic classifier that has a gradient under half of its draws only (C13)."""

    draws: int = 1

    def respond(self, images: Tensor, latent: Tensor) -> Output:
        logits = self.toy(images).logits
        return Output(torch.where(latent[0, :, :1] > 0, logits, logits.detach()))


def least_squares(
    images: Tensor, labels: Tensor, *, hidden: int = 256, ridge: float = 1.0, scale: float = 10.0
) -> Toy:
    """Return an honest classifier without training: random ReLU features and a ridge regression.

    Args:
        images: (n, …) in [0, 1].
        labels: (n,) int64.
        hidden: number of random features.
        ridge: weight of the penalty.
        scale: logits of the right and the wrong classes differ by about this much.
    """
    d, classes = images[0].numel(), int(labels.max()) + 1
    first = nn.Linear(d, hidden)
    rng = SampleRNG(0, torch.arange(hidden), "toy")
    with torch.no_grad():
        first.weight.copy_(rng.normal((d,)) / d**0.5)
        first.bias.zero_()
        features = first(flatten(images).float()).relu()
    features = torch.cat([features, torch.ones(len(features), 1)], 1).double()
    targets = scale * (nn.functional.one_hot(labels, classes).double() - 1 / classes)
    penalty = ridge * torch.eye(hidden + 1, dtype=torch.float64)
    weights = torch.linalg.solve(features.T @ features + penalty, features.T @ targets).float()
    last = nn.Linear(hidden, classes)
    with torch.no_grad():
        last.weight.copy_(weights[:-1].T)
        last.bias.copy_(weights[-1])
    network = nn.Sequential(nn.Flatten(), first, nn.ReLU(), last)
    return Toy(network.eval().requires_grad_(False), classes)


def detached(toy: Toy) -> Toy:
    """Cut the graph between input and output: no gradient at all (C6)."""
    return _append(toy, Tensor.detach)


def quantised(toy: Toy, levels: int = 16) -> Toy:
    """Round the input to a few levels: every gradient is zero, noise still works (C2, C5, C6)."""
    return _prepend(toy, lambda images: (images * (levels - 1)).round() / (levels - 1))


def probabilities(toy: Toy, factor: float = 1.0) -> Toy:
    """Return a multiple of the softmax instead of logits (C10)."""
    return _append(toy, lambda logits: factor * logits.softmax(1))


def squashed(toy: Toy, factor: float = 1.0) -> Toy:
    """Return the sigmoid of each logit, multiplied before: flat where they are large (C7)."""
    return _append(toy, lambda logits: (factor * logits).sigmoid())


def confident(toy: Toy, factor: float = 1000.0) -> Toy:
    """Multiply the logits: the same decisions, but cross-entropy has no gradient (C6, C7, C8).

    Such logits result from distillation at a temperature of ``factor`` and evaluation at 1.

    References:
        Carlini and Wagner, Towards evaluating the robustness of neural networks, IEEE S&P 2017, section VIII.
    """
    return _append(toy, lambda logits: factor * logits)


def offset(toy: Toy, constant: float = 1e6) -> Toy:
    """Add a constant to the logits: the same decisions, but the margins are rounded (C8)."""
    return _append(toy, lambda logits: logits + constant)


def dead_relu(toy: Toy) -> Toy:
    """Put units before the output that are never active where the data are: no gradient at all (C6)."""
    return _append(toy, lambda logits: logits.detach() + (logits - 1e9).relu())


def wrong_gradient(toy: Toy) -> Toy:
    """Give the gradient of the mirrored input's logits instead of one's own (C31)."""

    def logits(images: Tensor) -> Tensor:
        mirrored = toy(images.flip(-1, -2)).logits
        return toy(images).logits.detach() + mirrored - mirrored.detach()

    return replace(toy, module=_FunctionModule(logits))


def input_optimising(toy: Toy) -> Toy:
    """Move the input along a gradient before the classification (C12)."""

    def logits(images: Tensor) -> Tensor:
        with torch.enable_grad():
            moved = images.detach().requires_grad_(True)
            surest = toy(moved).logits.logsumexp(1).sum()
            (gradient,) = torch.autograd.grad(surest, moved)
        return toy(images + 0.01 * gradient.sign()).logits

    return replace(toy, module=_FunctionModule(logits))


def adding_noise(toy: Toy, scale: float = 0.1) -> Toy:
    """Add noise from the global generator to the input (C11)."""
    return _prepend(toy, lambda images: images + scale * torch.randn_like(images))


def batch_dependent(toy: Toy) -> Toy:
    """Subtract the mean of the batch from the logits: an output depends on the other inputs of the batch (C11)."""
    return _append(toy, lambda logits: logits - logits.mean(0))


def in_train_mode(toy: Toy) -> Toy:
    """Normalise the logits by a batch norm in train mode (C11)."""
    norm = nn.BatchNorm1d(toy.num_classes, affine=False)
    return replace(toy, module=nn.Sequential(toy.module, norm))


def wrong_bounds(toy: Toy, bounds: tuple[float, float]) -> Toy:
    """Declare other bounds than those of the data (C17)."""
    return replace(toy, bounds=bounds)


def other_inputs(toy: Toy, change: Callable[[Tensor], Tensor]) -> Toy:
    """Change the input first, such as a second division by 255: the model gets other inputs than it expects (C41)."""
    return _prepend(toy, change)


def other_classes(toy: Toy, names: Sequence[int]) -> Toy:
    """Give the logit of class ``names[k]`` as that of class k: labels of another order (C42)."""
    return _append(toy, lambda logits: logits[:, list(names)])


def constant(toy: Toy, label: int = 0) -> Toy:
    """Predict the same class for every input (C39)."""
    favoured = nn.functional.one_hot(torch.tensor(label), toy.num_classes)
    return _append(toy, lambda logits: 1e-3 * logits + 100.0 * favoured.to(logits))


def untrained(toy: Toy, seed: int = 0) -> Toy:
    """Replace every weight by a random one, as a network whose weights were not loaded (C39)."""
    module = deepcopy(toy.module)
    generator = torch.Generator().manual_seed(seed)
    with torch.no_grad():
        for weight in module.parameters():
            weight.normal_(0, weight[0].numel() ** -0.5, generator=generator)
    return replace(toy, module=module)


def rejecting_all(toy: Toy) -> RejectingClassifier:
    """Reject every input: all attacks are detected, and the model is useless (C25)."""
    return reject(toy, "margin", torch.full((toy.num_classes,), torch.inf))


def narrow_band() -> Toy:
    """Misclassify grey images only if their mean is near 0.5 + 0.75 / 64 (C1).

    The gradient always points to brighter images. Steps of 1/256 end in the band, larger ones jump over it, so
    that an attack with a small eps succeeds and the same attack with a larger one fails.
    """

    def logits(images: Tensor) -> Tensor:
        shift = 64 * (flatten(images).mean(1) - 0.5)
        wrong = (shift > 0.68) & (shift < 0.82)
        right = torch.where(wrong, -1.0, 1.0) - 0.01 * (shift - shift.detach())
        return torch.stack([right, -right], 1)

    return Toy(_FunctionModule(logits), 2)


def one_pixel_gradient() -> Toy:
    """Misclassify grey images only if every pixel is bright, with the gradient of one pixel at a time (C4).

    The first pixel that is not bright yet is the only one with a gradient, so that an attack needs
    one step for each remaining pixel.
    """

    def logits(images: Tensor) -> Tensor:
        short = 0.625 - flatten(images)
        left = short > 0
        first = short.gather(1, left.int().argmax(1, keepdim=True))[:, 0]
        lead = torch.where(left.any(1), first - first.detach() + left.sum(1), -1.0)
        return torch.stack([lead, -lead], 1)

    return Toy(_FunctionModule(logits), 2)


def half_blind() -> Toy:
    """Predict from the left half of grey images, whatever the right half shows, where an oracle may look (C43, C45)."""

    def logits(images: Tensor) -> Tensor:
        left = images[..., : images.shape[-1] // 2].flatten(1).mean(1) - 0.5
        return 20 * torch.stack([-left, left], 1)

    return Toy(_FunctionModule(logits), 2)


@dataclass(frozen=True)
class CrashingAttack:
    """An attack that raises as soon as it is run (C30)."""

    kind: ClassVar[Kind] = "fixed-budget"
    norms: ClassVar[frozenset[str]] = frozenset(NORMS)

    def run(self, model: Queries, batch: Batch, threat: ThreatModel, rng: SampleRNG) -> Tensor:
        raise RuntimeError("this attack always crashes")


@dataclass(frozen=True)
class ForgetfulAttack:
    """An attack that queries the model on one gradient step, and returns the clean image (C15)."""

    kind: ClassVar[Kind] = "fixed-budget"
    norms: ClassVar[frozenset[str]] = frozenset({"linf"})

    def run(self, model: Queries, batch: Batch, threat: ThreatModel, rng: SampleRNG) -> Tensor:
        model(_gradient_step(model, batch, threat, length=1.0))
        return batch.images


@dataclass(frozen=True)
class IdleAttack:
    """An attack that takes a gradient and returns the clean image (C16)."""

    kind: ClassVar[Kind] = "fixed-budget"
    norms: ClassVar[frozenset[str]] = frozenset({"linf"})

    def run(self, model: Queries, batch: Batch, threat: ThreatModel, rng: SampleRNG) -> Tensor:
        _gradient_step(model, batch, threat, length=1.0)
        return batch.images


@dataclass(frozen=True)
class OverBudgetAttack:
    """An attack that goes three times as far as it may (C14)."""

    kind: ClassVar[Kind] = "fixed-budget"
    norms: ClassVar[frozenset[str]] = frozenset({"linf"})

    def run(self, model: Queries, batch: Batch, threat: ThreatModel, rng: SampleRNG) -> Tensor:
        return _gradient_step(model, batch, threat, length=3.0)


@dataclass(frozen=True)
class UnmatchedMetamer:
    """Inverts the right half of the image, and reports activations that match no better than random ones (C44)."""

    kind: ClassVar[Kind] = "invariance"
    norms: ClassVar[frozenset[str]] = frozenset(NORMS)

    def run(self, model: Queries, batch: Batch, threat: ThreatModel, rng: SampleRNG) -> Tensor:
        low, high = model.bounds
        images, middle = batch.images.clone(), batch.images.shape[-1] // 2
        images[..., middle:] = low + high - images[..., middle:]
        output = model(images)
        for name, value in (("match_error", 1.0), ("null_error", 0.5)):
            model.log(name, torch.full_like(output.logits[:, 0], value))
        return images


class _FunctionModule(nn.Module):
    """A function as a module."""

    def __init__(self, function: Callable[[Tensor], Tensor]) -> None:
        super().__init__()
        self.function = function
        self.eval()

    def forward(self, images: Tensor) -> Tensor:
        return self.function(images)


def _prepend(toy: Toy, function: Callable[[Tensor], Tensor]) -> Toy:
    return replace(toy, module=nn.Sequential(_FunctionModule(function), toy.module).eval())


def _append(toy: Toy, function: Callable[[Tensor], Tensor]) -> Toy:
    return replace(toy, module=nn.Sequential(toy.module, _FunctionModule(function)).eval())


def _gradient_step(model: Queries, batch: Batch, threat: ThreatModel, length: float) -> Tensor:
    assert isinstance(threat.budget, LpBall)
    _, gradient = model.gradient(batch.images, lambda output, labels: margin(output.logits, labels))
    return (batch.images + length * threat.budget.eps * gradient.sign()).clamp(*model.bounds)
