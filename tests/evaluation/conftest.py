"""A linear classifier with known closest adversarial examples, and attacks with one fault each."""

import time
from dataclasses import dataclass
from types import SimpleNamespace
from typing import ClassVar

import pytest
import torch
from torch import nn

from robustbench_inv.catalogue.attacks import load_attack
from robustbench_inv.catalogue.models import load_model
from robustbench_inv.data.arrays import ArrayDataset
from robustbench_inv.evaluation.jobs import Job
from robustbench_inv.threat.budgets import LpBall, Unbounded
from robustbench_inv.threat.threat_model import ThreatModel

ALL_NORMS = frozenset({"l2", "linf"})


class TwoSides(nn.Module):
    """Class 1 where w·x > b; the linf distance of x to the boundary is |w·x − b| / ‖w‖₁."""

    bounds = (0.0, 1.0)
    num_classes = 2

    def __init__(self, dtype=torch.float64, dimension=8):
        super().__init__()
        self.w = nn.Parameter(torch.linspace(-1, 1.5, dimension, dtype=dtype))
        self.b = nn.Parameter(self.w.sum().detach() / 2)

    def forward(self, images):
        beyond = images.flatten(1) @ self.w - self.b
        return torch.stack([-beyond, beyond], 1)

    def distances(self, images):
        """Return the linf distance of each point to the boundary."""
        beyond = images.double().flatten(1) @ self.w.detach().double() - self.b.detach().double()
        return beyond.abs() / self.w.detach().double().abs().sum()


class Borderline(nn.Module):
    """TwoSides that answers differently, near its boundary, in a batch of even size."""

    bounds, num_classes = (0.0, 1.0), 2

    def __init__(self):
        super().__init__()
        self.inner = TwoSides()

    def forward(self, images):
        right = self.inner(images)
        unsure = (right[:, :1].abs() < 0.05) & (len(images) % 2 == 0)
        return torch.where(unsure, -right, right)


def points(count=60, dimension=8, wrong=5):
    """Return points around the centre of the box, labelled by TwoSides but for the first few."""
    generator = torch.Generator().manual_seed(3)
    images = 0.35 + 0.3 * torch.rand((count, dimension), generator=generator, dtype=torch.float64)
    labels = TwoSides()(images).argmax(1)
    labels[:wrong] = 1 - labels[:wrong]
    return ArrayDataset(images.detach(), labels, "points")


@dataclass(frozen=True)
class Toy:
    """What the attacks below share: they step across the boundary of a linear model."""

    kind: ClassVar = "fixed-budget"
    norms: ClassVar = ALL_NORMS

    def step(self, model, batch, length):
        """Return each image moved by ``length`` (n,) against its class, straight to the boundary."""
        _, slope = model.gradient(
            batch.images, lambda out, y: -out.logits.gather(1, y[:, None])[:, 0]
        )
        return (batch.images + length * slope.sign()).clamp(*model.bounds)


@dataclass(frozen=True)
class Straight(Toy):
    """The best attack inside an linf ball on a linear model."""

    pause: float = 0.0

    def run(self, model, batch, threat, rng):
        time.sleep(self.pause)
        return self.step(model, batch, threat.budget.eps)


@dataclass(frozen=True)
class Nearest(Toy):
    """The nearest adversarial of TwoSides, a hair beyond the boundary."""

    kind: ClassVar = "minimum-norm"

    def run(self, model, batch, threat, rng):
        inner = model.model.module
        return self.step(model, batch, inner.distances(batch.images)[:, None] * (1 + 1e-9) + 1e-12)


@dataclass(frozen=True)
class Forgets(Toy):
    """Finds an adversarial and returns the clean image."""

    def run(self, model, batch, threat, rng):
        model(self.step(model, batch, threat.budget.eps))
        return batch.images


@dataclass(frozen=True)
class Breaks(Toy):
    """Raises in every block that holds a given sample."""

    sample: int = 0
    after_query: bool = False

    def run(self, model, batch, threat, rng):
        images = self.step(model, batch, threat.budget.eps)
        if self.after_query:
            model(images)
        if self.sample in batch.ids.tolist():
            raise ZeroDivisionError("no luck\nwith this block")
        return images


@dataclass(frozen=True)
class Returns(Toy):
    """Returns what is not allowed: ``nan``, ``outside``, ``far``, ``hair``, ``shape``, ``none`` or ``report_failure``."""

    what: str = "nan"

    def run(self, model, batch, threat, rng):
        images = self.step(model, batch, threat.budget.eps)
        if self.what == "shape":
            return images[:, :-1]
        if self.what in ("none", "mark"):
            reason = {"none": "no_start", "mark": "crash"}[self.what]
            model.report_failure(torch.arange(len(batch)), reason)
            return batch.images
        added = {"nan": float("nan"), "outside": 1.5, "far": 0.3, "hair": 0.0}[self.what]
        changed = images + added if self.what != "far" else (images + added).clamp(0, 1)
        return torch.full_like(images, 1 + 5e-7) if self.what == "hair" else changed


@dataclass(frozen=True)
class Draws(Toy):
    """Tries random points of the ball, by the numbered draws of each sample."""

    tries: int = 3

    def run(self, model, batch, threat, rng):
        best = batch.images
        for step in range(self.tries):
            shape = batch.images.shape[1:]
            uniform = rng.uniform(shape, step=step, dtype=batch.images.dtype)
            images = (batch.images + threat.budget.eps * (2 * uniform - 1)).clamp(0, 1)
            fooled = model(images).decision != batch.labels
            best = torch.where(fooled[:, None], images, best)
        return best


def linf(*epsilons):
    """Return the linf sweep."""
    return ThreatModel(LpBall("linf", epsilons[-1]), sweep=epsilons if len(epsilons) > 1 else ())


def make_job(
    attack,
    threat=None,
    *,
    samples=None,
    dtype=torch.float64,
    data=None,
    module=None,
    substitute=None,
):
    """Return a job on TwoSides and its points."""
    data = data or points()
    model, other = load_model(module or TwoSides(dtype)), substitute and load_model(substitute)
    loaded = load_attack(attack)
    threat = threat or linf(0.02, 0.05, 0.1)
    ids = tuple(range(len(data))) if samples is None else tuple(samples)
    return Job(model, loaded, threat, data, 0, ids, substitute=other)


@pytest.fixture(scope="session")
def toys():
    """The classes and functions of this file."""
    known = (
        TwoSides,
        Borderline,
        points,
        Straight,
        Nearest,
        Forgets,
        Breaks,
        Returns,
        Draws,
        linf,
        make_job,
    )
    unbounded = ThreatModel(Unbounded("linf"))
    return SimpleNamespace(none=unbounded, **{each.__name__: each for each in known})
