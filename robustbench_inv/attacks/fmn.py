"""Fast minimum-norm: gradient steps, projected onto a ball that closes in on the decision boundary."""

from dataclasses import dataclass
from typing import ClassVar

from torch import Tensor

from robustbench_inv.attacks.protocol import Batch, Kind, Queries
from robustbench_inv.attacks.radius_search import RadiusSearch
from robustbench_inv.randomness import Noise
from robustbench_inv.tensors import NORMS
from robustbench_inv.threat.budgets import shorten
from robustbench_inv.threat.threat_model import ThreatModel

__all__ = ["FMN"]


@dataclass(frozen=True)
class FMN:
    """Fast minimum-norm attack in l0, l1, l2 or linf, the norm of the threat; see ``RadiusSearch`` for its steps.

    Args:
        steps: gradient steps, >= 1.
        loss: what to climb: ``ce``, ``margin`` (the paper's), ``dlr`` or ``scaled-ce``.
        rel_step: length of the first step, in radii, > 0.
        gamma: relative change of the radius after the first step, between 0 and 1.

    References:
        Pintor, Roli, Brendel and Biggio, Fast minimum-norm adversarial attacks through adaptive norm
        constraints, NeurIPS 2021, algorithm 1.
    """

    steps: int = 30
    loss: str = "scaled-ce"
    rel_step: float = 1.0
    gamma: float = 0.3

    kind: ClassVar[Kind] = "minimal"
    norms: ClassVar[frozenset[str]] = frozenset(NORMS)

    def __post_init__(self) -> None:
        self._search()

    def run(self, model: Queries, batch: Batch, threat: ThreatModel, noise: Noise) -> Tensor:
        return self._search().run(model, batch, threat)

    def _search(self) -> RadiusSearch:
        return RadiusSearch(self.steps, self.loss, self.rel_step, self.gamma, shorten)
