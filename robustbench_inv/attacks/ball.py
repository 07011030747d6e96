"""The geometry of a fixed budget: a norm ball around each clean input, cut with the model's box."""

import math
from dataclasses import dataclass

import torch
from torch import Tensor

from robustbench_inv.errors import CapabilityMismatch
from robustbench_inv.randomness import Noise
from robustbench_inv.tensors import broadcast, flatten, norm
from robustbench_inv.threat.budgets import LpBall
from robustbench_inv.threat.threat_model import ThreatModel

__all__ = ["NORMS", "Ball", "steepest"]

NORMS = frozenset({"l2", "linf"})
"""The norms of which this file knows the steepest direction and the uniform distribution."""


@dataclass(frozen=True)
class Ball:
    """The inputs that may be shown instead of each clean one.

    Args:
        clean: (n, …) centres, inside the bounds.
        budget: a ball in one of ``NORMS``.
        bounds: least and largest value of an element.
    """

    clean: Tensor
    budget: LpBall
    bounds: tuple[float, float]

    @classmethod
    def of(cls, threat: ThreatModel, clean: Tensor, bounds: tuple[float, float]) -> "Ball":
        """Return the ball of a threat.

        Raises:
            CapabilityMismatch: if its budget is not a ball in one of ``NORMS``.
        """
        if not isinstance(threat.budget, LpBall) or threat.norm not in NORMS:
            raise CapabilityMismatch(
                "the attack needs a fixed budget",
                got=threat.budget,
                expected="eps in l2 or linf",
                remedy="give a threat such as linf=0.1",
            )
        return cls(clean, threat.budget, bounds)

    @property
    def norm(self) -> str:
        return self.budget.norm

    @property
    def eps(self) -> float:
        return self.budget.eps

    def __getitem__(self, rows: Tensor) -> "Ball":
        """Return the balls of some of the samples."""
        return Ball(self.clean[rows], self.budget, self.bounds)

    def project(self, images: Tensor) -> Tensor:
        """Return (n, …) moved into the ball and then into the box, which leads out of neither.

        The box holds the centre, so clamping shortens every element's way from it.
        """
        return self.budget.project(self.clean, images).clamp(*self.bounds)

    def draw(self, noise: Noise, restart: int) -> Tensor:
        """Return one input of each sample, uniform in its ball, (n, …)."""
        shape, dtype = tuple(self.clean.shape[1:]), self.clean.dtype
        if self.norm == "linf":
            cube = 2 * noise.uniform(shape, restart=restart, dtype=dtype) - 1
            return self.project(self.clean + self.eps * cube)
        dimension = math.prod(shape)
        depth = noise.uniform((), restart=restart, step=1, dtype=dtype) ** (1 / dimension)
        return self._along(noise, restart, self.eps * depth)

    def draw_far(self, noise: Noise, restart: int) -> Tensor:
        """Return inputs as in ``draw``, but those in l2 all at distance eps before they are clamped."""
        if self.norm == "linf":
            return self.draw(noise, restart)
        return self._along(noise, restart, torch.full_like(flatten(self.clean)[:, 0], self.eps))

    def _along(self, noise: Noise, restart: int, lengths: Tensor) -> Tensor:
        shape, dtype = tuple(self.clean.shape[1:]), self.clean.dtype
        direction = steepest(noise.normal(shape, restart=restart, dtype=dtype), "l2")
        return self.project(self.clean + broadcast(lengths, direction) * direction)


def steepest(gradient: Tensor, name: str) -> Tensor:
    """Return the direction of length one in a norm along which a loss rises fastest, (n, …).

    It is the sign of the gradient in linf and the normalised gradient in l2; zero where the gradient is
    zero, and elements that are not finite count as zero.

    Args:
        gradient: (n, …).
        name: ``l2`` or ``linf``.
    """
    gradient = torch.nan_to_num(gradient, nan=0.0, posinf=0.0, neginf=0.0)
    if name == "linf":
        return gradient.sign()
    largest = norm(gradient, "linf")
    scaled = gradient / broadcast(largest.where(largest > 0, 1), gradient)
    return scaled / broadcast(norm(scaled, "l2").clamp_min(1), scaled)
