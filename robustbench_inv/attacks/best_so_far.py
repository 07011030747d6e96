"""The best result so far: the iterate of the largest margin, or the closest adversarial example."""

from dataclasses import dataclass, field

import torch
from torch import Tensor

from robustbench_inv.attacks.protocol import Batch, Queries
from robustbench_inv.tensors import Output
from robustbench_inv.threat.goals import Goal
from robustbench_inv.threat.threat_model import ThreatModel

__all__ = ["CONFIRMATIONS", "BestSoFar", "ClosestAdversarial"]

CONFIRMATIONS = 3
"""Number of queries that must confirm an adversarial example if the model's outputs differ between queries."""


@dataclass
class BestSoFar:
    """The iterate of the largest margin of each sample, and which samples are not broken yet (checks C15, C38).

    Args:
        batch: the n samples; the clean inputs are the first results.
        goal: its margin is positive where the goal is reached.
        success_is_final: see ``Queries.success_is_final``. If False, all samples stay active to the end.
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
        """Return a fresh state in which only the samples at (m,) positions are active."""
        fresh = BestSoFar(self.batch, self.goal, self.success_is_final)
        others = torch.ones_like(self.batch.labels, dtype=torch.bool)
        others[rows] = False
        fresh.margins[others] = torch.inf
        return fresh

    @property
    def active(self) -> Tensor:
        """(m,) int64: positions of the samples that are not broken."""
        return (~self._decided(self.margins)).nonzero()[:, 0]

    def update(self, images: Tensor, output: Output, rows: Tensor) -> Tensor:
        """Keep the images whose margin is larger than the best so far.

        Args:
            images: (m, …) allowed inputs.
            output: the model's output for them.
            rows: (m,) positions of their samples, which are active.

        Returns:
            (m,) booleans: whether the sample is still active.
        """
        margins = self.goal.margin(output, self.batch.labels[rows]).double()
        better = (margins > self.margins[rows]).nonzero()[:, 0]
        # copying whole rows is five times as fast as indexed assignment
        self.images.index_copy_(0, rows[better], images.index_select(0, better))
        self.margins[rows[better]] = margins[better]
        return ~self._decided(margins)

    def _decided(self, margins: Tensor) -> Tensor:
        return (margins > 0) & self.success_is_final


@dataclass
class ClosestAdversarial:
    """The closest adversarial example of each sample (checks C15, C38).

    Args:
        batch: the n samples; the clean inputs are the results of samples without an adversarial example.
        threat: its budget measures distances, its goal defines success.
        model: the queried model. If its outputs differ between queries, further queries must confirm an example: the
            closest of many lucky draws would lie on the wrong side of the decision boundary.
        confidence: margin that an adversarial example must exceed, >= 0.
    """

    batch: Batch
    threat: ThreatModel
    model: Queries
    confidence: float = 0.0
    images: Tensor = field(init=False)
    distances: Tensor = field(init=False)

    def __post_init__(self) -> None:
        self.images = self.batch.images.clone()
        first = self.threat.budget.distance(self.images, self.images)
        self.distances = torch.full_like(first, float("inf"))

    @property
    def found(self) -> Tensor:
        """(n,) booleans: whether there is an adversarial example."""
        return self.distances.isfinite()

    def update(
        self, images: Tensor, output: Output, rows: Tensor, slack: Tensor | float = 0.0
    ) -> Tensor:
        """Keep the adversarial examples that are closer than the best so far.

        Args:
            images: (m, …) inputs inside the model's bounds.
            output: the model's output for them.
            rows: (m,) positions of their samples.
            slack: (m,) or one number: margin required in addition to the confidence.

        Returns:
            (m,) margins of the goal minus confidence and slack: positive for an adversarial example.
        """
        margins = self._margins(images, output, rows) - self.confidence - slack
        distances = self.threat.budget.distance(self.batch.images[rows], images)
        nearer = (margins > 0) & (distances < self.distances[rows])
        self.images[rows[nearer]] = images[nearer]
        self.distances[rows[nearer]] = distances[nearer]
        return margins

    def _margins(self, images: Tensor, output: Output, rows: Tensor) -> Tensor:
        """Return the margins of the goal (m,): of a success the smallest of several queries if outputs may differ."""
        margins = self.threat.goal.margin(output, self.batch.labels[rows])
        if self.model.success_is_final or self.threat.is_transfer:
            return margins
        for _ in range(CONFIRMATIONS):
            hit = (margins > 0).nonzero()[:, 0]
            if not len(hit):
                break
            again = self.model(images[hit], rows[hit])
            margins[hit] = margins[hit].minimum(
                self.threat.goal.margin(again, self.batch.labels[rows[hit]])
            )
        return margins
