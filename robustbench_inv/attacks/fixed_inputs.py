"""Fixed-input attacks: the data set's own altered version of each input, or an input of another data set."""

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
    """Returns the counterpart of each sample: the data set's own altered version, without any query.

    With the goal keep-decision the records give the model's agreement with the oracle and with the original labels on
    altered inputs; with misclassify they give its accuracy before and after a shift.
    """

    kind: ClassVar[Kind] = "fixed-input"
    norms: ClassVar[frozenset[str]] = frozenset(NORMS)

    def check_requirements(self, model: object, threat: ThreatModel, data: Dataset) -> None:
        """Raise CapabilityMismatch for a data set without counterparts."""
        if not isinstance(data, HasCounterparts):
            raise CapabilityMismatch(
                "the attack needs a data set with altered versions of its inputs",
                got=data.name,
                expected="a data set with counterparts, such as invariance-mnist or mnist-planted",
            )

    def run(self, model: Queries, batch: Batch, threat: ThreatModel, rng: SampleRNG) -> Tensor:
        if batch.counterparts is None:
            raise CapabilityMismatch("the batch has no counterparts", expected="a paired data set")
        return batch.counterparts


@dataclass(frozen=True)
class OutOfDistribution:
    """Returns an input of another data set instead of each sample, without any query.

    Args:
        dataset: name of the other data set; empty for the default one of the evaluated data set.
    """

    dataset: str = ""

    kind: ClassVar[Kind] = "fixed-input"
    norms: ClassVar[frozenset[str]] = frozenset(NORMS)

    def with_ood_data(self, ood: Dataset) -> "OODInputs":
        """Return the attack with its out-of-distribution data set."""
        return OODInputs(ood)

    def check_requirements(self, model: object, threat: ThreatModel, data: Dataset) -> None:
        """Raise CapabilityMismatch: the plan replaces this attack by ``OODInputs``, unless there is no such data set."""
        raise CapabilityMismatch(
            "there is no out-of-distribution data set",
            got=f"dataset={self.dataset}" if self.dataset else f"no default one for {data.name}",
            expected="a data set of the same shape whose files are available",
            remedy="name one, dataset=NAME, and fetch it: invbench data fetch NAME",
        )

    def run(self, model: Queries, batch: Batch, threat: ThreatModel, rng: SampleRNG) -> Tensor:
        raise CapabilityMismatch(
            "the out-of-distribution data set is not open", expected="a call of with_ood_data"
        )


@dataclass(frozen=True)
class OODInputs:
    """Returns the inputs of a data set, each once, in a random order that depends on its size alone.

    All inputs of a data set of the same size are used, and a random part of a larger one.

    Args:
        ood: data set with inputs of the same shape and bounds as the evaluated data set, and at least as many.
    """

    ood: Dataset = field(repr=False)

    kind: ClassVar[Kind] = "fixed-input"
    norms: ClassVar[frozenset[str]] = frozenset(NORMS)

    def check_requirements(self, model: object, threat: ThreatModel, data: Dataset) -> None:
        """Raise CapabilityMismatch for inputs of another shape or range, the evaluated data set itself, or too few inputs."""
        ood = self.ood
        if (tuple(ood.shape), tuple(ood.bounds)) != (tuple(data.shape), tuple(data.bounds)):
            raise CapabilityMismatch(
                f"{ood.name} and {data.name} differ in the shape or range of their inputs",
                got=f"{tuple(ood.shape)} in {tuple(ood.bounds)}",
                expected=f"{tuple(data.shape)} in {tuple(data.bounds)}",
            )
        if ood.digest == data.digest:
            problem = "a data set is not out of its own distribution"
            raise CapabilityMismatch(problem, got=ood.name, expected="another data set")
        if len(ood) < len(data):
            raise CapabilityMismatch(
                f"{ood.name} has fewer inputs than {data.name}, and each is used once",
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
    """Return the ids (count,) of a data set in a fixed random order.

    Data sets may be sorted by class, and samples are selected by id.
    """
    draws = SampleRNG(0, torch.arange(count), "out-of-distribution").uniform(
        (), dtype=torch.float64
    )
    return draws.argsort()
