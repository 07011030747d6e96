"""Decoupled direction and norm: gradient steps, brought back to a sphere that closes in on the decision boundary."""

from dataclasses import dataclass
from typing import ClassVar

import torch
from torch import Tensor

from robustbench_inv.attacks.protocol import Batch, Kind, Queries
from robustbench_inv.attacks.radius_search import RadiusSearch
from robustbench_inv.randomness import Noise
from robustbench_inv.tensors import broadcast, norm
from robustbench_inv.threat.threat_model import ThreatModel

__all__ = ["DDN"]


@dataclass(frozen=True)
class DDN:
    """Decoupled direction and norm in l2; see ``RadiusSearch`` for its steps.

    It differs from FMN where a step ends inside the ball: here it is stretched to the sphere.

    Args:
        steps: gradient steps, >= 1.
        loss: what to climb: ``ce`` (the paper's), ``margin``, ``dlr`` or ``scaled-ce``.
        rel_step: length of the first step, in radii, > 0.
        gamma: relative change of the radius after the first step, between 0 and 1.

    References:
        Rony et al., Decoupling direction and norm for efficient gradient-based l2 adversarial attacks and
        defenses, CVPR 2019, algorithm 1.
    """

    steps: int = 30
    loss: str = "scaled-ce"
    rel_step: float = 1.0
    gamma: float = 0.3

    kind: ClassVar[Kind] = "minimal"
    norms: ClassVar[frozenset[str]] = frozenset({"l2"})

    def __post_init__(self) -> None:
        self._search()

    def run(self, model: Queries, batch: Batch, threat: ThreatModel, noise: Noise) -> Tensor:
        return self._search().run(model, batch, threat)

    def _search(self) -> RadiusSearch:
        return RadiusSearch(self.steps, self.loss, self.rel_step, self.gamma, _onto_sphere)


def _onto_sphere(delta: Tensor, radii: Tensor, name: str) -> Tensor:
    """Return perturbations (n, …) scaled to the length of their radii (n,); a zero stays zero."""
    length = norm(delta, name).clamp_min(torch.finfo(delta.dtype).tiny)
    return delta * broadcast(radii / length, delta)
