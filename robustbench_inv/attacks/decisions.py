"""What decision attacks share: whether an input reaches the goal, and the search on the way back to the clean input."""

from dataclasses import dataclass

import torch
from torch import Tensor

from robustbench_inv.attacks.protocol import Batch, Queries
from robustbench_inv.tensors import broadcast, flatten, norm, where_rows
from robustbench_inv.threat.goals import Goal

__all__ = ["Decisions"]


@dataclass(frozen=True)
class Decisions:
    """The one thing that a decision attack sees of a model.

    Args:
        model: answers.
        batch: the n samples.
        goal: says what a success is.
    """

    model: Queries
    batch: Batch
    goal: Goal

    def reached(self, images: Tensor, rows: Tensor) -> Tensor:
        """Return whether images (m, …) of the samples at positions (m,) reach the goal, (m,)."""
        return self.goal.margin(self.model(images, rows), self.batch.labels[rows]) > 0

    def approach(self, images: Tensor, rows: Tensor, halvings: int, measured: str = "l2") -> Tensor:
        """Return the nearest successes (m, …) that halving the way from the clean inputs to given ones comes by.

        Args:
            images: (m, …) successes.
            rows: (m,) positions of their samples.
            halvings: questions about each sample, >= 0.
            measured: with ``linf`` the way is by boxes around the clean input to which the image is clipped; with
                any other norm it is the line.
        """
        clean, nearest = self.batch.images[rows], images
        low = torch.zeros_like(flatten(clean)[:, 0])
        high = torch.ones_like(low)
        for _ in range(halvings if len(rows) else 0):
            middle = (low + high) / 2
            shown = _part_of_the_way(clean, images, middle, measured)
            hit = self.reached(shown, rows)
            nearest = where_rows(hit, shown, nearest)
            low, high = low.where(hit, middle), middle.where(hit, high)
        return nearest


def _part_of_the_way(clean: Tensor, images: Tensor, shares: Tensor, measured: str) -> Tensor:
    """Return images (m, …) whose distance from the clean ones is a share (m,) of what it was."""
    if measured != "linf":
        return torch.lerp(clean, images, broadcast(shares, clean).expand_as(clean))
    radii = broadcast(shares * norm(images - clean, "linf"), clean)
    return images.maximum(clean - radii).minimum(clean + radii)
