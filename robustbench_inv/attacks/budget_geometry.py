"""Norm balls intersected with the model's input box: projection, random points, steepest-ascent directions."""

import math
from dataclasses import dataclass

import torch
from torch import Tensor

from robustbench_inv.errors import CapabilityMismatch
from robustbench_inv.randomness import SampleRNG
from robustbench_inv.tensors import broadcast, flatten, norm
from robustbench_inv.threat.budgets import LpBall
from robustbench_inv.threat.threat_model import ThreatModel

__all__ = ["BALL_NORMS", "GRADIENT_NORMS", "Ball", "project_onto_l1_and_box", "steepest_direction"]


BALL_NORMS = frozenset({"l1", "l2", "linf"})
"""The norms whose balls this file knows: how to come back into one, and how to draw from one."""

GRADIENT_NORMS = frozenset({"l2", "linf"})
"""Those of them in which it knows the direction of a step as well."""

MAX_ITERATIONS = 60
"""Steps that close a bracket as far as float64 can tell, if Newton's never do better."""


@dataclass(frozen=True)
class Ball:
    """The inputs that may be shown instead of each clean one.

    Args:
        clean: (n, …) centres, inside the bounds.
        budget: a ball in one of ``BALL_NORMS``.
        bounds: least and largest value of an element.
    """

    clean: Tensor
    budget: LpBall
    bounds: tuple[float, float]

    @classmethod
    def of(
        cls,
        threat: ThreatModel,
        clean: Tensor,
        bounds: tuple[float, float],
        norms: frozenset[str] = GRADIENT_NORMS,
    ) -> "Ball":
        """Return the ball of a threat.

        Raises:
            CapabilityMismatch: if its budget is not a ball in one of ``norms``, some of ``BALL_NORMS``.
        """
        if not isinstance(threat.budget, LpBall) or threat.norm not in norms:
            raise CapabilityMismatch(
                "the attack needs a fixed budget",
                got=threat.budget,
                expected="eps in " + " or ".join(sorted(norms)),
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

    def wider(self, times: float) -> "Ball":
        """Return balls of a multiple of the radius."""
        return Ball(self.clean, LpBall(self.norm, times * self.eps), self.bounds)

    def project(self, images: Tensor) -> Tensor:
        """Return (n, …) moved into the ball and then into the box, which leads out of neither.

        The box holds the centre, so clamping shortens every element's way from it. In l1, where it would shorten
        most of them by much, the nearest point of both is returned.
        """
        if self.norm == "l1":
            return project_onto_l1_and_box(self.clean, images, self.eps, self.bounds)
        return self.budget.project(self.clean, images).clamp_(*self.bounds)

    def draw(self, rng: SampleRNG, restart: int) -> Tensor:
        """Return one input of each sample, uniform in its ball, (n, …)."""
        shape, dtype = tuple(self.clean.shape[1:]), self.clean.dtype
        if self.norm == "linf":
            cube = 2 * rng.uniform(shape, restart=restart, dtype=dtype) - 1
            return self.project(self.clean + self.eps * cube)
        dimension = math.prod(shape)
        if self.norm == "l1":
            return self.project(self.clean + self.eps * _draw_l1(rng, shape, restart, dtype))
        depth = rng.uniform((), restart=restart, step=1, dtype=dtype) ** (1 / dimension)
        return self._along(rng, restart, self.eps * depth)

    def draw_far(self, rng: SampleRNG, restart: int) -> Tensor:
        """Return inputs as in ``draw``, but those in l2 all at distance eps before they are clamped."""
        if self.norm != "l2":
            return self.draw(rng, restart)
        return self._along(rng, restart, torch.full_like(flatten(self.clean)[:, 0], self.eps))

    def _along(self, rng: SampleRNG, restart: int, lengths: Tensor) -> Tensor:
        shape, dtype = tuple(self.clean.shape[1:]), self.clean.dtype
        direction = steepest_direction(rng.normal(shape, restart=restart, dtype=dtype), "l2")
        return self.project(self.clean + broadcast(lengths, direction) * direction)


def project_onto_l1_and_box(
    clean: Tensor, images: Tensor, eps: float, bounds: tuple[float, float]
) -> Tensor:
    """Return the nearest inputs inside the box and within eps of the clean ones in l1, (n, …).

    With u the way to an image and b how far the box lets each element go in its direction, it is
    sign(u) · min(max(|u| − λ, 0), b) with the least λ >= 0 at which this is no longer than eps.

    Args:
        clean: (n, …) inside the bounds.
        images: (n, …).
        eps: >= 0.
        bounds: least and largest value of an element.

    References:
        Croce and Hein, Mind the box: l1-APGD for sparse adversarial attacks on image classifiers, ICML 2021,
        proposition 3.1.
    """
    centre, offset = flatten(clean).double(), flatten(images - clean).double()
    room = torch.where(offset > 0, bounds[1] - centre, centre - bounds[0])
    shortened = offset.abs().minimum(room)
    far = shortened.sum(1) > eps
    if far.any():
        # the clean input, to which it is added, rounds each element: aim by so much further inside
        rounding = offset.shape[1] ** 0.5 * torch.finfo(clean.dtype).eps
        inside = (eps - rounding * norm(centre[far], "linf").clamp_min(1)).clamp_min(0)
        shortened[far] = _project_l1_in_box(offset[far].abs(), room[far], inside)
    delta = (offset.sign() * shortened).to(clean.dtype).reshape(clean.shape)
    return (clean + delta).clamp(*bounds)


def steepest_direction(gradient: Tensor, name: str) -> Tensor:
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


def _project_l1_in_box(sizes: Tensor, room: Tensor, radii: Tensor) -> Tensor:
    """Return min(max(sizes − λ, 0), room), (n, d), with the least λ of each row at which it sums up to its radius (n,).

    Newton's steps inside a bracket that closes: they end exactly, as the sum is made of straight pieces.

    Args:
        sizes: (n, d) >= 0.
        room: (n, d) >= 0.
        radii: (n,) >= 0, at most the sum of min(sizes, room).
    """
    low, high = torch.zeros_like(radii), sizes.amax(1)
    level = low
    for _ in range(MAX_ITERATIONS):
        left = sizes - level[:, None]
        excess = left.clamp_min(0).minimum(room).sum(1) - radii
        low, high = torch.where(excess > 0, level, low), torch.where(excess > 0, high, level)
        found = excess.abs() <= 1e-12 * (1 + radii)
        if found.all():
            break
        ahead = level + excess / ((left > 0) & (left < room)).sum(1)
        ahead = torch.where((ahead > low) & (ahead < high), ahead, (low + high) / 2)
        level = torch.where(found, level, ahead)
    return (sizes - level[:, None]).clamp_min(0).minimum(room)


def _draw_l1(rng: SampleRNG, shape: tuple[int, ...], restart: int, dtype: torch.dtype) -> Tensor:
    """Return points uniform in the l1 ball of radius one, (n, *shape): shares of d + 1 exponential numbers."""
    lengths = -rng.uniform(shape, restart=restart, dtype=dtype).log()
    rest = -rng.uniform((), restart=restart, step=1, dtype=dtype).log()
    signs = 2.0 * rng.integers(2, shape, restart=restart, step=2) - 1
    return signs.to(dtype) * lengths / broadcast(norm(lengths, "l1") + rest, lengths)
