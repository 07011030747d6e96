"""Loads what a cell's blocks work on: their samples, and the other inputs that attacks may ask for."""

from collections.abc import Sequence
from dataclasses import dataclass
from functools import cached_property

import torch
from torch import Tensor

from robustbench_inv.attacks.protocol import Batch, InputPool
from robustbench_inv.data.protocol import Dataset, HasCounterparts
from robustbench_inv.data.sampling import select_samples

__all__ = ["POOL_SIZE", "Loader"]

POOL_SIZE = 1000
"""Largest number of other inputs: a balanced draw of 100 of each of ten classes, 3 MB of digits."""


@dataclass(frozen=True)
class Loader:
    """Samples of a data set, where and as a model computes.

    Args:
        dataset: the data that is evaluated.
        device: where the model is.
        dtype: what it computes in.
    """

    dataset: Dataset
    device: torch.device
    dtype: torch.dtype

    def batch(self, ids: Sequence[int]) -> Batch:
        """Return some samples, their counterparts where the data set has them, and the pool."""
        rows = torch.tensor(list(ids), dtype=torch.int64)
        images, labels = self._load(rows)
        given = (
            self.dataset.counterparts(rows) if isinstance(self.dataset, HasCounterparts) else None
        )
        return Batch(
            images=images,
            labels=labels,
            ids=rows.to(self.device),
            pool=self.pool,
            counterparts=None if given is None else self._placed(given),
        )

    @cached_property
    def pool(self) -> InputPool:
        """The same for every block: it depends on the data set alone, and is loaded when it is asked for."""
        labels = self.dataset.labels
        ids = torch.tensor(select_samples(labels, min(POOL_SIZE, len(labels))), dtype=torch.int64)
        return InputPool(ids.to(self.device), self._load)

    def _load(self, ids: Tensor) -> tuple[Tensor, Tensor]:
        images, labels = self.dataset.batch(ids.cpu())
        return self._placed(images), labels.to(self.device)

    def _placed(self, images: Tensor) -> Tensor:
        return images.to(self.device, self.dtype)
