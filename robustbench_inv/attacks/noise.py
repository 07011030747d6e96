"""Uniform noise: the attack that knows nothing, and that every other must beat (check C5)."""

from dataclasses import dataclass
from typing import ClassVar

from torch import Tensor

from robustbench_inv.attacks.ball import NORMS, Ball
from robustbench_inv.attacks.best import Best
from robustbench_inv.attacks.protocol import Batch, Kind, Queries
from robustbench_inv.errors import BadParameter
from robustbench_inv.randomness import Noise
from robustbench_inv.threat.threat_model import ThreatModel

__all__ = ["UniformNoise"]


@dataclass(frozen=True)
class UniformNoise:
    """The best of several draws: uniform in the cube for linf, in a uniform direction of length eps for l2.

    Args:
        draws: how many inputs are tried for each sample, >= 1.
    """

    draws: int = 10

    kind: ClassVar[Kind] = "budget"
    norms: ClassVar[frozenset[str]] = NORMS

    def __post_init__(self) -> None:
        if self.draws < 1:
            raise BadParameter("unusable number of draws", got=self.draws, expected=">= 1")

    def run(self, model: Queries, batch: Batch, threat: ThreatModel, noise: Noise) -> Tensor:
        ball = Ball.of(threat, batch.images, model.bounds)
        best = Best(batch, threat.goal, model.conclusive)
        for draw in range(self.draws):
            rows = best.standing
            if not len(rows):
                break
            images = ball[rows].draw_far(noise.rows(rows), draw)
            best.offer(images, model(images, rows), rows)
        return best.images
