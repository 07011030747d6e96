"""The state of the samples of a block while they are attacked, and the records they become."""

from collections.abc import Sequence
from dataclasses import dataclass, field

import torch
from torch import Tensor

from robustbench_inv.attacks.protocol import Batch
from robustbench_inv.evaluation.judge import Assessment
from robustbench_inv.evaluation.search import SearchResult
from robustbench_inv.results.record import Distances, ModelOutput, Record, Status
from robustbench_inv.tensors import NORMS, Output, norm, where_rows
from robustbench_inv.threat.budgets import LpBall
from robustbench_inv.threat.goals import UNKNOWN

__all__ = ["BlockState", "smallest_breaking_eps"]


@dataclass
class BlockState:
    """The n samples of a block: what is shown of each at present, and what is known of it.

    Args:
        batch: the samples.
        before: the output for the clean inputs.
        wrong: (n,) those that need no attack.
        oracle: (n,) true classes of the clean inputs as the oracle sees them, −1 where unknown.
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

    def __post_init__(self) -> None:
        n, device = len(self.batch), self.batch.images.device
        self.images = self.batch.images.clone()
        self.after = _clone_output(self.before)
        self.broken_at = torch.full((n,), torch.nan, dtype=torch.float64, device=device)
        self.broken_at[self.wrong] = 0.0
        self.allowed = torch.ones(n, dtype=torch.bool, device=device)
        self.replayed = torch.ones(n, dtype=torch.bool, device=device)
        self.status = ["already_wrong" if wrong else "ok" for wrong in self.wrong.tolist()]
        self._forward = torch.zeros(n, dtype=torch.int64, device=device)
        self._backward = torch.zeros(n, dtype=torch.int64, device=device)
        self._useful = torch.zeros(n, dtype=torch.bool, device=device)

    @property
    def all(self) -> Tensor:
        """(n,) positions of the samples."""
        return torch.arange(len(self.batch), device=self.batch.images.device)

    @property
    def undecided(self) -> Tensor:
        """(m,) positions of the samples that still stand."""
        return self.broken_at.isnan().nonzero()[:, 0]

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
        """(n, …) what is shown, and the clean input where that is not allowed."""
        return where_rows(self.allowed, self.images, self.batch.images)

    def add_passes(self, rows: Tensor, found: SearchResult) -> None:
        """Add the passes that a search took for the samples at (m,) positions."""
        self._forward[rows] += found.forward_passes
        self._backward[rows] += found.backward_passes
        self._useful[rows] |= (found.backward_passes > 0) & ~found.zero_gradient

    def set_images(self, rows: Tensor, assessment: Assessment, replayed: Tensor) -> None:
        """Show other inputs for the samples at (m,) positions; (m,) did the answers to them replay so far?"""
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

    def set_status(self, statuses: dict[int, Status]) -> None:
        """Say why there is no valid proposal, or that there is, by position; what was wrong before stays so."""
        for row, status in statuses.items():
            if not self.wrong[row]:
                self.status[row] = status

    def mark_broken(self, rows: Tensor, eps_values: tuple[float, ...], name: str) -> None:
        """Let the samples at (m,) positions fall at the smallest eps that holds what is shown of them.

        Those that were wrong to begin with have fallen.

        Args:
            rows: positions.
            eps_values: ascending eps, the last of which holds them all; empty to fall at their distance.
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
        distances, fallen = self._distances(), self.broken_at.tolist()
        zero = ((self._backward > 0) & ~self._useful).tolist()
        return [
            Record(
                sample=sample,
                label=label,
                clean=before[row],
                adversarial=after[row],
                oracle_label=None if oracle == UNKNOWN else oracle,
                oracle_source=oracle_source,
                distance=distances[row],
                broken_at=fallen[row] if fallen[row] == fallen[row] else None,
                within_budget=bool(self.allowed[row]),
                goal_reached=fallen[row] == fallen[row],
                forward_passes=int(self._forward[row]),
                backward_passes=int(self._backward[row]),
                zero_gradient=zero[row],
                replayed=bool(self.replayed[row]),
                status=self.status[row],
            )
            for row, (sample, label, oracle) in enumerate(
                zip(
                    self.batch.ids.tolist(),
                    self.batch.labels.tolist(),
                    self.oracle.tolist(),
                    strict=True,
                )
            )
        ]

    def _distances(self) -> list[Distances]:
        delta = self.images.double() - self.batch.images.double()
        columns = {name: norm(delta, name).tolist() for name in NORMS}
        rows = zip(*columns.values(), strict=True)
        return [Distances(int(l0), l1, l2, linf) for l0, l1, l2, linf in rows]


def smallest_breaking_eps(
    clean: Tensor, images: Tensor, eps_values: Sequence[float], name: str
) -> Tensor:
    """Return the smallest eps of an ascending ladder that holds each image (m,), its distance where none does.

    Args:
        clean: (m, …).
        images: (m, …).
        eps_values: may be empty.
        name: the norm.
    """
    fallen = norm(images.double() - clean.double(), name)
    for eps in reversed(eps_values):
        fallen[LpBall(name, eps).contains(clean, images)] = eps
    return fallen


def _answers(output: Output) -> list[ModelOutput]:
    decisions = output.decision.tolist()
    blank = [None] * len(decisions)
    scores = blank if output.score is None else output.score.double().tolist()
    accepted = blank if output.accepted is None else output.accepted.bool().tolist()
    return [ModelOutput(*row) for row in zip(decisions, scores, accepted, strict=True)]


def _clone_output(output: Output) -> Output:
    score = None if output.score is None else output.score.clone()
    accepted = None if output.accepted is None else output.accepted.clone()
    return Output(output.logits.clone(), score, accepted)
