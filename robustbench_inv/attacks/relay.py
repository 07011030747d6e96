"""Attacks run by another attack, each on some of its samples."""

from collections.abc import Sequence
from dataclasses import dataclass, replace

import torch
from torch import Tensor

from robustbench_inv.attacks.protocol import Attack, Batch, Loss, Queries, Reason
from robustbench_inv.randomness import Noise
from robustbench_inv.tensors import Output, where_rows
from robustbench_inv.threat.threat_model import ThreatModel

__all__ = ["Relay", "common_norms"]

ASKED = 3
"""How often a model whose answers differ is asked before a success is believed; one that is conclusive once."""


@dataclass(frozen=True)
class Relay:
    """What an attack was given, to be handed on to others.

    Args:
        model: answers, and counts each question on its sample.
        batch: the n samples.
        threat: budget and goal of all.
        noise: the samples' random numbers, of which each attack gets a stream of its own.
    """

    model: Queries
    batch: Batch
    threat: ThreatModel
    noise: Noise

    def run(self, attack: Attack, rows: Tensor, name: str, start: Tensor | None = None) -> Tensor:
        """Return what an attack proposes for some samples, (m, …), the clean input where it is not allowed.

        Args:
            attack: of kind ``budget``, or ``minimal``, whose successes may lie outside the budget.
            rows: (m,) positions of the samples; one that is named several times is searched for as often, with other draws.
            name: of its stream of random numbers.
            start: (m, …) images to start from, or None.
        """
        part = replace(self.batch[rows], start=start)
        noise = self.noise.rows(rows).named(f"{self.noise.stream}/{name}")
        noise = replace(noise, copies=_copies(rows))
        found = attack.run(_Part(self.model, rows, len(self.batch)), part, self.threat, noise)
        found = found.detach().clamp(*self.model.bounds)
        return where_rows(self.threat.budget.contains(part.images, found), found, part.images)

    def margins(self, images: Tensor, rows: Tensor) -> Tensor:
        """Return how near the goal images (m, …) are, (m,): of several answers, if they differ, the least."""
        labels, goal = self.batch.labels[rows], self.threat.goal
        answers = [self.model(images, rows) for _ in range(1 if self.model.conclusive else ASKED)]
        found = torch.stack([goal.margin(answer, labels).double() for answer in answers])
        return found.amin(0)

    def fallen(self, margins: Tensor) -> Tensor:
        """Return which samples need no other attack, (m,): on a substitute none, as another model judges."""
        return (margins > 0) & (not self.threat.transfers)


def _copies(rows: Tensor) -> Tensor | None:
    """Return how often each position was named before, (m,); None if none is named twice."""
    order = rows.argsort(stable=True)
    ranked = rows[order]
    before = torch.arange(len(rows), device=rows.device) - torch.searchsorted(ranked, ranked)
    return torch.empty_like(rows).index_copy(0, order, before) if before.any() else None


def common_norms(attacks: Sequence[Attack]) -> frozenset[str]:
    """Return the norms that all of the attacks can be asked for."""
    return frozenset.intersection(*(attack.norms for attack in attacks))


@dataclass(frozen=True)
class _Part:
    """The model as an attack sees it that works on some of a batch's samples (implements ``Queries``).

    Args:
        whole: answers about the whole batch.
        places: (m,) positions of the samples.
        count: n, samples of the whole batch.
    """

    whole: Queries
    places: Tensor
    count: int

    @property
    def num_classes(self) -> int:
        return self.whole.num_classes

    @property
    def bounds(self) -> tuple[float, float]:
        return self.whole.bounds

    @property
    def dtype(self) -> torch.dtype:
        return self.whole.dtype

    @property
    def conclusive(self) -> bool:
        return self.whole.conclusive

    @property
    def model(self) -> object:
        return self.whole.model

    def __call__(self, images: Tensor, rows: Tensor | None = None) -> Output:
        return self.whole(images, self._positions(images, rows))

    def gradient(
        self, images: Tensor, loss: Loss, rows: Tensor | None = None
    ) -> tuple[Output, Tensor]:
        return self.whole.gradient(images, loss, self._positions(images, rows))

    def differentiable(self, images: Tensor, rows: Tensor | None = None) -> Output:
        return self.whole.differentiable(images, self._positions(images, rows))

    def mark(self, rows: Tensor, status: Reason) -> None:
        """One attack without a proposal is no news as long as the others have one."""

    def measure(self, name: str, values: Tensor) -> None:
        numbers = torch.full((self.count,), torch.nan, device=values.device)
        numbers[self.places] = values.to(numbers)
        self.whole.measure(name, numbers)

    def _positions(self, images: Tensor, rows: Tensor | None) -> Tensor | None:
        if rows is None and len(images) != len(self.places):
            return None  # images of which the attack does not say whose they are
        return self.places if rows is None else self.places[rows]
