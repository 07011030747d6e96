"""Judges proposals on the original model, and keeps each sample's outcome until it becomes a record."""

from collections.abc import Mapping, Sequence
from dataclasses import dataclass, field
from typing import Any

import torch
from torch import Tensor

from robustbench_inv.attacks.protocol import Batch
from robustbench_inv.data.protocol import Dataset
from robustbench_inv.errors import TimeLimitExceeded, describe_error
from robustbench_inv.evaluation.loading import Loader
from robustbench_inv.evaluation.oracles import Oracle
from robustbench_inv.evaluation.search import SearchResult
from robustbench_inv.foreign import foreign_call
from robustbench_inv.isolation import (
    isolate,
    joined_classes,
    joined_output,
    other_samples,
)
from robustbench_inv.models.protocol import Classifier, classify
from robustbench_inv.randomness import SampleRNG
from robustbench_inv.results.record import NO_PREDICTION, Distances, ModelOutput, Record, Status
from robustbench_inv.tensors import NORMS, Output, flatten, is_out_of_memory, norm, where_rows
from robustbench_inv.threat.budgets import LpBall, inside_box
from robustbench_inv.threat.goals import (
    UNKNOWN,
    Accept,
    GoalInputs,
    MisclassifyAccepted,
    Target,
)
from robustbench_inv.threat.threat_model import ThreatModel

__all__ = [
    "Assessment",
    "BlockState",
    "Judge",
    "already_wrong",
    "smallest_breaking_eps",
]


ROUNDING = 1e-6
"""Largest distance outside the box at which a proposal is clamped instead of refused: the rounding of an undone
normalisation (relative to the larger bound, at least to 1)."""


@dataclass(frozen=True)
class Assessment:
    """The judge's findings on n proposals.

    Args:
        images: (n, …) the judged inputs: the proposal, or the clean input where the proposal is not finite.
        after: the original model's output for them.
        oracle: (n,) their true classes, −1 where unknown.
        valid: (n,) are proposal and output finite?
        in_bounds: (n,) valid, and inside the box.
        allowed: (n,) in bounds, and inside the budget.
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
        """Return the findings on some of the proposals, given positions (m,) or a mask (n,)."""
        return Assessment(**{name: value[rows] for name, value in vars(self).items()})


@dataclass(frozen=True)
class Judge:
    """Judges proposals on the original model, whichever model the attack queried.

    Args:
        classifier: the original model.
        dataset: the data that is evaluated.
        seed: seed of a stochastic model's draws.
        oracle: classifies changed inputs; None if there is no oracle.
        raised: what the model raised for single samples, until ``take_raised``.
    """

    classifier: Classifier
    dataset: Dataset
    seed: int
    oracle: Oracle | None = None
    raised: dict[int, str] = field(init=False, default_factory=dict, compare=False, repr=False)

    def take_raised(self) -> dict[int, str]:
        """Return what the model raised since the last call, by sample."""
        return {sample: self.raised.pop(sample) for sample in list(self.raised)}

    def rng(self, ids: Tensor) -> SampleRNG:
        """Return the random numbers of some samples."""
        return SampleRNG(self.seed, ids)

    def predict(self, images: Tensor, ids: Tensor) -> Output:
        """Return the output that counts for (n, …) images of the samples (n,).

        The logits of an image on which the model raises are NaN, and ``raised`` keeps the reason. What it raises for
        a few other samples as well passes.
        """
        try:
            return self._classify(images, ids)
        except Exception as error:
            if isinstance(error, TimeLimitExceeded) or is_out_of_memory(error):
                raise
            rows = torch.arange(len(images), device=images.device)
            parts = list(isolate(lambda part: self._classify(images[part], ids[part]), rows, error))
            works = any(isinstance(output, Output) for _, output in parts)
            if not works and not self.works_on_others(ids):
                raise
            for part, raised in parts:
                if isinstance(raised, Exception):
                    self.raised.update(dict.fromkeys(ids[part].tolist(), describe_error(raised)))
            return joined_output(parts, images, self.classifier.num_classes)

    def works_on_others(self, ids: Tensor) -> bool:
        """Return whether the model has a valid output for one of a few samples other than these."""
        loader = Loader(self.dataset, ids.device, self.classifier.dtype)
        for batch in map(loader.batch, other_samples(ids, len(self.dataset))):
            try:
                if self._classify(batch.images, batch.ids).valid.all():
                    return True
            except Exception as error:
                if is_out_of_memory(error):
                    raise
        return False

    def _classify(self, images: Tensor, ids: Tensor) -> Output:
        with foreign_call("the model"):
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
        valid = finite & after.valid
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
        """Return the oracle's classes (n,) of (n, …) versions of the samples ``ids`` (n,), −1 where unknown."""
        oracle = self.oracle
        if oracle is None:
            return torch.full((len(images),), UNKNOWN, device=images.device)

        def classes(rows: Tensor) -> Tensor:
            with foreign_call("the oracle"):
                return oracle.classify(images[rows], ids[rows])

        return joined_classes(classes, images)


@dataclass
class BlockState:
    """The n samples of a block: the best input found for each so far, and its outcome.

    Args:
        batch: the samples.
        before: the output for the clean inputs.
        wrong: (n,) samples that fail without an attack; the model's output for some of them may be invalid.
        oracle: (n,) the oracle's classes of the clean inputs, −1 where unknown.
    """

    batch: Batch
    before: Output
    wrong: Tensor
    oracle: Tensor
    images: Tensor = field(init=False)
    after: Output = field(init=False)
    broken_at: Tensor = field(init=False)
    allowed: Tensor = field(init=False)
    replayed: Tensor = field(init=False)
    status: list[Status] = field(init=False)
    abandoned: Tensor = field(init=False)
    """(n,) samples on which the attack raised; they are not attacked at other eps."""

    def __post_init__(self) -> None:
        n, device = len(self.batch), self.batch.images.device
        self.images = self.batch.images.clone()
        self.after = _clone_output(self.before)
        self.broken_at = torch.full((n,), torch.nan, dtype=torch.float64, device=device)
        self.broken_at[self.wrong] = 0.0
        self.allowed = torch.ones(n, dtype=torch.bool, device=device)
        self.replayed = torch.ones(n, dtype=torch.bool, device=device)
        self.status = ["already_wrong" if wrong else "ok" for wrong in self.wrong.tolist()]
        for row in self.failed.tolist():
            self.status[row] = "model_failure"
        self.abandoned = torch.zeros(n, dtype=torch.bool, device=device)
        self._forward = torch.zeros(n, dtype=torch.int64, device=device)
        self._backward = torch.zeros(n, dtype=torch.int64, device=device)
        self._useful = torch.zeros(n, dtype=torch.bool, device=device)

    @property
    def all(self) -> Tensor:
        """(n,) positions of the samples."""
        return torch.arange(len(self.batch), device=self.batch.images.device)

    @property
    def failed(self) -> Tensor:
        """(m,) positions of the samples for whose clean inputs the model has no valid output."""
        return (~self.before.valid).nonzero()[:, 0]

    @property
    def undecided(self) -> Tensor:
        """(m,) positions of the samples that are neither broken, nor wrong without an attack, nor abandoned."""
        return (self.broken_at.isnan() & ~self.abandoned).nonzero()[:, 0]

    @property
    def is_broken(self) -> Tensor:
        """(n,): did an attack break the sample?"""
        return ~self.broken_at.isnan() & ~self.wrong

    @property
    def unbroken(self) -> Tensor:
        """(m,) positions of the samples that no attack broke."""
        return (~self.is_broken).nonzero()[:, 0]

    @property
    def allowed_images(self) -> Tensor:
        """(n, …) the best inputs so far, and the clean input where the best one is not allowed."""
        return where_rows(self.allowed, self.images, self.batch.images)

    def add_passes(self, rows: Tensor, result: SearchResult) -> None:
        """Add the passes of a search for the samples at (m,) positions."""
        self._forward[rows] += result.forward_passes
        self._backward[rows] += result.backward_passes
        self._useful[rows] |= (result.backward_passes > 0) & ~result.zero_gradient

    def set_images(self, rows: Tensor, assessment: Assessment, replayed: Tensor) -> None:
        """Replace the inputs of the samples at (m,) positions; (m,) was the model's prediction replayed?"""
        self.images[rows] = assessment.images
        self.oracle[rows] = assessment.oracle
        self.allowed[rows] = assessment.allowed
        self.replayed[rows] = replayed
        for old, new in (
            (self.after.logits, assessment.after.logits),
            (self.after.score, assessment.after.score),
            (self.after.accepted, assessment.after.accepted),
        ):
            if old is not None and new is not None:
                old[rows] = new

    def set_status(self, statuses: Mapping[int, Status]) -> None:
        """Set the status of samples by position; samples that are wrong without an attack keep theirs."""
        for row, status in statuses.items():
            if not self.wrong[row]:
                self.status[row] = status

    def mark_broken(self, rows: Tensor, eps_values: Sequence[float], name: str) -> None:
        """Mark the samples at (m,) positions as broken at the smallest eps whose ball contains their input.

        Samples that are wrong without an attack stay broken at 0.

        Args:
            rows: positions.
            eps_values: ascending eps, the last of which contains every input; empty to record the distance.
            name: the norm.
        """
        rows = rows[~self.wrong[rows]]
        self.broken_at[rows] = smallest_breaking_eps(
            self.batch.images[rows], self.images[rows], eps_values, name
        )
        self.set_status(dict.fromkeys(rows.tolist(), "ok"))

    def records(self, oracle_source: str | None) -> list[Record]:
        """Return one record for each sample, in the order of the batch."""
        before, after = _answers(self.before), _answers(self.after)
        distances, broken_at = self._distances(), self.broken_at.tolist()
        zero = ((self._backward > 0) & ~self._useful).tolist()
        samples, labels = self.batch.ids.tolist(), self.batch.labels.tolist()
        return [
            Record(
                sample=samples[row],
                label=labels[row],
                clean=before[row],
                adversarial=after[row],
                oracle_label=None if oracle == UNKNOWN else oracle,
                oracle_source=oracle_source,
                distance=distances[row],
                broken_at=broken_at[row] if broken_at[row] == broken_at[row] else None,
                within_budget=bool(self.allowed[row]),
                goal_reached=broken_at[row] == broken_at[row],
                forward_passes=int(self._forward[row]),
                backward_passes=int(self._backward[row]),
                zero_gradient=zero[row],
                replayed=bool(self.replayed[row]),
                status=self.status[row],
            )
            for row, oracle in enumerate(self.oracle.tolist())
        ]

    def _distances(self) -> list[Distances]:
        delta = self.images.double() - self.batch.images.double()
        columns = {name: norm(delta, name).tolist() for name in NORMS}
        rows = zip(*columns.values(), strict=True)
        return [Distances(int(l0), l1, l2, linf) for l0, l1, l2, linf in rows]


def already_wrong(threat: ThreatModel, before: Output, labels: Tensor) -> Tensor:
    """Return (n,): does the model fail without an attack?

    A misclassified clean input that the model rejects does not count if the goal requires acceptance. Under the
    goal ``accept`` no clean input counts, and under a target only one of the target class.
    """
    if isinstance(threat.goal, Target):
        return threat.goal.output_reaches(before, labels)
    if isinstance(threat.goal, Accept):
        return torch.zeros_like(labels, dtype=torch.bool)
    wrong = before.decision != labels
    if isinstance(threat.goal, MisclassifyAccepted) and before.accepted is not None:
        return wrong & before.accepted
    return wrong


def smallest_breaking_eps(
    clean: Tensor, images: Tensor, eps_values: Sequence[float], name: str
) -> Tensor:
    """Return the smallest eps whose ball contains each image (m,), its distance where none does.

    Args:
        clean: (m, …).
        images: (m, …).
        eps_values: ascending; may be empty.
        name: the norm.
    """
    smallest = norm(images.double() - clean.double(), name)
    for eps in reversed(eps_values):
        smallest[LpBall(name, eps).contains(clean, images)] = eps
    return smallest


def _select_outputs(mask: Tensor, new: Output, old: Output) -> Output:
    """Return the new output where the mask (n,) is true, the old one elsewhere."""
    return Output(
        where_rows(mask, new.logits, old.logits),
        None if new.score is None or old.score is None else torch.where(mask, new.score, old.score),
        None
        if new.accepted is None or old.accepted is None
        else torch.where(mask, new.accepted, old.accepted),
    )


def _clamp_rounding(images: Tensor, bounds: tuple[float, float]) -> Tensor:
    """Clamp images that rounding moved outside the box; one further outside is returned unchanged."""
    clamped = images.clamp(*bounds)
    near = flatten((clamped - images).abs()).amax(1) <= ROUNDING * max(1, *map(abs, bounds))
    return where_rows(near, clamped, images)


def _answers(output: Output) -> list[ModelOutput]:
    """Return each sample's output; without a valid one, no class is predicted, and the input counts as accepted."""
    invalid = (~output.valid).nonzero()[:, 0].tolist()
    predictions = output.decision.tolist()
    blank: list[Any] = [None] * len(predictions)
    scores = blank if output.score is None else output.score.double().tolist()
    accepted = blank if output.accepted is None else output.accepted.bool().tolist()
    for row in invalid:
        predictions[row], scores[row] = NO_PREDICTION, None
        accepted[row] = output.accepted is not None or None
    return [ModelOutput(*row) for row in zip(predictions, scores, accepted, strict=True)]


def _clone_output(output: Output) -> Output:
    score = None if output.score is None else output.score.clone()
    accepted = None if output.accepted is None else output.accepted.clone()
    return Output(output.logits.clone(), score, accepted)
