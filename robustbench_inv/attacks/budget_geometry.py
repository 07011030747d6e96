"""Norm balls intersected with the model's input box: projection, random points, steepest-ascent directions."""

import math
from collections.abc import Callable
from dataclasses import dataclass

import torch
from torch import Tensor

from robustbench_inv.errors import CapabilityMismatch
from robustbench_inv.randomness import SampleRNG
from robustbench_inv.tensors import broadcast, flatten, norm, where_rows
from robustbench_inv.threat.budgets import LpBall, add_inward
from robustbench_inv.threat.threat_model import ThreatModel

__all__ = ["BALL_NORMS", "GRADIENT_NORMS", "Ball", "project_onto_l1_and_box", "steepest_direction"]


BALL_NORMS = frozenset({"l1", "l2", "linf"})
"""Norms with a projection onto the ball and random points inside it."""

GRADIENT_NORMS = frozenset({"l2", "linf"})
"""Norms with a steepest-ascent direction as well."""

MAX_ITERATIONS = 60
"""Bisections that close a bracket in float64, if Newton steps never help."""


@dataclass(frozen=True)
class Ball:
    """The inputs allowed for each sample: a norm ball around the clean input, intersected with the box.

    Args:
        clean: (n, …) centres, inside the bounds.
        budget: a ball in one of ``BALL_NORMS``.
        bounds: smallest and largest value of an input element.
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
            CapabilityMismatch: if the budget is not a ball in one of ``norms``, a subset of ``BALL_NORMS``.
        """
        if not isinstance(threat.budget, LpBall) or threat.norm not in norms:
            raise CapabilityMismatch(
                "the attack needs a fixed budget",
                got=threat.budget,
                expected="eps in " + " or ".join(sorted(norms)),
                remedy="use a threat such as --threat linf=0.1",
            )
        return cls(clean, threat.budget, bounds)

    @property
    def norm(self) -> str:
        return self.budget.norm

    @property
    def eps(self) -> float:
        return self.budget.eps

    def __getitem__(self, rows: Tensor) -> "Ball":
        """Return the balls of a subset of the samples."""
        return Ball(self.clean[rows], self.budget, self.bounds)

    def wider(self, times: float) -> "Ball":
        """Return balls whose radius is ``times`` as large."""
        return Ball(self.clean, LpBall(self.norm, times * self.eps), self.bounds)

    def project(self, images: Tensor) -> Tensor:
        """Return (n, …) projected onto the ball and then clipped to the box.

        The box contains the centre, so clipping never leaves the ball. In l1 the exact projection onto the
        intersection is returned, since clipping would shorten most perturbations by much.
        """
        if self.norm == "l1":
            return project_onto_l1_and_box(self.clean, images, self.eps, self.bounds)
        return self.budget.project(self.clean, images).clamp_(*self.bounds)

    def draw(self, rng: SampleRNG, restart: int) -> Tensor:
        """Return one point per sample, uniform in its ball and clipped to the box, (n, …)."""
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
        """Return points as ``draw`` does, except that those in l2 are at distance eps before clipping."""
        if self.norm != "l2":
            return self.draw(rng, restart)
        return self._along(rng, restart, torch.full_like(flatten(self.clean)[:, 0], self.eps))

    def ascend(
        self, images: Tensor, gradient: Callable[[Tensor], Tensor], steps: int, rel_step: float
    ) -> Tensor:
        """Return the last of projected steps of constant length from images in the ball, (n, …).

        Args:
            images: (n, …) inside the ball.
            gradient: maps images (n, …) to the gradients of what is increased.
            steps: number of steps.
            rel_step: length of a step relative to eps, > 0.
        """
        for _ in range(steps):
            step = rel_step * self.eps * steepest_direction(gradient(images), self.norm)
            images = self.project(images + step)
        return images

    def _along(self, rng: SampleRNG, restart: int, lengths: Tensor) -> Tensor:
        shape, dtype = tuple(self.clean.shape[1:]), self.clean.dtype
        direction = steepest_direction(rng.normal(shape, restart=restart, dtype=dtype), "l2")
        return self.project(self.clean + broadcast(lengths, direction) * direction)


def project_onto_l1_and_box(
    clean: Tensor, images: Tensor, eps: float, bounds: tuple[float, float]
) -> Tensor:
    """Return the projection onto the l1 balls of radius eps around the clean inputs, intersected with the box, (n, …).

    With the perturbation u and the room b that the box leaves each element in its direction, the projected
    perturbation is sign(u) · min(max(|u| − λ, 0), b) for the smallest λ >= 0 at which its l1 norm is at most eps.

    Args:
        clean: (n, …) inside the bounds.
        images: (n, …).
        eps: radius, >= 0.
        bounds: smallest and largest value of an element.

    References:
        Croce and Hein, Mind the box: l1-APGD for sparse adversarial attacks on image classifiers, ICML 2021,
        proposition 3.1.
    """
    centre, offset = flatten(clean).double(), flatten(images - clean).double()
    room = torch.where(offset > 0, bounds[1] - centre, centre - bounds[0])
    shortened = offset.abs().minimum(room)
    far = shortened.sum(1) > eps
    if far.any():
        # adding the clean input rounds each element: project onto a ball that is smaller by that much
        rounding = offset.shape[1] ** 0.5 * torch.finfo(clean.dtype).eps
        inside = (eps - rounding * norm(centre[far], "linf").clamp_min(1)).clamp_min(0)
        shortened[far] = _project_l1_in_box(offset[far].abs(), room[far], inside)
    delta = (offset.sign() * shortened).reshape(clean.shape)
    projected = (clean + delta.to(clean.dtype)).clamp(*bounds)
    contained = LpBall("l1", eps).contains(clean, projected)
    if contained.all():
        return projected
    return where_rows(contained, projected, add_inward(clean, delta).clamp(*bounds))


def steepest_direction(gradient: Tensor, name: str) -> Tensor:
    """Return the steepest-ascent direction of length one in a norm, (n, …).

    It is the sign of the gradient in linf and the normalized gradient in l2. It is zero where the gradient is zero;
    elements that are not finite count as zero.

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
    """Return min(max(sizes − λ, 0), room), (n, d), with the smallest λ of each row at which its sum equals the radius (n,).

    Newton steps inside a shrinking bracket; they converge exactly, since the sum is piecewise linear in λ.

    Args:
        sizes: (n, d) >= 0.
        room: (n, d) >= 0.
        radii: (n,) >= 0, at most the sum of min(sizes, room).
    """
    low, high = torch.zeros_like(radii), sizes.amax(1)
    level = low
    for _ in range(MAX_ITERATIONS):
        rest = sizes - level[:, None]
        excess = rest.clamp_min(0).minimum(room).sum(1) - radii
        low, high = torch.where(excess > 0, level, low), torch.where(excess > 0, high, level)
        found = excess.abs() <= 1e-12 * (1 + radii)
        if found.all():
            break
        ahead = level + excess / ((rest > 0) & (rest < room)).sum(1)
        ahead = torch.where((ahead > low) & (ahead < high), ahead, (low + high) / 2)
        level = torch.where(found, level, ahead)
    return (sizes - level[:, None]).clamp_min(0).minimum(room)


def _draw_l1(rng: SampleRNG, shape: tuple[int, ...], restart: int, dtype: torch.dtype) -> Tensor:
    """Return points uniform in the l1 ball of radius one, (n, *shape): d of d + 1 exponential numbers over their sum."""
    lengths = -rng.uniform(shape, restart=restart, dtype=dtype).log()
    rest = -rng.uniform((), restart=restart, step=1, dtype=dtype).log()
    signs = 2.0 * rng.integers(2, shape, restart=restart, step=2) - 1
    return signs.to(dtype) * lengths / broadcast(norm(lengths, "l1") + rest, lengths)
