"""The input of a probe: one model and a few samples of its evaluation data."""

from collections.abc import Sequence
from dataclasses import dataclass, replace
from functools import cached_property
from math import isfinite
from typing import Protocol

import torch
from torch import Tensor

from robustbench_inv.attacks.protocol import Batch
from robustbench_inv.data.protocol import Dataset
from robustbench_inv.models.protocol import Classifier, query_model
from robustbench_inv.randomness import SampleRNG
from robustbench_inv.tensors import HALF_PRECISION, Output, graph_dtypes

__all__ = [
    "ATTACK_SAMPLES",
    "DIFFERENCE_SAMPLES",
    "PROBE_SAMPLES",
    "Probe",
    "ProbedModel",
    "evenly_spaced",
]

PROBE_SAMPLES = 100
"""Samples that a probe queries, at most."""

ATTACK_SAMPLES = 64
"""Samples that a probe attacks, at most: they cost hundreds of passes each."""

DIFFERENCE_SAMPLES = 20
"""Samples whose gradient is compared with finite differences."""


class ProbedModel(Protocol):
    """A loaded model: its name and its classifier."""

    @property
    def name(self) -> str: ...

    @property
    def classifier(self) -> Classifier: ...


@dataclass(frozen=True)
class Probe:
    """A model and the samples that it is probed on.

    Args:
        model: its name, the subject of the verdicts.
        classifier: the model, with the samples' device and dtype.
        batch: n samples.
        data_bounds: least and largest value that an element of the data set can take.
        seed: of the random numbers.
        all_labels: (N,) int64, the labels of the whole data set; None if they are unknown.
    """

    model: str
    classifier: Classifier
    batch: Batch
    data_bounds: tuple[float, float]
    seed: int = 0
    all_labels: Tensor | None = None

    @classmethod
    def of(
        cls, name: str, classifier: Classifier, dataset: Dataset, ids: Sequence[int], seed: int = 0
    ) -> "Probe":
        """Return the probe of a model on some samples of a data set, in the model's dtype."""
        images, labels = dataset.batch(list(ids))
        batch = Batch(images.to(classifier.dtype), labels, torch.tensor(list(ids)))
        return cls(name, classifier, batch, dataset.bounds, seed, dataset.labels)

    @property
    def rng(self) -> SampleRNG:
        """The samples' random numbers, independent of those of the evaluation."""
        return SampleRNG(self.seed, self.batch.ids, "probe")

    @property
    def width(self) -> float:
        """Width of the model's bounds; the range of the data if they are infinite."""
        low, high = self.classifier.bounds
        if isfinite(high - low):
            return float(high - low)
        return float(self.batch.images.max() - self.batch.images.min())

    @cached_property
    def half_precision(self) -> bool:
        """Does the model compute its logits in a type of 16 bits, by the graph of two samples?"""
        few = torch.arange(min(2, len(self.batch)), device=self.batch.ids.device)
        images = self.batch.images[few].clone().requires_grad_(True)
        with torch.enable_grad():
            logits = query_model(self.classifier, images, self.rng.rows(few)).logits
        return not graph_dtypes(logits).isdisjoint(HALF_PRECISION)

    def to_device(self, device: str | torch.device) -> "Probe":
        """Return the same probe with its samples on the model's device."""
        batch = self.batch
        moved = Batch(batch.images.to(device), batch.labels.to(device), batch.ids.to(device))
        every = None if self.all_labels is None else self.all_labels.to(device)
        return replace(self, batch=moved, all_labels=every)

    def with_classifier(self, classifier: Classifier) -> "Probe":
        """Return the same probe of another classifier."""
        return replace(self, classifier=classifier)

    def of_rows(self, rows: Tensor) -> "Probe":
        """Return the probe of a subset of the samples, given positions (m,) or a mask (n,)."""
        return replace(self, batch=self.batch[rows])

    def query(self, rows: Tensor | None = None, step: int = 0) -> Output:
        """Return the model's output for some rows of the batch, or for all, without a graph."""
        batch = self.batch if rows is None else self.batch[rows]
        rng = self.rng if rows is None else self.rng.rows(rows)
        with torch.no_grad():
            return query_model(self.classifier, batch.images, rng, step)


def evenly_spaced(samples: Sequence[int], count: int) -> list[int]:
    """Return at most ``count`` of the samples, evenly spaced (a data set may be sorted by class).

    Example:
        >>> evenly_spaced(range(10), 4)
        [0, 2, 5, 7]
    """
    n = len(samples)
    return list(samples) if n <= count else [samples[i * n // count] for i in range(count)]
