"""Inputs that are no version of any input: noise, and noise that is led until a model accepts it."""

import math
from dataclasses import dataclass
from typing import ClassVar

import torch
from torch import Tensor

from robustbench_inv.attacks.ball import steepest
from robustbench_inv.attacks.best import Best
from robustbench_inv.attacks.losses import losses_for
from robustbench_inv.attacks.protocol import Batch, Kind, Queries
from robustbench_inv.attacks.ranges import check_positive
from robustbench_inv.errors import BadParameter
from robustbench_inv.randomness import Noise
from robustbench_inv.tensors import NORMS
from robustbench_inv.threat.threat_model import ThreatModel

__all__ = ["DISTRIBUTIONS", "Distal", "NoiseInput"]

DISTRIBUTIONS = ("uniform", "gaussian")
"""Uniform in the box; or normal around its middle, with a quarter of its width as deviation, and clamped."""


@dataclass(frozen=True)
class NoiseInput:
    """One draw of noise instead of each sample, as it is: what a model that rejects must reject (check C29).

    Args:
        distribution: one of DISTRIBUTIONS.
    """

    distribution: str = "uniform"

    kind: ClassVar[Kind] = "given"
    norms: ClassVar[frozenset[str]] = frozenset(NORMS)

    def __post_init__(self) -> None:
        _check_distribution(self.distribution)

    def run(self, model: Queries, batch: Batch, threat: ThreatModel, noise: Noise) -> Tensor:
        return _drawn(self.distribution, batch.images, model.bounds, noise)


@dataclass(frozen=True)
class Distal:
    """Begins at noise and climbs what the goal asks for, wherever that leads: to be decided for and accepted.

    Args:
        distribution: of the noise, one of DISTRIBUTIONS.
        steps: gradient steps, shortening along half a cosine, >= 1.
        rel_step: length of the first in linf, in widths of the box, > 0.

    References:
        Schott, Rauber, Bethge and Brendel, Towards the first adversarially robust neural network model on MNIST,
        ICLR 2019, section 6, distal adversarials; Nguyen, Yosinski and Clune, Deep neural networks are easily
        fooled, CVPR 2015.
    """

    distribution: str = "uniform"
    steps: int = 100
    rel_step: float = 0.05

    kind: ClassVar[Kind] = "given"
    norms: ClassVar[frozenset[str]] = frozenset(NORMS)

    def __post_init__(self) -> None:
        _check_distribution(self.distribution)
        check_positive(self, "steps", "rel_step")

    def run(self, model: Queries, batch: Batch, threat: ThreatModel, noise: Noise) -> Tensor:
        (loss,) = losses_for("margin", threat.goal)
        best, rows = Best(batch, threat.goal, model.conclusive), _all(batch)
        images = _drawn(self.distribution, batch.images, model.bounds, noise)
        width = model.bounds[1] - model.bounds[0]
        for step in range(self.steps):
            output, slopes = model.gradient(images, loss, rows)
            standing = best.offer(images, output, rows)
            rows, images, slopes = rows[standing], images[standing], slopes[standing]
            if not len(rows):
                return best.images
            length = self.rel_step * width * (1 + math.cos(math.pi * step / self.steps)) / 2
            images = (images + length * steepest(slopes, "linf")).clamp(*model.bounds)
        best.offer(images, model(images, rows), rows)
        return best.images


def _check_distribution(name: str) -> None:
    if name not in DISTRIBUTIONS:
        expected = " or ".join(DISTRIBUTIONS)
        raise BadParameter("unknown distribution", got=name, expected=expected)


def _all(batch: Batch) -> Tensor:
    return torch.arange(len(batch), device=batch.labels.device)


def _drawn(name: str, like: Tensor, bounds: tuple[float, float], noise: Noise) -> Tensor:
    """Return one draw for each sample, (n, …), inside the bounds."""
    low, high = bounds
    shape, dtype = tuple(like.shape[1:]), like.dtype
    if name == "uniform":
        return (low + (high - low) * noise.uniform(shape, dtype=dtype)).clamp(low, high)
    around = (low + high) / 2 + (high - low) / 4 * noise.normal(shape, dtype=dtype)
    return around.clamp(low, high)
