"""Fixed-input attacks: the data set's own altered version of each input, or an input of another data set; nothing is searched."""

from dataclasses import dataclass, field
from functools import cached_property
from typing import ClassVar

import torch
from torch import Tensor

from robustbench_inv.attacks.protocol import Batch, Kind, Queries
from robustbench_inv.data.protocol import Dataset, HasCounterparts
from robustbench_inv.errors import CapabilityMismatch
from robustbench_inv.randomness import SampleRNG
from robustbench_inv.tensors import NORMS
from robustbench_inv.threat.threat_model import ThreatModel

__all__ = ["Counterpart", "OODInputs", "OutOfDistribution", "shuffled_ids"]


@dataclass(frozen=True)
class Counterpart:
    """The counterpart of each sample, as it is: nothing is searched, and no model is asked.

    With the goal keep-decision its records tell how often a model agrees with the oracle's class of an altered
    input, and how often with the original label; with misclassify, its accuracy before and after a shift.
    """

    kind: ClassVar[Kind] = "fixed-input"
    norms: ClassVar[frozenset[str]] = frozenset(NORMS)

    def check_requirements(self, model: object, threat: ThreatModel, data: Dataset) -> None:
        """Refuse a data set without counterparts."""
        if not isinstance(data, HasCounterparts):
            raise CapabilityMismatch(
                "the attack shows what a data set gives instead of each input",
                got=data.name,
                expected="a data set with counterparts, such as invariance-mnist or mnist-planted",
            )

    def run(self, model: Queries, batch: Batch, threat: ThreatModel, rng: SampleRNG) -> Tensor:
        if batch.counterparts is None:
            raise CapabilityMismatch("the batch has no counterparts", expected="a paired data set")
        return batch.counterparts


@dataclass(frozen=True)
class OutOfDistribution:
    """An input of another data set instead of each sample, as it is: nothing is searched, and no model is asked.

    Args:
        dataset: name of the other data set; empty for the usual one of the data that is evaluated.
    """

    dataset: str = ""

    kind: ClassVar[Kind] = "fixed-input"
    norms: ClassVar[frozenset[str]] = frozenset(NORMS)

    def with_ood_data(self, ood: Dataset) -> "OODInputs":
        """Return the attack with the other data set at hand."""
        return OODInputs(ood)

    def check_requirements(self, model: object, threat: ThreatModel, data: Dataset) -> None:
        """Refuse: a plan opens the other data set beforehand, unless there is none."""
        raise CapabilityMismatch(
            "there are no inputs of another data set to show",
            got=f"dataset={self.dataset}" if self.dataset else f"no usual one for {data.name}",
            expected="a data set of the same shape whose files are here",
            remedy="name one, dataset=NAME, and fetch it: invbench data fetch NAME",
        )

    def run(self, model: Queries, batch: Batch, threat: ThreatModel, rng: SampleRNG) -> Tensor:
        raise CapabilityMismatch("the other data set is not open", expected="showing(data set)")


@dataclass(frozen=True)
class OODInputs:
    """The inputs of a data set at hand, each shown once, in an order that depends on nothing but its size.

    A data set of the same size is shown whole; of a larger one a random part.

    Args:
        ood: inputs of the shape and in the bounds of the data that is evaluated, at least as many.
    """

    ood: Dataset = field(repr=False)

    kind: ClassVar[Kind] = "fixed-input"
    norms: ClassVar[frozenset[str]] = frozenset(NORMS)

    def check_requirements(self, model: object, threat: ThreatModel, data: Dataset) -> None:
        """Refuse inputs that the model cannot be shown, that are its own, or that would be shown twice."""
        ood = self.ood
        if (tuple(ood.shape), tuple(ood.bounds)) != (tuple(data.shape), tuple(data.bounds)):
            raise CapabilityMismatch(
                f"{ood.name} and {data.name} differ in the shape or range of their inputs",
                got=f"{tuple(ood.shape)} in {tuple(ood.bounds)}",
                expected=f"{tuple(data.shape)} in {tuple(data.bounds)}",
            )
        if ood.digest == data.digest:
            problem = "the inputs of a data set are not out of its distribution"
            raise CapabilityMismatch(problem, got=ood.name, expected="another data set")
        if len(ood) < len(data):
            raise CapabilityMismatch(
                f"{ood.name} has fewer inputs than {data.name}, and each is shown once",
                got=len(ood),
                expected=f">= {len(data)}",
            )

    def run(self, model: Queries, batch: Batch, threat: ThreatModel, rng: SampleRNG) -> Tensor:
        images, _ = self.ood.batch(self._order[batch.ids.cpu()])
        return images.to(batch.images)

    @cached_property
    def _order(self) -> Tensor:
        return shuffled_ids(len(self.ood))


def shuffled_ids(count: int) -> Tensor:
    """Return the ids (count,) of a data set in a random order, which is always the same.

    Data sets may be sorted by class, and samples are drawn by their ids.
    """
    draws = SampleRNG(0, torch.arange(count), "out-of-distribution").uniform(
        (), dtype=torch.float64
    )
    return draws.argsort()
