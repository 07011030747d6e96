"""What every attack and every classifier must fulfil, asked in one call, for the tests of a plugin's author."""

from dataclasses import dataclass, replace
from typing import Any

import torch
from torch import Tensor

from robustbench_inv.attacks.protocol import Attack, Batch, Pool, brief_of
from robustbench_inv.evaluation.metering import Meter, inside_box, judge
from robustbench_inv.models.protocol import Classifier
from robustbench_inv.randomness import Noise
from robustbench_inv.tensors import flatten
from robustbench_inv.testing.linear import LinearClassifier, linear_problem
from robustbench_inv.threat.budgets import Budget, LpBall, Unbounded
from robustbench_inv.threat.goals import KeepDecision, Misclassify
from robustbench_inv.threat.threat_model import ThreatModel

__all__ = ["BATCH_SIZES", "check_attack", "check_model"]

BATCH_SIZES = (1, 3, 8)
"""An attack that mixes up samples or ends when the first has fallen shows it between these."""

EPS = {"l0": 9.0, "l1": 0.4, "l2": 0.12, "linf": 0.03}
"""Budgets that reach beyond the nearest adversarial input of every sample of the linear problem."""


def check_attack(
    attack: Attack, *, breaks: float = 0.0, ratio: float = 1.25, in_any_batch: bool = True
) -> None:
    """Run an attack on a linear classifier, alone, in threes and all at once, and check what it shows.

    Its proposals must have the shape and type of the inputs, be finite, inside the bounds and, for an attack
    with a fixed budget, inside the budget. Inputs and global random numbers must stay as they were, a second
    run must show the same. A minimum-norm attack must come near the nearest adversarial input. The brief form of one
    that has any must lose no success that it begins at.

    Args:
        attack: any attack that needs no more of a model than logits and gradients.
        breaks: the share of samples that it must break in a budget in which all can be broken, 0 to 1.
        ratio: how much further than the nearest adversarial input a minimum-norm attack may end.
        in_any_batch: must a sample's proposal be the same for every batch size, to 1e-6?

    Raises:
        AssertionError: saying what is not fulfilled.

    Example:
        >>> from robustbench_inv.attacks.fgsm import FGSM
        >>> check_attack(FGSM(), breaks=1.0)
    """
    parameters: Any = getattr(attack, "__dataclass_params__", None)
    _demand(isinstance(attack, Attack), f"{attack!r} has not kind, norms and run")
    _demand(parameters is not None and parameters.frozen, f"{attack!r} is no frozen dataclass")
    for norm in sorted(attack.norms):
        trials = [_Trial(attack, norm, size) for size in BATCH_SIZES]
        shown = [trial.check(breaks, ratio) for trial in trials]
        trials[-1].check_brief(shown[-1])
        if in_any_batch:
            for trial, images in zip(trials, shown, strict=True):
                apart = float((images - shown[0]).abs().max())
                trial.demand(
                    apart <= 1e-6, f"shows other inputs than one by one, {apart:.2g} apart"
                )


def check_model(classifier: Classifier, images: Tensor) -> None:
    """Ask a classifier about some inputs in several ways, and check its answers.

    It must declare its bounds, answer with finite logits of the right shape and floating-point type, give the
    same answer again, in another order and in another batch (to 1e-4), and have a gradient.

    Args:
        classifier: any classifier; a stochastic one is asked under the same draws.
        images: (n, …) inputs inside the bounds, n >= 2.

    Raises:
        AssertionError: saying what is not fulfilled.
    """
    low, high = classifier.bounds
    _demand(low < high, f"bounds {classifier.bounds} are no range")
    _demand(bool(inside_box(images, classifier.bounds).all()), "the inputs are outside its bounds")
    noise, n = Noise(0, torch.arange(len(images))), len(images)
    logits = judge(classifier, images, noise).logits
    expected = (n, classifier.num_classes)
    _demand(tuple(logits.shape) == expected, f"logits are {tuple(logits.shape)}, not {expected}")
    _demand(bool(logits.isfinite().all()), "logits are not finite")
    orders = {
        "again": torch.arange(n),
        "in reverse order": torch.arange(n).flip(0),
        "alone": torch.arange(1),
    }
    for how, rows in orders.items():
        other = judge(classifier, images[rows], noise.rows(rows)).logits
        apart = float((other - logits[rows]).abs().max())
        _demand(apart <= 1e-4, f"asked {how}, it answers otherwise: logits {apart:.2g} apart")
    _check_gradient(classifier, images, noise)


@dataclass(frozen=True)
class _Trial:
    """One attack in one norm on the linear problem, in batches of one size."""

    attack: Attack
    norm: str
    size: int

    def check(self, breaks: float, ratio: float) -> Tensor:
        """Return the inputs shown (8, …) after all checks."""
        model, clean, labels = linear_problem(max(BATCH_SIZES))
        state = torch.get_rng_state()
        images, distances = self._run(model, clean, labels)
        again, _ = self._run(model, clean, labels)
        self.demand(torch.equal(state, torch.get_rng_state()), "draws from the global generator")
        self.demand(torch.equal(images, again), "shows something else in a second run")
        self._check_success(distances, model.distance(clean, labels, self.norm), breaks, ratio)
        return images

    def check_brief(self, images: Tensor) -> None:
        """Check that the brief form, begun at what the attack shows (8, …), shows no fewer successes."""
        brief = brief_of(self.attack)
        if brief is None:
            return
        model, clean, labels = linear_problem(max(BATCH_SIZES))
        batch = Batch(clean, labels, torch.arange(len(labels)), start=images)
        shown, _ = replace(self, attack=brief, size=len(labels))._run_batch(model, batch)
        lost = (model(images).decision != labels) & (model(shown).decision == labels)
        self.demand(not lost.any(), "does not begin where the batch says, in brief")

    def demand(self, fulfilled: bool, otherwise: str) -> None:
        _demand(fulfilled, f"{self.attack!r} in {self.norm}, {self.size} at a time: {otherwise}")

    def _run(self, model: LinearClassifier, clean: Tensor, labels: Tensor) -> tuple[Tensor, Tensor]:
        """Return what the attack shows, and the distance of the nearest success on its way or inf."""
        parts = torch.split(torch.arange(len(labels)), self.size)
        pool = Pool(torch.arange(len(labels)), lambda ids: (clean[ids], labels[ids]))
        batches = [Batch(clean[rows], labels[rows], rows, pool=pool) for rows in parts]
        found = [self._run_batch(model, batch) for batch in batches]
        return torch.cat([images for images, _ in found]), torch.cat([far for _, far in found])

    def _run_batch(self, model: LinearClassifier, batch: Batch) -> tuple[Tensor, Tensor]:
        clean, noise = batch.images.clone(), Noise(0, batch.ids)
        meter = Meter(model, batch, self._threat, noise)
        images = self.attack.run(meter, batch, self._threat, noise)
        self.demand(torch.equal(clean, batch.images), "changes its inputs")
        self._check_images(images, clean, model)
        meter(images)
        distance = self._threat.budget.distance(clean, meter.best)
        return images, torch.where(meter.found, distance, float("inf"))

    @property
    def _threat(self) -> ThreatModel:
        goal = KeepDecision() if self.attack.kind == "invariance" else Misclassify()
        bounded = self.attack.kind == "budget"
        budget: Budget = LpBall(self.norm, EPS[self.norm]) if bounded else Unbounded(self.norm)
        return ThreatModel(budget, goal)

    def _check_images(self, images: Tensor, clean: Tensor, model: LinearClassifier) -> None:
        same = images.shape == clean.shape and images.dtype == clean.dtype
        self.demand(same, f"shows {images.dtype} of shape {tuple(images.shape)}")
        self.demand(bool(flatten(images).isfinite().all()), "shows values that are not finite")
        inside = bool(inside_box(images, model.bounds).all())
        self.demand(inside, f"leaves the model's bounds {model.bounds}")
        furthest = float(self._threat.budget.distance(clean, images).max())
        allowed = bool(self._threat.budget.contains(clean, images).all())
        self.demand(allowed, f"leaves its budget: {furthest:.6g} from the clean input")

    def _check_success(self, found: Tensor, nearest: Tensor, breaks: float, ratio: float) -> None:
        if self.attack.kind == "budget":
            share = float(found.isfinite().double().mean())
            self.demand(share >= breaks, f"breaks {share:.0%} of the samples, not {breaks:.0%}")
        if self.attack.kind == "minimal" and self.norm != "l0":
            worst = float((found / nearest).max())
            self.demand(worst <= ratio, f"ends {worst:.3g} times as far away as necessary")


def _check_gradient(classifier: Classifier, images: Tensor, noise: Noise) -> None:
    batch = Batch(images, torch.zeros(len(images), dtype=torch.int64), noise.ids)
    meter = Meter(classifier, batch, ThreatModel(Unbounded()), noise)
    _, slope = meter.gradient(images, lambda output, _: output.logits[:, 0])
    _demand(bool(slope.isfinite().all()), "its gradient is not finite")
    _demand(bool(slope.any()), "its gradient is zero")


def _demand(fulfilled: bool, otherwise: str) -> None:
    if not fulfilled:
        raise AssertionError(otherwise)
