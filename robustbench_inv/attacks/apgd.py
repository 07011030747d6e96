"""Auto-PGD: momentum, step sizes that halve when the loss stops increasing, restarts from the best iterate."""

from collections.abc import Iterator
from dataclasses import dataclass, replace
from itertools import pairwise
from typing import ClassVar

import torch
from torch import Tensor

from robustbench_inv.attacks.best_so_far import BestSoFar
from robustbench_inv.attacks.budget_geometry import BALL_NORMS, Ball, steepest_direction
from robustbench_inv.attacks.linearization import linearize
from robustbench_inv.attacks.losses import check_losses, losses_for, targeted_loss
from robustbench_inv.attacks.parameters import check_least
from robustbench_inv.attacks.protocol import Batch, Kind, Loss, Queries
from robustbench_inv.errors import BadParameter
from robustbench_inv.randomness import SampleRNG
from robustbench_inv.tensors import Output, broadcast, flatten, norm, top_other_classes, where_rows
from robustbench_inv.threat.goals import Goal, Misclassify, MisclassifyAccepted
from robustbench_inv.threat.threat_model import ThreatModel

__all__ = ["APGD", "MALTAPGD", "APGDState", "checkpoint_steps"]


MOMENTUM = 0.75
"""α: weight of the new step; the previous step has weight 1 − α."""

MIN_INCREASE_SHARE = 0.75
"""ρ: the step size is halved if a smaller share of the steps since the last checkpoint increased the loss."""

SPARSITY_DIVISOR, STEP_DIVISOR, MAX_STEP_DIVISOR = 1.5, 1.5, 10.0
"""In l1: a step changes 1/1.5 of the number of elements in which the best iterate differs. Its length is divided by 1.5,
but not below a tenth of eps."""

INITIAL_SPARSITY, SPARSITY_STABLE_SHARE = 0.2, 0.95
"""In l1: share of the elements that the first steps change, and the ratio of changed elements between checkpoints above
which steps become shorter instead of sparser."""

MALT_CLASSES = 100
"""Number of classes, those of the largest logits, among which MALT ranks; models of fewer classes are ranked by logits."""


@dataclass(frozen=True)
class APGDState:
    """The state of m samples in a run.

    Args:
        ball: the allowed inputs.
        images: (m, …) the iterates.
        gradients: (m, …) gradients at the iterates.
        losses: (m,) margins at the iterates, −inf before the first query.
        previous: (m, …) the previous iterates.
        best: (m, …) the best iterates.
        best_gradients: (m, …) gradients at the best iterates.
        best_losses: (m,) margins at the best iterates.
        step_sizes: (m,) of the next step.
        n_increases: (m,) number of steps since the last checkpoint that increased the margin.
        last_best_losses: (m,) margins at the best iterates at the last checkpoint.
        halved: (m,) whether the step size was halved at the last checkpoint.
        sparsity: (m,) in l1: number of elements that a step changes.
        last_sparsity: (m,) in l1: number of elements in which the best iterate differed at the last checkpoint.
    """

    ball: Ball
    images: Tensor
    gradients: Tensor
    losses: Tensor
    previous: Tensor
    best: Tensor
    best_gradients: Tensor
    best_losses: Tensor
    step_sizes: Tensor
    n_increases: Tensor
    last_best_losses: Tensor
    halved: Tensor
    sparsity: Tensor
    last_sparsity: Tensor

    @classmethod
    def start(cls, ball: Ball, images: Tensor) -> "APGDState":
        """Return the state at the start (m, …) of a run; the first step size is 2 eps, in l1 eps."""
        none = torch.zeros_like(flatten(images)[:, 0])
        lowest, elements = torch.full_like(none, -torch.inf), flatten(images).shape[1]
        sparse = ball.norm == "l1"
        return cls(
            ball=ball,
            images=images,
            gradients=torch.zeros_like(images),
            losses=lowest,
            previous=images,
            best=images,
            best_gradients=torch.zeros_like(images),
            best_losses=lowest,
            step_sizes=torch.full_like(none, ball.eps if sparse else 2 * ball.eps),
            n_increases=none,
            last_best_losses=lowest,
            halved=torch.ones_like(none, dtype=torch.bool),
            sparsity=torch.full_like(none, INITIAL_SPARSITY * elements),
            last_sparsity=torch.full_like(none, elements),
        )

    def __getitem__(self, rows: Tensor) -> "APGDState":
        """Return the state of a subset of the samples, given positions or a mask (m,)."""
        return APGDState(**{name: value[rows] for name, value in vars(self).items()})

    def update(self, gradients: Tensor, losses: Tensor) -> "APGDState":
        """Return the state after a query of the iterates.

        Args:
            gradients: (m, …) gradients at the iterates.
            losses: (m,) margins at the iterates.
        """
        higher = losses > self.best_losses
        return replace(
            self,
            gradients=gradients,
            losses=losses,
            best=where_rows(higher, self.images, self.best),
            best_gradients=where_rows(higher, gradients, self.best_gradients),
            best_losses=torch.where(higher, losses, self.best_losses),
            n_increases=self.n_increases + ((losses > self.losses) & self.losses.isfinite()),
        )

    def step(self, *, first: bool) -> "APGDState":
        """Return the state after a step.

        Args:
            first: whether it is the first step, which has no momentum.
        """
        ahead = self._sparse_step() if self.ball.norm == "l1" else self._step(first)
        return replace(self, images=ahead, previous=self.images)

    def adapt_step_size(self, since: int) -> "APGDState":
        """Return the state after a checkpoint: without progress, steps become shorter and restart at the best iterate.

        Args:
            since: number of steps since the last checkpoint.
        """
        return self._adapt_sparsity() if self.ball.norm == "l1" else self._halve_step_sizes(since)

    def _step(self, first: bool) -> Tensor:
        """Croce and Hein, 2020, equation 3."""
        length = broadcast(self.step_sizes, self.images)
        ahead = self.ball.project(
            self.images + length * steepest_direction(self.gradients, self.ball.norm)
        )
        if first:
            return ahead
        pushed = self.images - self.previous
        return self.ball.project(
            self.images + MOMENTUM * (ahead - self.images) + (1 - MOMENTUM) * pushed
        )

    def _halve_step_sizes(self, since: int) -> "APGDState":
        """Croce and Hein, 2020, conditions 1 and 2."""
        halved = (self.n_increases < MIN_INCREASE_SHARE * since) | (
            ~self.halved & (self.last_best_losses == self.best_losses)
        )
        return replace(
            self._reset_to_best(halved),
            step_sizes=torch.where(halved, self.step_sizes / 2, self.step_sizes),
            n_increases=torch.zeros_like(self.n_increases),
            last_best_losses=self.best_losses,
            halved=halved,
        )

    def _sparse_step(self) -> Tensor:
        """Croce and Hein, 2021, algorithm 1: change the elements of the largest gradients by the same amount."""
        flat = torch.nan_to_num(flatten(self.gradients), nan=0.0, posinf=0.0, neginf=0.0)
        kept = self.sparsity.long().clamp(1, flat.shape[1])
        least = flat.abs().sort(dim=1, descending=True).values.gather(1, kept[:, None] - 1)
        signs = flat.sign() * (flat.abs() >= least)
        step = signs / signs.abs().sum(1, keepdim=True).clamp_min(1) * self.step_sizes[:, None]
        return self.ball.project(self.images + step.reshape(self.images.shape))

    def _adapt_sparsity(self) -> "APGDState":
        width = norm(self.best - self.ball.clean, "l0")
        sparser = width < SPARSITY_STABLE_SHARE * self.last_sparsity
        shorter = (self.step_sizes / STEP_DIVISOR).clamp_min(self.ball.eps / MAX_STEP_DIVISOR)
        return replace(
            self._reset_to_best(sparser),
            step_sizes=shorter.where(~sparser, self.ball.eps),
            sparsity=width / SPARSITY_DIVISOR,
            last_sparsity=width,
        )

    def _reset_to_best(self, rows: Tensor) -> "APGDState":
        """Return the state with some samples (m,) moved back to their best iterates."""
        return replace(
            self,
            images=where_rows(rows, self.best, self.images),
            gradients=where_rows(rows, self.best_gradients, self.gradients),
            losses=torch.where(rows, self.best_losses, self.losses),
        )


def checkpoint_steps(steps: int, name: str) -> list[int]:
    """Return the checkpoints of a run, ascending.

    w_j = ⌈p_j · steps⌉ with p_1 = 0.22 and p_{j+1} − p_j = max(p_j − p_{j−1} − 0.03, 0.06); in l1 every 4 % of the steps.

    Args:
        steps: number of steps of the run.
        name: of the norm.

    Example:
        >>> checkpoint_steps(100, "linf")[:4]
        [22, 41, 57, 70]
    """
    places, last, gap = [], 0.0, 0.04 if name == "l1" else 0.22
    while last + gap < 1:
        last += gap
        places.append(-int(-round(last * steps, 6) // 1))
        gap = gap if name == "l1" else max(gap - 0.03, 0.06)
    return sorted(set(places))


@dataclass(frozen=True)
class APGD:
    """Auto-PGD in linf, l2 or l1: momentum, and step sizes that adapt at checkpoints; a broken sample stops at once.

    Unlike in the papers, the goal's margin decides whether a step was an improvement, whatever the loss. Values of the
    loss are not comparable between iterates if it is scaled at each of them, or if it switches to the clearance.

    Args:
        steps: gradient steps of each run, >= 1. Each run needs one more forward pass.
        restarts: number of runs, >= 1. Each runs only on the samples that survived the earlier ones.
        loss: one of ``losses.LOSSES``, or several joined by ``+``, which the restarts use in turn.
        target_classes: number of targeted runs, toward the other classes of the largest logits; 0 for an untargeted run.
            Has no effect if the goal is a target class.
        radius_schedule: larger radii, as descending multiples of eps, in which each run starts. An input that is broken far
            away keeps a useful gradient when the radius shrinks. The steps are divided evenly among the radii; once
            a sample is broken, it moves to the next radius.

    References:
        Croce and Hein, Reliable evaluation of adversarial robustness with an ensemble of diverse parameter-free
        attacks, ICML 2020, algorithm 1; Croce and Hein, Mind the box: l1-APGD for sparse adversarial attacks on
        image classifiers, ICML 2021, algorithm 1.
    """

    steps: int = 100
    restarts: int = 1
    loss: str = "scaled-ce"
    target_classes: int = 0
    radius_schedule: tuple[float, ...] = ()

    kind: ClassVar[Kind] = "fixed-budget"
    norms: ClassVar[frozenset[str]] = BALL_NORMS

    def __post_init__(self) -> None:
        check_losses(self.loss)
        check_least(self, steps=1 + len(self.radius_schedule), restarts=1, target_classes=0)
        if any(wide <= near for wide, near in pairwise((*self.radius_schedule, 1.0))):
            raise BadParameter(
                "unusable radius_schedule",
                got=self.radius_schedule,
                expected="descending numbers above 1",
            )

    @property
    def short_run(self) -> "APGD":
        steps = max(self.steps // 10, 1)
        return replace(self, steps=steps, restarts=1, target_classes=0, radius_schedule=())

    def run(self, model: Queries, batch: Batch, threat: ThreatModel, rng: SampleRNG) -> Tensor:
        ball = Ball.of(threat, batch.images, model.bounds, BALL_NORMS)
        balls = [*map(ball.wider, self.radius_schedule), ball]
        best = BestSoFar(batch, threat.goal, model.success_is_final)
        for number, run_loss in enumerate(self._run_losses(model, batch, threat)):
            rows = best.active
            if not len(rows):
                break
            start = self._start(balls[0][rows], batch[rows], rng.rows(rows), number)
            for wide, near in pairwise(balls):
                start = near[rows].project(
                    self._ascend_in_larger_ball(model, best, run_loss, wide, start)
                )
            self._ascend(model, best, run_loss, APGDState.start(ball[rows], start))
        return best.images

    def _ascend_in_larger_ball(
        self, model: Queries, best: BestSoFar, run_loss: "_RunLoss", ball: Ball, start: Tensor
    ) -> Tensor:
        """Return the best iterates of a run in a larger ball for the m active samples, from (m, …) images inside it."""
        rows = best.active
        local = best.reset(rows)
        self._ascend(model, local, run_loss, APGDState.start(ball[rows], start))
        return local.images[rows]

    def _run_losses(
        self, model: Queries, batch: Batch, threat: ThreatModel
    ) -> Iterator["_RunLoss"]:
        """Yield the loss of each run: for each restart, and within it for each target class."""
        names, goal = self.loss.split("+"), threat.goal
        aims = isinstance(goal, Misclassify | MisclassifyAccepted) and self.target_classes
        other_classes = self._other_classes(model, batch, threat) if aims else None
        for restart in range(self.restarts):
            name = names[restart % len(names)]
            columns = [None] if other_classes is None else other_classes.unbind(1)
            yield from (_RunLoss(name, goal, targets) for targets in columns)

    def _other_classes(self, model: Queries, batch: Batch, threat: ThreatModel) -> Tensor:
        """Return the target classes of each sample, (n, at most ``target_classes``)."""
        logits = model(batch.images).logits
        return top_other_classes(logits, batch.labels, self.target_classes)

    def _start(self, ball: Ball, batch: Batch, rng: SampleRNG, number: int) -> Tensor:
        if number == 0 and batch.start is not None:
            return ball.project(batch.start)
        return ball.draw_far(rng, number)

    def _ascend(
        self, model: Queries, best: BestSoFar, run_loss: "_RunLoss", state: APGDState
    ) -> None:
        steps = self.steps // (1 + len(self.radius_schedule))
        rows, places, last = best.active, checkpoint_steps(steps, state.ball.norm), 0
        for step in range(steps):
            output, gradients = model.gradient(state.images, run_loss.loss(rows), rows)
            active = best.update(state.images, output, rows)
            state = state.update(gradients, run_loss.margin(output, best.batch.labels, rows))
            if not active.all():
                rows, state = rows[active], state[active]
            if not len(rows):
                return
            if step in places:
                state, last = state.adapt_step_size(step - last), step
            state = state.step(first=step == 0)
        best.update(state.images, model(state.images, rows), rows)


@dataclass(frozen=True)
class _RunLoss:
    """The loss of one run.

    Args:
        name: of the loss.
        goal: of the attack.
        targets: (n,) target class of each sample; None for an untargeted run.
    """

    name: str
    goal: Goal
    targets: Tensor | None

    def loss(self, rows: Tensor) -> Loss:
        """Return the loss for the samples at positions (m,)."""
        return self._loss(self.name, rows)

    def margin(self, output: Output, labels: Tensor, rows: Tensor) -> Tensor:
        """Return the margins (m,), which unlike some losses are comparable between iterates."""
        return self._loss("margin", rows)(output, labels[rows])

    def _loss(self, name: str, rows: Tensor) -> Loss:
        if self.targets is None:
            return losses_for(name, self.goal)[0]
        return targeted_loss(name, self.targets[rows], self.goal)


@dataclass(frozen=True)
class MALTAPGD(APGD):
    """Auto-PGD toward the classes whose linearized boundaries are nearest: gap of the logits over the norm of its gradient.

    The 100 other classes of the largest logits are ranked, with a backward pass each. Models of fewer classes are attacked
    as ``APGD`` does.

    References:
        Melamed, Yehudai and Shamir, MALT powers up adversarial attacks, NeurIPS 2024, algorithm 1.
    """

    def _other_classes(self, model: Queries, batch: Batch, threat: ThreatModel) -> Tensor:
        if model.num_classes < MALT_CLASSES:
            return super()._other_classes(model, batch, threat)
        rows = torch.arange(len(batch), device=batch.labels.device)
        near = linearize(model, threat, batch.images, batch.labels, rows, MALT_CLASSES)
        others = near.classes[:, 1:]  # a class that is ruled out has a stand-in, which comes last
        repeated = (others == near.classes[:, :1]) | (others == batch.labels[:, None])
        farther = near.distances[:, 1:].masked_fill(repeated, torch.inf)
        order = torch.cat([near.distances[:, :1], farther], 1).argsort(stable=True, dim=1)
        return near.classes.gather(1, order[:, : self.target_classes])
