"""DeepFool: steps to the nearest decision boundary of the linearized model, until one is crossed."""

from dataclasses import dataclass
from typing import ClassVar

import torch
from torch import Tensor

from robustbench_inv.attacks.best_so_far import ClosestAdversarial
from robustbench_inv.attacks.budget_geometry import GRADIENT_NORMS, steepest_direction
from robustbench_inv.attacks.linearization import linearize, max_distance
from robustbench_inv.attacks.parameters import check_least
from robustbench_inv.attacks.protocol import Batch, Kind, Queries
from robustbench_inv.errors import BadParameter
from robustbench_inv.randomness import SampleRNG
from robustbench_inv.tensors import broadcast, flatten
from robustbench_inv.threat.threat_model import ThreatModel

__all__ = ["DeepFool"]

EXTRA_STEP = 1e-4
"""Length in widths of the box that each step exceeds the linearized distance by, as in the authors' code. Without it the
remaining distance may shrink geometrically where the box shortens steps."""


@dataclass(frozen=True)
class DeepFool:
    """DeepFool in l2 or linf on all samples at once; a sample stops when it has crossed a boundary.

    It ignores a detector. Where the goal needs acceptance, an input that is misclassified but rejected walks back to the
    decision boundary, and ends on either side of it.

    Args:
        norm: ``l2`` or ``linf``.
        steps: maximal number of linearizations, >= 1.
        candidates: number of other classes that are considered, those of the largest logits at the clean input, >= 1.
            Each needs one backward pass per step; memory does not grow with their number.
        overshoot: η, relative length by which each step is longer than the way to the boundary, >= 0.

    References:
        Moosavi-Dezfooli, Fawzi and Frossard, DeepFool: a simple and accurate method to fool deep neural
        networks, CVPR 2016, algorithm 2; other norms in section 3.3. Defaults: the authors' code
        (github.com/LTS4/DeepFool), whose ten classes include the predicted one.
    """

    norm: str = "l2"
    steps: int = 50
    candidates: int = 9
    overshoot: float = 0.02

    kind: ClassVar[Kind] = "minimum-norm"

    def __post_init__(self) -> None:
        if self.norm not in GRADIENT_NORMS:
            raise BadParameter("unusable norm", got=self.norm, expected="l2 or linf")
        check_least(self, steps=1, candidates=1, overshoot=0)

    @property
    def norms(self) -> frozenset[str]:
        return frozenset({self.norm})

    def run(self, model: Queries, batch: Batch, threat: ThreatModel, rng: SampleRNG) -> Tensor:
        closest = ClosestAdversarial(batch, threat, model)
        rows = torch.arange(len(batch), device=batch.labels.device)
        images = batch.images
        limits = max_distance(batch.images, model.bounds, self.norm)
        extra = EXTRA_STEP * (model.bounds[1] - model.bounds[0])
        classes: Tensor | int = self.candidates
        for _ in range(self.steps):
            about = linearize(model, threat, images, batch.labels[rows], rows, classes)
            hit = closest.update(images, about.output, rows) > 0
            lengths = about.distances.amin(1).minimum(limits[rows]) + extra
            step = (1 + self.overshoot) * broadcast(lengths, images)
            moved = images + step * steepest_direction(about.gradient, self.norm)
            stuck = (flatten(about.gradient) == 0).all(1)
            kept = ~((hit | stuck) & model.success_is_final)
            rows, images, classes = (
                rows[kept],
                moved[kept].clamp(*model.bounds),
                about.classes[kept],
            )
            if not len(rows):
                return closest.images
        closest.update(images, model(images, rows), rows)
        return closest.images
