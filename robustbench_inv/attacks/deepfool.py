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

MIN_STEP = 0.1
"""Minimal step length, relative to the first step. Where the box shortens steps, the remaining distance shrinks
geometrically and the boundary is never crossed. On mnist-cnn, 30 backward passes per digit with 1e-4 and six bisections
end at a median l2 of 1.162, 16 passes with 0.1 at 1.160."""


FREE_STEPS = 6
"""Steps before the minimal length applies. Median l2 on three small networks of our own (benchmarks/minimum_norm.py) with
0 and 6 such steps: 0.927 and 0.926, 0.985 and 0.978, 1.58 and 1.55; Foolbox 0.927, 0.989, 1.60."""


@dataclass(frozen=True)
class DeepFool:
    """DeepFool in l2 or linf on all samples at once; a sample stops when it has crossed a boundary.

    Args:
        norm: ``l2`` or ``linf``.
        steps: maximal number of linearizations, >= 1.
        candidates: number of other classes that the first step considers, those of the largest logits, >= 1. Each
            needs one backward pass; memory does not grow with their number.
        later_candidates: number of these that later steps consider, those of the nearest boundaries, >= 1.
        overshoot: relative length by which iterates exceed the sum of the steps, >= 0.
        bisections: final bisections of the sum of all steps, >= 0.

    References:
        Moosavi-Dezfooli, Fawzi and Frossard, DeepFool: a simple and accurate method to fool deep neural
        networks, CVPR 2016, algorithm 2; other norms in section 3.3.
    """

    norm: str = "l2"
    steps: int = 50
    candidates: int = 9
    later_candidates: int = 3
    overshoot: float = 0.02
    bisections: int = 14

    kind: ClassVar[Kind] = "minimum-norm"

    def __post_init__(self) -> None:
        if self.norm not in GRADIENT_NORMS:
            raise BadParameter("unusable norm", got=self.norm, expected="l2 or linf")
        check_least(self, steps=1, candidates=1, later_candidates=1, overshoot=0, bisections=0)

    @property
    def norms(self) -> frozenset[str]:
        return frozenset({self.norm})

    def run(self, model: Queries, batch: Batch, threat: ThreatModel, rng: SampleRNG) -> Tensor:
        closest = ClosestAdversarial(batch, threat)
        far = self._step_to_boundary(model, batch, closest)
        if (
            model.success_is_final
        ):  # else a lucky draw could move an example back across the boundary
            self._bisect_to_boundary(model, closest, far)
        return closest.images

    def _step_to_boundary(
        self, model: Queries, batch: Batch, closest: ClosestAdversarial
    ) -> Tensor:
        """Step toward the nearest boundaries until all samples have crossed one; return the sums of steps, (n, …)."""
        far = torch.zeros_like(batch.images)
        rows = torch.arange(len(batch), device=batch.labels.device)
        images, perturbation = batch.images, torch.zeros_like(batch.images)
        later_candidates: Tensor | int = self.candidates
        limits = max_distance(batch.images, model.bounds, self.norm)
        least = torch.zeros_like(limits)
        for step in range(self.steps):
            about = linearize(
                model, closest.threat, images, batch.labels[rows], rows, later_candidates
            )
            hit = closest.update(images, about.output, rows) > 0
            lengths = about.distances.amin(1).minimum(limits[rows])
            least = MIN_STEP * lengths if step == 0 else least
            lengths = (
                lengths if step < FREE_STEPS else torch.where(hit, lengths, lengths.maximum(least))
            )
            perturbation = perturbation + broadcast(lengths, perturbation) * steepest_direction(
                about.gradient, self.norm
            )
            done = (hit | (flatten(about.gradient) == 0).all(1)) & model.success_is_final
            rows, perturbation, least = rows[~done], perturbation[~done], least[~done]
            later_candidates = about.nearest(self.later_candidates)[~done]
            if not len(rows):
                return far
            far[rows] = (1 + self.overshoot) * perturbation
            images = (batch.images[rows] + far[rows]).clamp(*model.bounds)
        closest.update(images, model(images, rows), rows)
        return far

    def _bisect_to_boundary(self, model: Queries, closest: ClosestAdversarial, far: Tensor) -> None:
        """Look for a closer adversarial example among shorter steps than ``far`` (n, …), each clipped to the box.

        The line to the clipped example is longer: it draws back elements at the bound as well.
        """
        rows = closest.found.nonzero()[:, 0]
        clean, far = closest.batch.images[rows], far[rows]
        low, high = (
            torch.zeros_like(closest.distances[rows]),
            torch.ones_like(closest.distances[rows]),
        )
        for _ in range(self.bisections if len(rows) else 0):
            middle = (low + high) / 2
            images = (clean + broadcast(middle, far) * far).clamp(*model.bounds)
            hit = closest.update(images, model(images, rows), rows) > 0
            low, high = torch.where(hit, low, middle), torch.where(hit, middle, high)
