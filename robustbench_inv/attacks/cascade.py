"""Several attacks as one: each gets the samples that those before it did not break, and the worst case counts."""

from dataclasses import dataclass
from typing import ClassVar

import torch
from torch import Tensor

from robustbench_inv.attacks.protocol import Attack, Batch, Kind, Queries, brief_of
from robustbench_inv.attacks.relay import Relay, common_norms
from robustbench_inv.errors import BadParameter
from robustbench_inv.randomness import Noise
from robustbench_inv.threat.threat_model import ThreatModel

__all__ = ["BROKEN_BY", "Cascade"]

BROKEN_BY = "broken_by"
"""Name of the number that is kept of each sample: which member broke it, counted from 1, and 0 if none did."""


@dataclass(frozen=True)
class Cascade:
    """Members attack one after the other, each the samples that still stand.

    What is returned of a sample is the success of the member that broke it, or else the image that came nearest of all.

    Args:
        members: at least one, best the cheapest first; of kind ``budget`` or ``minimal``.
    """

    members: tuple[Attack, ...]

    kind: ClassVar[Kind] = "budget"

    def __post_init__(self) -> None:
        kinds = [member.kind for member in self.members]
        if not kinds or not {"budget", "minimal"}.issuperset(kinds):
            raise BadParameter(
                "unusable members of a cascade",
                got=kinds,
                expected="one or more attacks of kind budget or minimal",
            )

    @property
    def norms(self) -> frozenset[str]:
        return common_norms(self.members)

    @property
    def brief(self) -> "Cascade | None":
        """Its first member in brief."""
        brief = brief_of(self.members[0])
        return None if brief is None else Cascade((brief,))

    def run(self, model: Queries, batch: Batch, threat: ThreatModel, noise: Noise) -> Tensor:
        relay, images = Relay(model, batch, threat, noise), batch.images.clone()
        margins = torch.full_like(batch.labels, -torch.inf, dtype=torch.float64)
        by = torch.zeros_like(batch.labels)
        for number, member in enumerate(self.members, 1):
            rows = (~relay.fallen(margins)).nonzero()[:, 0]
            if not len(rows):
                break
            start = None if number > 1 or batch.start is None else batch.start[rows]
            shown = relay.run(member, rows, str(number), start)
            reached = relay.margins(shown, rows)
            by[rows[(reached > 0) & (margins[rows] <= 0)]] = number
            nearer = reached > margins[rows]
            images[rows[nearer]], margins[rows[nearer]] = shown[nearer], reached[nearer]
        model.measure(BROKEN_BY, by)
        return images
