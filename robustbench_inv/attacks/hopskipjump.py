"""HopSkipJump: steps along the gradient at the decision boundary, estimated from decisions alone."""

import math
from dataclasses import dataclass
from typing import ClassVar

import torch
from torch import Tensor

from robustbench_inv.attacks.budget_geometry import steepest_direction
from robustbench_inv.attacks.decision_based import DecisionOracle, find_starting_points
from robustbench_inv.attacks.parameters import check_least, check_positive
from robustbench_inv.attacks.protocol import Batch, Kind, Queries
from robustbench_inv.errors import BadParameter
from robustbench_inv.randomness import SampleRNG
from robustbench_inv.tensors import broadcast, norm
from robustbench_inv.threat.threat_model import ThreatModel

__all__ = ["HopSkipJump"]

MAX_BATCH_ELEMENTS = 2**20
"""Maximal number of input elements per query, 1,337 digits; one input per sample is always allowed."""

INITIAL_PROBE_RADIUS = 0.1
"""Radius of the first probes, in widths of the box; the distance of a starting point is no measure for it."""

MAX_STEP_HALVINGS = 20
"""Maximal number of halvings of a step; after that the sample does not move."""


@dataclass(frozen=True)
class HopSkipJump:
    """Alternates gradient estimates at the decision boundary, steps across it, and binary searches back to it.

    The gradient is estimated as the mean of random probes around the boundary point, weighted by their decisions minus
    the mean decision. A step along it is halved until it is adversarial. A binary search then returns to the
    boundary: along the line in l2, by clipping in linf. The closest adversarial example is returned.

    Args:
        steps: T, >= 1.
        initial_queries: B₀: step t uses B₀·√t probes for each sample, >= 1.
        max_queries: maximal number of probes of a step, >= 1.
        gamma: γ, > 0: of an input of d elements, the radius of the probes is γ/d of the distance after the last step,
            and the binary search stops at γ/(d·√d) of it in l2, at γ/d² in linf.
        momentum: weight of the previous estimate, 0 to 1; 0 is the published attack.

    References:
        Chen, Jordan and Wainwright, HopSkipJumpAttack: a query-efficient decision-based attack, IEEE S&P 2020,
        algorithms 1 and 2, section IV. Defaults, first radius and uniform probes in linf: the authors' code
        (github.com/Jianbo-Lab/HSJA).
    """

    steps: int = 40
    initial_queries: int = 100
    max_queries: int = 10000
    gamma: float = 1.0
    momentum: float = 0.0

    kind: ClassVar[Kind] = "minimum-norm"
    norms: ClassVar[frozenset[str]] = frozenset({"l2", "linf"})

    def __post_init__(self) -> None:
        check_least(self, steps=1, initial_queries=1, max_queries=1)
        check_positive(self, "gamma")
        if not 0 <= self.momentum < 1:
            raise BadParameter("unusable momentum", got=self.momentum, expected=">= 0 and < 1")

    def run(self, model: Queries, batch: Batch, threat: ThreatModel, rng: SampleRNG) -> Tensor:
        starts, found = find_starting_points(model, batch, threat.goal, rng)
        model.report_failure((~found).nonzero()[:, 0], "no_start")
        search = _Search(model, batch, threat, self)
        rows, gradients = found.nonzero()[:, 0], torch.zeros_like(batch.images)
        search.project_to_boundary(starts[rows], rows)
        for step in range(1, self.steps + 1):
            rows = rows[search.distances[rows] > 0]
            if not len(rows):
                break
            gradients[rows] = self.momentum * gradients[rows] + search.gradients(rows, step, rng)
            search.project_to_boundary(search.step_across(rows, gradients[rows], step), rows)
        return search.nearest


class _Search:
    """The searches of n samples.

    Args:
        model: the queried model.
        batch: the samples.
        threat: its goal defines success, its norm distances.
        settings: of the attack.
    """

    def __init__(
        self, model: Queries, batch: Batch, threat: ThreatModel, settings: HopSkipJump
    ) -> None:
        self.decisions = DecisionOracle(model, batch, threat.goal)
        self.bounds, self.clean, self.norm = model.bounds, batch.images, threat.norm
        self.settings = settings
        self.images, self.nearest = self.clean.clone(), self.clean.clone()
        self.distances = norm(self.clean - self.clean, self.norm)
        self.reaches = self.distances.clone()
        self.closest_distances = torch.full_like(self.distances, torch.inf)

    @property
    def count(self) -> int:
        """Number of elements of an input."""
        return math.prod(self.clean.shape[1:])

    @property
    def _share(self) -> float:
        """Radius of the probes relative to the distance."""
        return self.settings.gamma / self.count

    def project_to_boundary(self, images: Tensor, rows: Tensor) -> None:
        """Move adversarial examples (m, …) to the boundary by binary search, as exactly as the probes need (algorithm 1)."""
        self.reaches[rows] = norm(images - self.clean[rows], self.norm)
        finer = math.sqrt(self.count) if self.norm == "l2" else self.count
        halvings = max(0, math.ceil(math.log2(finer / self._share)))
        images = self.decisions.binary_search(images, rows, halvings, self.norm)
        distances = norm(images - self.clean[rows], self.norm)
        self.images[rows], self.distances[rows] = images, distances
        nearer = distances < self.closest_distances[rows]
        self.nearest[rows[nearer]], self.closest_distances[rows[nearer]] = (
            images[nearer],
            distances[nearer],
        )

    def gradients(self, rows: Tensor, step: int, rng: SampleRNG) -> Tensor:
        """Return gradient estimates (m, …), whose length grows with the number of probes."""
        count = int(min(self.settings.initial_queries * math.sqrt(step), self.settings.max_queries))
        max_queries = max(1, MAX_BATCH_ELEMENTS // self.count)
        # the split into calls must not depend on the batch, since each call may draw other latents
        each = min(count, max_queries)
        together = max(1, max(len(self.clean), max_queries) // each)
        calls = [min(each, count - done) for done in range(0, count, each)]
        parts = torch.split(rows, together)
        found = [self._estimate(part, calls, step, rng.rows(part)) for part in parts]
        return math.sqrt(count) * torch.cat(found)

    def step_across(self, rows: Tensor, gradients: Tensor, step: int) -> Tensor:
        """Return adversarial examples (m, …) across the boundary, the unchanged images where there are none."""
        directions = steepest_direction(gradients, self.norm)
        lengths = self.distances[rows] / math.sqrt(step)
        ahead, remaining = self.images[rows], torch.arange(len(rows), device=rows.device)
        for _ in range(MAX_STEP_HALVINGS):
            if not len(remaining):
                break
            stride = broadcast(lengths[remaining], ahead) * directions[remaining]
            candidates = (self.images[rows[remaining]] + stride).clamp(*self.bounds)
            hit = self.decisions.reached(candidates, rows[remaining])
            ahead[remaining[hit]] = candidates[hit]
            remaining, lengths = remaining[~hit], lengths / 2
        return ahead

    def _estimate(self, rows: Tensor, calls: list[int], step: int, rng: SampleRNG) -> Tensor:
        """Return unit vectors (m, …) across the boundary, from the given numbers of probes per call."""
        decisions = torch.zeros_like(self.distances[rows])
        weighted, plain = torch.zeros_like(self.clean[rows]), torch.zeros_like(self.clean[rows])
        for call, size in enumerate(calls):
            shape = (size, *self.clean.shape[1:])
            directions = self._draw(shape, call, step, rng)
            offsets = self._offsets(rows, directions, step)
            signs = self._signs(rows, offsets)
            decisions += signs.sum(1)
            plain += offsets.sum(1)
            weighted += (signs.reshape(*signs.shape, *[1] * (plain.ndim - 1)) * offsets).sum(1)
        mean = decisions / sum(calls)
        baseline = mean.where(mean.abs() < 1, 0)  # no baseline where all decisions agree
        return steepest_direction(weighted - broadcast(baseline, plain) * plain, "l2")

    def _draw(self, shape: tuple[int, ...], call: int, step: int, rng: SampleRNG) -> Tensor:
        """Return random directions (m, *shape) of any length: normal in l2, uniform in the cube in linf."""
        if self.norm == "l2":
            return rng.normal(shape, restart=call, step=step, dtype=self.clean.dtype)
        return 2 * rng.uniform(shape, restart=call, step=step, dtype=self.clean.dtype) - 1

    def _offsets(self, rows: Tensor, directions: Tensor, step: int) -> Tensor:
        """Return the offsets of the probes (m, k, …) in random directions (m, k, …), clipped to the box."""
        low, high = self.bounds
        widths = self._share * self.reaches[rows]
        if step == 1:
            widths = torch.full_like(widths, INITIAL_PROBE_RADIUS * (high - low))
        flat = directions.flatten(0, 1)
        units = (flat / broadcast(norm(flat, "l2"), flat)).reshape(directions.shape)
        images = self.images[rows][:, None]
        probes: Tensor = images + broadcast(widths, units) * units
        return probes.clamp(low, high) - images

    def _signs(self, rows: Tensor, offsets: Tensor) -> Tensor:
        """Return 1 for probes that reach the goal and −1 for the others, (m, k)."""
        count = offsets.shape[1]
        probes = (self.images[rows][:, None] + offsets).flatten(0, 1).clamp(*self.bounds)
        hit = self.decisions.reached(probes, rows.repeat_interleave(count))
        return torch.where(hit, 1.0, -1.0).to(offsets).reshape(-1, count)
