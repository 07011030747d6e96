"""Boundary attack: a random walk along the decision boundary that uses decisions alone."""

import math
from dataclasses import dataclass
from typing import ClassVar

import torch
from torch import Tensor

from robustbench_inv.attacks.decision_based import DecisionOracle, find_starting_points
from robustbench_inv.attacks.parameters import check_below, check_least
from robustbench_inv.attacks.protocol import Batch, Kind, Queries
from robustbench_inv.randomness import SampleRNG
from robustbench_inv.tensors import broadcast, flatten, norm
from robustbench_inv.threat.threat_model import ThreatModel

__all__ = ["BoundaryAttack"]

SPHERICAL_SUCCESS_RATE, SOURCE_SUCCESS_RATE = 0.35, 0.2
"""Success rates at which the step sizes stay constant: of steps along the sphere, and of steps toward the source.

The paper aims at about 0.5 and 0.25. Where the boundary is flat, fewer than half of all steps along a sphere succeed, so
that these steps would shrink for ever. Median and mean l2 of 10 digits on mnist-cnn after 1,500 steps: 1.81 2.11 with
(0.5, 0.25), 1.69 1.85 with (0.35, 0.2), 1.82 1.88 with (0.25, 0.12), 1.95 2.02 with (0.25, 0.2)."""

MIN_STEP, MAX_STEP = 1e-7, 0.5
"""Range of both step sizes, relative to the distance. A sample whose source step is below it has converged."""


@dataclass(frozen=True)
class BoundaryAttack:
    """A random walk from an adversarial starting point toward the clean input.

    Each step moves along the sphere around the clean input and then toward it; it is accepted if the result is still
    adversarial. Both lengths grow after a success and shrink after a failure, for each sample and query, so that they
    balance at a given success rate. (The paper adapts them over windows of steps.)

    Args:
        steps: maximal number of steps, >= 1.
        spherical_step: first length of the steps along the sphere, relative to the distance, 0 to 1.
        source_step: first length of the steps toward the clean input, relative to the distance, 0 to 1.
        spherical_check_interval: number of steps between queries of the spherical step alone, >= 1.
        step_adaptation: increase of a length's logarithm after a success, > 0.

    References:
        Brendel, Rauber and Bethge, Decision-based adversarial attacks, ICLR 2018, algorithm 1 and section 2.
    """

    steps: int = 5000
    spherical_step: float = 0.1
    source_step: float = 0.1
    spherical_check_interval: int = 5
    step_adaptation: float = 0.1

    kind: ClassVar[Kind] = "minimum-norm"
    norms: ClassVar[frozenset[str]] = frozenset({"l2"})

    def __post_init__(self) -> None:
        check_below(self, spherical_step=1.0, source_step=1.0, step_adaptation=math.inf)
        check_least(self, steps=1, spherical_check_interval=1)

    def run(self, model: Queries, batch: Batch, threat: ThreatModel, rng: SampleRNG) -> Tensor:
        starts, found = find_starting_points(model, batch, threat.goal, rng)
        model.report_failure((~found).nonzero()[:, 0], "no_start")
        walk = _RandomWalk(model, batch, threat, starts, found)
        lengths = torch.tensor([self.spherical_step, self.source_step]).to(walk.distances)
        lengths = lengths.expand(len(batch), 2).clone()
        rows = found.nonzero()[:, 0]
        for step in range(self.steps):
            rows = rows[(lengths[rows, 1] > MIN_STEP) & (walk.distances[rows] > 0)]
            if not len(rows):
                break
            directions = rng.rows(rows).normal(
                tuple(batch.images.shape[1:]), step=step, dtype=batch.images.dtype
            )
            around = walk.spherical_step(rows, directions, lengths[rows, 0])
            if step % self.spherical_check_interval == 0:
                hit = walk.decisions.reached(around, rows)
                lengths[rows, 0] *= self._factor(
                    hit, SPHERICAL_SUCCESS_RATE, self.spherical_check_interval
                )
            hit = walk.advance(around, rows, lengths[rows, 1])
            lengths[rows, 1] *= self._factor(hit, SOURCE_SUCCESS_RATE, 1)
            lengths.clamp_max_(MAX_STEP)
        return walk.images

    def _factor(self, hit: Tensor, share: float, weight: int) -> Tensor:
        """Return the factor of a length, (m,); at this success rate the mean of its logarithm does not change."""
        step_adaptation = self.step_adaptation * math.sqrt(weight)
        return torch.where(hit, step_adaptation, -step_adaptation * share / (1 - share)).exp()


class _RandomWalk:
    """The walks of n samples.

    Args:
        model: the queried model.
        batch: the samples.
        threat: its goal defines success.
        starts: (n, …) adversarial starting points.
        found: (n,) whether there is one.
    """

    def __init__(
        self, model: Queries, batch: Batch, threat: ThreatModel, starts: Tensor, found: Tensor
    ) -> None:
        self.decisions = DecisionOracle(model, batch, threat.goal)
        self.batch, self.bounds = batch, model.bounds
        self.images = starts.clone()
        self.distances = norm(starts - batch.images, "l2").where(found, torch.inf)

    def spherical_step(self, rows: Tensor, directions: Tensor, lengths: Tensor) -> Tensor:
        """Return images (m, …) on the same spheres, clipped to the box.

        Args:
            rows: (m,) positions.
            directions: (m, …) random directions.
            lengths: (m,) step lengths relative to the distance.
        """
        clean, distances = self.batch.images[rows], self.distances[rows]
        outward = (self.images[rows] - clean) / broadcast(distances, clean)
        along = (flatten(outward) * flatten(directions)).sum(1)
        across = directions - broadcast(along, clean) * outward
        across = across / broadcast(norm(across, "l2"), clean)
        moved = outward + broadcast(lengths, clean) * across
        scale = distances / (1 + lengths.square()).sqrt()
        return (clean + broadcast(scale, clean) * moved).clamp(*self.bounds)

    def advance(self, around: Tensor, rows: Tensor, lengths: Tensor) -> Tensor:
        """Step toward the clean inputs and accept closer adversarial examples; return which were accepted, (m,)."""
        clean = self.batch.images[rows]
        ahead = torch.lerp(around, clean, broadcast(lengths, clean).expand_as(clean))
        distances = norm(ahead - clean, "l2")
        hit = self.decisions.reached(ahead, rows) & (distances < self.distances[rows])
        self.images[rows[hit]] = ahead[hit]
        self.distances[rows[hit]] = distances[hit]
        return hit
