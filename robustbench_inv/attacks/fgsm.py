"""The fast gradient sign method: one step of length eps along the gradient."""

from dataclasses import dataclass
from typing import ClassVar

from torch import Tensor

from robustbench_inv.attacks.ball import NORMS, Ball, steepest
from robustbench_inv.attacks.losses import check_losses, losses_for
from robustbench_inv.attacks.protocol import Batch, Kind, Queries
from robustbench_inv.randomness import Noise
from robustbench_inv.threat.threat_model import ThreatModel

__all__ = ["FGSM"]


@dataclass(frozen=True)
class FGSM:
    """One step along the gradient at the clean input: its sign in linf, its direction in l2.

    Args:
        loss: which loss to climb: ``ce``, ``margin``, ``dlr`` or ``scaled-ce``.

    References:
        Goodfellow, Shlens and Szegedy, Explaining and harnessing adversarial examples, ICLR 2015, section 4.
    """

    loss: str = "ce"

    kind: ClassVar[Kind] = "budget"
    norms: ClassVar[frozenset[str]] = NORMS

    def __post_init__(self) -> None:
        check_losses(self.loss, most=1)

    def run(self, model: Queries, batch: Batch, threat: ThreatModel, noise: Noise) -> Tensor:
        ball = Ball.of(threat, batch.images, model.bounds)
        (loss,) = losses_for(self.loss, threat.goal)
        _, gradient = model.gradient(batch.images, loss)
        return ball.project(batch.images + ball.eps * steepest(gradient, ball.norm))
