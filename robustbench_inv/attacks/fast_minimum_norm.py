"""FMN and DDN as published: gradient steps in or on a ball whose radius converges to the decision boundary."""

import math
from collections.abc import Callable
from dataclasses import dataclass
from typing import ClassVar

import torch
from torch import Tensor

from robustbench_inv.attacks.best_so_far import ClosestAdversarial
from robustbench_inv.attacks.budget_geometry import steepest_direction
from robustbench_inv.attacks.linearization import linear_distance, max_distance
from robustbench_inv.attacks.losses import losses_for
from robustbench_inv.attacks.parameters import check_below, check_least, check_positive
from robustbench_inv.attacks.protocol import Batch, Kind, Queries
from robustbench_inv.randomness import SampleRNG
from robustbench_inv.tensors import LARGEST_SCORE, NORMS, SMALLEST_MARGIN, broadcast, flatten, norm
from robustbench_inv.threat.budgets import project_perturbations
from robustbench_inv.threat.threat_model import ThreatModel

__all__ = ["DDN", "FMN"]

FINAL_STEP = 0.01
"""Length of the last step, relative to the first."""

FINAL_GAMMA = 0.001
"""FMN's last relative change of the radius."""


CROSSING = 1e-4
"""Share by which FMN's radius exceeds the linearized distance, so that a step crosses the boundary and does not end on it. Of 40
digits on a perceptron, none has an adversarial example in l2 without it, here and in adversarial-library."""


@dataclass(frozen=True)
class FMN:
    """Fast minimum-norm attack in l0, l1, l2 or linf, the norm of the threat.

    Each step ascends the margin along its normalized gradient and projects onto the ball of radius ε and the box. Until
    the first adversarial example, ε is the distance to the boundary of the linearized model. Afterwards it shrinks by
    1 − γ where the iterate is adversarial, and grows by 1 + γ otherwise; in l0 by one element at least, from the start.
    Step length and γ decay along half a cosine. A sample whose gradient is zero stops.

    Args:
        steps: K, gradient steps, >= 1.
        step_size: α₀, l2 length of the first step in widths of the box, > 0; the last is a hundredth of it.
        gamma: γ₀, first relative change of the radius, between 0 and 1; the last is 0.001.

    References:
        Pintor, Roli, Brendel and Biggio, Fast minimum-norm adversarial attacks through adaptive norm constraints,
        NeurIPS 2021, algorithm 1. Defaults: the first author's implementation in Foolbox 3, ``L2FMNAttack``.
    """

    steps: int = 100
    step_size: float = 1.0
    gamma: float = 0.05

    kind: ClassVar[Kind] = "minimum-norm"
    norms: ClassVar[frozenset[str]] = frozenset(NORMS)

    def __post_init__(self) -> None:
        check_least(self, steps=1)
        check_positive(self, "step_size")
        check_below(self, gamma=1.0)

    def run(self, model: Queries, batch: Batch, threat: ThreatModel, rng: SampleRNG) -> Tensor:
        first = 1.0 if threat.norm == "l0" else math.inf
        rule = _next_count if threat.norm == "l0" else _next_radius
        # the authors' code scales to the sphere in l2, and so reaches the boundary more often
        project = _scale if threat.norm == "l2" else project_perturbations
        search = _Search(model, ClosestAdversarial(batch, threat, model), "margin", project)
        return search.run(self.steps, self.step_size, first, lambda at: rule(at, self._gamma(at)))

    def _gamma(self, at: "_Iterates") -> float:
        return _anneal(self.gamma, FINAL_GAMMA, at.step / self.steps)


@dataclass(frozen=True)
class DDN:
    """Decoupled direction and norm in l2.

    Each step ascends the cross-entropy along its normalized gradient and scales the perturbation to the norm ε, which
    shrinks by 1 − γ where the iterate is adversarial and grows by 1 + γ otherwise. The step length decays along half a
    cosine, from the width of the box to a hundredth of it. A sample whose gradient is zero stops.

    Args:
        steps: K, gradient steps, >= 1.
        initial_norm: ε₀ in widths of the box, > 0.
        gamma: γ, relative change of the norm, between 0 and 1.

    References:
        Rony et al., Decoupling direction and norm for efficient gradient-based l2 adversarial attacks and
        defenses, CVPR 2019, algorithm 1. Defaults: the first author's implementation, ``adv_lib.attacks.ddn``.
    """

    steps: int = 100
    initial_norm: float = 1.0
    gamma: float = 0.05

    kind: ClassVar[Kind] = "minimum-norm"
    norms: ClassVar[frozenset[str]] = frozenset({"l2"})

    def __post_init__(self) -> None:
        check_least(self, steps=1)
        check_positive(self, "initial_norm")
        check_below(self, gamma=1.0)

    def run(self, model: Queries, batch: Batch, threat: ThreatModel, rng: SampleRNG) -> Tensor:
        search = _Search(model, ClosestAdversarial(batch, threat, model), "ce", _scale)
        first = self.initial_norm * (model.bounds[1] - model.bounds[0])
        return search.run(
            self.steps,
            1.0,
            first,
            lambda at: at.radii * torch.where(at.hit, 1 - self.gamma, 1 + self.gamma),
        )


@dataclass(frozen=True)
class _Iterates:
    """What the rule for the next radii depends on.

    Args:
        step: number of the step, from 0.
        radii: (m,) the present radii.
        hit: (m,) whether the iterates are adversarial.
        delta: (m, …) their perturbations.
        losses: (m,) of the iterates.
        gradients: (m, …) of the losses.
        nearest: (m,) distances of the closest adversarial examples, inf where there is none.
        norm: of the distances.
    """

    step: int
    radii: Tensor
    hit: Tensor
    delta: Tensor
    losses: Tensor
    gradients: Tensor
    nearest: Tensor
    norm: str


@dataclass(frozen=True)
class _Search:
    """Ascends a loss by normalized steps, each followed by a projection of the perturbation.

    Args:
        model: the queried model.
        closest: keeps the closest adversarial examples.
        loss: name of the loss.
        project: moves perturbations (m, …) into balls or onto spheres around 0, given radii (m,) and the norm.
    """

    model: Queries
    closest: ClosestAdversarial
    loss: str
    project: Callable[[Tensor, Tensor, str], Tensor]

    def run(
        self, steps: int, step_size: float, radius: float, rule: Callable[[_Iterates], Tensor]
    ) -> Tensor:
        """Return the closest adversarial examples (n, …), the clean input where there is none.

        Args:
            steps: number of steps.
            step_size: length of the first step in widths of the box.
            radius: the first radius.
            rule: returns the next radii (m,).
        """
        batch, name, bounds = self.closest.batch, self.closest.threat.norm, self.model.bounds
        (loss,) = losses_for(self.loss, self.closest.threat.goal)
        limits = max_distance(batch.images, bounds, name)
        rows, images = torch.arange(len(batch), device=batch.labels.device), batch.images
        radii = torch.full_like(limits, radius)
        for step in range(steps):
            clean = batch.images[rows]
            output, gradients = self.model.gradient(images, loss, rows)
            hit = self.closest.update(images, output, rows) > 0
            delta, losses = images - clean, loss(output, batch.labels[rows])
            nearest = self.closest.distances[rows]
            radii = rule(_Iterates(step, radii, hit, delta, losses, gradients, nearest, name))
            radii = radii.minimum(limits[rows])
            length = _anneal(step_size, FINAL_STEP * step_size, step / steps)
            delta = delta + length * (bounds[1] - bounds[0]) * steepest_direction(gradients, "l2")
            moved = (clean + self.project(delta, radii, name)).clamp(*bounds)
            # without a gradient nothing changes, unless the model is stochastic
            keep = (flatten(gradients) != 0).any(1) | (not self.model.success_is_final)
            rows, images, radii = rows[keep], moved[keep], radii[keep]
            if not len(rows):
                return self.closest.images
        self.closest.update(images, self.model(images, rows), rows)
        return self.closest.images


def _next_radius(at: _Iterates, gamma: float) -> Tensor:
    """Return FMN's next radii in l1, l2 and linf."""
    linear = norm(at.delta, at.norm) + linear_distance(at.losses.abs(), at.gradients, at.norm)
    # where only a rejection remains to be overcome, the loss is almost 0, whatever the distance
    known = at.nearest.isfinite() | (at.losses.abs() <= 2 * SMALLEST_MARGIN * LARGEST_SCORE)
    ahead = torch.where(known, at.radii * (1 + gamma), linear * (1 + CROSSING))
    return torch.where(at.hit, (at.radii * (1 - gamma)).minimum(at.nearest), ahead)


def _next_count(at: _Iterates, gamma: float) -> Tensor:
    """Return FMN's next numbers of elements in l0."""
    fewer = (at.radii - 1).minimum((at.radii * (1 - gamma)).floor()).minimum(at.nearest)
    more = (at.radii + 1).maximum((at.radii * (1 + gamma)).floor())
    return torch.where(at.hit, fewer.clamp_min(1), more)


def _scale(delta: Tensor, radii: Tensor, name: str) -> Tensor:
    """Return perturbations (n, …) scaled to the norms given by the radii (n,); zero stays zero."""
    length = norm(delta, name).clamp_min(torch.finfo(delta.dtype).tiny)
    return delta * broadcast(radii / length, delta)


def _anneal(first: float, last: float, share: float) -> float:
    """Return the value at a share of the way from the first to the last, along half a cosine."""
    return last + (first - last) * (1 + math.cos(math.pi * share)) / 2
