"""What an attack is: a frozen dataclass that proposes images and never judges them."""

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
    "SupportsWarmStart",
    "short_run_of",
]


Kind = Literal["fixed-budget", "minimum-norm", "invariance", "fixed-input"]
"""``budget``: searches inside a fixed budget. ``minimal``: seeks the nearest success, run once for all
budgets. ``invariance``: changes the content and keeps the decision, run once for all budgets. ``given``: shows
what is no search's result near the input, another version that the data set gives or noise, for any goal; the only kind that is run on samples that the model
gets wrong as well, so that its records tell the answer to every input that is given."""

Loss = Callable[[Output, Tensor], Tensor]
"""(output of m samples, their labels (m,)) → (m,) values that the attacker wants to *increase*."""

FailureReason = Literal["no_start", "numerics", "crash"]
"""Why an attack has no proposal for a sample: no starting point, values that are not finite, or an
exception raised for this sample while the others went well."""


@dataclass(frozen=True)
class InputPool:
    """Other inputs of the data set that is evaluated: donors, and neighbours of other classes.

    It is the same for every batch, batch size and resume, and may hold samples of the batch itself: what seeks
    another sample must leave out its own id.

    Args:
        ids: (m,) int64 sample ids, ascending.
        load: returns images (m, …) and labels (m,) of ids; called when one of them is asked for.
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
    """The samples that an attack works on.

    Args:
        images: (n, …) clean inputs inside the model's bounds.
        labels: (n,) int64 true classes.
        ids: (n,) int64 sample ids.
        start: (n, …) images to start from (what broke a sample at another eps of the sweep), or None.
        pool: other inputs of the data set, or None where an attack is run without one.
        counterparts: (n, …) what the data set gives instead of each input (``data.protocol.Paired``), or None.
    """

    images: Tensor
    labels: Tensor
    ids: Tensor
    start: Tensor | None = None
    pool: InputPool | None = None
    counterparts: Tensor | None = None

    def __len__(self) -> int:
        return len(self.labels)

    def __getitem__(self, rows: Tensor) -> "Batch":
        """Return a subset of the batch, given positions (m,) or a mask (n,); the pool stays whole."""
        own: dict[str, Any] = {
            name: value[rows] for name, value in vars(self).items() if isinstance(value, Tensor)
        }
        return replace(self, **own)


@runtime_checkable
class Queries(Protocol):
    """The model as an attack sees it: every call is counted on the samples it is made for.

    ``rows`` are the positions (m,) in the batch of the m images given; None means images for the whole
    batch in its order. Attacks that drop decided samples from their working set must pass them.
    """

    @property
    def num_classes(self) -> int: ...

    @property
    def bounds(self) -> tuple[float, float]: ...

    @property
    def dtype(self) -> torch.dtype: ...

    @property
    def success_is_final(self) -> bool:
        """Is an answer that shows a success final?

        Not if another draw of a stochastic model may take it back, nor if a substitute gives the answers and
        another model the verdict. A search then goes on to the end of its steps and returns what is furthest
        past the decision boundary.
        """
        ...

    @property
    def model(self) -> object:
        """The classifier itself, for what only its capabilities give (``Invertible``, a code's parts)."""
        ...

    def __call__(self, images: Tensor, rows: Tensor | None = None) -> Output:
        """Return the output without a graph; one forward pass for each sample."""
        ...

    def gradient(
        self, images: Tensor, loss: Loss, rows: Tensor | None = None
    ) -> tuple[Output, Tensor]:
        """Return the output and the gradient (m, …) of each sample's loss; one pass each way."""
        ...

    def differentiable(self, images: Tensor, rows: Tensor | None = None) -> Output:
        """Return the output with its graph; a backward pass through it is counted when it is made."""
        ...

    def report_failure(self, rows: Tensor, status: FailureReason) -> None:
        """Say why there is no proposal for some samples, given their positions (m,) in the batch."""
        ...

    def log(self, name: str, values: Tensor) -> None:
        """Keep a number of each sample (n,) beside its record: which donor it had, how exact an inverse was.

        Numbers, and truth values as 0 and 1, go to the cell's notes under their name.
        """
        ...


@runtime_checkable
class Attack(Protocol):
    """An attack algorithm: its fields are its parameters, its card's parameters and its test id.

    ``norms`` are the budgets it can be asked for; ``kind`` tells the engine how to call it.
    """

    @property
    def kind(self) -> Kind: ...

    @property
    def norms(self) -> frozenset[str]: ...

    def run(self, model: Queries, batch: Batch, threat: ThreatModel, rng: SampleRNG) -> Tensor:
        """Return a proposal for each sample, (n, …), the clean image where there is none.

        Args:
            model: answers queries about the batch's samples.
            batch: n samples.
            threat: the budget to stay in, the goal to reach, the access allowed.
            rng: the samples' random numbers, to be drawn by (restart, step).
        """
        ...


@runtime_checkable
class SupportsWarmStart(Protocol):
    """An attack inside a budget that begins where the batch says, and can be run in brief: its sweeps go down."""

    @property
    def short_run(self) -> Attack | None:
        """The same search in a tenth of its steps, for samples that withstood all of it at a larger eps; None if there is none."""
        ...


@runtime_checkable
class NeedsOODData(Protocol):
    """An attack that shows inputs of another data set than the one that is evaluated; it is opened beforehand."""

    @property
    def dataset(self) -> str:
        """Name of the other data set; empty for the usual one."""
        ...

    def with_ood_data(self, ood: Dataset) -> Attack:
        """Return the attack with the other data set at hand."""
        ...


def short_run_of(attack: Attack) -> Attack | None:
    """Return an attack's brief form; None if it has none."""
    return attack.short_run if isinstance(attack, SupportsWarmStart) else None
