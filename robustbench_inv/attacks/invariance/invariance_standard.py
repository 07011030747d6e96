"""The worst case over invariance attacks: the closest input whose class has changed while the prediction stays."""

from collections.abc import Iterator
from dataclasses import dataclass, field
from typing import ClassVar, Protocol, runtime_checkable

import torch
from torch import Tensor

from robustbench_inv.attacks.best_so_far import CONFIRMATIONS
from robustbench_inv.attacks.ensemble import BROKEN_BY, SubsetQueries
from robustbench_inv.attacks.fixed_inputs import Counterpart
from robustbench_inv.attacks.invariance.ball import InvarianceBall
from robustbench_inv.attacks.invariance.collision import Collision
from robustbench_inv.attacks.invariance.layer_metamer import LayerMetamer
from robustbench_inv.attacks.invariance.level_set_traversal import LevelSetTraversal
from robustbench_inv.attacks.invariance.metamer import Metamer
from robustbench_inv.attacks.invariance.relu_preimage import ReluPreimage
from robustbench_inv.attacks.parameters import check_least
from robustbench_inv.attacks.protocol import (
    Attack,
    Batch,
    Kind,
    Queries,
    ReportsStage,
    RestrictsUse,
)
from robustbench_inv.attacks.spheres import SpheresInvariance
from robustbench_inv.data.protocol import Dataset
from robustbench_inv.errors import CapabilityMismatch, describe_error
from robustbench_inv.isolation import attempts_for, isolate
from robustbench_inv.randomness import SampleRNG
from robustbench_inv.tensors import NORMS, Output, is_out_of_memory, norm, where_rows
from robustbench_inv.threat.budgets import LpBall, Unbounded, project_perturbations
from robustbench_inv.threat.goals import GoalInputs
from robustbench_inv.threat.threat_model import ThreatModel

__all__ = ["MEMBERS", "SMALLEST", "InvarianceStandard"]

MEMBERS: tuple[Attack, ...] = (
    Counterpart(),
    SpheresInvariance(),
    Metamer(),
    ReluPreimage(),
    InvarianceBall(),
    LevelSetTraversal("aligned", donors=3, steps=40, rate=0.1),
    LevelSetTraversal(),
    Collision(),
    LayerMetamer(),
)
"""The attacks, in the order in which they run; the logged number of a member counts from 1."""

SEARCHED = ("l2", "linf", "l0")
"""Without a budget the paths are searched in these norms as well."""

SMALLEST = "smallest_distance"
"""Beginning of the names of logged numbers: the smallest distance at which the goal was reached, by norm."""


@runtime_checkable
class ProposesSeveral(Protocol):
    """An attack that finds several candidates for each sample, one of which ``run`` returns."""

    def proposals(
        self, model: Queries, batch: Batch, threat: ThreatModel, rng: SampleRNG
    ) -> Iterator[Tensor]:
        """Yield candidates (n, …), the clean input where there is none."""
        ...


@dataclass(frozen=True)
class InvarianceStandard:
    """Runs every invariance attack that model and data allow, and returns the closest input that reaches the goal.

    Each attack proposes inputs, as it does alone with the same seed. A proposal is tried itself; then the path from x to
    it, along projections onto growing balls, is searched for the smallest distance at which the goal is reached: the
    oracle's class has changed, and the prediction stays. Points of a grid are tried first; bisection refines the first
    one that reaches the goal. So the result is never farther from x than that of any member. Without a budget the
    paths are searched in l2, linf and l0.

    A member whose ``check_requirements`` refuses the model or the samples is left out. One that raises for a sample
    later does not keep the others from it; the exception is reported.

    The oracle's decisions are used, its gradients never: a change that fools the oracle's networks is no change of the
    class. Where no attack reaches the goal, the end of a level set traversal is returned.

    Logged for each sample: the attack that found the returned input (from 1; 0 for none), and the smallest distance in
    each searched norm at which the goal was reached, infinite where it was not.

    Args:
        grid: number of points tried on each path, >= 1.
        halvings: steps of the bisection, >= 0.
        members: the attacks; those that do not fit the model or the data are left out.

    References:
        Balasubramanian et al., NeurIPS 2023, algorithm 1; Tramèr et al., ICML 2020, section 4; Jacobsen et al., ICLR
        2019, section 2.2; Sabour et al., ICLR 2016; Behrmann, thesis, sections 3.3 and 6.2.1. The search for the
        smallest distance is ours.
    """

    grid: int = 8
    halvings: int = 5
    members: tuple[Attack, ...] = MEMBERS

    kind: ClassVar[Kind] = "invariance"
    runs_once: ClassVar[bool] = True
    norms: ClassVar[frozenset[str]] = frozenset(NORMS)

    def __post_init__(self) -> None:
        check_least(self, grid=1, halvings=0)

    def check_requirements(self, model: object, threat: ThreatModel, data: Dataset) -> None:
        """Raise CapabilityMismatch for a transfer attack: the goal depends on the attacked model's predictions."""
        if threat.is_transfer:
            raise CapabilityMismatch("invariance-standard needs the attacked model's gradients")

    def run(self, model: Queries, batch: Batch, threat: ThreatModel, rng: SampleRNG) -> Tensor:
        if batch.oracle is None:
            raise CapabilityMismatch("invariance-standard needs an oracle for changed inputs")
        with torch.no_grad():
            closest = _Closest(self, model, batch, threat, model(batch.images))
        for number, member in enumerate(self.members, 1):
            if isinstance(model, ReportsStage):
                model.enter(f"attack {number} of {len(self.members)}")
            for proposal in _MemberRun(member, model, batch, threat, rng).proposals():
                with torch.no_grad():
                    closest.search(proposal.detach(), number)
                    if isinstance(member, LevelSetTraversal):
                        closest.keep_ends(proposal.detach())
        closest.log()
        return closest.images


@dataclass(frozen=True)
class _MemberQueries(SubsetQueries):
    """The queries of a member, which logs nothing: its numbers are about inputs that may not be returned."""

    def log(self, name: str, values: Tensor) -> None:
        """Drop the numbers."""


@dataclass(frozen=True)
class _MemberRun:
    """An attack of the ensemble on n samples."""

    member: Attack
    model: Queries
    batch: Batch
    threat: ThreatModel
    rng: SampleRNG

    def proposals(self) -> Iterator[Tensor]:
        """Yield proposals (n, …), none if the attack does not fit the model or the data.

        An attack that raises is run on halves of the batch, and what it raises for single samples is reported.
        """
        every = torch.arange(len(self.batch), device=self.batch.labels.device)
        try:
            if self._fits():
                yield from self._propose(every)
        except Exception as error:
            if is_out_of_memory(error):
                raise
            yield from self._on_halves(every, error)

    def _fits(self) -> bool:
        """Return whether the attack's own requirements are met."""
        if not isinstance(self.member, RestrictsUse):
            return True
        kind = _Samples if self.batch.counterparts is None else _PairedSamples
        samples = kind(self.batch, self.model.bounds, self.model.num_classes)
        try:
            self.member.check_requirements(self.model.model, self._member_threat, samples)
        except CapabilityMismatch:
            return False
        return True

    @property
    def _member_threat(self) -> ThreatModel:
        """The threat, without its budget if the attack does not support its norm."""
        if self.threat.norm in self.member.norms:
            return self.threat
        return ThreatModel(Unbounded(), self.threat.goal)

    def _propose(self, rows: Tensor) -> Iterator[Tensor]:
        """Yield proposals (m, …) for the samples at positions (m,)."""
        member, threat = self.member, self._member_threat
        queries = _MemberQueries(self.model, rows, len(self.batch))
        batch, rng = self.batch[rows], self.rng.rows(rows)
        if isinstance(member, ReluPreimage) and not member.is_narrow(queries.model, batch.images):
            return
        if isinstance(member, ProposesSeveral):
            yield from member.proposals(queries, batch, threat, rng)
        else:
            yield member.run(queries, batch, threat, rng)

    def _on_halves(self, every: Tensor, error: Exception) -> Iterator[Tensor]:
        images, attempts = self.batch.images, attempts_for(len(every))
        for rows, found in isolate(lambda part: list(self._propose(part)), every, error, attempts):
            if isinstance(found, Exception):
                reason = f"{type(self.member).__name__}: {describe_error(found)}"
                self.model.report_failure(rows, "crash", reason)
                continue
            for part in found:
                yield images.index_put((rows,), part.to(images))


@dataclass(frozen=True)
class _Samples:
    """The samples of a batch as a data set, for the requirements of an attack."""

    source: Batch
    bounds: tuple[float, float]
    num_classes: int
    name: str = "the batch"
    digest: str = ""

    @property
    def shape(self) -> tuple[int, ...]:
        return tuple(self.source.images.shape[1:])

    @property
    def labels(self) -> Tensor:
        return self.source.labels

    def __len__(self) -> int:
        return len(self.source)

    def batch(self, ids: Tensor | list[int]) -> tuple[Tensor, Tensor]:
        return self.source.images[ids], self.source.labels[ids]


class _PairedSamples(_Samples):
    """The samples of a batch with altered versions."""

    def counterparts(self, ids: Tensor | list[int]) -> Tensor:
        assert self.source.counterparts is not None
        return self.source.counterparts[ids]


@dataclass
class _Closest:
    """The closest inputs found so far that reach the goal, in each searched norm.

    A *slot* is a sample in one of these norms: its number is that of the norm times n, plus the sample's position.

    Args:
        attack: grid and halvings of the search.
        model: the queried model.
        batch: n samples with their oracle.
        threat: budget and goal.
        clean: the model's output for the clean inputs.
    """

    attack: InvarianceStandard
    model: Queries
    batch: Batch
    threat: ThreatModel
    clean: Output
    images: Tensor = field(init=False)

    def __post_init__(self) -> None:
        others = SEARCHED if isinstance(self.threat.budget, Unbounded) else ()
        self.norms = tuple(dict.fromkeys((self.threat.norm, *others)))
        self.images, self.by = self.batch.images.clone(), torch.zeros_like(self.batch.labels)
        shape, place = (len(self.norms), len(self.batch)), self.batch.images
        self.distances = torch.full(shape, torch.inf, dtype=place.dtype, device=place.device)

    def search(self, proposals: Tensor, number: int) -> None:
        """Try proposals (n, …) of the attack with this number, then the paths to them.

        A path is not searched if the class at its end, inside a ball that of the ball, has not changed.
        """
        usable = proposals.to(self.batch.images).clamp(*self.model.bounds)
        usable = usable.where(usable.isfinite(), self.batch.images)
        delta = usable - self.batch.images
        moved = delta.flatten(1).any(1).nonzero()[:, 0]
        if not len(moved):
            return
        self._try(usable[moved], moved, number)
        lengths = torch.stack([self._length(delta, name) for name in self.norms])
        ends = self._points(delta, lengths[0], torch.arange(len(delta), device=delta.device))
        unchanged = torch.ones_like(lengths[0], dtype=torch.bool)
        unchanged[moved] = self._classes(ends[moved], moved) == self.batch.labels[moved]
        lengths = torch.minimum(lengths, self.distances).masked_fill(unchanged, 0).flatten()
        slots = (lengths > 0).nonzero()[:, 0]
        low, high, slots = self._first_on_grid(delta, lengths, slots, number)
        for _ in range(self.attack.halvings if len(slots) else 0):
            middle = (low + high) / 2
            reached = self._try(self._points(delta, middle, slots), self._rows(slots), number)
            low, high = low.where(reached, middle), middle.where(reached, high)

    def keep_ends(self, ends: Tensor) -> None:
        """Keep ends (n, …), inside the budget, of the samples for which there is no other input yet."""
        delta = (ends.to(self.batch.images) - self.batch.images).nan_to_num(0, 0, 0)
        every = torch.arange(len(self.batch), device=ends.device)
        points = self._points(delta, self._length(delta, self.threat.norm), every)
        nothing = self.distances[0].isinf() & (self.images == self.batch.images).flatten(1).all(1)
        self.images = where_rows(nothing, points, self.images)

    def log(self) -> None:
        """Log the attack that found each input, and the smallest distances."""
        self.model.log(BROKEN_BY, self.by)
        for name, values in zip(self.norms, self.distances, strict=True):
            self.model.log(f"{SMALLEST}_{name}", values)

    def _length(self, delta: Tensor, name: str) -> Tensor:
        """Return the lengths (n,) of perturbations in a norm, at most eps inside a ball."""
        length = norm(delta, name).to(self.distances)
        ball = self.threat.budget
        return length.clamp_max(ball.eps) if isinstance(ball, LpBall) else length

    def _first_on_grid(
        self, delta: Tensor, lengths: Tensor, slots: Tensor, number: int
    ) -> tuple[Tensor, Tensor, Tensor]:
        """Return distances (m,) of the first grid point that reaches the goal and of the one before, and the slots."""
        done = torch.zeros_like(lengths, dtype=torch.bool)
        low, high = torch.zeros_like(lengths), torch.zeros_like(lengths)
        for step in range(1, self.attack.grid + 1):
            left = slots[~done[slots]]
            if not len(left):
                break
            radii = lengths[left] * (step / self.attack.grid)
            reached = self._try(self._points(delta, radii, left), self._rows(left), number)
            high[left[reached]], done[left[reached]] = radii[reached], True
            low[left[~reached]] = radii[~reached]
        found = slots[done[slots]]
        return low[found], high[found], found

    def _rows(self, slots: Tensor) -> Tensor:
        return slots % len(self.batch)

    def _points(self, delta: Tensor, radii: Tensor, slots: Tensor) -> Tensor:
        """Return the points (m, …) at distances (m,) on the paths of slots (m,), inside the bounds."""
        rows = self._rows(slots)
        points = self.batch.images[rows]
        for place, name in enumerate(self.norms):
            mine = (slots // len(self.batch) == place).nonzero()[:, 0]
            points[mine] += project_perturbations(delta[rows[mine]], radii[mine], name)
        return points.clamp(*self.model.bounds)

    def _try(self, points: Tensor, rows: Tensor, number: int) -> Tensor:
        """Return whether points (m, …) of samples (m,) reach the goal, (m,), and keep those that are the closest so far.

        A model whose outputs differ between queries must confirm a point. The oracle, which may cost more than the
        model, classifies only points that would reach the goal if their class had changed.
        """
        labels = self.batch.labels[rows]
        reached = self.threat.budget.contains(self.batch.images[rows], points)
        outputs = [
            self.model(points, rows)
            for _ in range(1 if self.model.success_is_final else CONFIRMATIONS)
        ]
        for after in outputs:
            reached = reached & self._reaches(points, rows, after, labels + 1)
        left = reached.nonzero()[:, 0]
        if len(left):
            oracle = self._classes(points[left], rows[left])
            reached[left] = self._reaches(points[left], rows[left], outputs[-1][left], oracle)
        self._keep(points[reached], rows[reached], number)
        return reached

    def _reaches(self, points: Tensor, rows: Tensor, after: Output, oracle: Tensor) -> Tensor:
        """Return whether points (m, …) of samples (m,) reach the goal if the oracle names these classes, (m,)."""
        clean, labels, before = self.batch.images[rows], self.batch.labels[rows], self.clean[rows]
        return self.threat.goal.reached(GoalInputs(clean, points, labels, before, after, oracle))

    def _classes(self, points: Tensor, rows: Tensor) -> Tensor:
        assert self.batch.oracle is not None
        return self.batch.oracle(points, self.batch.ids[rows])

    def _keep(self, points: Tensor, rows: Tensor, number: int) -> None:
        delta = points - self.batch.images[rows]
        for place, name in enumerate(self.norms):
            distance = norm(delta, name).to(self.distances)
            before = self.distances[place].clone()
            self.distances[place].scatter_reduce_(0, rows, distance, "amin")
            closest = (distance == self.distances[place][rows]) & (distance < before[rows])
            if place == 0:
                mine = rows[closest]
                self.images[mine], self.by[mine] = points[closest], number
