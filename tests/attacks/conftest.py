"""A small classifier of images, and functions that run an attack on it."""

from dataclasses import dataclass
from functools import cache
from types import SimpleNamespace

import pytest
import torch
from torch import Tensor

from robustbench_inv.attacks.protocol import Batch
from robustbench_inv.attacks.queries import CountingModel
from robustbench_inv.randomness import SampleRNG
from robustbench_inv.tensors import Output, flatten
from robustbench_inv.testing.analytic_problems import LinearClassifier
from robustbench_inv.threat.budgets import LpBall, Unbounded, inside_box
from robustbench_inv.threat.goals import Misclassify
from robustbench_inv.threat.threat_model import ThreatModel

EPS = {"l0": 5.0, "l1": 3.0, "l2": 0.6, "linf": 0.1}


@dataclass(frozen=True)
class SteadyClassifier(LinearClassifier):
    """A linear classifier whose rounding does not depend on the batch, as that of a matrix product does."""

    def __call__(self, images):
        return Output((flatten(images)[:, None] * self.weights).sum(2) + self.biases)


class Changed:
    """A linear classifier with a changed output, which records its largest batch."""

    dtype, bounds = torch.float64, (0.0, 1.0)

    def __init__(self, linear, change=lambda output, _: output):
        self.linear, self.change, self.num_classes = linear, change, linear.num_classes
        self.most = 0

    def __call__(self, images):
        self.most = max(self.most, len(images))
        return self.change(self.linear(images), images)


@pytest.fixture(autouse=True, scope="session")
def _one_thread():
    """Keep threads from waiting for each other: these tensors are far too small to share."""
    before = torch.get_num_threads()
    torch.set_num_threads(1)
    yield
    torch.set_num_threads(before)


@dataclass(frozen=True)
class Ran:
    """What a run showed: (n, …) images, and the meter that counted."""

    images: Tensor
    meter: CountingModel

    @property
    def broken(self) -> Tensor:
        """(n,): whether the result is misclassified."""
        output: Output = self.meter.classifier(self.images)
        return output.decision != self.meter.batch.labels

    @property
    def allowed(self) -> bool:
        clean, budget = self.meter.batch.images, self.meter.threat.budget
        boxed = inside_box(self.images, self.meter.bounds)
        return bool((boxed & budget.contains(clean, self.images)).all())


def problem(n=8, bounds=(0.0, 1.0), classes=4, shape=(1, 6, 6)):
    """Return a linear classifier, images around the middle of its bounds, and its decisions as labels."""
    low, high = bounds
    d = shape[0] * shape[1] * shape[2]
    weights = 0.6 * SampleRNG(5, torch.arange(classes), "weights").normal((d,), dtype=torch.float64)
    model = SteadyClassifier(weights, -weights.sum(1) * (low + high) / 2, bounds)
    unit = 0.3 + 0.4 * SampleRNG(1, torch.arange(n), "images").uniform(shape, dtype=torch.float64)
    images = low + (high - low) * unit
    return model, images, model(images).decision


def threat_for(attack, norm=None, goal=None, eps=EPS):
    """Return a threat that the attack supports, in the last of its norms by default."""
    norm = norm or sorted(attack.norms)[-1]
    budget = LpBall(norm, eps[norm]) if attack.kind == "fixed-budget" else Unbounded(norm)
    return ThreatModel(budget, goal or Misclassify())


def run(attack, on=None, threat=None, rows=None):
    """Run an attack on some samples of a problem."""
    model, images, labels = on or problem()
    rows = torch.arange(len(labels)) if rows is None else rows
    batch = Batch(images[rows], labels[rows], rows)
    threat = threat or threat_for(attack)
    rng = SampleRNG(0, rows)
    meter = CountingModel(model, batch, threat, rng)
    return Ran(attack.run(meter, batch, threat, rng), meter)


@cache
def whole(attack):
    """Return the run on all samples of the problem, which several tests look at."""
    return run(attack)


def in_parts(attack, size, on=None, threat=None, count=None):
    """Return the results in batches of a size, of the first samples or all."""
    count = count or len((on or problem())[2])
    parts = torch.split(torch.arange(count), size)
    return torch.cat([run(attack, on, threat, rows).images for rows in parts])


@pytest.fixture(scope="session")
def lab():
    """The functions of this file, and the classifier whose output is changed."""
    return SimpleNamespace(
        Changed=Changed,
        problem=problem,
        threat_for=threat_for,
        run=run,
        whole=whole,
        in_parts=in_parts,
    )
