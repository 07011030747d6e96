"""What a minimum-norm attack has found so far: the nearest success of each sample."""

from dataclasses import dataclass, field

import torch
from torch import Tensor

from robustbench_inv.attacks.protocol import Batch
from robustbench_inv.tensors import Output
from robustbench_inv.threat.threat_model import ThreatModel

__all__ = ["Nearest"]


@dataclass
class Nearest:
    """The nearest success of each sample, sample by sample (checks C15, C38).

    Args:
        batch: the n samples; their clean images stand for those without a success.
        threat: measures distances, and its goal says what a success is.
        confidence: the margin that a success must exceed, >= 0.
    """

    batch: Batch
    threat: ThreatModel
    confidence: float = 0.0
    images: Tensor = field(init=False)
    distances: Tensor = field(init=False)

    def __post_init__(self) -> None:
        self.images = self.batch.images.clone()
        first = self.threat.budget.distance(self.images, self.images)
        self.distances = torch.full_like(first, float("inf"))

    @property
    def found(self) -> Tensor:
        """(n,) booleans: is there a success?"""
        return self.distances.isfinite()

    def offer(self, images: Tensor, output: Output, rows: Tensor) -> Tensor:
        """Take the successes that are nearer than what is known.

        Args:
            images: (m, …) inputs inside the model's bounds.
            output: the model's answer to them.
            rows: (m,) positions of their samples.

        Returns:
            (m,) margins of the goal less the confidence: positive for a success.
        """
        margins = self.threat.goal.margin(output, self.batch.labels[rows]) - self.confidence
        distances = self.threat.budget.distance(self.batch.images[rows], images)
        nearer = (margins > 0) & (distances < self.distances[rows])
        self.images[rows[nearer]] = images[nearer]
        self.distances[rows[nearer]] = distances[nearer]
        return margins
