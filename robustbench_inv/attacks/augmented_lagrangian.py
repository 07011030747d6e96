"""Augmented Lagrangian descent: minimizes the l2 distance plus a penalty whose multiplier adapts to each sample."""

import torch
from torch import Tensor

from robustbench_inv.attacks.best_so_far import ClosestAdversarial
from robustbench_inv.attacks.losses import losses_for
from robustbench_inv.attacks.protocol import Queries
from robustbench_inv.tensors import broadcast, norm

__all__ = ["descend_lagrangian"]

LEARNING_RATE, FINAL_RATE = 0.1, 0.01
"""First length of a step for each element, in widths of the box, and the last one relative to it."""

DECAY = 0.9
"""Decay of the moments of RMSProp and of the multipliers."""

MAX_GAP = 1e4
"""Largest absolute DLR that counts; it is infinite where all other classes are ruled out."""

CHECK_INTERVAL, MIN_IMPROVEMENT, PENALTY_GROWTH = 10, 0.95, 1.2
"""Every tenth step the penalty of a sample without an adversarial example grows, unless its gap is at most 95 % of the one before."""


def descend_lagrangian(model: Queries, closest: ClosestAdversarial, steps: int) -> None:
    """Minimize ‖δ‖₂ + P(y, ρ, μ) of broken samples with the penalty P2, and keep closer examples.

    One descent starts at the clean inputs, a second one at the closest examples. y is minus the DLR loss, negative for an adversarial example. Steps are those of RMSProp with momentum; their length
    decays after the first adversarial example.

    Args:
        model: the queried model.
        closest: the examples, which are updated.
        steps: gradient steps of each descent, >= 0.

    References:
        Rony, Granger, Pedersoli and Ben Ayed, Augmented Lagrangian adversarial attacks, ICCV 2021, algorithm 1 and
        equation 10. Constants: the authors' implementation, ``adv_lib.attacks.alma``.
    """
    for descent in range(2):
        start = closest.images if descent else closest.batch.images
        search = _Descent(model, closest, steps, start)
        for step in range(steps if len(search.rows) else 0):
            search.take(step)


class _Descent:
    """The state of the m samples that are broken.

    Args:
        model: the queried model.
        closest: the examples.
        steps: number of steps.
        start: (n, …) first iterates of all samples.
    """

    def __init__(
        self, model: Queries, closest: ClosestAdversarial, steps: int, start: Tensor
    ) -> None:
        self.model, self.closest, self.steps = model, closest, steps
        (self.dlr,) = losses_for("dlr", closest.threat.goal)
        self.rows = closest.found.nonzero()[:, 0]
        self.clean = clean = closest.batch.images[self.rows]
        self.labels = closest.batch.labels[self.rows]
        self.images = start[self.rows]
        self.square, self.momentum = torch.ones_like(clean), torch.zeros_like(clean)
        self.multipliers = self.penalties = torch.ones_like(closest.distances[self.rows])
        self.gaps = torch.full_like(self.penalties, torch.inf)
        self.found_at = torch.full_like(self.penalties, float(steps + 1))

    def take(self, step: int) -> None:
        """Take a step with all samples."""
        output, gradients = self.model.gradient(self.images, self.dlr, self.rows)
        gaps = -self.dlr(output, self.labels).clamp(-MAX_GAP, MAX_GAP)
        hit = self.closest.update(self.images, output, self.rows) > 0
        first = hit & (self.found_at > self.steps)
        self.found_at = self.found_at.masked_fill(first, float(step))
        self._adapt(gaps, step)
        derivative = _penalty_derivative(gaps, self.penalties, self.multipliers)
        descent = -broadcast(derivative, gradients) * gradients.nan_to_num(0.0, 0.0, 0.0)
        if step:
            descent = descent + self._distance_gradient()
        self.square = DECAY * self.square + (1 - DECAY) * descent.square()
        self.momentum = DECAY * self.momentum + descent / (self.square.sqrt() + 1e-8)
        width = self.model.bounds[1] - self.model.bounds[0]
        share = (step - self.found_at).clamp_min(0) / (self.steps - self.found_at)
        rates = LEARNING_RATE * width * FINAL_RATE**share
        moved = self.images - broadcast(rates, self.momentum).to(self.momentum) * self.momentum
        self.images = moved.clamp(*self.model.bounds)

    def _adapt(self, gaps: Tensor, step: int) -> None:
        """Adapt penalties and multipliers to the gaps (m,)."""
        if step == 0:
            self.gaps = gaps
            return
        if (step + 1) % CHECK_INTERVAL == 0:
            done = (self.found_at <= self.steps) | (gaps < MIN_IMPROVEMENT * self.gaps)
            self.penalties = torch.where(done, self.penalties, PENALTY_GROWTH * self.penalties)
            self.gaps = gaps
        latest = _penalty_derivative(gaps, self.penalties, self.multipliers)
        mixed = DECAY * self.multipliers + (1 - DECAY) * latest
        self.multipliers = mixed.clamp(1e-6, 1e12)

    def _distance_gradient(self) -> Tensor:
        """Return the gradient of the distance, (m, …)."""
        delta = self.images - self.clean
        length = norm(delta, "l2")
        return delta / broadcast(length.where(length > 0, 1), delta)


def _penalty_derivative(gaps: Tensor, penalties: Tensor, multipliers: Tensor) -> Tensor:
    """Return the derivative of the penalty-Lagrangian P2 with respect to the gaps, (m,)."""
    above = multipliers + 2 * multipliers * penalties * gaps + (penalties * gaps).square() / 2
    below = multipliers / (1 - penalties * gaps.clamp_max(0)).square()
    return torch.where(gaps >= 0, above, below)
