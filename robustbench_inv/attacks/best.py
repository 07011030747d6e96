"""What an iterative attack has found so far: its first success, or else its most promising iterate."""

from dataclasses import dataclass, field

import torch
from torch import Tensor

from robustbench_inv.attacks.protocol import Batch
from robustbench_inv.tensors import Output
from robustbench_inv.threat.goals import Goal

__all__ = ["Best"]


@dataclass
class Best:
    """The image of each sample to return, and which samples still stand (checks C15, C38).

    Args:
        batch: the n samples; their clean images are the first to return.
        goal: its margin says how near an output is, and that it is reached where positive.
        final: is a success final (``Queries.conclusive``)? If not, every sample stands to the end, and the
            image of the largest margin is the one to return.
    """

    batch: Batch
    goal: Goal
    final: bool = True
    images: Tensor = field(init=False)
    margins: Tensor = field(init=False)

    def __post_init__(self) -> None:
        self.images = self.batch.images.clone()
        self.margins = torch.full_like(self.batch.labels, float("-inf"), dtype=torch.float64)

    def anew(self, rows: Tensor) -> "Best":
        """Return the same with nothing found yet for the samples at (m,) positions, and no others standing."""
        fresh = Best(self.batch, self.goal, self.final)
        others = torch.ones_like(self.batch.labels, dtype=torch.bool)
        others[rows] = False
        fresh.margins[others] = torch.inf
        return fresh

    @property
    def standing(self) -> Tensor:
        """(m,) int64: positions of the samples without a final success."""
        return (~self._decided(self.margins)).nonzero()[:, 0]

    def offer(self, images: Tensor, output: Output, rows: Tensor) -> Tensor:
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
        return (margins > 0) & self.final
