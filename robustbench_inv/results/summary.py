"""Rates of the records of a cell, recomputed each time and never stored."""

from collections.abc import Sequence
from dataclasses import dataclass
from math import sqrt
from statistics import median

from robustbench_inv.results.record import Record

__all__ = ["CellSummary", "Rate", "summarise"]

Z95 = 1.959963984540054
"""Two-sided 95 % quantile of the standard normal distribution."""


@dataclass(frozen=True)
class Rate:
    """A share of trials, with its 95 % Wilson interval; 0 trials give the whole interval.

    Example:
        >>> Rate(9, 10).value, round(Rate(9, 10).low, 3), round(Rate(9, 10).high, 3)
        (0.9, 0.596, 0.982)

    References:
        Wilson, Probable inference, the law of succession, and statistical inference, JASA 1927.
    """

    successes: int
    trials: int

    @property
    def value(self) -> float:
        """The share; nan without trials."""
        return self.successes / self.trials if self.trials else float("nan")

    @property
    def low(self) -> float:
        """Lower end of the interval."""
        return 0.0 if self.successes == 0 else self._centre() - self._half()

    @property
    def high(self) -> float:
        """Upper end of the interval."""
        return 1.0 if self.successes == self.trials else self._centre() + self._half()

    def to_json(self) -> dict[str, float]:
        """Return the mapping that ``--json`` prints."""
        return {
            "successes": self.successes,
            "trials": self.trials,
            "low": self.low,
            "high": self.high,
        }

    def _centre(self) -> float:
        return (self.successes + Z95**2 / 2) / (self.trials + Z95**2)

    def _half(self) -> float:
        n, p = self.trials, self.value
        return Z95 / (n + Z95**2) * sqrt(n * p * (1 - p) + Z95**2 / 4)


@dataclass(frozen=True)
class CellSummary:
    """The rates of one cell.

    Args:
        epsilons: the sweep, ascending; empty without a budget.
        clean_accuracy: correct predictions before the attack, of all samples.
        robust_accuracy: samples that are not broken, of all; one rate for each eps, or one without a budget.
        clean_acceptance_rate: accepted clean inputs; None for a model without a reject option.
        rejected_error_rate: rejected inputs among the attacked ones that are misclassified; None likewise.
        median_distance: over the broken samples (not those misclassified before), in the threat's norm; None
            if there are none.
        forward_passes: mean over the attacked samples.
        backward_passes: mean over the attacked samples.
        statuses: number of samples with each status.
    """

    epsilons: tuple[float, ...]
    clean_accuracy: Rate
    robust_accuracy: tuple[Rate, ...]
    clean_acceptance_rate: Rate | None
    rejected_error_rate: Rate | None
    median_distance: float | None
    forward_passes: float
    backward_passes: float
    statuses: dict[str, int]


def summarise(records: Sequence[Record], epsilons: Sequence[float], norm: str) -> CellSummary:
    """Return the rates of one cell.

    Args:
        records: one for each sample.
        epsilons: ascending; empty without a budget.
        norm: the norm that distances are measured in: l0, l1, l2 or linf.
    """
    broken = [r for r in records if r.is_broken]
    attacked = [r for r in records if r.was_attacked]
    return CellSummary(
        epsilons=tuple(epsilons),
        clean_accuracy=Rate(sum(r.clean.prediction == r.label for r in records), len(records)),
        robust_accuracy=tuple(_robust_rate(records, eps) for eps in epsilons or (float("inf"),)),
        clean_acceptance_rate=_clean_acceptance_rate(records),
        rejected_error_rate=_rejected_error_rate(attacked),
        median_distance=median(getattr(r.distance, norm) for r in broken) if broken else None,
        forward_passes=_mean([r.forward_passes for r in attacked]),
        backward_passes=_mean([r.backward_passes for r in attacked]),
        statuses={
            s: sum(r.status == s for r in records) for s in sorted({r.status for r in records})
        },
    )


def _robust_rate(records: Sequence[Record], eps: float) -> Rate:
    robust = sum(r.broken_at is None or r.broken_at > eps for r in records)
    return Rate(robust, len(records))


def _clean_acceptance_rate(records: Sequence[Record]) -> Rate | None:
    accepted = [r.clean.accepted for r in records if r.clean.accepted is not None]
    return Rate(sum(accepted), len(accepted)) if accepted else None


def _rejected_error_rate(attacked: Sequence[Record]) -> Rate | None:
    wrong = [r.adversarial for r in attacked if r.adversarial.prediction != r.label]
    known = [output.accepted for output in wrong if output.accepted is not None]
    never_rejects = all(r.clean.accepted is None for r in attacked)
    return None if never_rejects else Rate(sum(not a for a in known), len(known))


def _mean(values: Sequence[int]) -> float:
    return sum(values) / len(values) if values else 0.0
