"""Scores first, then gradients from where they led, and all the queries only where gradients do not help."""

from dataclasses import dataclass
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
    """A short Square attack, APGD from its result, and a long Square attack where that was in vain.

    Queries without gradients are there for models whose gradients mislead. Where a search along the gradient, begun at
    what a few queries found, goes on much further, they do not, and thousands of queries more would find less than it.

    Args:
        queries: of the short attack, >= 1.
        steps: of APGD, >= 1.
        loss: that it climbs.
        long: queries of the long attack, >= 1.
        reach: a sample gets the long attack if the short one came so far on the way that APGD came, from the clean
            input's margin, between 0 and 1.
    """

    queries: int = 250
    steps: int = 50
    loss: str = "margin"
    long: int = 5000
    reach: float = 0.9

    kind: ClassVar[Kind] = "budget"
    norms: ClassVar[frozenset[str]] = BALLS

    def __post_init__(self) -> None:
        check_losses(self.loss, most=1)
        check_least(self, queries=1, steps=1, long=1)
        check_below(self, reach=1.0)

    def run(self, model: Queries, batch: Batch, threat: ThreatModel, noise: Noise) -> Tensor:
        relay, every = Relay(model, batch, threat, noise), torch.arange(len(batch))
        every = every.to(batch.labels.device)
        clean = relay.margins(batch.images, every)
        images = relay.run(Square(self.queries), every, "scout")
        scouted = reached = relay.margins(images, every).maximum(clean)
        rows = (~relay.fallen(reached)).nonzero()[:, 0]
        if len(rows):
            climb = APGD(self.steps, loss=self.loss)
            images[rows] = relay.run(climb, rows, "climb", images[rows])
            reached = reached.index_copy(0, rows, relay.margins(images[rows], rows))
            reached = reached.maximum(scouted)
        in_vain = scouted - clean >= self.reach * (reached - clean)
        rows = (in_vain & ~relay.fallen(reached)).nonzero()[:, 0]
        if len(rows):
            shown = relay.run(Square(self.long), rows, "long")
            further = relay.margins(shown, rows) > reached[rows]
            images[rows[further]] = shown[further]
        return images
