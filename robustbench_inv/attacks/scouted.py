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
    Where an end is almost there, other starts are of use, as gradients may lead to another end from each.

    Args:
        queries: of the short attack, >= 1.
        steps: of APGD, >= 1.
        loss: that it climbs.
        long: queries of the long attack, >= 1.
        reach: a sample gets the long attack if the short one came so far on the way that APGD came, from the clean
            input's margin, between 0 and 1.
        near: a sample gets more attempts if the first left so little of the clean input's margin, between 0 and 1.
        again: how many more, side by side, >= 1.
        more: queries of each of these, >= 1.
    """

    queries: int = 250
    steps: int = 50
    loss: str = "margin"
    long: int = 5000
    reach: float = 0.9
    near: float = 0.05
    again: int = 3
    more: int = 1000

    kind: ClassVar[Kind] = "budget"
    norms: ClassVar[frozenset[str]] = BALLS

    def __post_init__(self) -> None:
        check_losses(self.loss, most=1)
        check_least(self, queries=1, steps=1, long=1, again=1, more=1)
        check_below(self, reach=1.0, near=1.0)

    def run(self, model: Queries, batch: Batch, threat: ThreatModel, noise: Noise) -> Tensor:
        relay, every = Relay(model, batch, threat, noise), torch.arange(len(batch))
        every = every.to(batch.labels.device)
        found = _Found(batch.images.clone(), relay.margins(batch.images, every))
        scouted = self._attempt(relay, every, found, self.queries, "once")
        rows = found.near(self.near)
        if len(rows):
            self._attempt(relay, rows.repeat(self.again), found, self.more, "again")
        in_vain = scouted - found.clean >= self.reach * (found.best - found.clean)
        rows = (in_vain & ~relay.fallen(found.best)).nonzero()[:, 0]
        if len(rows):
            shown = relay.run(Square(self.long), rows, "long")
            found.offer(shown, relay.margins(shown, rows), rows)
        return found.images

    def _attempt(
        self, relay: Relay, rows: Tensor, found: "_Found", queries: int, name: str
    ) -> Tensor:
        """Let Square and then APGD search for samples at (m,) positions; return how near Square came, (m,)."""
        images = relay.run(Square(queries), rows, f"scout {name}")
        scouted = relay.margins(images, rows).maximum(found.clean[rows])
        reached, left = scouted.clone(), (~relay.fallen(scouted)).nonzero()[:, 0]
        if len(left):
            climb = APGD(self.steps, loss=self.loss)
            images[left] = relay.run(climb, rows[left], f"climb {name}", images[left])
            reached[left] = relay.margins(images[left], rows[left]).maximum(scouted[left])
        found.offer(images, reached, rows)
        return scouted


@dataclass
class _Found:
    """What there is to show of n samples, and how near the clean images and that come, each (n,)."""

    images: Tensor
    clean: Tensor
    best: Tensor = field(init=False)

    def __post_init__(self) -> None:
        self.best = torch.full_like(self.clean, -torch.inf)

    def near(self, share: float) -> Tensor:
        """Return the positions of the samples that stand, with no more than a share of the clean margin left."""
        return ((self.best <= 0) & (self.best >= share * self.clean)).nonzero()[:, 0]

    def offer(self, images: Tensor, reached: Tensor, rows: Tensor) -> None:
        """Take the end of a search: (m, …) images, how near they come and whose they are, both (m,)."""
        best = self.best.scatter_reduce(0, rows, reached, "amax")
        ahead = (reached == best[rows]) & (reached > self.best[rows])
        self.images[rows[ahead]], self.best = images[ahead], best
