"""Ensembles of attacks: each attack runs only on the samples that survived the earlier ones."""

from collections.abc import Sequence
from dataclasses import dataclass, field, replace
from typing import ClassVar

import torch
from torch import Tensor

from robustbench_inv.attacks.apgd import APGD
from robustbench_inv.attacks.budget_geometry import BALL_NORMS
from robustbench_inv.attacks.losses import check_losses
from robustbench_inv.attacks.minimum_norm import FMN
from robustbench_inv.attacks.parameters import check_below, check_least
from robustbench_inv.attacks.protocol import (
    Attack,
    Batch,
    FailureReason,
    Kind,
    Loss,
    Queries,
    short_run_of,
)
from robustbench_inv.attacks.square import SquareAttack
from robustbench_inv.errors import BadParameter
from robustbench_inv.randomness import SampleRNG
from robustbench_inv.tensors import Output, where_rows
from robustbench_inv.threat.threat_model import ThreatModel

__all__ = ["BROKEN_BY", "Ensemble", "SquareThenAPGD", "SubsetRunner", "common_norms", "standard"]


CONFIRMATIONS = 3
"""How often a model whose answers differ is asked before a success is believed; one that is conclusive once."""


@dataclass(frozen=True)
class SubsetRunner:
    """What an attack was given, to be handed on to others.

    Args:
        model: answers, and counts each question on its sample.
        batch: the n samples.
        threat: budget and goal of all.
        rng: the samples' random numbers, of which each attack gets a stream of its own.
    """

    model: Queries
    batch: Batch
    threat: ThreatModel
    rng: SampleRNG

    def run(self, attack: Attack, rows: Tensor, name: str, start: Tensor | None = None) -> Tensor:
        """Return what an attack proposes for some samples, (m, …), the clean input where it is not allowed.

        Args:
            attack: of kind ``budget``, or ``minimal``, whose successes may lie outside the budget.
            rows: (m,) positions of the samples; one that is named several times is searched for as often, with other draws.
            name: of its stream of random numbers.
            start: (m, …) images to start from, or None.
        """
        part = replace(self.batch[rows], start=start)
        rng = self.rng.rows(rows).named(f"{self.rng.stream}/{name}")
        rng = replace(rng, copies=_repeat_numbers(rows))
        found = attack.run(SubsetQueries(self.model, rows, len(self.batch)), part, self.threat, rng)
        found = found.detach().clamp(*self.model.bounds)
        return where_rows(self.threat.budget.contains(part.images, found), found, part.images)

    def margins(self, images: Tensor, rows: Tensor) -> Tensor:
        """Return how near the goal images (m, …) are, (m,): of several answers, if they differ, the least."""
        labels, goal = self.batch.labels[rows], self.threat.goal
        answers = [
            self.model(images, rows)
            for _ in range(1 if self.model.success_is_final else CONFIRMATIONS)
        ]
        found = torch.stack([goal.margin(answer, labels).double() for answer in answers])
        return found.amin(0)

    def broken(self, margins: Tensor) -> Tensor:
        """Return which samples need no other attack, (m,): on a substitute none, as another model judges."""
        return (margins > 0) & (not self.threat.is_transfer)


def _repeat_numbers(rows: Tensor) -> Tensor | None:
    """Return how often each position was named before, (m,); None if none is named twice."""
    order = rows.argsort(stable=True)
    ranked = rows[order]
    before = torch.arange(len(rows), device=rows.device) - torch.searchsorted(ranked, ranked)
    return torch.empty_like(rows).index_copy(0, order, before) if before.any() else None


def common_norms(attacks: Sequence[Attack]) -> frozenset[str]:
    """Return the norms that all of the attacks can be asked for."""
    return frozenset.intersection(*(attack.norms for attack in attacks))


@dataclass(frozen=True)
class SubsetQueries:
    """The model as an attack sees it that works on some of a batch's samples (implements ``Queries``).

    Args:
        queries: answers about the whole batch.
        positions: (m,) positions of the samples.
        count: n, samples of the whole batch.
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

    def report_failure(self, rows: Tensor, status: FailureReason) -> None:
        """One attack without a proposal is no news as long as the others have one."""

    def log(self, name: str, values: Tensor) -> None:
        numbers = torch.full((self.count,), torch.nan, device=values.device)
        numbers[self.positions] = values.to(numbers)
        self.queries.log(name, numbers)

    def _positions(self, images: Tensor, rows: Tensor | None) -> Tensor | None:
        if rows is None and len(images) != len(self.positions):
            return None  # images of which the attack does not say whose they are
        return self.positions if rows is None else self.positions[rows]


BROKEN_BY = "ensemble_member"
"""Name of the number that is kept of each sample: which member broke it, counted from 1, and 0 if none did."""


@dataclass(frozen=True)
class Ensemble:
    """Members attack one after the other, each the samples that still stand.

    What is returned of a sample is the success of the member that broke it, or else the image that came nearest of all.

    Args:
        members: at least one, best the cheapest first; of kind ``budget`` or ``minimal``.
    """

    members: tuple[Attack, ...]

    kind: ClassVar[Kind] = "fixed-budget"

    def __post_init__(self) -> None:
        kinds = [member.kind for member in self.members]
        if not kinds or not {"fixed-budget", "minimum-norm"}.issuperset(kinds):
            raise BadParameter(
                "unusable members of a cascade",
                got=kinds,
                expected="one or more attacks of kind budget or minimal",
            )

    @property
    def norms(self) -> frozenset[str]:
        return common_norms(self.members)

    @property
    def short_run(self) -> "Ensemble | None":
        """Its first member in brief."""
        short_run = short_run_of(self.members[0])
        return None if short_run is None else Ensemble((short_run,))

    def run(self, model: Queries, batch: Batch, threat: ThreatModel, rng: SampleRNG) -> Tensor:
        relay, images = SubsetRunner(model, batch, threat, rng), batch.images.clone()
        margins = torch.full_like(batch.labels, -torch.inf, dtype=torch.float64)
        by = torch.zeros_like(batch.labels)
        for number, member in enumerate(self.members, 1):
            rows = (~relay.broken(margins)).nonzero()[:, 0]
            if not len(rows):
                break
            start = None if number > 1 or batch.start is None else batch.start[rows]
            shown = relay.run(member, rows, str(number), start)
            reached = relay.margins(shown, rows)
            by[rows[(reached > 0) & (margins[rows] <= 0)]] = number
            nearer = reached > margins[rows]
            images[rows[nearer]], margins[rows[nearer]] = shown[nearer], reached[nearer]
        model.log(BROKEN_BY, by)
        return images


@dataclass(frozen=True)
class SquareThenAPGD:
    """A short SquareAttack attack and APGD from its result: an attempt; then more attempts, or a long SquareAttack attack.

    Queries without gradients are there for models whose gradients mislead. Where a search along the gradient, begun at
    what a few queries found, goes on much further, they do not, and thousands of queries more would find less than it.
    Where an end is almost there, other starts are of use, as gradients may lead to another end from each.

    Args:
        queries: of the short attack, >= 1.
        steps: of APGD, >= 1.
        loss: that it climbs.
        long_queries: queries of the long attack, >= 1.
        long_threshold: a sample gets the long attack if the short one came so far on the way that APGD came, from the clean
            input's margin, between 0 and 1.
        retry_threshold: a sample gets more attempts if the first left so little of the clean input's margin, between 0 and 1.
        retries: how many more, side by side, >= 1.
        retry_queries: queries of each of these, >= 1.
    """

    queries: int = 250
    steps: int = 50
    loss: str = "margin"
    long_queries: int = 5000
    long_threshold: float = 0.9
    retry_threshold: float = 0.05
    retries: int = 3
    retry_queries: int = 1000

    kind: ClassVar[Kind] = "fixed-budget"
    norms: ClassVar[frozenset[str]] = BALL_NORMS

    def __post_init__(self) -> None:
        check_losses(self.loss, most=1)
        check_least(self, queries=1, steps=1, long_queries=1, retries=1, retry_queries=1)
        check_below(self, long_threshold=1.0, retry_threshold=1.0)

    def run(self, model: Queries, batch: Batch, threat: ThreatModel, rng: SampleRNG) -> Tensor:
        relay, every = SubsetRunner(model, batch, threat, rng), torch.arange(len(batch))
        every = every.to(batch.labels.device)
        progress = _Progress(batch.images.clone(), relay.margins(batch.images, every))
        square_margins = self._attempt(relay, every, progress, self.queries, "once")
        rows = progress.nearly_broken(self.retry_threshold)
        if len(rows):
            self._attempt(relay, rows.repeat(self.retries), progress, self.retry_queries, "again")
        in_vain = square_margins - progress.clean >= self.long_threshold * (
            progress.best - progress.clean
        )
        rows = (in_vain & ~relay.broken(progress.best)).nonzero()[:, 0]
        if len(rows):
            shown = relay.run(SquareAttack(self.long_queries), rows, "long")
            progress.update(shown, relay.margins(shown, rows), rows)
        return progress.images

    def _attempt(
        self, relay: SubsetRunner, rows: Tensor, progress: "_Progress", queries: int, name: str
    ) -> Tensor:
        """Let SquareAttack and then APGD search for samples at (m,) positions; return how near SquareAttack came, (m,)."""
        images = relay.run(SquareAttack(queries), rows, f"scout {name}")
        square_margins = relay.margins(images, rows).maximum(progress.clean[rows])
        reached, left = square_margins.clone(), (~relay.broken(square_margins)).nonzero()[:, 0]
        if len(left):
            climb = APGD(self.steps, loss=self.loss)
            images[left] = relay.run(climb, rows[left], f"climb {name}", images[left])
            reached[left] = relay.margins(images[left], rows[left]).maximum(square_margins[left])
        progress.update(images, reached, rows)
        return square_margins


@dataclass
class _Progress:
    """What there is to show of n samples, and how near the clean images and that come, each (n,)."""

    images: Tensor
    clean: Tensor
    best: Tensor = field(init=False)

    def __post_init__(self) -> None:
        self.best = torch.full_like(self.clean, -torch.inf)

    def nearly_broken(self, share: float) -> Tensor:
        """Return the positions of the samples that stand, with no more than a share of the clean margin left."""
        return ((self.best <= 0) & (self.best >= share * self.clean)).nonzero()[:, 0]

    def update(self, images: Tensor, reached: Tensor, rows: Tensor) -> None:
        """Take the end of a search: (m, …) images, how near they come and whose they are, both (m,)."""
        best = self.best.scatter_reduce(0, rows, reached, "amax")
        ahead = (reached == best[rows]) & (reached > self.best[rows])
        self.images[rows[ahead]], self.best = images[ahead], best


def standard() -> Ensemble:
    """Return the ensemble: APGD, FMN, APGD toward five classes and from larger budgets, and Square with gradients where they help."""
    return Ensemble(
        (
            APGD(),
            FMN(),
            APGD(steps=25, loss="margin", target_classes=5),
            APGD(
                steps=90, loss="margin", target_classes=2, radius_schedule=(8.0, 5.0, 3.0, 2.0, 1.4)
            ),
            SquareThenAPGD(),
        )
    )
