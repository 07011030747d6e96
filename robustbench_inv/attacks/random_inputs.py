"""Attacks that draw random inputs: random perturbations inside the budget, noise images, and distal adversarial examples."""

import math
from dataclasses import dataclass, replace
from typing import ClassVar

import torch
from torch import Tensor

from robustbench_inv.attacks.best_so_far import BestSoFar
from robustbench_inv.attacks.budget_geometry import GRADIENT_NORMS, Ball, steepest_direction
from robustbench_inv.attacks.losses import losses_for
from robustbench_inv.attacks.parameters import check_least, check_positive
from robustbench_inv.attacks.protocol import Batch, Kind, Queries
from robustbench_inv.errors import BadParameter
from robustbench_inv.randomness import SampleRNG
from robustbench_inv.tensors import NORMS
from robustbench_inv.threat.threat_model import ThreatModel

__all__ = ["DISTRIBUTIONS", "Distal", "NoiseImage", "RandomPerturbation", "noise_image"]


@dataclass(frozen=True)
class RandomPerturbation:
    """The best of several random perturbations: uniform in the cube in linf, of length eps in a random direction in l2.

    Args:
        draws: number of random inputs for each sample, >= 1.
    """

    draws: int = 10

    kind: ClassVar[Kind] = "fixed-budget"
    norms: ClassVar[frozenset[str]] = GRADIENT_NORMS

    def __post_init__(self) -> None:
        check_least(self, draws=1)

    def run(self, model: Queries, batch: Batch, threat: ThreatModel, rng: SampleRNG) -> Tensor:
        ball = Ball.of(threat, batch.images, model.bounds)
        best = BestSoFar(batch, threat.goal, model.success_is_final)
        for draw in range(self.draws):
            rows = best.active
            if not len(rows):
                break
            images = ball[rows].draw_far(rng.rows(rows), draw)
            best.update(images, model(images, rows), rows)
        return best.images


DISTRIBUTIONS = ("uniform", "gaussian")
"""Uniform in the box; or normal around its middle with a quarter of its width as standard deviation, clipped to the box."""


@dataclass(frozen=True)
class NoiseImage:
    """A noise image instead of each sample: a model with a reject option must reject it (check C29).

    Args:
        distribution: one of ``DISTRIBUTIONS``.
    """

    distribution: str = "uniform"

    kind: ClassVar[Kind] = "fixed-input"
    norms: ClassVar[frozenset[str]] = frozenset(NORMS)

    def __post_init__(self) -> None:
        _check_distribution(self.distribution)

    def run(self, model: Queries, batch: Batch, threat: ThreatModel, rng: SampleRNG) -> Tensor:
        return _draw_noise(self.distribution, batch.images, model.bounds, rng)


def noise_image(kind: str = "uniform") -> NoiseImage:
    """Return the attack of the preset ``noise-image``.

    Args:
        kind: distribution of the noise, one of ``DISTRIBUTIONS``.
    """
    return NoiseImage(kind)


@dataclass(frozen=True)
class Distal:
    """Starts at a noise image and follows the gradient until the model predicts some class and accepts it.

    Args:
        distribution: of the noise, one of ``DISTRIBUTIONS``.
        steps: gradient steps, whose lengths decay along half a cosine, >= 1.
        rel_step: linf length of the first step, in widths of the box, > 0.

    References:
        Schott, Rauber, Bethge and Brendel, Towards the first adversarially robust neural network model on MNIST,
        ICLR 2019, section 6, distal adversarials; Nguyen, Yosinski and Clune, Deep neural networks are easily
        fooled, CVPR 2015.
    """

    distribution: str = "uniform"
    steps: int = 100
    rel_step: float = 0.05

    kind: ClassVar[Kind] = "fixed-input"
    norms: ClassVar[frozenset[str]] = frozenset(NORMS)

    def __post_init__(self) -> None:
        _check_distribution(self.distribution)
        check_positive(self, "steps", "rel_step")

    def run(self, model: Queries, batch: Batch, threat: ThreatModel, rng: SampleRNG) -> Tensor:
        (loss,) = losses_for("margin", threat.goal)
        images = _draw_noise(self.distribution, batch.images, model.bounds, rng)
        noise, rows = replace(batch, images=images), _all_rows(batch)
        best = BestSoFar(noise, threat.goal, model.success_is_final)
        width = model.bounds[1] - model.bounds[0]
        for step in range(self.steps):
            output, gradients = model.gradient(images, loss, rows)
            active = best.update(images, output, rows)
            rows, images, gradients = rows[active], images[active], gradients[active]
            if not len(rows):
                return best.images
            length = self.rel_step * width * (1 + math.cos(math.pi * step / self.steps)) / 2
            images = (images + length * steepest_direction(gradients, "linf")).clamp(*model.bounds)
        best.update(images, model(images, rows), rows)
        return best.images


def _check_distribution(name: str) -> None:
    if name not in DISTRIBUTIONS:
        expected = " or ".join(DISTRIBUTIONS)
        raise BadParameter("unknown distribution", got=name, expected=expected)


def _all_rows(batch: Batch) -> Tensor:
    return torch.arange(len(batch), device=batch.labels.device)


def _draw_noise(name: str, like: Tensor, bounds: tuple[float, float], rng: SampleRNG) -> Tensor:
    """Return one draw for each sample, (n, …), inside the bounds."""
    low, high = bounds
    shape, dtype = tuple(like.shape[1:]), like.dtype
    if name == "uniform":
        return (low + (high - low) * rng.uniform(shape, dtype=dtype)).clamp(low, high)
    around = (low + high) / 2 + (high - low) / 4 * rng.normal(shape, dtype=dtype)
    return around.clamp(low, high)
