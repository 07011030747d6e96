"""Checks the rules for attacks, classifiers and oracles in one call, for the tests of plugins."""

from dataclasses import dataclass, replace
from typing import Any

import torch
from torch import Tensor

from robustbench_inv.attacks.protocol import Attack, Batch, InputPool, short_run_of
from robustbench_inv.attacks.queries import CountingModel
from robustbench_inv.catalogue.models import load_model
from robustbench_inv.data.protocol import Dataset
from robustbench_inv.data.sampling import select_samples
from robustbench_inv.evaluation.oracles import load_oracle
from robustbench_inv.models.protocol import Classifier, classify
from robustbench_inv.randomness import SampleRNG
from robustbench_inv.tensors import flatten
from robustbench_inv.testing.analytic_problems import LinearClassifier, linear_problem
from robustbench_inv.threat.budgets import Budget, LpBall, Unbounded, inside_box
from robustbench_inv.threat.goals import KeepDecision, Misclassify
from robustbench_inv.threat.threat_model import ThreatModel

__all__ = ["BATCH_SIZES", "check_attack", "check_model", "check_oracle"]

BATCH_SIZES = (1, 3, 8)
"""Batch sizes that reveal attacks that mix up samples, or stop when the first sample breaks."""

REPEATED_SIZE = 3
"""The batch size in which an attack runs twice."""

BUDGETS = {"l0": 9.0, "l1": 0.4, "l2": 0.12, "linf": 0.03}
"""Budgets larger than the distance of the closest adversarial example of every sample of the linear problem."""


def check_attack(
    attack: Attack,
    *,
    min_success_rate: float = 0.0,
    max_distance_ratio: float = 1.25,
    batch_invariant: bool = True,
) -> None:
    """Run an attack on a linear classifier in batches of several sizes, and check its proposals.

    - Proposals have the shape and type of the inputs; they are finite, inside the bounds and, for a fixed-budget
      attack, inside the budget.
    - Inputs and global random numbers are unchanged, and a second run, in one of the sizes, returns the same proposals.
    - A minimum-norm attack ends close to the closest adversarial example.
    - A short run, if the attack has one, loses no success of its warm start.

    Args:
        attack: any attack that needs only logits and gradients of a model.
        min_success_rate: smallest share of broken samples, 0 to 1, in a budget in which every sample can be broken.
        max_distance_ratio: largest distance of a minimum-norm attack, relative to the closest adversarial example.
        batch_invariant: must a sample's proposal be the same for every batch size, to 1e-6?

    Raises:
        AssertionError: naming the violated requirement.

    Example:
        >>> from robustbench_inv.attacks.pgd import FGSM
        >>> check_attack(FGSM(), min_success_rate=1.0)
    """
    parameters: Any = getattr(attack, "__dataclass_params__", None)
    _require(isinstance(attack, Attack), f"{attack!r} lacks kind, norms or run")
    _require(parameters is not None and parameters.frozen, f"{attack!r} is not a frozen dataclass")
    for norm in sorted(attack.norms):
        trials = [_AttackTrial(attack, norm, size) for size in BATCH_SIZES]
        proposals = [trial.check(min_success_rate, max_distance_ratio) for trial in trials]
        trials[-1].check_short_run(proposals[-1])
        if batch_invariant:
            for trial, images in zip(trials, proposals, strict=True):
                apart = float((images - proposals[0]).abs().max())
                trial.require(
                    apart <= 1e-6, f"proposals depend on the batch size, {apart:.2g} apart"
                )


def check_model(classifier: Classifier, images: Tensor) -> None:
    """Query a classifier in several ways, and check its outputs.

    It must declare its bounds and return finite logits of the right shape and floating-point type. Its output must be
    the same (to 1e-4) in a second query, in another order and in another batch, and have a gradient.

    Args:
        classifier: any classifier; a stochastic one is queried under the same draws.
        images: (n, …) inputs inside the bounds, n >= 2.

    Raises:
        AssertionError: naming the violated requirement.
    """
    low, high = classifier.bounds
    _require(low < high, f"bounds {classifier.bounds} are not a range")
    _require(bool(inside_box(images, classifier.bounds).all()), "the inputs are outside its bounds")
    rng, n = SampleRNG(0, torch.arange(len(images))), len(images)
    logits = classify(classifier, images, rng).logits
    expected = (n, classifier.num_classes)
    _require(tuple(logits.shape) == expected, f"logits are {tuple(logits.shape)}, not {expected}")
    _require(bool(logits.isfinite().all()), "logits are not finite")
    orders = {
        "again": torch.arange(n),
        "in reverse order": torch.arange(n).flip(0),
        "alone": torch.arange(1),
    }
    for how, rows in orders.items():
        other = classify(classifier, images[rows], rng.rows(rows)).logits
        apart = float((other - logits[rows]).abs().max())
        _require(
            apart <= 1e-4, f"its output differs if queried {how}: logits differ by {apart:.2g}"
        )
    _check_gradient(classifier, images, rng)


ORACLE_SAMPLES = 200
"""Clean samples that an oracle classifies."""


def check_oracle(name: str, dataset: Dataset, *, max_error: float = 0.1) -> None:
    """Compare the classes that an oracle names for clean samples with the labels.

    Args:
        name: of a panel, or a file of labels.
        dataset: the data.
        max_error: largest share of samples for which it names another class, or none.

    Raises:
        AssertionError: if it misses more.
    """
    oracle = load_oracle(name, dataset, [], lambda each: load_model(each, dataset=dataset))
    ids = select_samples(dataset.labels, min(ORACLE_SAMPLES, len(dataset)))
    images, labels = dataset.batch(torch.tensor(ids))
    missed = float((oracle.classify(images, torch.tensor(ids)) != labels).double().mean())
    _require(
        missed <= max_error,
        f"misses the class of {missed:.1%} of clean samples, not {max_error:.0%}",
    )


@dataclass(frozen=True)
class _AttackTrial:
    """One attack in one norm on the linear problem, in batches of one size."""

    attack: Attack
    norm: str
    size: int

    def check(self, min_success_rate: float, max_distance_ratio: float) -> Tensor:
        """Return the proposals (8, …) after all checks."""
        model, clean, labels = linear_problem(max(BATCH_SIZES))
        state = torch.get_rng_state()
        images, distances = self._run(model, clean, labels)
        if self.size == REPEATED_SIZE:
            again, _ = self._run(model, clean, labels)
            self.require(torch.equal(images, again), "a second run returns other proposals")
        self.require(torch.equal(state, torch.get_rng_state()), "draws from the global generator")
        self._check_success(
            distances,
            model.distance(clean, labels, self.norm),
            min_success_rate,
            max_distance_ratio,
        )
        return images

    def check_short_run(self, images: Tensor) -> None:
        """Check that the short run, started from the attack's proposals (8, …), loses no success."""
        short_run = short_run_of(self.attack)
        if short_run is None:
            return
        model, clean, labels = linear_problem(max(BATCH_SIZES))
        batch = Batch(clean, labels, torch.arange(len(labels)), start=images)
        proposals, _ = replace(self, attack=short_run, size=len(labels))._run_batch(model, batch)
        lost = (model(images).decision != labels) & (model(proposals).decision == labels)
        self.require(not lost.any(), "its short run loses successes of its warm start")

    def require(self, condition: bool, message: str) -> None:
        _require(condition, f"{self.attack!r} in {self.norm}, {self.size} at a time: {message}")

    def _run(self, model: LinearClassifier, clean: Tensor, labels: Tensor) -> tuple[Tensor, Tensor]:
        """Return the attack's proposals, and the distance of the closest success that any query showed, or inf."""
        parts = torch.split(torch.arange(len(labels)), self.size)
        pool = InputPool(torch.arange(len(labels)), lambda ids: (clean[ids], labels[ids]))
        batches = [Batch(clean[rows], labels[rows], rows, pool=pool) for rows in parts]
        found = [self._run_batch(model, batch) for batch in batches]
        return torch.cat([images for images, _ in found]), torch.cat([far for _, far in found])

    def _run_batch(self, model: LinearClassifier, batch: Batch) -> tuple[Tensor, Tensor]:
        clean, rng = batch.images.clone(), SampleRNG(0, batch.ids)
        meter = CountingModel(model, batch, self._threat, rng)
        images = self.attack.run(meter, batch, self._threat, rng)
        kind = type(images).__name__
        self.require(isinstance(images, Tensor), f"returns an object of type {kind}, not a tensor")
        self.require(torch.equal(clean, batch.images), "changes its inputs")
        self._check_images(images, clean, model)
        meter(images)
        distance = self._threat.budget.distance(clean, meter.best)
        return images, torch.where(meter.found, distance, float("inf"))

    @property
    def _threat(self) -> ThreatModel:
        goal = KeepDecision() if self.attack.kind == "invariance" else Misclassify()
        bounded = self.attack.kind == "fixed-budget"
        budget: Budget = LpBall(self.norm, BUDGETS[self.norm]) if bounded else Unbounded(self.norm)
        return ThreatModel(budget, goal)

    def _check_images(self, images: Tensor, clean: Tensor, model: LinearClassifier) -> None:
        same = images.shape == clean.shape and images.dtype == clean.dtype
        self.require(same, f"returns {images.dtype} of shape {tuple(images.shape)}")
        self.require(bool(flatten(images).isfinite().all()), "returns values that are not finite")
        inside = bool(inside_box(images, model.bounds).all())
        self.require(inside, f"leaves the model's bounds {model.bounds}")
        furthest = float(self._threat.budget.distance(clean, images).max())
        allowed = bool(self._threat.budget.contains(clean, images).all())
        self.require(allowed, f"leaves its budget: {furthest:.6g} from the clean input")

    def _check_success(
        self, found: Tensor, nearest: Tensor, min_success_rate: float, max_distance_ratio: float
    ) -> None:
        if self.attack.kind == "fixed-budget":
            share = float(found.isfinite().double().mean())
            self.require(
                share >= min_success_rate,
                f"breaks {share:.0%} of the samples, not {min_success_rate:.0%}",
            )
        if self.attack.kind == "minimum-norm" and self.norm != "l0":
            worst = float((found / nearest).max())
            self.require(
                worst <= max_distance_ratio, f"ends {worst:.3g} times as far away as necessary"
            )


def _check_gradient(classifier: Classifier, images: Tensor, rng: SampleRNG) -> None:
    batch = Batch(images, torch.zeros(len(images), dtype=torch.int64), rng.ids)
    meter = CountingModel(classifier, batch, ThreatModel(Unbounded()), rng)
    _, gradient = meter.gradient(images, lambda output, _: output.logits[:, 0])
    _require(bool(gradient.isfinite().all()), "its gradient is not finite")
    _require(bool(gradient.any()), "its gradient is zero")


def _require(condition: bool, message: str) -> None:
    if not condition:
        raise AssertionError(message)
