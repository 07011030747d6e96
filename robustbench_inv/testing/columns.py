"""Images of three columns whose class is known, readers of some of their rows, and an attack that keeps one of these."""

from dataclasses import dataclass
from typing import ClassVar

import torch
from torch import Tensor, nn

from robustbench_inv.attacks.protocol import Batch, Kind, Queries
from robustbench_inv.data.arrays import ArrayDataset
from robustbench_inv.randomness import Noise
from robustbench_inv.tensors import NORMS
from robustbench_inv.threat.threat_model import ThreatModel

__all__ = ["Body", "FirstRow", "Peak", "ShiftBody", "Whole", "columns"]

CLASSES = 3


def columns(count: int = 12) -> ArrayDataset:
    """Return images (1, 4, 4) of which one column is bright, the class; no two are the same.

    Args:
        count: at most 200.
    """
    labels = torch.arange(count) % CLASSES
    images = torch.full((count, 1, 4, 4), 0.1)
    images[torch.arange(count), 0, :, labels] = 0.9
    images[:, 0, 0, 3] = torch.arange(count) / 255
    return ArrayDataset(images, labels, "columns")


class _Reader(nn.Module):
    """Decides for the column that is brightest in some rows."""

    bounds = (0.0, 1.0)
    num_classes = CLASSES

    def __init__(self, scale: float) -> None:
        super().__init__()
        self.scale = nn.Parameter(torch.tensor(scale))


class FirstRow(_Reader):
    """Sees the first row alone, and is blind to all others."""

    def __init__(self, scale: float = 1.0) -> None:
        super().__init__(scale)

    def forward(self, images: Tensor) -> Tensor:
        return images[:, 0, 0, :CLASSES] * self.scale


class Body(_Reader):
    """Sees the mean of all rows but the first."""

    def __init__(self, scale: float = 2.0) -> None:
        super().__init__(scale)

    def forward(self, images: Tensor) -> Tensor:
        return images[:, 0, 1:, :CLASSES].mean(1) * self.scale


class Peak(_Reader):
    """Sees the largest element of all rows but the first."""

    def __init__(self, scale: float = 3.0) -> None:
        super().__init__(scale)

    def forward(self, images: Tensor) -> Tensor:
        return images[:, 0, 1:, :CLASSES].amax(1) * self.scale


class Whole(_Reader):
    """Sees the mean of all rows."""

    def __init__(self, scale: float = 4.0) -> None:
        super().__init__(scale)

    def forward(self, images: Tensor) -> Tensor:
        return images[:, 0, :, :CLASSES].mean(1) * self.scale


@dataclass(frozen=True)
class ShiftBody:
    """Moves all rows but the first by one column: whoever sees the image names the next class.

    Args:
        spared: samples below this id stay as they are.
    """

    spared: int = 0

    kind: ClassVar[Kind] = "invariance"
    norms: ClassVar[frozenset[str]] = frozenset(NORMS)

    def run(self, model: Queries, batch: Batch, threat: ThreatModel, noise: Noise) -> Tensor:
        moved = batch.images.clone()
        moved[:, :, 1:, :CLASSES] = moved[:, :, 1:, :CLASSES].roll(1, -1)
        return torch.where((batch.ids < self.spared)[:, None, None, None], batch.images, moved)
