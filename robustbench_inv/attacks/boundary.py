"""Boundary attack: a random walk along the decision boundary that uses decisions alone."""

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

SPHERICAL_WINDOW, SOURCE_WINDOW = 100, 30
"""Numbers of decisions over which success rates are taken: of steps along the sphere, and of whole steps."""

SPHERICAL_RATES, SOURCE_RATES = (0.2, 0.5), (0.1, 0.25)
"""Success rates below which step sizes shrink and above which they grow."""

CONVERGED = 1e-7
"""A sample whose step toward the clean input, relative to the distance, is below this has converged."""


@dataclass(frozen=True)
class BoundaryAttack:
    """A random walk from an adversarial starting point toward the clean input.

    Each step moves along the sphere around the clean input and then toward it; it is accepted if the result is still
    adversarial. Every tenth step the decisions enter a window of each sample: both step sizes follow the success rate of
    steps along the sphere, and the second that of whole steps. They grow or shrink by a factor, which empties the window.

    Args:
        steps: maximal number of steps, >= 1.
        spherical_step: first length of the steps along the sphere, relative to the distance, 0 to 1.
        source_step: first length of the steps toward the clean input, relative to the distance, 0 to 1.
        step_adaptation: factor by which step sizes grow and shrink, > 1.
        update_interval: number of steps between decisions that enter the windows, >= 1.

    References:
        Brendel, Rauber and Bethge, Decision-based adversarial attacks, ICLR 2018, algorithm 1 and section 2. Windows,
        rates and defaults: the authors' reference implementation, ``BoundaryAttack`` in Foolbox 3.
    """

    steps: int = 25000
    spherical_step: float = 0.01
    source_step: float = 0.01
    step_adaptation: float = 1.5
    update_interval: int = 10

    kind: ClassVar[Kind] = "minimum-norm"
    norms: ClassVar[frozenset[str]] = frozenset({"l2"})

    def __post_init__(self) -> None:
        check_below(self, spherical_step=1.0, source_step=1.0)
        check_least(self, steps=1, step_adaptation=1, update_interval=1)

    def run(self, model: Queries, batch: Batch, threat: ThreatModel, rng: SampleRNG) -> Tensor:
        starts, found = find_starting_points(model, batch, threat.goal, rng)
        model.report_failure((~found).nonzero()[:, 0], "no_start")
        walk = _RandomWalk(model, batch, threat, starts, found)
        along = _Window(len(batch), SPHERICAL_WINDOW, SPHERICAL_RATES, batch.labels.device)
        whole = _Window(len(batch), SOURCE_WINDOW, SOURCE_RATES, batch.labels.device)
        lengths = torch.tensor([self.spherical_step, self.source_step]).to(walk.distances)
        lengths = lengths.expand(len(batch), 2).clone()
        rows = found.nonzero()[:, 0]
        for step in range(1, self.steps + 1):
            rows = rows[(lengths[rows, 1] >= CONVERGED) & (walk.distances[rows] > 0)]
            if not len(rows):
                break
            directions = rng.rows(rows).normal(
                tuple(batch.images.shape[1:]), step=step, dtype=batch.images.dtype
            )
            around = walk.spherical_step(rows, directions, lengths[rows, 0])
            hit = walk.advance(around, rows, lengths[rows, 1])
            if step % self.update_interval == 0:
                reached = walk.decisions.reached(around, rows)
                lengths[rows] *= self._factors(along.add(rows, reached))[:, None]
                lengths[rows, 1] *= self._factors(whole.add(rows, hit))
        return walk.images

    def _factors(self, trends: Tensor) -> Tensor:
        return self.step_adaptation**trends


class _Window:
    """The latest decisions of n samples, each in a ring of its own.

    Args:
        count: n.
        size: number of decisions that it holds.
        rates: success rates below which it reports −1, and above which it reports 1.
        device: of the samples.
    """

    def __init__(
        self, count: int, size: int, rates: tuple[float, float], device: torch.device
    ) -> None:
        self.decisions = torch.zeros(count, size, dtype=torch.bool, device=device)
        self.seen = torch.zeros(count, dtype=torch.int64, device=device)
        self.rates = rates

    def add(self, rows: Tensor, hit: Tensor) -> Tensor:
        """Add decisions (m,) of the samples at (m,) positions.

        Returns:
            (m,) 1 where the success rate of a full window is too high, −1 where it is too low, which empties it; else 0.
        """
        size = self.decisions.shape[1]
        self.decisions[rows, self.seen[rows] % size] = hit
        self.seen[rows] += 1
        rate = self.decisions[rows].double().mean(1)
        trend = (rate > self.rates[1]).long() - (rate < self.rates[0]).long()
        trend = trend.where(self.seen[rows] >= size, 0)
        self.seen[rows] *= (trend == 0).long()
        return trend


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
        clean, before = self.batch.images[rows], self.distances[rows]
        reached = norm(around - clean, "l2")
        # clipping has moved the image inside its sphere, which counts toward the step
        steps = (lengths * before + reached - before).clamp_min(0)
        shares = steps / reached.where(reached > 0, 1)
        ahead = torch.lerp(around, clean, broadcast(shares, clean).expand_as(clean))
        distances = norm(ahead - clean, "l2")
        hit = self.decisions.reached(ahead, rows) & (distances < before)
        self.images[rows[hit]] = ahead[hit]
        self.distances[rows[hit]] = distances[hit]
        return hit
