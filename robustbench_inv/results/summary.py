"""Rates of the records of a cell, recomputed each time and never stored."""

from collections.abc import Iterable, Sequence
from dataclasses import dataclass
from math import inf

import numpy as np
from numpy.typing import NDArray

from robustbench_inv.results.rate import Rate
from robustbench_inv.results.record import STATUSES, Record
from robustbench_inv.results.record_columns import Bools, Floats, OutputColumns, Records

__all__ = [
    "CellSummary",
    "DistanceCurve",
    "Distances",
    "Rate",
    "RejectionRates",
    "break_points",
    "broken_within",
    "distance_curve",
    "largest_finite",
    "median_distance",
    "rejection_rates",
    "same_eps",
    "share_of",
    "summarise",
]

EPS_TOLERANCE = 1e-9
"""Relative difference up to which two numbers are the same eps: threats and tables hold eps with ten digits."""


def same_eps(one: float, other: float) -> bool:
    """Are two numbers the same eps, but for rounding?

    Example:
        >>> same_eps(0.3, 3 * 0.1), same_eps(1e-10, 2e-10)
        (True, False)
    """
    return abs(one - other) <= EPS_TOLERANCE * max(abs(one), abs(other))


def broken_within(broken_at: NDArray[np.float64], eps: float) -> NDArray[np.bool_]:
    """Return which samples are broken at ``eps``: the only comparison of distances with a budget.

    Args:
        broken_at: (n, …) smallest eps or distance that breaks each sample; inf for robust ones.
        eps: the budget; inf for any distance.
    """
    broken: NDArray[np.bool_] = (broken_at < inf) & (broken_at <= eps * (1 + EPS_TOLERANCE))
    return broken


Distances = Sequence[float] | Floats
"""Distances of samples, inf for robust ones."""


def median_distance(distances: Distances) -> float | None:
    """Return the median of distances, of which robust samples have inf; None without any.

    Example:
        >>> median_distance([1.0, 2.0, inf]), median_distance([1.0, inf]), median_distance([])
        (2.0, inf, None)
    """
    x, n = np.sort(np.asarray(distances)), len(distances)
    if not n:
        return None
    high: float = x[n // 2].item()
    return high if n % 2 or high == inf else (x[n // 2 - 1].item() + high) / 2


def largest_finite(values: Iterable[Distances], otherwise: float = 0.0) -> float:
    """Return the largest of some distances that is not inf; ``otherwise`` without one."""
    each = (np.asarray(found, float) for found in values)
    finite = (found[found < inf] for found in each)
    return max((float(found.max()) for found in finite if len(found)), default=otherwise)


CURVE_POINTS = 240
"""More steps than this in one curve cannot be told apart on paper."""


def break_points(values: Distances, most: int = CURVE_POINTS) -> tuple[float, ...]:
    """Return 0 and the distances at which a sample is broken, thinned evenly if there are more than ``most``."""
    found = np.unique(np.asarray(values, float))
    x = np.concatenate([[0.0], found[(found > 0) & (found < inf)]])
    keep = np.unique(np.linspace(0, len(x) - 1, min(len(x), most)).round().astype(int))
    return tuple(x[keep].tolist())


@dataclass(frozen=True)
class DistanceCurve:
    """The attacked samples that are broken within each distance, as a step function.

    Args:
        distances: ascending, from 0.
        rates: the share at each of them.
        median: of all distances, inf if at most half of the samples are broken; None without samples.
        at_any_distance: the share without a budget.
    """

    distances: tuple[float, ...]
    rates: tuple[Rate, ...]
    median: float | None
    at_any_distance: Rate

    def to_json(self) -> dict[str, object]:
        """Return the mapping that ``--json`` prints; an infinite median becomes null."""
        points = zip(self.distances, self.rates, strict=True)
        return {
            "median": None if self.median == inf else self.median,
            "at_any_distance": self.at_any_distance.to_json(),
            "curve": [{"distance": at, **rate.to_json()} for at, rate in points],
        }


def distance_curve(values: Distances, most: int = CURVE_POINTS) -> DistanceCurve:
    """Return the curve of the distances at which samples are broken, inf for those that are not.

    Example:
        >>> curve = distance_curve([0.5, 2.0, inf])
        >>> curve.distances, [rate.successes for rate in curve.rates], curve.median
        ((0.0, 0.5, 2.0), [0, 1, 2], 2.0)
    """
    found = np.sort(np.asarray(values, dtype=float))
    broken = found[found < inf]

    def rate(at: float) -> Rate:
        return Rate(int(np.searchsorted(broken, at, side="right")), len(found))

    x = break_points(values, most)
    return DistanceCurve(x, tuple(map(rate, x)), median_distance(values), rate(inf))


@dataclass(frozen=True)
class RejectionRates:
    """The rates of a model with a reject option; a model that rejects everything scores well on none of them.

    A prediction is correct if it is the oracle's class, or the label without one. Inputs that belong to no class have
    no correct prediction: their rates of correct and wrong predictions are of no trials.

    Args:
        false_rejection: rejected clean inputs.
        clean_accuracy_with_rejection: clean inputs that are accepted and correct.
        accuracy_with_rejection: adversarial inputs that are accepted and correct; a rejection is an error.
        accuracy_on_accepted: correct predictions among the accepted adversarial inputs.
        undetected_errors: adversarial inputs that are misclassified and accepted, of all.
        rejected_errors: rejected inputs among the misclassified adversarial ones; of few, it means little.
        rejected_adversarial: rejected inputs among the attacked ones, whatever the prediction; where they belong to no
            class, samples without a valid input count as rejected.
    """

    false_rejection: Rate
    clean_accuracy_with_rejection: Rate
    accuracy_with_rejection: Rate
    accuracy_on_accepted: Rate
    undetected_errors: Rate
    rejected_errors: Rate
    rejected_adversarial: Rate

    def to_json(self) -> dict[str, dict[str, float]]:
        """Return each rate as ``--json`` prints it."""
        return {name: rate.to_json() for name, rate in vars(self).items()}


def rejection_rates(records: Sequence[Record], *, no_class: bool = False) -> RejectionRates:
    """Return the rates of a cell whose model has a reject option.

    Args:
        records: one for each sample.
        no_class: do the adversarial inputs belong to no class?
    """
    found, n = Records.of(records).columns, len(records)
    attacked, right = found.was_attacked, found.is_correct
    taken = ~found.clean.rejected
    classed = np.full(n, not no_class)
    accepted = classed & ~found.adversarial.rejected
    correct = _count(right & accepted)
    # inputs of no class that break no sample are rejected, or there was no valid input
    unbroken = share_of(~found.is_broken, attacked)
    return RejectionRates(
        false_rejection=Rate(n - _count(taken), n),
        clean_accuracy_with_rejection=Rate(_count(found.is_clean_correct & taken), n),
        accuracy_with_rejection=Rate(correct, _count(classed)),
        accuracy_on_accepted=Rate(correct, _count(accepted)),
        undetected_errors=Rate(_count(accepted) - correct, _count(classed)),
        rejected_errors=_rejected_rate(found.adversarial, classed & attacked & ~right),
        rejected_adversarial=unbroken if no_class else _rejected_rate(found.adversarial, attacked),
    )


def _rejected_rate(outputs: OutputColumns, among: Bools) -> Rate:
    return share_of(outputs.rejected, among)


def share_of(holds: Bools, among: Bools) -> Rate:
    """Return how many samples have a property, both (n,), among some of them."""
    return Rate(_count(holds & among), _count(among))


def _count(holds: Bools) -> int:
    return int(np.count_nonzero(holds))


@dataclass(frozen=True)
class CellSummary:
    """The rates of one cell.

    Args:
        epsilons: the sweep, ascending; empty without a budget.
        clean_accuracy: correct predictions before the attack, of all samples.
        robust_accuracy: samples that are neither misclassified before the attack nor broken by it, of all; one rate
            for each eps, or one without a budget.
        attack_success_rate: samples that the attack broke, of the attacked ones, at the largest eps.
        median_distance: over the attacked samples, in the threat's norm, inf for robust ones; None if no sample was
            attacked, or if the attack minimises no distance.
        rejection: rates of a model with a reject option; None for any other model.
        forward_passes: mean over the attacked samples.
        backward_passes: mean over the attacked samples.
        statuses: number of samples with each status.
    """

    epsilons: tuple[float, ...]
    clean_accuracy: Rate
    robust_accuracy: tuple[Rate, ...]
    attack_success_rate: Rate
    median_distance: float | None
    rejection: RejectionRates | None
    forward_passes: float
    backward_passes: float
    statuses: dict[str, int]


def summarise(
    records: Sequence[Record],
    epsilons: Sequence[float],
    distances: Distances | None,
    *,
    no_class: bool = False,
) -> CellSummary:
    """Return the rates of one cell.

    Args:
        records: one for each sample.
        epsilons: ascending; empty without a budget.
        distances: of the attacked samples, inf for robust ones; None if the attack minimises no distance.
        no_class: do the adversarial inputs belong to no class?
    """
    found, n = Records.of(records).columns, len(records)
    attacked, counts = found.was_attacked, np.bincount(found.status, minlength=len(STATUSES))
    can_reject = bool((found.clean.accepted >= 0).any())
    return CellSummary(
        epsilons=tuple(epsilons),
        clean_accuracy=Rate(_count(found.is_clean_correct), n),
        robust_accuracy=tuple(
            Rate(n - _count(broken_within(found.broken_at, eps)), n) for eps in epsilons or (inf,)
        ),
        attack_success_rate=share_of(found.is_broken, attacked),
        median_distance=None if distances is None else median_distance(distances),
        rejection=rejection_rates(records, no_class=no_class) if can_reject else None,
        forward_passes=_mean(found.forward_passes[attacked]),
        backward_passes=_mean(found.backward_passes[attacked]),
        statuses={
            s: int(counts[STATUSES.index(s)]) for s in sorted(STATUSES) if counts[STATUSES.index(s)]
        },
    )


def _mean(values: NDArray[np.int64]) -> float:
    return int(values.sum()) / len(values) if len(values) else 0.0
