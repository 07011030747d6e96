"""Norm-bounded invariance attack on any classifier: towards the nearest image of another class, decision kept."""

from dataclasses import dataclass
from typing import ClassVar

import torch
from torch import Tensor

from robustbench_inv.attacks.invariance.alignment import Alignment
from robustbench_inv.attacks.protocol import Batch, Kind, Queries
from robustbench_inv.attacks.ranges import check_least
from robustbench_inv.randomness import Noise
from robustbench_inv.tensors import norm, where_rows
from robustbench_inv.threat.budgets import LpBall, shorten
from robustbench_inv.threat.threat_model import ThreatModel

__all__ = ["InvarianceBall"]


@dataclass(frozen=True)
class InvarianceBall:
    """Moves x towards an aligned image of another class as far as the budget lets it and the decision stays.

    The targets are the nearest aligned images of the other classes, those first that the budget lets x come nearest
    to. The first that x can be moved towards all the way without another decision is taken. If there is none, x is
    moved towards the first target along the projections onto growing balls, as far as the decision stays by
    bisection. Without a budget x becomes the target itself. Whether the class has changed is for an oracle to say.

    Args:
        shift: most pixels by which a donor is shifted in each direction, >= 0.
        angle: most degrees by which it is turned, >= 0.
        angles: how many angles are tried, >= 1.
        neighbours: donors of each other class that are aligned, >= 1.
        targets: classes that are tried, >= 1.
        halvings: steps of the bisection, >= 0.

    References:
        Tramèr, Behrmann, Carlini, Papernot and Jacobsen, Fundamental tradeoffs between invariance and sensitivity
        to adversarial perturbations, ICML 2020, section 4. There no model is asked; keeping a decision is ours.
    """

    shift: int = 3
    angle: float = 30.0
    angles: int = 13
    neighbours: int = 10
    targets: int = 3
    halvings: int = 8

    kind: ClassVar[Kind] = "invariance"
    norms: ClassVar[frozenset[str]] = frozenset({"l0", "l2", "linf"})

    def __post_init__(self) -> None:
        check_least(self, targets=1, halvings=0)
        self._alignment  # noqa: B018 - refuses what it cannot use

    @torch.no_grad()
    def run(self, model: Queries, batch: Batch, threat: ThreatModel, noise: Noise) -> Tensor:
        paths, possible = self._ranked(batch, threat, model.bounds[0])
        model.mark((~possible).nonzero()[:, 0], "no_start")
        decisions = model(batch.images).decision
        shown, rows = batch.images.clone(), possible.nonzero()[:, 0]
        for path in paths:
            if not len(rows):
                break
            end = path[rows].at(1.0)
            kept = model(end, rows).decision == decisions[rows]
            shown[rows[kept]] = end[kept]
            rows = rows[~kept]
        shown[rows] = self._furthest(model, paths[0][rows], decisions[rows], rows)
        return shown.clamp(*model.bounds)

    @property
    def _alignment(self) -> Alignment:
        return Alignment(self.shift, self.angle, self.angles, self.neighbours)

    def _ranked(
        self, batch: Batch, threat: ThreatModel, low: float
    ) -> tuple[list["_Path"], Tensor]:
        """Return paths to the targets, the one that ends nearest to its target first, and (n,): is there one?"""
        aligned, far = self._alignment.targets(batch, low)
        n, classes = far.shape
        everyone = torch.arange(n, device=far.device)
        ends = [_Path(batch.images, aligned[:, k], threat).at(1.0) for k in range(classes)]
        left = [norm(end - aligned[:, k], "l2") for k, end in enumerate(ends)]
        # of the targets that the budget reaches, the nearest comes first
        order = torch.stack(left, 1) + 1e-3 * far
        found = order.topk(min(self.targets, classes), largest=False)
        count = max(1, int(found.values.isfinite().any(0).sum()))
        ranks = found.indices.where(found.values.isfinite(), found.indices[:, :1])[:, :count]
        paths = [_Path(batch.images, aligned[everyone, each], threat) for each in ranks.unbind(1)]
        return paths, far.isfinite().any(1)

    def _furthest(self, model: Queries, path: "_Path", decisions: Tensor, rows: Tensor) -> Tensor:
        """Return the last point on each path, up to the bisection's width, with the decision of its beginning."""
        shown, kept_share = path.clean, torch.zeros_like(norm(path.clean, "l2"))
        for halving in range(self.halvings if len(rows) else 0):
            share = kept_share + 0.5 ** (halving + 1)
            moved = path.at(share)
            kept = model(moved, rows).decision == decisions
            shown, kept_share = where_rows(kept, moved, shown), share.where(kept, kept_share)
        return shown


@dataclass(frozen=True)
class _Path:
    """From inputs towards targets, along their projections onto growing balls.

    Args:
        clean: (n, …) where it begins.
        targets: (n, …) where it would end without a budget.
        threat: its budget is where it ends.
    """

    clean: Tensor
    targets: Tensor
    threat: ThreatModel

    def __getitem__(self, rows: Tensor) -> "_Path":
        return _Path(self.clean[rows], self.targets[rows], self.threat)

    def at(self, share: Tensor | float) -> Tensor:
        """Return the inputs (n, …) at a share of the whole way, one or (n,) numbers from 0 to 1."""
        delta, budget = self.targets - self.clean, self.threat.budget
        whole = norm(delta, self.threat.norm)
        if isinstance(budget, LpBall):
            whole = torch.full_like(whole, budget.eps)
        return self.clean + shorten(delta, share * whole, self.threat.norm)
