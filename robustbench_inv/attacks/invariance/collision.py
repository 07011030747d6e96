"""Collisions: an input of another class, perturbed slightly until it gets the prediction of a given input."""

from dataclasses import dataclass
from typing import ClassVar

from torch import Tensor

from robustbench_inv.attacks.budget_geometry import Ball, steepest_direction
from robustbench_inv.attacks.invariance.donors import assign_donors, check_rule
from robustbench_inv.attacks.losses import targeted_loss
from robustbench_inv.attacks.parameters import check_positive
from robustbench_inv.attacks.protocol import Batch, Kind, Queries
from robustbench_inv.randomness import SampleRNG
from robustbench_inv.tensors import NORMS, where_rows
from robustbench_inv.threat.budgets import LpBall
from robustbench_inv.threat.goals import MisclassifyAccepted
from robustbench_inv.threat.threat_model import ThreatModel

__all__ = ["Collision"]

ACCEPTED = MisclassifyAccepted()
"""A model with a reject option must accept the collision: its rejection is no prediction."""


@dataclass(frozen=True)
class Collision:
    """Perturbs a donor inside a small linf ball until the model predicts the class of x: a metamer found by search.

    It needs no inverse. It also covers invertible models whose metamers are harmless: which part of a code is a
    nuisance is a choice, the set of inputs with the prediction of x is not. It is a targeted attack on the
    donor; the oracle decides whether the class is still the donor's. If the prediction is not reached, the
    last iterate is returned.

    Args:
        donor: rule for donors, one of ``donors.RULES``.
        radius: of the ball around the donor, relative to the width of the model's bounds, > 0.
        steps: gradient steps, >= 1; the first is as long as the radius, the others are linearly shorter.

    References:
        Sabour, Cao, Faghri and Fleet, Adversarial manipulation of deep representations, ICLR 2016; Jacobsen et al.,
        Excessive invariance causes adversarial vulnerability, ICLR 2019, equations 3 and 4.
    """

    donor: str = "other-class"
    radius: float = 0.1
    steps: int = 40

    kind: ClassVar[Kind] = "invariance"
    runs_once: ClassVar[bool] = True
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
        """Return the donors (n, …), perturbed until the model predicts ``decisions`` (n,) or the steps are used up."""
        images = ball.clean.clone()
        for step in range(self.steps):
            if not len(rows):
                break
            loss = targeted_loss("margin", decisions[rows], ACCEPTED)
            output, gradients = model.gradient(images[rows], loss, rows)
            active = ~output.predicts(decisions[rows])
            rows, gradients = rows[active], gradients[active]
            length = ball.eps * (1 - step / self.steps)
            images[rows] = ball[rows].project(
                images[rows] + length * steepest_direction(gradients, ball.norm)
            )
        return images
