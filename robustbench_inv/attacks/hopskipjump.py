"""HopSkipJump: the slope at the decision boundary, estimated from decisions alone, shows the way along it."""

import math
from dataclasses import dataclass
from typing import ClassVar

import torch
from torch import Tensor

from robustbench_inv.attacks.ball import steepest
from robustbench_inv.attacks.decisions import Decisions
from robustbench_inv.attacks.protocol import Batch, Kind, Queries
from robustbench_inv.attacks.ranges import check_below, check_least
from robustbench_inv.attacks.starting_points import find_starts
from robustbench_inv.errors import BadParameter
from robustbench_inv.randomness import Noise
from robustbench_inv.tensors import broadcast, norm
from robustbench_inv.threat.threat_model import ThreatModel

__all__ = ["HopSkipJump"]

ELEMENTS = 2**20
"""Elements of the inputs that the model is asked about at once, unless one of each sample are more: 1,337 digits."""

FIRST_WIDTH = 0.1
"""How far the first probes reach, in widths of the box: a starting point's distance says nothing of the boundary."""

SHORTENED = 20
"""How often a step is halved at most before its sample stays where it is."""


@dataclass(frozen=True)
class HopSkipJump:
    """From an input at the decision boundary, steps across it along its estimated slope, each back to the boundary.

    Random probes around the input say on which side of the boundary they lie; their mean, weighted with the
    answers less their mean, points across it. A step in this direction is halved until the goal is reached, and
    from there the way back to the clean input is halved down to the boundary: along the line in l2, by clipping in
    linf. What is nearest on the way is shown.

    Besides the paper: the estimates of earlier steps count as well (``memory``), since the boundary turns little
    from one step to the next; probes reach a share of the distance that does not depend on the number d of elements.
    The paper's 1/d is in a picture of 224² less than float32 resolves.

    Args:
        steps: T, >= 1.
        probes: B₀: step t asks about B₀·√t probes of each sample, >= 1.
        most: probes of a step at most, >= 1.
        width: how far the probes reach, relative to the distance; the boundary is found to the √d-th part of that
            in l2, to the d-th in linf. 0 to 1.
        memory: what the estimate of the step before counts for, 0 to 1; 0 is the paper's attack.

    References:
        Chen, Jordan and Wainwright, HopSkipJumpAttack: a query-efficient decision-based attack, IEEE S&P 2020,
        algorithms 1 and 2, section IV.
    """

    steps: int = 25
    probes: int = 50
    most: int = 10000
    width: float = 0.01
    memory: float = 0.7

    kind: ClassVar[Kind] = "minimal"
    norms: ClassVar[frozenset[str]] = frozenset({"l2", "linf"})

    def __post_init__(self) -> None:
        check_least(self, steps=1, probes=1, most=1)
        check_below(self, width=1.0)
        if not 0 <= self.memory < 1:
            raise BadParameter("unusable memory", got=self.memory, expected=">= 0 and < 1")

    def run(self, model: Queries, batch: Batch, threat: ThreatModel, noise: Noise) -> Tensor:
        starts, found = find_starts(model, batch, threat.goal, noise)
        model.mark((~found).nonzero()[:, 0], "no_start")
        search = _Search(model, batch, threat, self)
        rows, slopes = found.nonzero()[:, 0], torch.zeros_like(batch.images)
        search.arrive(starts[rows], rows)
        for step in range(1, self.steps + 1):
            rows = rows[search.distances[rows] > 0]
            if not len(rows):
                break
            slopes[rows] = self.memory * slopes[rows] + search.slopes(rows, step, noise)
            search.arrive(search.across(rows, slopes[rows], step), rows)
        return search.nearest


class _Search:
    """Where the searches of n samples are.

    Args:
        model: answers.
        batch: the samples.
        threat: its goal says what a success is, its norm what is near.
        settings: of the attack.
    """

    def __init__(
        self, model: Queries, batch: Batch, threat: ThreatModel, settings: HopSkipJump
    ) -> None:
        self.decisions = Decisions(model, batch, threat.goal)
        self.bounds, self.clean, self.norm = model.bounds, batch.images, threat.norm
        self.settings = settings
        self.images, self.nearest = self.clean.clone(), self.clean.clone()
        self.distances = norm(self.clean - self.clean, self.norm)
        self.least = torch.full_like(self.distances, torch.inf)

    @property
    def count(self) -> int:
        """Number of elements of an input."""
        return math.prod(self.clean.shape[1:])

    def arrive(self, images: Tensor, rows: Tensor) -> None:
        """Go from successes (m, …) back to the boundary, as exactly as the probes need (Algorithm 1)."""
        finer = math.sqrt(self.count) if self.norm == "l2" else self.count
        halvings = math.ceil(math.log2(finer / self.settings.width))
        images = self.decisions.approach(images, rows, halvings, self.norm)
        distances = norm(images - self.clean[rows], self.norm)
        self.images[rows], self.distances[rows] = images, distances
        nearer = distances < self.least[rows]
        self.nearest[rows[nearer]], self.least[rows[nearer]] = images[nearer], distances[nearer]

    def slopes(self, rows: Tensor, step: int, noise: Noise) -> Tensor:
        """Return estimates of the slopes (m, …), the longer the more probes there are."""
        count = int(min(self.settings.probes * math.sqrt(step), self.settings.most))
        most = max(1, ELEMENTS // self.count)
        # whatever the batch, as a call may mean other draws of the model
        each = min(count, most)
        together = max(1, max(len(self.clean), most) // each)
        calls = [min(each, count - done) for done in range(0, count, each)]
        parts = torch.split(rows, together)
        found = [self._estimate(part, calls, step, noise.rows(part)) for part in parts]
        return math.sqrt(count) * torch.cat(found)

    def across(self, rows: Tensor, slopes: Tensor, step: int) -> Tensor:
        """Return successes (m, …) on the other side of the boundary, where there is none the images as they are."""
        directions = steepest(slopes, self.norm)
        lengths = self.distances[rows] / math.sqrt(step)
        ahead, left = self.images[rows], torch.arange(len(rows), device=rows.device)
        for _ in range(SHORTENED):
            if not len(left):
                break
            stride = broadcast(lengths[left], ahead) * directions[left]
            shown = (self.images[rows[left]] + stride).clamp(*self.bounds)
            hit = self.decisions.reached(shown, rows[left])
            ahead[left[hit]] = shown[hit]
            left, lengths = left[~hit], lengths / 2
        return ahead

    def _estimate(self, rows: Tensor, calls: list[int], step: int, noise: Noise) -> Tensor:
        """Return vectors (m, …) of length one across the boundary, from so many probes in each call."""
        answers = torch.zeros_like(self.distances[rows])
        weighted, plain = torch.zeros_like(self.clean[rows]), torch.zeros_like(self.clean[rows])
        for call, size in enumerate(calls):
            shape = (size, *self.clean.shape[1:])
            directions = noise.normal(shape, restart=call, step=step, dtype=self.clean.dtype)
            offsets = self._offsets(rows, directions, step)
            signs = self._signs(rows, offsets)
            answers += signs.sum(1)
            plain += offsets.sum(1)
            weighted += (signs.reshape(*signs.shape, *[1] * (plain.ndim - 1)) * offsets).sum(1)
        mean = answers / sum(calls)
        baseline = mean.where(mean.abs() < 1, 0)  # where all answers agree, nothing else is known
        return steepest(weighted - broadcast(baseline, plain) * plain, "l2")

    def _offsets(self, rows: Tensor, directions: Tensor, step: int) -> Tensor:
        """Return by what the probes differ (m, k, …), inside the box, in random directions (m, k, …)."""
        low, high = self.bounds
        widths = self.settings.width * self.distances[rows]
        if step == 1:
            widths = torch.full_like(widths, FIRST_WIDTH * (high - low))
        flat = directions.flatten(0, 1)
        units = (flat / broadcast(norm(flat, "l2"), flat)).reshape(directions.shape)
        images = self.images[rows][:, None]
        probes: Tensor = images + broadcast(widths, units) * units
        return probes.clamp(low, high) - images

    def _signs(self, rows: Tensor, offsets: Tensor) -> Tensor:
        """Return 1 for each probe that reaches the goal and −1 for any other, (m, k)."""
        count = offsets.shape[1]
        probes = (self.images[rows][:, None] + offsets).flatten(0, 1).clamp(*self.bounds)
        hit = self.decisions.reached(probes, rows.repeat_interleave(count))
        return torch.where(hit, 1.0, -1.0).to(offsets).reshape(-1, count)
