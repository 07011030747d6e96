"""The interface of attacks: frozen dataclasses that return candidate inputs; the engine decides whether they succeed."""

from collections.abc import Callable
from dataclasses import dataclass, replace
from functools import cached_property
from typing import Any, Literal, Protocol, runtime_checkable

import torch
from torch import Tensor

from robustbench_inv.data.protocol import Dataset
from robustbench_inv.models.protocol import Output
from robustbench_inv.randomness import SampleRNG
from robustbench_inv.threat.threat_model import ThreatModel

__all__ = [
    "Attack",
    "Batch",
    "FailureReason",
    "InputPool",
    "Kind",
    "Loss",
    "NeedsOODData",
    "Queries",
    "ReportsStage",
    "RestrictsUse",
    "SupportsWarmStart",
    "runs_at_each_eps",
    "short_run_of",
]


Kind = Literal["fixed-budget", "minimum-norm", "invariance", "fixed-input"]
"""How the engine calls an attack:

- ``fixed-budget``: searches inside one budget; run once for each eps.
- ``minimum-norm``: searches the closest adversarial example; run once for all eps.
- ``invariance``: changes the class and keeps the prediction; run once for each eps, or for all eps if it declares
  ``runs_once = True``: it ignores the budget, or looks for the closest input that does so.
- ``fixed-input``: returns inputs that no search produced, such as noise or the data set's own altered inputs. It is
  also run on samples that the model misclassifies, so that there is a record for every input.
"""

Loss = Callable[[Output, Tensor], Tensor]
"""(output of m samples, their labels (m,)) → (m,) values that the attack *maximizes*."""

FailureReason = Literal["no_start", "numerics", "crash"]
"""Why an attack returns no candidate for a sample: no starting point, values that are not finite, or an exception
that this sample alone caused."""


@dataclass(frozen=True)
class InputPool:
    """Other inputs of the evaluated data set, used as donors or starting points.

    The pool does not depend on batch, batch size or resuming. It may contain samples of the batch: an attack that
    needs another sample must exclude the sample's own id.

    Args:
        ids: (m,) int64 sample ids, ascending.
        load: returns images (m, …) and labels (m,) for ids; called on first use.
    """

    ids: Tensor
    load: Callable[[Tensor], tuple[Tensor, Tensor]]

    @property
    def images(self) -> Tensor:
        """(m, …) clean inputs, inside the model's bounds."""
        return self._loaded[0]

    @property
    def labels(self) -> Tensor:
        """(m,) int64 true classes."""
        return self._loaded[1]

    @cached_property
    def _loaded(self) -> tuple[Tensor, Tensor]:
        return self.load(self.ids)


@dataclass(frozen=True)
class Batch:
    """The samples that are attacked.

    Args:
        images: (n, …) clean inputs inside the model's bounds.
        labels: (n,) int64 true classes.
        ids: (n,) int64 sample ids.
        start: (n, …) warm starts (adversarial examples of another eps of the sweep), or None.
        pool: other inputs of the data set, or None if there are none.
        counterparts: (n, …) the data set's altered version of each input (``data.protocol.HasCounterparts``), or None.
        oracle: returns the true classes (m,) of (m, …) versions of the samples with ids (m,), −1 where unknown; None
            if the threat has no oracle. Attacks may take its decisions, but no gradient: a change that fools the
            oracle's own networks is no change of the class.
    """

    images: Tensor
    labels: Tensor
    ids: Tensor
    start: Tensor | None = None
    pool: InputPool | None = None
    counterparts: Tensor | None = None
    oracle: Callable[[Tensor, Tensor], Tensor] | None = None

    def __len__(self) -> int:
        return len(self.labels)

    def __getitem__(self, rows: Tensor) -> "Batch":
        """Return a subset of the batch, given positions (m,) or a mask (n,); the pool is kept."""
        own: dict[str, Any] = {
            name: value[rows] for name, value in vars(self).items() if isinstance(value, Tensor)
        }
        return replace(self, **own)


@runtime_checkable
class Queries(Protocol):
    """The model as attacks query it: each call is counted for the samples that it evaluates.

    ``rows`` are the positions (m,) in the batch of the m images; None means the whole batch in its order.
    Attacks that work on a subset of the batch must pass them.
    """

    @property
    def num_classes(self) -> int: ...

    @property
    def bounds(self) -> tuple[float, float]: ...

    @property
    def dtype(self) -> torch.dtype: ...

    @property
    def success_is_final(self) -> bool:
        """Whether an adversarial example found during the search counts for good.

        False for a stochastic model, whose next draw may differ, and for a substitute, since the attacked model
        decides. The attack then uses all its steps and returns the iterate furthest past the decision boundary.
        """
        ...

    @property
    def model(self) -> object:
        """The classifier itself, for its further capabilities (such as ``Invertible``)."""
        ...

    def __call__(self, images: Tensor, rows: Tensor | None = None) -> Output:
        """Return the output without a graph; one forward pass for each sample."""
        ...

    def gradient(
        self, images: Tensor, loss: Loss, rows: Tensor | None = None
    ) -> tuple[Output, Tensor]:
        """Return the output and the gradient (m, …) of each sample's loss; one forward and one backward pass."""
        ...

    def differentiable(self, images: Tensor, rows: Tensor | None = None) -> Output:
        """Return the output with its graph; a backward pass through it is counted when it happens."""
        ...

    def report_failure(self, rows: Tensor, status: FailureReason, error: str = "") -> None:
        """Report why there is no candidate for the samples at positions (m,) in the batch; the error of a crash, one line."""
        ...

    def log(self, name: str, values: Tensor) -> None:
        """Log one number per sample (n,), such as the donor's id or the error of an inverse.

        The numbers, booleans as 0 and 1, are written to events.jsonl of the cell under their name.
        """
        ...


@runtime_checkable
class Attack(Protocol):
    """An attack algorithm; the fields of the dataclass are its parameters.

    ``norms`` are the norms of the budgets that it supports; ``kind`` decides how the engine calls it.
    """

    @property
    def kind(self) -> Kind: ...

    @property
    def norms(self) -> frozenset[str]: ...

    def run(self, model: Queries, batch: Batch, threat: ThreatModel, rng: SampleRNG) -> Tensor:
        """Return a candidate for each sample, (n, …), the clean input where there is none.

        Args:
            model: the queried model.
            batch: n samples.
            threat: budget, goal and access.
            rng: the samples' random numbers, drawn by (restart, step).
        """
        ...


@runtime_checkable
class RestrictsUse(Protocol):
    """An attack with requirements beyond its kind and norms."""

    def check_requirements(self, model: object, threat: ThreatModel, data: Dataset) -> None:
        """Raise CapabilityMismatch if the attack cannot run on this classifier, threat and data set."""
        ...


@runtime_checkable
class SupportsWarmStart(Protocol):
    """A fixed-budget attack that starts at ``batch.start`` and has a short run, for sweeps with descending eps."""

    @property
    def short_run(self) -> Attack | None:
        """The same attack with a tenth of the steps, for samples that survived it at a larger eps; None if there is none."""
        ...


@runtime_checkable
class NeedsOODData(Protocol):
    """An attack that returns inputs of a second, out-of-distribution data set, opened before the attack runs."""

    @property
    def dataset(self) -> str:
        """Name of the out-of-distribution data set; empty for the default one."""
        ...

    def with_ood_data(self, ood: Dataset) -> Attack:
        """Return the attack with its out-of-distribution data set."""
        ...


@runtime_checkable
class ReportsStage(Protocol):
    """Queries that report which part of an attack runs."""

    def enter(self, stage: str) -> None:
        """Name the part of the attack that begins, such as ``attack 2 of 5``."""
        ...


def runs_at_each_eps(attack: Attack) -> bool:
    """Is the attack run at each eps of a sweep? Otherwise it is run once, and its distance decides at each eps."""
    once = attack.kind == "invariance" and getattr(attack, "runs_once", False)
    return attack.kind in ("fixed-budget", "invariance") and not once


def short_run_of(attack: Attack) -> Attack | None:
    """Return an attack's short run; None if it has none."""
    return attack.short_run if isinstance(attack, SupportsWarmStart) else None
