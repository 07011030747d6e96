"""The worst case over invariance attacks: the closest input whose class has changed while the prediction stays."""

from collections.abc import Iterator
from dataclasses import dataclass, field
from typing import ClassVar

import torch
from torch import Tensor

from robustbench_inv.attacks.ensemble import BROKEN_BY
from robustbench_inv.attacks.invariance.ball import Alignment
from robustbench_inv.attacks.invariance.collision import Collision
from robustbench_inv.attacks.invariance.donors import choose_donors, required_pool
from robustbench_inv.attacks.invariance.level_set_traversal import LevelSetTraversal
from robustbench_inv.attacks.invariance.metamer import Metamer
from robustbench_inv.attacks.parameters import check_least
from robustbench_inv.attacks.protocol import Attack, Batch, Kind, Queries
from robustbench_inv.attacks.spheres import NormThresholdModel, SpheresInvariance
from robustbench_inv.data.protocol import Dataset
from robustbench_inv.errors import CapabilityMismatch
from robustbench_inv.models.protocol import InvertibleWithSplitCode
from robustbench_inv.randomness import SampleRNG
from robustbench_inv.tensors import NORMS, Output, norm, where_rows
from robustbench_inv.threat.budgets import LpBall, Unbounded, project_perturbations
from robustbench_inv.threat.goals import GoalInputs
from robustbench_inv.threat.threat_model import ThreatModel

__all__ = ["MEMBERS", "InvarianceStandard"]

TRAVERSAL = "level-set-traversal"

MEMBERS = (
    "altered-input",
    "spheres-invariance",
    "metamer",
    "aligned image",
    f"{TRAVERSAL} to an aligned image",
    TRAVERSAL,
    "collision",
)
"""Names of the attacks, in the order in which they run; the logged number of a member counts from 1."""

SMALLEST = "smallest_distance"
"""Beginning of the names of logged numbers: the smallest distance at which the goal was reached, by norm."""


@dataclass(frozen=True)
class InvarianceStandard:
    """Runs every invariance attack that model and data allow, and returns the closest input that reaches the goal.

    Each attack proposes an end point. The path from x to it, along projections onto growing balls, is searched for the
    smallest distance at which the goal is reached: the oracle's class has changed, and the prediction stays. Points of
    a grid are tried first; bisection then refines the first one that reaches the goal. Only distances below the
    smallest one so far are tried, so that another attack never makes the result worse.

    The oracle's decisions are used, its gradients never: a change that fools the oracle's networks is no change of the
    class. Where no attack reaches the goal, the end of the first level set traversal is returned.

    Logged for each sample: the attack that found the returned input (``MEMBERS``, from 1; 0 for none), and the smallest
    distance at which the goal was reached in each norm, infinite where it was not.

    Args:
        aligned: number of closest aligned images of other classes that serve as targets, >= 1.
        walks: number of level set traversals toward random samples of other classes, >= 1.
        grid: number of points tried on each path, >= 1.
        halvings: steps of the bisection, >= 0.

    References:
        Balasubramanian et al., NeurIPS 2023, algorithm 1; Tramèr et al., ICML 2020, section 4; Jacobsen et al., ICLR
        2019, section 2.2; Sabour et al., ICLR 2016. The search for the smallest distance is ours.
    """

    aligned: int = 3
    walks: int = 2
    grid: int = 8
    halvings: int = 5

    kind: ClassVar[Kind] = "invariance"
    norms: ClassVar[frozenset[str]] = frozenset(NORMS)

    def __post_init__(self) -> None:
        check_least(self, aligned=1, walks=1, grid=1, halvings=0)

    def check_requirements(self, model: object, threat: ThreatModel, data: Dataset) -> None:
        """Raise CapabilityMismatch for a transfer attack: the goal depends on the attacked model's predictions."""
        if threat.is_transfer:
            raise CapabilityMismatch("invariance-standard needs the attacked model's gradients")

    def run(self, model: Queries, batch: Batch, threat: ThreatModel, rng: SampleRNG) -> Tensor:
        if batch.oracle is None:
            raise CapabilityMismatch("invariance-standard needs an oracle for changed inputs")
        with torch.no_grad():
            closest = _Closest(self, model, batch, threat, model(batch.images))
        for member, ends in self._end_points(model, batch, threat, closest.clean, rng):
            with torch.no_grad():
                closest.search_paths(ends, MEMBERS.index(member) + 1)
                if member == TRAVERSAL:
                    closest.keep_ends(ends)
        closest.log()
        return closest.images

    def _end_points(
        self, model: Queries, batch: Batch, threat: ThreatModel, clean: Output, rng: SampleRNG
    ) -> Iterator[tuple[str, Tensor]]:
        """Yield the name of each attack in MEMBERS, and its end points (n, …)."""
        free = ThreatModel(Unbounded(threat.norm), threat.goal)
        if batch.counterparts is not None:
            yield "altered-input", batch.counterparts
        exact: list[tuple[str, type, Attack]] = [
            ("spheres-invariance", NormThresholdModel, SpheresInvariance()),
            ("metamer", InvertibleWithSplitCode, Metamer()),
        ]
        for name, capability, attack in exact:
            if isinstance(model.model, capability):
                yield name, attack.run(model, batch, free, rng)
        walk = LevelSetTraversal()
        targets = _closest_targets(batch, model.bounds[0], self.aligned)
        yield from (("aligned image", each) for each in targets)
        for target in targets:
            yield f"{TRAVERSAL} to an aligned image", walk.walk(model, batch, target, clean, threat)
        for number in range(self.walks):
            donors = _random_donors(batch, rng, number)
            yield TRAVERSAL, walk.walk(model, batch, donors, clean, threat)
        yield "collision", Collision().run(model, batch, free, rng)


def _closest_targets(batch: Batch, low: float, count: int) -> list[Tensor]:
    """Return the closest aligned images of other classes, at most ``count`` tensors (n, …)."""
    aligned, distances = Alignment().targets(batch, low)
    classes = max(1, int(distances.isfinite().sum(1).max()))
    order = distances.topk(min(count, classes), largest=False).indices
    rows = torch.arange(len(batch), device=order.device)
    return [aligned[rows, each] for each in order.unbind(1)]


def _random_donors(batch: Batch, rng: SampleRNG, number: int) -> Tensor:
    own = rng if number == 0 else rng.named(f"{rng.stream}/{number}")
    places, found = choose_donors(batch, "other-class", own)
    return where_rows(found, required_pool(batch).images[places], batch.images)


@dataclass
class _Closest:
    """The closest inputs found so far that reach the goal.

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
        self.images = self.batch.images.clone()
        self.by = torch.zeros_like(self.batch.labels)
        self.distance = self._infinite()
        self.smallest = {name: self._infinite() for name in NORMS}

    def search_paths(self, ends: Tensor, number: int) -> None:
        """Search the paths from the clean inputs to ends (n, …) of the attack with this number."""
        delta, length = self._paths(ends)
        length = torch.minimum(length, self.distance)
        rows = (length > 0).nonzero()[:, 0]
        low, high, rows = self._first_on_grid(delta, length, rows, number)
        for _ in range(self.attack.halvings if len(rows) else 0):
            middle = (low + high) / 2
            reached = self._try(delta, middle, rows, number)
            low, high = low.where(reached, middle), middle.where(reached, high)

    def keep_ends(self, ends: Tensor) -> None:
        """Keep ends (n, …), inside the budget, of the samples for which there is no other input yet."""
        delta, length = self._paths(ends)
        nothing = self.distance.isinf() & (self.images == self.batch.images).flatten(1).all(1)
        self.images = where_rows(nothing, self._point(delta, length), self.images)

    def log(self) -> None:
        """Log the attack that found each input, and the smallest distances."""
        self.model.log(BROKEN_BY, self.by)
        for name, values in self.smallest.items():
            self.model.log(f"{SMALLEST}_{name}", values)

    def _paths(self, ends: Tensor) -> tuple[Tensor, Tensor]:
        """Return the perturbations (n, …) of ends, and their lengths (n,), at most eps inside a ball."""
        delta = (ends.detach() - self.batch.images).nan_to_num(0, 0, 0)
        length = norm(delta, self.threat.norm)
        if isinstance(self.threat.budget, LpBall):
            length = length.clamp_max(self.threat.budget.eps)
        return delta, length

    def _first_on_grid(
        self, delta: Tensor, length: Tensor, rows: Tensor, number: int
    ) -> tuple[Tensor, Tensor, Tensor]:
        """Return distances (m,) of the first grid point that reaches the goal and of the one before, and positions."""
        done = torch.zeros_like(length, dtype=torch.bool)
        low, high = torch.zeros_like(length), torch.zeros_like(length)
        for step in range(1, self.attack.grid + 1):
            left = rows[~done[rows]]
            if not len(left):
                break
            radii = length[left] * (step / self.attack.grid)
            reached = self._try(delta, radii, left, number)
            high[left[reached]], done[left[reached]] = radii[reached], True
            low[left[~reached]] = radii[~reached]
        found = rows[done[rows]]
        return low[found], high[found], found

    def _try(self, delta: Tensor, radii: Tensor, rows: Tensor, number: int) -> Tensor:
        """Return whether points at distances (m,) reach the goal, (m,), and keep those that are the closest so far."""
        clean, ids = self.batch.images[rows], self.batch.ids[rows]
        points = self._point(delta[rows], radii, clean)
        after = self.model(points, rows)
        assert self.batch.oracle is not None
        evidence = GoalInputs(
            clean,
            points,
            self.batch.labels[rows],
            self.clean[rows],
            after,
            self.batch.oracle(points, ids),
        )
        allowed = self.threat.budget.contains(clean, points)
        reached = self.threat.goal.reached(evidence) & allowed
        self._keep(points[reached], rows[reached], number)
        return reached

    def _keep(self, points: Tensor, rows: Tensor, number: int) -> None:
        delta = points - self.batch.images[rows]
        for name, values in self.smallest.items():
            values[rows] = torch.minimum(values[rows], norm(delta, name).to(values))
        distance = norm(delta, self.threat.norm).to(self.distance)
        closer = distance < self.distance[rows]
        rows = rows[closer]
        self.images[rows], self.distance[rows] = points[closer], distance[closer]
        self.by[rows] = number

    def _point(self, delta: Tensor, radii: Tensor, clean: Tensor | None = None) -> Tensor:
        """Return the points (m, …) at distances (m,) on the paths, inside the bounds."""
        start = self.batch.images if clean is None else clean
        moved = start + project_perturbations(delta, radii, self.threat.norm)
        return moved.clamp(*self.model.bounds)

    def _infinite(self) -> Tensor:
        shape, place = self.batch.labels.shape, self.batch.images
        return torch.full(shape, torch.inf, dtype=place.dtype, device=place.device)
