"""Collisions: another input, moved as little as the model can be fooled by, takes the decision on the first."""

from dataclasses import dataclass
from typing import ClassVar

from torch import Tensor

from robustbench_inv.attacks.budget_geometry import Ball, steepest_direction
from robustbench_inv.attacks.invariance.donors import assign_donors, check_rule
from robustbench_inv.attacks.parameters import check_positive
from robustbench_inv.attacks.protocol import Batch, Kind, Loss, Queries
from robustbench_inv.randomness import SampleRNG
from robustbench_inv.tensors import NORMS, margin, where_rows
from robustbench_inv.threat.budgets import LpBall
from robustbench_inv.threat.threat_model import ThreatModel

__all__ = ["Collision"]


@dataclass(frozen=True)
class Collision:
    """Moves a donor inside a small linf ball around it until the model decides as on x: a metamer that is searched for.

    The invariance attack of a model that has no inverse, or whose inverse only leads to harmless metamers: what a
    code calls a nuisance is one choice among many, the set of inputs with the decision of x is not. It is a targeted
    perturbation of the donor, seen from x; whether the class is still the donor's is for an oracle to say.
    A sample whose donor does not take the decision is shown its donor as far as it came.

    Args:
        donor: ``other-class`` (random among the other classes), ``random`` (any other sample) or ``nearest`` (in
            pixels, of another class).
        radius: of the ball around the donor, as a share of the width of the model's bounds, > 0.
        steps: gradient steps, >= 1, the first as long as the radius, the others linearly shorter.

    References:
        Sabour, Cao, Faghri and Fleet, Adversarial manipulation of deep representations, ICLR 2016; Jacobsen et al.,
        Excessive invariance causes adversarial vulnerability, ICLR 2019, equations 3 and 4.
    """

    donor: str = "other-class"
    radius: float = 0.1
    steps: int = 40

    kind: ClassVar[Kind] = "invariance"
    norms: ClassVar[frozenset[str]] = frozenset(NORMS)

    def __post_init__(self) -> None:
        check_rule(self.donor)
        check_positive(self, "radius", "steps")

    def run(self, model: Queries, batch: Batch, threat: ThreatModel, rng: SampleRNG) -> Tensor:
        donors, found = assign_donors(model, batch, self.donor, rng)
        low, high = model.bounds
        ball = Ball(donors, LpBall("linf", self.radius * (high - low)), model.bounds)
        images = self._ascend(model, ball, model(batch.images).decision, found.nonzero()[:, 0])
        return where_rows(found, images, batch.images)

    def _ascend(self, model: Queries, ball: Ball, decisions: Tensor, rows: Tensor) -> Tensor:
        """Return the donors (n, …), moved until the model decides ``decisions`` (n,) or the steps are used up."""
        images = ball.clean.clone()
        for step in range(self.steps):
            if not len(rows):
                break
            output, gradients = model.gradient(
                images[rows], _toward_decisions(decisions[rows]), rows
            )
            left = output.decision != decisions[rows]
            rows, gradients = rows[left], gradients[left]
            length = ball.eps * (1 - step / self.steps)
            images[rows] = ball[rows].project(
                images[rows] + length * steepest_direction(gradients, ball.norm)
            )
        return images


def _toward_decisions(decisions: Tensor) -> Loss:
    """Return a loss (m,) that is positive where the decision is the wanted one (m,)."""
    return lambda output, _labels: -margin(output.logits, decisions)
