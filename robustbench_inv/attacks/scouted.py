"""Scores first, then gradients from where they led; more of both where little is missing, scores alone where gradients do not help."""

from dataclasses import dataclass, field
from typing import ClassVar

import torch
from torch import Tensor

from robustbench_inv.attacks.apgd import APGD
from robustbench_inv.attacks.ball import BALLS
from robustbench_inv.attacks.losses import check_losses
from robustbench_inv.attacks.protocol import Batch, Kind, Queries
from robustbench_inv.attacks.ranges import check_below, check_least
from robustbench_inv.attacks.relay import Relay
from robustbench_inv.attacks.square import Square
from robustbench_inv.randomness import Noise
from robustbench_inv.threat.threat_model import ThreatModel

__all__ = ["Scouted"]


@dataclass(frozen=True)
class Scouted:
    """A short Square attack and APGD from its result: an attempt; then more attempts, or a long Square attack.

    Queries without gradients are there for models whose gradients mislead. Where a search along the gradient, begun at
    what a few queries found, goes on much further, they do not, and thousands of queries more would find less than it.
    Where gradients lead to another end from each start, and an end is almost there, other starts are of use: a sample
    gets another attempt, each time of twice the queries, as long as the best is ahead of the second best by more than
    is left.

    Args:
        queries: of the short attack, >= 1.
        steps: of APGD, >= 1.
        loss: that it climbs.
        long: queries of the long attack, >= 1.
        reach: a sample gets the long attack if the short one came so far on the way that APGD came, from the clean
            input's margin, between 0 and 1.
        near: a sample gets a second attempt if the first left so little of the clean input's margin, between 0 and 1.
        rounds: attempts after the first, >= 0.
    """

    queries: int = 250
    steps: int = 50
    loss: str = "margin"
    long: int = 5000
    reach: float = 0.9
    near: float = 0.05
    rounds: int = 3

    kind: ClassVar[Kind] = "budget"
    norms: ClassVar[frozenset[str]] = BALLS

    def __post_init__(self) -> None:
        check_losses(self.loss, most=1)
        check_least(self, queries=1, steps=1, long=1, rounds=0)
        check_below(self, reach=1.0, near=1.0)

    def run(self, model: Queries, batch: Batch, threat: ThreatModel, noise: Noise) -> Tensor:
        relay, every = Relay(model, batch, threat, noise), torch.arange(len(batch))
        every = every.to(batch.labels.device)
        found = _Found(batch.images.clone(), relay.margins(batch.images, every))
        scouted = self._attempt(relay, every, found, 0)
        rows = found.near(self.near)
        for number in range(1, self.rounds + 1):
            if len(rows):
                self._attempt(relay, rows, found, number)
                rows = rows[found.promising[rows]]
        in_vain = scouted - found.clean >= self.reach * (found.best - found.clean)
        rows = (in_vain & ~relay.fallen(found.best)).nonzero()[:, 0]
        if len(rows):
            shown = relay.run(Square(self.long), rows, "long")
            found.offer(shown, relay.margins(shown, rows), rows)
        return found.images

    def _attempt(self, relay: Relay, rows: Tensor, found: "_Found", number: int) -> Tensor:
        """Let Square and then APGD search for samples at (m,) positions; return how near Square came, (m,)."""
        images = relay.run(Square(self.queries * 2**number), rows, f"scout/{number}")
        scouted = relay.margins(images, rows).maximum(found.clean[rows])
        reached, left = scouted.clone(), (~relay.fallen(scouted)).nonzero()[:, 0]
        if len(left):
            climb = APGD(self.steps, loss=self.loss)
            images[left] = relay.run(climb, rows[left], f"climb/{number}", images[left])
            reached[left] = relay.margins(images[left], rows[left]).maximum(scouted[left])
        found.offer(images, reached, rows)
        return scouted


@dataclass
class _Found:
    """What there is to show of n samples, and how near the clean images, the best attempt and the second best are, (n,)."""

    images: Tensor
    clean: Tensor
    best: Tensor = field(init=False)
    second: Tensor = field(init=False)

    def __post_init__(self) -> None:
        self.best = self.second = torch.full_like(self.clean, -torch.inf)

    def near(self, share: float) -> Tensor:
        """Return the positions of the samples that stand, with no more than a share of the clean margin left."""
        return ((self.best <= 0) & (self.best >= share * self.clean)).nonzero()[:, 0]

    @property
    def promising(self) -> Tensor:
        """(n,): does a sample stand, and is its best attempt ahead of the second by more than is left?"""
        return (self.best <= 0) & (self.best - self.second > -self.best)

    def offer(self, images: Tensor, reached: Tensor, rows: Tensor) -> None:
        """Take the end of an attempt: (m, …) images, how near they are and whose, both (m,)."""
        best, ahead = self.best[rows], reached > self.best[rows]
        self.images[rows[ahead]] = images[ahead]
        self.second = self.second.index_copy(
            0, rows, self.second[rows].maximum(reached.minimum(best))
        )
        self.best = self.best.index_copy(0, rows, best.maximum(reached))
