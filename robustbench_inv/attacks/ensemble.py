"""Ensembles of attacks: each attack runs only on the samples that survived the earlier ones."""

from collections.abc import Sequence
from dataclasses import dataclass, field, replace
from typing import ClassVar

import torch
from torch import Tensor

from robustbench_inv.attacks.apgd import APGD, MALTAPGD
from robustbench_inv.attacks.best_so_far import CONFIRMATIONS
from robustbench_inv.attacks.budget_geometry import BALL_NORMS
from robustbench_inv.attacks.losses import check_losses
from robustbench_inv.attacks.minimum_norm import MinimumNorm
from robustbench_inv.attacks.parameters import check_below, check_least
from robustbench_inv.attacks.protocol import (
    Attack,
    Batch,
    FailureReason,
    Kind,
    Loss,
    Queries,
    ReportsStage,
    short_run_of,
)
from robustbench_inv.attacks.square import SquareAttack
from robustbench_inv.errors import BadParameter
from robustbench_inv.randomness import SampleRNG
from robustbench_inv.tensors import Output, where_rows
from robustbench_inv.threat.threat_model import ThreatModel

__all__ = ["BROKEN_BY", "Ensemble", "SquareThenAPGD", "SubsetRunner", "common_norms", "standard"]


@dataclass(frozen=True)
class SubsetRunner:
    """Runs attacks on subsets of a batch.

    Args:
        model: the queried model, which counts each query.
        batch: the n samples.
        threat: budget and goal of all attacks.
        rng: the samples' random numbers; each attack gets its own stream.
    """

    model: Queries
    batch: Batch
    threat: ThreatModel
    rng: SampleRNG

    def run(self, attack: Attack, rows: Tensor, name: str, start: Tensor | None = None) -> Tensor:
        """Return an attack's candidates for some samples, (m, …), the clean input where one is outside the budget.

        Args:
            attack: a fixed-budget or minimum-norm attack; the latter's adversarial examples may exceed the budget.
            rows: (m,) positions of the samples; a repeated sample is attacked several times with other random numbers.
            name: of the stream of random numbers.
            start: (m, …) warm starts, or None.
        """
        part = replace(self.batch[rows], start=start)
        rng = self.rng.rows(rows).named(f"{self.rng.stream}/{name}")
        rng = replace(rng, copies=_repeat_numbers(rows))
        found = attack.run(SubsetQueries(self.model, rows, len(self.batch)), part, self.threat, rng)
        found = found.detach().clamp(*self.model.bounds)
        return where_rows(self.threat.budget.contains(part.images, found), found, part.images)

    def margins(self, images: Tensor, rows: Tensor) -> Tensor:
        """Return the goal's margins of images (m, …), (m,): the smallest of several queries if outputs may differ.

        A margin that is not a number counts as −inf, so that any other result is better.
        """
        labels, goal = self.batch.labels[rows], self.threat.goal
        outputs = [
            self.model(images, rows)
            for _ in range(1 if self.model.success_is_final else CONFIRMATIONS)
        ]
        found = torch.stack([goal.margin(output, labels).double() for output in outputs])
        least = found.amin(0)
        return least.masked_fill(least.isnan(), -torch.inf)

    def broken(self, margins: Tensor) -> Tensor:
        """Return which samples need no further attack, (m,); none on a substitute, since the attacked model decides."""
        return (margins > 0) & (not self.threat.is_transfer)


def _repeat_numbers(rows: Tensor) -> Tensor | None:
    """Return how often each position occurs before, (m,); None if no position is repeated."""
    order = rows.argsort(stable=True)
    ranked = rows[order]
    before = torch.arange(len(rows), device=rows.device) - torch.searchsorted(ranked, ranked)
    return torch.empty_like(rows).index_copy(0, order, before) if before.any() else None


def common_norms(attacks: Sequence[Attack]) -> frozenset[str]:
    """Return the norms that all attacks support."""
    return frozenset.intersection(*(attack.norms for attack in attacks))


@dataclass(frozen=True)
class SubsetQueries:
    """The queries of an attack on a subset of a batch (implements ``Queries``).

    Args:
        queries: the queries of the whole batch.
        positions: (m,) positions of the samples.
        count: n, number of samples of the whole batch.
    """

    queries: Queries
    positions: Tensor
    count: int

    @property
    def num_classes(self) -> int:
        return self.queries.num_classes

    @property
    def bounds(self) -> tuple[float, float]:
        return self.queries.bounds

    @property
    def dtype(self) -> torch.dtype:
        return self.queries.dtype

    @property
    def success_is_final(self) -> bool:
        return self.queries.success_is_final

    @property
    def model(self) -> object:
        return self.queries.model

    def __call__(self, images: Tensor, rows: Tensor | None = None) -> Output:
        return self.queries(images, self._positions(images, rows))

    def gradient(
        self, images: Tensor, loss: Loss, rows: Tensor | None = None
    ) -> tuple[Output, Tensor]:
        return self.queries.gradient(images, loss, self._positions(images, rows))

    def differentiable(self, images: Tensor, rows: Tensor | None = None) -> Output:
        return self.queries.differentiable(images, self._positions(images, rows))

    def report_failure(self, rows: Tensor, status: FailureReason, error: str = "") -> None:
        """Ignore the failure of a single member, since the others may succeed."""

    def log(self, name: str, values: Tensor) -> None:
        numbers = torch.full((self.count,), torch.nan, device=values.device)
        numbers[self.positions] = values.to(numbers)
        self.queries.log(name, numbers)

    def _positions(self, images: Tensor, rows: Tensor | None) -> Tensor | None:
        if rows is None and len(images) != len(self.positions):
            return None  # the attack does not declare the samples of these images
        return self.positions if rows is None else self.positions[rows]


SQUARE_STREAM, APGD_STREAM = "scout", "climb"
"""Streams of random numbers of ``SquareThenAPGD``; other names would change its results."""

SAME_OPTIMUM = 1e-3
"""Largest difference of the margins of two searches that found the same optimum, as a share of the clean margin. On small
networks without adversarial training, retries end within it: 14 of 15 on five digits."""

BROKEN_BY = "ensemble_member"
"""Name of the logged number of each sample: the member that broke it, counted from 1, or 0."""


@dataclass(frozen=True)
class Ensemble:
    """Runs attacks in turn, each on the samples that survived the earlier ones.

    It returns the adversarial example of the attack that broke a sample, or else the candidate of the largest margin.

    Args:
        members: at least one fixed-budget or minimum-norm attack, preferably the cheapest first.
    """

    members: tuple[Attack, ...]

    kind: ClassVar[Kind] = "fixed-budget"

    def __post_init__(self) -> None:
        kinds = [member.kind for member in self.members]
        if not kinds or not {"fixed-budget", "minimum-norm"}.issuperset(kinds):
            raise BadParameter(
                "unusable members of an ensemble",
                got=kinds,
                expected="one or more fixed-budget or minimum-norm attacks",
            )

    @property
    def norms(self) -> frozenset[str]:
        return common_norms(self.members)

    @property
    def short_run(self) -> "Ensemble | None":
        """The short run of its first member."""
        short_run = short_run_of(self.members[0])
        return None if short_run is None else Ensemble((short_run,))

    def run(self, model: Queries, batch: Batch, threat: ThreatModel, rng: SampleRNG) -> Tensor:
        runner, images = SubsetRunner(model, batch, threat, rng), batch.images.clone()
        margins = torch.full_like(batch.labels, -torch.inf, dtype=torch.float64)
        by = torch.zeros_like(batch.labels)
        for number, member in enumerate(self.members, 1):
            rows = (~runner.broken(margins)).nonzero()[:, 0]
            if not len(rows):
                break
            if isinstance(model, ReportsStage):
                model.enter(f"attack {number} of {len(self.members)}")
            starts = batch.start if number == 1 else None
            if number > 1 and isinstance(member, SquareThenAPGD):
                starts = images
            start = None if starts is None else starts[rows]
            candidates = runner.run(member, rows, str(number), start)
            found = runner.margins(candidates, rows)
            by[rows[(found > 0) & (margins[rows] <= 0)]] = number
            better = found > margins[rows]
            images[rows[better]], margins[rows[better]] = candidates[better], found[better]
        model.log(BROKEN_BY, by)
        return images


@dataclass(frozen=True)
class SquareThenAPGD:
    """A short Square attack followed by APGD from its result; then retries, or a long Square attack.

    Square attack helps against models with misleading gradients. If APGD improves much on a short Square attack, the
    gradients are useful, and thousands of further queries would find less than APGD. If a sample is nearly broken,
    retries from other starts help, since APGD may reach another optimum from each. They are left out where the margin is
    that of the warm start, in an ensemble the best input of the members before: another optimum is then unlikely. A long
    Square attack follows a trial with as many queries as a retry, where the trial reaches the best margin so far and has
    gained enough of the remaining margin (decision 0055), or nothing at all, since the margins of some models move in steps.

    Args:
        queries: of the short Square attack, >= 1.
        steps: of APGD, >= 1.
        loss: of APGD.
        long_queries: queries of the long Square attack, >= 1.
        long_threshold: a sample gets the long attack if the short one achieved at least this share of the total increase
            of the margin, between 0 and 1.
        long_gain: a sample gets the long attack if the trial gained at least this share of the remaining margin.
        retry_threshold: a sample gets retries if its margin is at most this share of the clean margin, between 0 and 1.
        retries: number of retries, run as one batch, >= 1.
        retry_queries: queries of each retry and of the trial, >= 1.
    """

    queries: int = 250
    steps: int = 50
    loss: str = "margin"
    long_queries: int = 5000
    long_threshold: float = 0.9
    long_gain: float = 0.1
    retry_threshold: float = 0.05
    retries: int = 3
    retry_queries: int = 1000

    kind: ClassVar[Kind] = "fixed-budget"
    norms: ClassVar[frozenset[str]] = BALL_NORMS

    def __post_init__(self) -> None:
        check_losses(self.loss, most=1)
        check_least(self, queries=1, steps=1, long_queries=1, retries=1, retry_queries=1)
        check_below(self, long_threshold=1.0, long_gain=1.0, retry_threshold=1.0)

    def run(self, model: Queries, batch: Batch, threat: ThreatModel, rng: SampleRNG) -> Tensor:
        runner, every = SubsetRunner(model, batch, threat, rng), torch.arange(len(batch))
        every = every.to(batch.labels.device)
        progress = _Progress(batch.images.clone(), runner.margins(batch.images, every))
        square_margins = self._attempt(runner, every, progress, self.queries, "once")
        rows = progress.nearly_broken(self.retry_threshold)
        if batch.start is not None and len(rows):
            apart = (runner.margins(batch.start[rows], rows) - progress.best[rows]).abs()
            rows = rows[apart > SAME_OPTIMUM * progress.clean[rows].abs()]
        if len(rows):
            self._attempt(runner, rows.repeat(self.retries), progress, self.retry_queries, "again")
        gradients_useless = square_margins - progress.clean >= self.long_threshold * (
            progress.best - progress.clean
        )
        rows = (gradients_useless & ~runner.broken(progress.best)).nonzero()[:, 0]
        if len(rows):
            before = progress.best[rows]
            found = self._square(runner, rows, progress, self.retry_queries, "trial")
            best = before
            if batch.start is not None:
                best = best.maximum(runner.margins(batch.start[rows], rows))
            gains = found - before
            promising = (gains >= -self.long_gain * found) | (gains == 0)
            rows = rows[(found >= best) & promising & ~runner.broken(found)]
        if len(rows):
            self._square(runner, rows, progress, self.long_queries, "long")
        return progress.images

    def _square(
        self, runner: SubsetRunner, rows: Tensor, progress: "_Progress", queries: int, name: str
    ) -> Tensor:
        """Run Square attack on the samples at (m,) positions; return the margins of its results, (m,)."""
        images = runner.run(SquareAttack(queries), rows, name)
        found = runner.margins(images, rows)
        progress.update(images, found, rows)
        return found

    def _attempt(
        self, runner: SubsetRunner, rows: Tensor, progress: "_Progress", queries: int, name: str
    ) -> Tensor:
        """Run Square attack and then APGD on the samples at (m,) positions; return Square attack's margins, (m,)."""
        images = runner.run(SquareAttack(queries), rows, f"{SQUARE_STREAM} {name}")
        square_margins = runner.margins(images, rows).maximum(progress.clean[rows])
        reached, unbroken = square_margins.clone(), (~runner.broken(square_margins)).nonzero()[:, 0]
        if len(unbroken):
            apgd = APGD(self.steps, loss=self.loss)
            images[unbroken] = runner.run(
                apgd, rows[unbroken], f"{APGD_STREAM} {name}", images[unbroken]
            )
            reached[unbroken] = runner.margins(images[unbroken], rows[unbroken]).maximum(
                square_margins[unbroken]
            )
        progress.update(images, reached, rows)
        return square_margins


@dataclass
class _Progress:
    """The best images of n samples (n, …), and the margins (n,) of clean and best images."""

    images: Tensor
    clean: Tensor
    best: Tensor = field(init=False)

    def __post_init__(self) -> None:
        self.best = torch.full_like(self.clean, -torch.inf)

    def nearly_broken(self, share: float) -> Tensor:
        """Return the positions of the unbroken samples whose margin is at most a share of the clean margin."""
        return ((self.best <= 0) & (self.best >= share * self.clean)).nonzero()[:, 0]

    def update(self, images: Tensor, reached: Tensor, rows: Tensor) -> None:
        """Keep the better results of a search: images (m, …), their margins and their samples' positions, both (m,)."""
        reached = reached.masked_fill(reached.isnan(), -torch.inf)
        best = self.best.scatter_reduce(0, rows, reached, "amax")
        ahead = (reached == best[rows]) & (reached > self.best[rows])
        self.images[rows[ahead]], self.best = images[ahead], best


def standard() -> Ensemble:
    """Return the ensemble of APGD, a minimum-norm search, APGD toward five classes, APGD from larger balls, and Square attack with APGD."""
    return Ensemble(
        (
            APGD(),
            MinimumNorm(30, "scaled-ce", rel_step=1.0, bisections=0, refinements=0),
            MALTAPGD(steps=25, loss="margin", target_classes=5),
            MALTAPGD(
                steps=90, loss="margin", target_classes=2, radius_schedule=(8.0, 5.0, 3.0, 2.0, 1.4)
            ),
            SquareThenAPGD(),
        )
    )
