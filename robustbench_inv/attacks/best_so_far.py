"""What an attack returns so far: for a fixed budget the best iterate, for a minimum-norm attack the closest adversarial example."""

from dataclasses import dataclass, field

import torch
from torch import Tensor

from robustbench_inv.attacks.protocol import Batch
from robustbench_inv.tensors import Output
from robustbench_inv.threat.goals import Goal
from robustbench_inv.threat.threat_model import ThreatModel

__all__ = ["BestSoFar", "ClosestAdversarial"]


@dataclass
class BestSoFar:
    """The image of each sample to return, and which samples still stand (checks C15, C38).

    Args:
        batch: the n samples; their clean images are the first to return.
        goal: its margin says how near an output is, and that it is reached where positive.
        success_is_final: is a success final (``Queries.success_is_final``)? If not, every sample stands to the end, and the
            image of the largest margin is the one to return.
    """

    batch: Batch
    goal: Goal
    success_is_final: bool = True
    images: Tensor = field(init=False)
    margins: Tensor = field(init=False)

    def __post_init__(self) -> None:
        self.images = self.batch.images.clone()
        self.margins = torch.full_like(self.batch.labels, float("-inf"), dtype=torch.float64)

    def reset(self, rows: Tensor) -> "BestSoFar":
        """Return the same with nothing found yet for the samples at (m,) positions, and no others standing."""
        fresh = BestSoFar(self.batch, self.goal, self.success_is_final)
        others = torch.ones_like(self.batch.labels, dtype=torch.bool)
        others[rows] = False
        fresh.margins[others] = torch.inf
        return fresh

    @property
    def active(self) -> Tensor:
        """(m,) int64: positions of the samples without a final success."""
        return (~self._decided(self.margins)).nonzero()[:, 0]

    def update(self, images: Tensor, output: Output, rows: Tensor) -> Tensor:
        """Take the images that come nearer the goal.

        Args:
            images: (m, …) allowed inputs.
            output: the model's answer to them.
            rows: (m,) positions of their samples, which still stand.

        Returns:
            (m,) booleans: does the sample still stand?
        """
        margins = self.goal.margin(output, self.batch.labels[rows]).double()
        better = (margins > self.margins[rows]).nonzero()[:, 0]
        # whole rows, copied five times as fast as elements found through an index
        self.images.index_copy_(0, rows[better], images.index_select(0, better))
        self.margins[rows[better]] = margins[better]
        return ~self._decided(margins)

    def _decided(self, margins: Tensor) -> Tensor:
        return (margins > 0) & self.success_is_final


@dataclass
class ClosestAdversarial:
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

    def update(self, images: Tensor, output: Output, rows: Tensor) -> Tensor:
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
