"""An attack that raises or lowers the contrast of an image, with three queries and no gradient."""

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
    """Moves every pixel away from the image's mean or toward it, whichever has the larger margin.

    Args:
        strength: change of a pixel before projection onto the budget, in widths of the model's range, > 0.
    """

    strength: float = 1.0

    kind: ClassVar[Kind] = "fixed-budget"
    norms: ClassVar[frozenset[str]] = frozenset({"linf"})

    def run(self, model: Queries, batch: Batch, threat: ThreatModel, rng: SampleRNG) -> Tensor:
        low, high = model.bounds
        mean = broadcast(flatten(batch.images).mean(1), batch.images)
        step = self.strength * (high - low) * (batch.images - mean).sign()
        best = batch.images
        margin = threat.goal.margin(model(best), batch.labels)
        for proposal in (batch.images + step, batch.images - step):
            images = threat.budget.project(batch.images, proposal).clamp(low, high)
            found = threat.goal.margin(model(images), batch.labels)
            best = where_rows(found > margin, images, best)
            margin = found.maximum(margin)
        return best
