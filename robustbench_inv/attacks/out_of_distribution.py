"""Shows inputs of another data set: of no class that the model knows, so that one that rejects must reject them."""

from dataclasses import dataclass, field
from functools import cached_property
from typing import ClassVar

import torch
from torch import Tensor

from robustbench_inv.attacks.protocol import Batch, Kind, Queries
from robustbench_inv.data.protocol import Dataset
from robustbench_inv.errors import CapabilityMismatch
from robustbench_inv.randomness import Noise
from robustbench_inv.tensors import NORMS
from robustbench_inv.threat.threat_model import ThreatModel

__all__ = ["OutOfDistribution", "Strangers", "shuffled"]


@dataclass(frozen=True)
class OutOfDistribution:
    """An input of another data set instead of each sample, as it is: nothing is searched, and no model is asked.

    Args:
        dataset: name of the other data set; empty for the usual one of the data that is evaluated.
    """

    dataset: str = ""

    kind: ClassVar[Kind] = "given"
    norms: ClassVar[frozenset[str]] = frozenset(NORMS)

    def showing(self, others: Dataset) -> "Strangers":
        """Return the attack with the other data set at hand."""
        return Strangers(others)

    def demand(self, model: object, threat: ThreatModel, data: Dataset) -> None:
        """Refuse: a plan opens the other data set beforehand, unless there is none."""
        raise CapabilityMismatch(
            "there are no inputs of another data set to show",
            got=f"dataset={self.dataset}" if self.dataset else f"no usual one for {data.name}",
            expected="a data set of the same shape whose files are here",
            remedy="name one, dataset=NAME, and fetch it: invbench data fetch NAME",
        )

    def run(self, model: Queries, batch: Batch, threat: ThreatModel, noise: Noise) -> Tensor:
        raise CapabilityMismatch("the other data set is not open", expected="showing(data set)")


@dataclass(frozen=True)
class Strangers:
    """The inputs of a data set at hand, each shown once, in an order that depends on nothing but its size.

    A data set of the same size is shown whole; of a larger one a random part.

    Args:
        others: inputs of the shape and in the bounds of the data that is evaluated, at least as many.
    """

    others: Dataset = field(repr=False)

    kind: ClassVar[Kind] = "given"
    norms: ClassVar[frozenset[str]] = frozenset(NORMS)

    def demand(self, model: object, threat: ThreatModel, data: Dataset) -> None:
        """Refuse inputs that the model cannot be shown, that are its own, or that would be shown twice."""
        others = self.others
        if (tuple(others.shape), tuple(others.bounds)) != (tuple(data.shape), tuple(data.bounds)):
            raise CapabilityMismatch(
                f"{others.name} and {data.name} differ in the shape or range of their inputs",
                got=f"{tuple(others.shape)} in {tuple(others.bounds)}",
                expected=f"{tuple(data.shape)} in {tuple(data.bounds)}",
            )
        if others.digest == data.digest:
            problem = "the inputs of a data set are not out of its distribution"
            raise CapabilityMismatch(problem, got=others.name, expected="another data set")
        if len(others) < len(data):
            raise CapabilityMismatch(
                f"{others.name} has fewer inputs than {data.name}, and each is shown once",
                got=len(others),
                expected=f">= {len(data)}",
            )

    def run(self, model: Queries, batch: Batch, threat: ThreatModel, noise: Noise) -> Tensor:
        images, _ = self.others.batch(self._order[batch.ids.cpu()])
        return images.to(batch.images)

    @cached_property
    def _order(self) -> Tensor:
        return shuffled(len(self.others))


def shuffled(count: int) -> Tensor:
    """Return the ids (count,) of a data set in a random order, which is always the same.

    Data sets may be sorted by class, and samples are drawn by their ids.
    """
    draws = Noise(0, torch.arange(count), "out-of-distribution").uniform((), dtype=torch.float64)
    return draws.argsort()
