"""Auto-PGD: gradient steps that shorten by themselves where they lead nowhere, and begin again at the best."""

from collections.abc import Iterator
from dataclasses import dataclass, replace
from itertools import pairwise
from typing import ClassVar

from torch import Tensor

from robustbench_inv.attacks.ascent import Ascent, checkpoints
from robustbench_inv.attacks.ball import BALLS, Ball
from robustbench_inv.attacks.best import Best
from robustbench_inv.attacks.losses import check_losses, loss_toward, losses_for
from robustbench_inv.attacks.protocol import Batch, Kind, Loss, Queries
from robustbench_inv.attacks.ranges import check_least
from robustbench_inv.errors import BadParameter
from robustbench_inv.randomness import Noise
from robustbench_inv.tensors import Output, strongest_others
from robustbench_inv.threat.goals import Goal, Misclassify, MisclassifyAccepted
from robustbench_inv.threat.threat_model import ThreatModel

__all__ = ["APGD"]


@dataclass(frozen=True)
class APGD:
    """Auto-PGD in linf, l2 or l1: nothing to tune; a sample that falls is left alone at once.

    Besides the papers: whether a step went uphill is told by the goal's margin, whatever the loss that is climbed. It
    compares iterates of a loss that is scaled anew at each of them, and of one that changes to the clearance where the
    model rejects.

    Args:
        steps: gradient steps of each run, >= 1; a run costs one forward pass more.
        restarts: how often to begin again with the samples that still stand, >= 1.
        loss: one of ``losses.LOSSES``, or several joined by ``+``, which the restarts take in turn.
        target_classes: run toward so many other classes, one after the other, those of the largest logits first;
            0 to run away from the true class. Has no effect where the goal is a certain class.
        widths: larger budgets, as multiples of eps, that each run passes through before its own, the largest first: an image
            that is broken far away still has a gradient that leads on when it is brought nearer. The steps are shared out
            evenly; where a run succeeds, it goes on to the next budget at once.

    References:
        Croce and Hein, Reliable evaluation of adversarial robustness with an ensemble of diverse parameter-free
        attacks, ICML 2020, algorithm 1; Croce and Hein, Mind the box: l1-APGD for sparse adversarial attacks on
        image classifiers, ICML 2021, algorithm 1.
    """

    steps: int = 100
    restarts: int = 1
    loss: str = "scaled-ce"
    target_classes: int = 0
    widths: tuple[float, ...] = ()

    kind: ClassVar[Kind] = "budget"
    norms: ClassVar[frozenset[str]] = BALLS

    def __post_init__(self) -> None:
        check_losses(self.loss)
        check_least(self, steps=1 + len(self.widths), restarts=1, target_classes=0)
        if any(wide <= near for wide, near in pairwise((*self.widths, 1.0))):
            raise BadParameter(
                "unusable widths", got=self.widths, expected="descending numbers above 1"
            )

    @property
    def brief(self) -> "APGD":
        steps = max(self.steps // 10, 1)
        return replace(self, steps=steps, restarts=1, target_classes=0, widths=())

    def run(self, model: Queries, batch: Batch, threat: ThreatModel, noise: Noise) -> Tensor:
        ball = Ball.of(threat, batch.images, model.bounds, BALLS)
        balls = [*map(ball.wider, self.widths), ball]
        best = Best(batch, threat.goal, model.conclusive)
        for number, course in enumerate(self._courses(model, batch, threat.goal)):
            rows = best.standing
            if not len(rows):
                break
            start = self._start(balls[0][rows], batch[rows], noise.rows(rows), number)
            for wide, near in pairwise(balls):
                start = near[rows].project(self._approach(model, best, course, wide, start))
            self._climb(model, best, course, Ascent.begin(ball[rows], start))
        return best.images

    def _approach(
        self, model: Queries, best: Best, course: "_Course", ball: Ball, start: Tensor
    ) -> Tensor:
        """Return what a run in a larger ball comes to, for the m samples that stand, from (m, …) images inside it."""
        rows = best.standing
        seen = best.anew(rows)
        self._climb(model, seen, course, Ascent.begin(ball[rows], start))
        return seen.images[rows]

    def _courses(self, model: Queries, batch: Batch, goal: Goal) -> Iterator["_Course"]:
        """Yield what each run climbs: restart by restart, and class by class where there are targets."""
        names = self.loss.split("+")
        aims = isinstance(goal, Misclassify | MisclassifyAccepted) and self.target_classes
        rivals = _rivals(model, batch, self.target_classes) if aims else None
        for restart in range(self.restarts):
            name = names[restart % len(names)]
            columns = [None] if rivals is None else rivals.unbind(1)
            yield from (_Course(name, goal, targets) for targets in columns)

    def _start(self, ball: Ball, batch: Batch, noise: Noise, number: int) -> Tensor:
        if number == 0 and batch.start is not None:
            return ball.project(batch.start)
        return ball.draw_far(noise, number)

    def _climb(self, model: Queries, best: Best, course: "_Course", way: Ascent) -> None:
        steps = self.steps // (1 + len(self.widths))
        rows, places, last = best.standing, checkpoints(steps, way.ball.norm), 0
        for step in range(steps):
            output, slopes = model.gradient(way.images, course.loss(rows), rows)
            standing = best.offer(way.images, output, rows)
            way = way.visit(slopes, course.height(output, best.batch.labels, rows))
            if not standing.all():
                rows, way = rows[standing], way[standing]
            if not len(rows):
                return
            if step in places:
                way, last = way.adapt(step - last), step
            way = way.step(first=step == 0)
        best.offer(way.images, model(way.images, rows), rows)


@dataclass(frozen=True)
class _Course:
    """What one run climbs.

    Args:
        name: of the loss.
        goal: of the attack.
        targets: (n,) the class that each sample is to be taken for; None for any but the true one.
    """

    name: str
    goal: Goal
    targets: Tensor | None

    def loss(self, rows: Tensor) -> Loss:
        """Return the loss of some samples, given their positions (m,)."""
        return self._loss(self.name, rows)

    def height(self, output: Output, labels: Tensor, rows: Tensor) -> Tensor:
        """Return what answers are worth, (m,): their margin, which, unlike some losses, compares all alike."""
        return self._loss("margin", rows)(output, labels[rows])

    def _loss(self, name: str, rows: Tensor) -> Loss:
        if self.targets is None:
            return losses_for(name, self.goal)[0]
        return loss_toward(name, self.targets[rows], self.goal)


def _rivals(model: Queries, batch: Batch, count: int) -> Tensor:
    """Return the classes besides the true one with the largest logits of the clean inputs, (n, at most count)."""
    logits = model(batch.images).logits
    return strongest_others(logits, batch.labels, count)
