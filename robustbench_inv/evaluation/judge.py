"""Judges proposals on the original model: is the input allowed, and does it reach the goal?"""

from dataclasses import dataclass

import torch
from torch import Tensor

from robustbench_inv.attacks.protocol import Batch
from robustbench_inv.data.protocol import Dataset
from robustbench_inv.errors import AttackFailed
from robustbench_inv.evaluation.oracles import Oracle
from robustbench_inv.models.protocol import Classifier, classify
from robustbench_inv.randomness import SampleRNG
from robustbench_inv.tensors import Output, flatten, where_rows
from robustbench_inv.threat.budgets import inside_box
from robustbench_inv.threat.goals import (
    UNKNOWN,
    Accept,
    GoalInputs,
    MisclassifyAccepted,
    Target,
)
from robustbench_inv.threat.threat_model import ThreatModel

__all__ = ["Assessment", "Judge", "already_wrong", "checked_proposals", "is_valid_output"]


ROUNDING = 1e-6
"""How far a proposal may leave the box and still be put back: rounding of a normalisation undone
(relative to the larger bound, at least to 1)."""


@dataclass(frozen=True)
class Assessment:
    """What is made of n proposals.

    Args:
        images: (n, …) what is shown: the proposal, or the clean input where it is not finite.
        after: the original model's output for them.
        oracle: (n,) their true classes, −1 where unknown.
        valid: (n,) are proposal and output finite?
        in_bounds: (n,) usable, and inside the box.
        allowed: (n,) boxed, and inside the budget.
        reached: (n,) allowed, and the goal is reached.
    """

    images: Tensor
    after: Output
    oracle: Tensor
    valid: Tensor
    in_bounds: Tensor
    allowed: Tensor
    reached: Tensor

    def __getitem__(self, rows: Tensor) -> "Assessment":
        """Return what is made of some of the proposals, given positions (m,) or a mask (n,)."""
        return Assessment(**{name: value[rows] for name, value in vars(self).items()})


@dataclass(frozen=True)
class Judge:
    """Takes verdicts on the original model, whatever an attack searched on.

    Args:
        classifier: the original model.
        dataset: the data that is evaluated.
        seed: of the draws of a stochastic model.
        oracle: says what class a proposal has; None where nobody can tell.
    """

    classifier: Classifier
    dataset: Dataset
    seed: int
    oracle: Oracle | None = None

    def rng(self, ids: Tensor) -> SampleRNG:
        """Return the random numbers of some samples."""
        return SampleRNG(self.seed, ids)

    def predict(self, images: Tensor, ids: Tensor) -> Output:
        """Return the output that counts for (n, …) images of the samples (n,)."""
        return classify(self.classifier, images, self.rng(ids))

    def replay(self, images: Tensor, ids: Tensor) -> Output:
        """Return the output of the same images in another batch: reversed, with one image more."""
        reverse = torch.arange(len(images) - 1, -1, -1, device=images.device)
        order = torch.cat([reverse, reverse[:1]])
        return self.predict(images[order], ids[order])[reverse]

    def judge(
        self, batch: Batch, before: Output, proposals: Tensor, threat: ThreatModel
    ) -> Assessment:
        """Judge n proposals.

        Args:
            batch: the n samples.
            before: the output for their clean inputs.
            proposals: (n, …).
            threat: budget and goal.
        """
        finite = flatten(proposals).isfinite().all(1)
        bounds = self.classifier.bounds
        images = _clamp_rounding(where_rows(finite, proposals, batch.images), bounds)
        after = self.predict(images, batch.ids)
        valid = finite & is_valid_output(after)
        images, after = (
            where_rows(valid, images, batch.images),
            _select_outputs(valid, after, before),
        )
        in_bounds = valid & inside_box(images, bounds)
        allowed = in_bounds & threat.budget.contains(batch.images, images)
        oracle = self.true_classes(images, batch.ids)
        evidence = GoalInputs(batch.images, images, batch.labels, before, after, oracle)
        reached = allowed & threat.goal.reached(evidence)
        return Assessment(images, after, oracle, valid, in_bounds, allowed, reached)

    def true_classes(self, images: Tensor, ids: Tensor) -> Tensor:
        """Return the oracle's classes (n,) of (n, …) versions of the samples ``ids`` (n,), −1 where it has none."""
        if self.oracle is not None:
            return self.oracle.classify(images, ids)
        return torch.full((len(images),), UNKNOWN, device=images.device)


def already_wrong(threat: ThreatModel, before: Output, labels: Tensor) -> Tensor:
    """Return (n,): does the model fail before any attack?

    A wrong answer that the model rejects is no failure for the goal that asks for acceptance; to accept a
    clean input is none either, nor is a wrong class where another one is aimed at.
    """
    if isinstance(threat.goal, Target):
        return threat.goal.output_reaches(before, labels)
    if isinstance(threat.goal, Accept):
        return torch.zeros_like(labels, dtype=torch.bool)
    wrong = before.decision != labels
    if isinstance(threat.goal, MisclassifyAccepted) and before.accepted is not None:
        return wrong & before.accepted
    return wrong


def checked_proposals(proposals: object, batch: Batch) -> Tensor:
    """Return an attack's proposals, detached and in the dtype of the batch.

    Raises:
        AttackFailed: if they are not a batch of images.
    """
    expected = tuple(batch.images.shape)
    if not isinstance(proposals, Tensor) or tuple(proposals.shape) != expected:
        got = tuple(proposals.shape) if isinstance(proposals, Tensor) else type(proposals).__name__
        raise AttackFailed(
            "the attack returned no batch of images", got=got, expected=str(expected)
        )
    return proposals.detach().to(batch.images)


def is_valid_output(output: Output) -> Tensor:
    """Return (n,): is the answer one that can be judged and written down?"""
    numbers = ~output.logits.isnan().any(1)
    return numbers if output.score is None else numbers & output.score.isfinite()


def _select_outputs(mask: Tensor, new: Output, old: Output) -> Output:
    """Return the new output where the mask (n,) holds, the old one elsewhere."""
    return Output(
        where_rows(mask, new.logits, old.logits),
        None if new.score is None or old.score is None else torch.where(mask, new.score, old.score),
        None
        if new.accepted is None or old.accepted is None
        else torch.where(mask, new.accepted, old.accepted),
    )


def _clamp_rounding(images: Tensor, bounds: tuple[float, float]) -> Tensor:
    """Put back inside what rounding took out; a proposal further outside stays as it is."""
    clamped = images.clamp(*bounds)
    near = flatten((clamped - images).abs()).amax(1) <= ROUNDING * max(1, *map(abs, bounds))
    return where_rows(near, clamped, images)
