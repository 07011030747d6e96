"""Shows what the data set gives instead of each input: an altered version, or one from a shifted distribution."""

from dataclasses import dataclass
from typing import ClassVar

from torch import Tensor

from robustbench_inv.attacks.protocol import Batch, Kind, Queries
from robustbench_inv.data.protocol import Dataset, Paired
from robustbench_inv.errors import CapabilityMismatch
from robustbench_inv.randomness import Noise
from robustbench_inv.tensors import NORMS
from robustbench_inv.threat.threat_model import ThreatModel

__all__ = ["Counterpart"]


@dataclass(frozen=True)
class Counterpart:
    """The counterpart of each sample, as it is: nothing is searched, and no model is asked.

    With the goal keep-decision its records tell how often a model agrees with the oracle's class of an altered
    input, and how often with the original label; with misclassify, its accuracy before and after a shift.
    """

    kind: ClassVar[Kind] = "given"
    norms: ClassVar[frozenset[str]] = frozenset(NORMS)

    def demand(self, model: object, threat: ThreatModel, data: Dataset) -> None:
        """Refuse a data set without counterparts."""
        if not isinstance(data, Paired):
            raise CapabilityMismatch(
                "the attack shows what a data set gives instead of each input",
                got=data.name,
                expected="a data set with counterparts, such as invariance-mnist or mnist-planted",
            )

    def run(self, model: Queries, batch: Batch, threat: ThreatModel, noise: Noise) -> Tensor:
        if batch.counterparts is None:
            raise CapabilityMismatch("the batch has no counterparts", expected="a paired data set")
        return batch.counterparts
