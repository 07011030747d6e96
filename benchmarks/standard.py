"""Compares the ensemble ``standard`` with torchattacks' AutoAttack: robust samples and time.

Both run in one process on one thread, in turn, on the same correctly classified samples in one batch; times are processor
time, which other programs on the machine do not change. The network itself evaluates both, inside ball and box.
"""

import argparse
import warnings
from collections.abc import Callable, Iterator
from dataclasses import dataclass
from statistics import median

import torch
from minimum_norm import NETWORKS, train
from peers import is_there
from timing import one_thread, seconds_of
from torch import Tensor, nn

import robustbench_inv as rbi
from robustbench_inv.attacks.ensemble import standard
from robustbench_inv.attacks.protocol import Attack, Batch
from robustbench_inv.attacks.queries import CountingModel
from robustbench_inv.data.sampling import select_samples
from robustbench_inv.evaluation.prepare import prepare
from robustbench_inv.models.protocol import Classifier, classify
from robustbench_inv.models.wrapping import ModuleClassifier
from robustbench_inv.randomness import SampleRNG
from robustbench_inv.threat.budgets import LpBall, inside_box
from robustbench_inv.threat.threat_model import ThreatModel

__all__ = ["standard_section"]

SAMPLES, REPEATS, SLOW = 100, 3, 15.0
"""A contestant that has taken more than ``SLOW`` seconds is not timed again."""

CONTESTS = (
    ("mnist-cnn", "mnist5k", "linf", 0.05),
    ("mnist-cnn", "mnist5k", "linf", 0.1),
    ("mnist-cnn", "mnist5k", "l2", 1.0),
    ("mnist-c-dv", "mnist5k", "linf", 0.05),
    ("mnist-c-js", "mnist5k", "linf", 0.05),
    ("mnist-vib:noise=mean", "mnist5k", "linf", 0.05),
    ("mnist-cnn-at", "mnist5k", "linf", 0.3),
    ("fashion-mnist-cnn-200", "fashion-mnist", "linf", 0.02),
    ("fashion-mnist-cnn-at", "fashion-mnist", "linf", 0.1),
)
"""Model, data set, norm and eps with some robust samples; models and data sets that are not installed are left out."""

OUTSIDE = (
    ("perceptron", 0.0, "linf", 0.05),
    ("maximum pooling", 0.0, "linf", 0.05),
    ("smooth", 0.0, "linf", 0.1),
    ("strided", 0.2, "linf", 0.2),
    ("strided", 0.2, "l2", 1.5),
    ("perceptron", 0.1, "linf", 0.1),
)
"""Small networks that are trained here and are not in the zoo: network, linf eps of its adversarial training, norm, eps."""


@dataclass(frozen=True)
class Problem:
    """The model, its correctly classified samples and the budget that both attacks get."""

    classifier: Classifier
    batch: Batch
    budget: LpBall

    def robust(self, proposals: Tensor) -> set[int]:
        """Return the samples that no allowed input breaks."""
        batch = self.batch
        allowed = self.budget.contains(batch.images, proposals)
        allowed &= inside_box(proposals, self.classifier.bounds)
        answer = classify(self.classifier, proposals, SampleRNG(0, batch.ids))
        return set(batch.ids[~(allowed & (answer.decision != batch.labels))].tolist())


class Logits(nn.Module):
    """A classifier as the network that torchattacks expects."""

    def __init__(self, classifier: Classifier) -> None:
        super().__init__()
        self.classifier = classifier

    def forward(self, images: Tensor) -> Tensor:
        """Return the logits (n, classes) of images (n, …)."""
        return self.classifier(images).logits


def standard_section(samples: int = SAMPLES) -> str:
    """Return the benchmark's text for the page."""
    with one_thread():
        rows = [_zoo_row(samples, *contest) for contest in CONTESTS if is_there(*contest[:2])]
        rows += [_row(*each) for each in outside_problems(samples)]
    return "\n".join([_OPENING.format(samples), *rows, ""])


def outside_problems(samples: int) -> Iterator[tuple[str, Problem]]:
    """Yield name and problem of each network that is not in the zoo, with odd digits; trained on even ones."""
    data = rbi.load_dataset("mnist5k")
    images, labels = data.batch(range(5000))
    ids = torch.arange(1, 5000, 2 * (2500 // samples))[:samples]
    trained: dict[tuple[str, float], nn.Module] = {}
    for name, training_eps, norm, eps in OUTSIDE:
        key = name, training_eps
        if key not in trained:
            trained[key] = train(NETWORKS[name], images[::2], labels[::2], training_eps)
        right = ids[trained[key](images[ids]).argmax(1) == labels[ids]]
        batch = Batch(images[right], labels[right], right)
        classifier = ModuleClassifier(trained[key], (0.0, 1.0), 10)
        title = f"{name}, trained at linf {training_eps:g}" if training_eps else name
        yield title, Problem(classifier, batch, LpBall(norm, eps))


def ours(problem: Problem, attack: Attack | None = None) -> Tensor:
    """Return the proposals of an attack, by default ``standard``: search on the prepared copy, as the engine does."""
    batch, rng = problem.batch, SampleRNG(0, problem.batch.ids)
    searched = prepare(problem.classifier, batch.images[:8], fold=True)
    threat = ThreatModel(problem.budget)
    counting = CountingModel(searched, batch, threat, rng)
    return (attack or standard()).run(counting, batch, threat, rng)


def autoattack(problem: Problem) -> Tensor:
    """Return the proposals of torchattacks' AutoAttack, version standard."""
    import torchattacks as ta

    name = {"linf": "Linf", "l2": "L2"}[problem.budget.norm]
    eps, classes = problem.budget.eps, problem.classifier.num_classes
    network = Logits(problem.classifier).eval()
    attack = ta.AutoAttack(network, norm=name, eps=eps, n_classes=classes, seed=0)
    proposals: Tensor = attack(problem.batch.images, problem.batch.labels)
    return proposals


def _zoo_row(samples: int, model: str, dataset: str, norm: str, eps: float) -> str:
    return _row(model, select_problem(samples, model, dataset, LpBall(norm, eps)))


def _row(model: str, problem: Problem) -> str:
    times, robust = zip(*(_measured(each, problem) for each in (ours, autoattack)), strict=True)
    n = len(problem.batch)
    shares = " | ".join(f"{len(each)}" for each in robust)
    return (
        f"| {model} | {problem.budget.norm} {problem.budget.eps:g} | {n} | {shares} | {len(robust[0] - robust[1])} | "
        f"{times[0]:.1f} s | {times[1]:.1f} s | {times[0] / times[1]:.2f} |"
    )


def select_problem(samples: int, model: str, dataset: str, budget: LpBall) -> Problem:
    """Return a model of the zoo, and those of so many samples that it classifies correctly."""
    classifier, data = rbi.load_model(model).classifier, rbi.load_dataset(dataset)
    ids = torch.tensor(select_samples(data.labels, samples))
    images, labels = data.batch(ids)
    right = classify(classifier, images, SampleRNG(0, ids)).decision == labels
    return Problem(classifier, Batch(images[right], labels[right], ids[right]), budget)


def _measured(contestant: Callable[[Problem], Tensor], problem: Problem) -> tuple[float, set[int]]:
    """Return the median time and the robust samples."""
    seconds: list[float] = []
    proposals: list[Tensor] = []
    while len(seconds) < REPEATS and sum(seconds) < SLOW:
        with warnings.catch_warnings():
            warnings.simplefilter("ignore")
            seconds.append(seconds_of(lambda: proposals.append(contestant(problem).detach())))
    return median(seconds), problem.robust(proposals[-1])


_OPENING = """
## The ensemble against AutoAttack

Preset `standard` against torchattacks' `AutoAttack`, version standard, on the correctly classified of {} samples in one batch;
one process, one thread, in turn, processor time. *AutoAttack only*: samples that survive ours and that AutoAttack breaks.
The last six networks are trained by the benchmark and are not in the zoo.

| model | budget | samples | robust, ours | robust, AutoAttack | broken by AutoAttack only | ours | AutoAttack | ours / its time |
|---|---|---|---|---|---|---|---|---|"""


if __name__ == "__main__":
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("--samples", type=int, default=SAMPLES)
    print(standard_section(parser.parse_args().samples))
