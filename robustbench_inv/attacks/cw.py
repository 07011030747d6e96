"""Carlini & Wagner in l2 as published: change of variables, Adam, and a binary search over the constant."""

from dataclasses import dataclass, replace
from typing import Any, ClassVar

import torch
from torch import Tensor

from robustbench_inv.attacks.best_so_far import ClosestAdversarial
from robustbench_inv.attacks.losses import losses_for
from robustbench_inv.attacks.parameters import check_least, check_positive
from robustbench_inv.attacks.protocol import Batch, Kind, Loss, Queries
from robustbench_inv.randomness import SampleRNG
from robustbench_inv.tensors import Output, broadcast, norm
from robustbench_inv.threat.threat_model import ThreatModel

__all__ = ["Adam", "CarliniWagner"]

BETAS = (0.9, 0.999)
"""Adam's decay rates β₁ and β₂, as Kingma and Ba give them."""

EPSILON = 1e-8
"""Adam's ε, as Kingma and Ba give it."""

TANH_SHRINKAGE = 0.999999
"""Inputs are shrunk toward the middle of the box by this factor before artanh, which is infinite at the bounds."""

MIN_DECREASE = 0.9999
"""A search stops for a sample whose objective is not below this share of its value a tenth of the steps earlier."""

REPEATING_SEARCHES, LARGEST_CONSTANT = 10, 1e10
"""From this number of searches on, the last one repeats the smallest constant that succeeded; this large if none did."""


@dataclass(frozen=True)
class CarliniWagner:
    """Minimizes ‖x' − x‖²/W² + c·max(0, κ − margin(x')) over w, with x' = ½(tanh(w) + 1), for a constant c of each sample.

    W is the width of the box, 1 in the paper: the constants are meant for inputs between 0 and 1. In another box, x' is
    mapped to it. Adam descends in w; the tanh keeps x' inside the box. A binary search looks for the smallest c that reaches the
    goal: c grows tenfold until a search succeeds, then it is the mean of the largest constant that failed and the
    smallest that succeeded. Of ten or more searches the last repeats the smallest that succeeded. The closest example of
    all searches is returned, the clean input if there is none. The margin follows the goal: any other class, a
    target class, or either of them accepted by the reject option.

    Args:
        steps: Adam's iterations in each search, >= 1.
        searches: constants tried for each sample, >= 1.
        learning_rate: of Adam, in units of w, > 0.
        initial_constant: the first c, > 0.
        confidence: margin κ that an adversarial example must exceed, >= 0.
        abort_early: stop a sample's search if its objective fell by less than 0.01 % in a tenth of the steps.

    References:
        Carlini and Wagner, Towards evaluating the robustness of neural networks, IEEE S&P 2017, sections V and VI.A,
        objective f6. Defaults and early abort: the authors' l2_attack.py (github.com/carlini/nn_robust_attacks).
        Kingma and Ba, Adam, ICLR 2015, algorithm 1.
    """

    steps: int = 10000
    searches: int = 9
    learning_rate: float = 0.01
    initial_constant: float = 1e-3
    confidence: float = 0.0
    abort_early: bool = True

    kind: ClassVar[Kind] = "minimum-norm"
    norms: ClassVar[frozenset[str]] = frozenset({"l2"})

    def __post_init__(self) -> None:
        check_least(self, steps=1, searches=1, confidence=0)
        check_positive(self, "learning_rate", "initial_constant")

    def run(self, model: Queries, batch: Batch, threat: ThreatModel, rng: SampleRNG) -> Tensor:
        closest = ClosestAdversarial(batch, threat, model, self.confidence)
        constants = torch.full_like(closest.distances, self.initial_constant)
        lower, upper = torch.zeros_like(constants), torch.full_like(constants, torch.inf)
        for search in range(self.searches):
            if search == self.searches - 1 and self.searches >= REPEATING_SEARCHES:
                constants = upper.clamp_max(LARGEST_CONSTANT)
            reached = self._minimize(model, closest, constants)
            lower = lower.where(reached, constants)
            upper = constants.where(reached, upper)
            constants = torch.where(upper.isfinite(), (lower + upper) / 2, 10 * constants)
        return closest.images

    def _minimize(self, model: Queries, closest: ClosestAdversarial, constants: Tensor) -> Tensor:
        """Minimize the objective of all n samples and return whether any iterate reached the goal, (n,)."""
        batch, hinge = closest.batch, _hinge(closest)
        reached = torch.zeros_like(constants, dtype=torch.bool)
        descent = _Descent.start(batch.images, constants, model.bounds)
        for step in range(self.steps):
            images, rows = descent.images, descent.rows
            output, gradients = model.gradient(images, hinge, rows)
            reached[rows] |= closest.update(images, output, rows) > 0
            if self.abort_early and step % max(self.steps // 10, 1) == 0:
                improving = descent.check_progress(images, hinge(output, batch.labels[rows]))
                descent, images, gradients = (
                    descent[improving],
                    images[improving],
                    gradients[improving],
                )
                if not len(descent.rows):
                    break
            descent.step(images, gradients, self.learning_rate)
        return reached


def _hinge(closest: ClosestAdversarial) -> Loss:
    """Return the loss max(0, κ − margin), 0 wherever the goal is reached with the confidence κ."""
    threat, confidence = closest.threat, closest.confidence
    (margin,) = losses_for("margin", threat.goal)

    def hinge(output: Output, labels: Tensor) -> Tensor:
        reached = threat.goal.margin(output.detach(), labels) > confidence
        return (confidence - margin(output, labels)).where(~reached, 0)

    return hinge


@dataclass
class Adam:
    """Running means of the gradients of m samples, and of their squares.

    Args:
        mean: (m, …) first moment.
        square: (m, …) second moment.
        steps: number of steps taken.

    References:
        Kingma and Ba, Adam, ICLR 2015, algorithm 1.
    """

    mean: Tensor
    square: Tensor
    steps: int = 0

    @classmethod
    def start(cls, variables: Tensor) -> "Adam":
        """Return the state before the first step in variables (m, …)."""
        return cls(torch.zeros_like(variables), torch.zeros_like(variables))

    def __getitem__(self, kept: Tensor) -> "Adam":
        """Return the state of some of the samples, given a mask (m,)."""
        return Adam(self.mean[kept], self.square[kept], self.steps)

    def step(self, gradients: Tensor, learning_rate: float) -> Tensor:
        """Return how far the variables move along the gradients (m, …) in the next step, (m, …)."""
        beta1, beta2 = BETAS
        self.steps += 1
        self.mean = beta1 * self.mean + (1 - beta1) * gradients
        self.square = beta2 * self.square + (1 - beta2) * gradients.square()
        mean = self.mean / (1 - beta1**self.steps)
        square = self.square / (1 - beta2**self.steps)
        return learning_rate * mean / (square.sqrt() + EPSILON)


@dataclass
class _Descent:
    """Adam on w for m samples, their inputs being low + (high − low)·(tanh(w) + 1)/2.

    Args:
        rows: (m,) positions of the samples in the batch.
        w: (m, …) the variables.
        clean: (m, …) the clean inputs.
        constants: (m,) c.
        bounds: (low, high) of an input element.
        adam: of w.
        objective: (m,) value at the last check.
    """

    rows: Tensor
    w: Tensor
    clean: Tensor
    constants: Tensor
    bounds: tuple[float, float]
    adam: Adam
    objective: Tensor

    @classmethod
    def start(cls, clean: Tensor, constants: Tensor, bounds: tuple[float, float]) -> "_Descent":
        """Return the state at (n, …) clean inputs."""
        low, high = bounds
        w = torch.atanh(TANH_SHRINKAGE * (2 * (clean - low) / (high - low) - 1))
        rows = torch.arange(len(clean), device=clean.device)
        last = torch.full_like(constants, torch.inf)
        return cls(rows, w, clean, constants, bounds, Adam.start(w), last)

    @property
    def images(self) -> Tensor:
        """(m, …) inputs inside the box."""
        low, high = self.bounds
        return (low + (high - low) * (self.w.tanh() + 1) / 2).clamp(low, high)

    def __getitem__(self, kept: Tensor) -> "_Descent":
        """Return some of the samples, given a mask (m,)."""
        tensors: dict[str, Any] = {
            name: value[kept] for name, value in vars(self).items() if isinstance(value, Tensor)
        }
        return replace(self, **tensors, adam=self.adam[kept])

    def check_progress(self, images: Tensor, hinge: Tensor) -> Tensor:
        """Return whether the objective ‖x' − x‖²/W² + c·hinge fell since the last check, (m,)."""
        low, high = self.bounds
        now = norm(images - self.clean, "l2").square() / (high - low) ** 2 + self.constants * hinge
        before, self.objective = self.objective, now
        return now <= MIN_DECREASE * before

    def step(self, images: Tensor, gradients: Tensor, learning_rate: float) -> None:
        """Take Adam's next step, given the gradients (m, …) of the hinge at the images."""
        low, high = self.bounds
        derivative = (high - low) / 2 * (1 - self.w.tanh().square())
        distance = 2 * (images - self.clean) / (high - low) ** 2
        objective = distance + broadcast(self.constants, images) * gradients
        gradient = torch.nan_to_num(objective * derivative, nan=0.0, posinf=0.0, neginf=0.0)
        self.w = self.w - self.adam.step(gradient, learning_rate)
