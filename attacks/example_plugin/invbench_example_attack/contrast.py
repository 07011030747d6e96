"""Raises or lowers the contrast of an image: an attack that needs no gradient and three queries."""

from dataclasses import dataclass
from typing import ClassVar

from torch import Tensor

from robustbench_inv.attacks.protocol import Batch, Kind, Queries
from robustbench_inv.randomness import SampleRNG
from robustbench_inv.tensors import broadcast, flatten, where_rows
from robustbench_inv.threat.threat_model import ThreatModel

__all__ = ["Contrast"]


@dataclass(frozen=True)
class Contrast:
    """Moves every pixel away from the image's mean, or towards it, whichever serves the goal.

    Args:
        strength: how far, in widths of the model's range, before the budget cuts it short; > 0.
    """

    strength: float = 1.0

    kind: ClassVar[Kind] = "fixed-budget"
    norms: ClassVar[frozenset[str]] = frozenset({"linf"})

    def run(self, model: Queries, batch: Batch, threat: ThreatModel, rng: SampleRNG) -> Tensor:
        low, high = model.bounds
        mean = broadcast(flatten(batch.images).mean(1), batch.images)
        step = self.strength * (high - low) * (batch.images - mean).sign()
        shown = batch.images
        margin = threat.goal.margin(model(shown), batch.labels)
        for proposal in (batch.images + step, batch.images - step):
            images = threat.budget.project(batch.images, proposal).clamp(low, high)
            found = threat.goal.margin(model(images), batch.labels)
            shown = where_rows(found > margin, images, shown)
            margin = found.maximum(margin)
        return shown
