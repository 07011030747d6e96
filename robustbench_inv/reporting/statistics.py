"""Confidence intervals of rates and medians, and paired comparisons on the same samples."""

from collections.abc import Callable, Sequence
from dataclasses import dataclass
from itertools import combinations
from math import inf, sqrt
from statistics import fmean, variance
from typing import Any

import numpy as np
from numpy.typing import NDArray
from scipy.special import bdtr, betaincinv, ndtri, stdtrit

from robustbench_inv.errors import BadParameter
from robustbench_inv.results.summary import Distances, Rate, median_distance

__all__ = [
    "CONFIDENCE",
    "INTERVALS",
    "SIGNIFICANCE",
    "Interval",
    "Median",
    "PairedOutcomes",
    "clopper_pearson",
    "holm",
    "mcnemar",
    "mean_interval",
    "median_of",
    "rank_interval",
    "tango",
    "wilson",
]

CONFIDENCE = 0.95

SIGNIFICANCE = 0.05
"""Largest adjusted p value of a difference that is called one."""


@dataclass(frozen=True)
class Interval:
    """A two-sided 95 % confidence interval, ends included."""

    low: float
    high: float

    def __contains__(self, value: float) -> bool:
        return self.low <= value <= self.high


def wilson(rate: Rate) -> Interval:
    """Return the score interval of a share, the one that ``Rate`` itself carries."""
    return Interval(rate.low, rate.high)


def clopper_pearson(rate: Rate) -> Interval:
    """Return the exact interval of a share: it covers in at least 95 % of repetitions, whatever the share.

    Args:
        rate: k successes of n trials; without trials the interval is [0, 1].

    References:
        Clopper and Pearson, The use of confidence or fiducial limits, Biometrika 1934; as beta
        quantiles in Brown, Cai and DasGupta, Statistical Science 2001, section 4.2.1.

    Example:
        >>> interval = clopper_pearson(Rate(0, 10))
        >>> interval.low, round(interval.high, 4)
        (0.0, 0.3085)
    """
    k, n, tail = rate.successes, rate.trials, (1 - CONFIDENCE) / 2
    low = float(betaincinv(k, n - k + 1, tail)) if k else 0.0
    high = float(betaincinv(k + 1, n - k, 1 - tail)) if k < n else 1.0
    return Interval(low, high)


INTERVALS: dict[str, Callable[[Rate], Interval]] = {
    "wilson": wilson,
    "clopper-pearson": clopper_pearson,
}
"""The intervals of a rate that a report definition can name."""


Truths = Sequence[bool] | NDArray[np.bool_]


@dataclass(frozen=True)
class PairedOutcomes:
    """Two outcomes of each sample: how many are true in both, in one only, in neither.

    Args:
        both: true in the first and in the second.
        first: true in the first only.
        second: true in the second only.
        neither: true in none.
    """

    both: int
    first: int
    second: int
    neither: int

    @classmethod
    def of(cls, first: Truths, second: Truths) -> "PairedOutcomes":
        """Count two outcomes, given in the same order of samples.

        Raises:
            BadParameter: if they are not equally many.
        """
        a, b = np.asarray(first, bool), np.asarray(second, bool)
        if len(a) != len(b):
            raise BadParameter(
                "outcomes are not paired", got=len(second), expected=f"{len(first)} samples"
            )
        return cls(*(int(each.sum()) for each in (a & b, a & ~b, ~a & b, ~a & ~b)))

    @property
    def total(self) -> int:
        """Number of samples."""
        return self.both + self.first + self.second + self.neither

    @property
    def difference(self) -> float:
        """First share minus second share; nan without samples."""
        return (self.first - self.second) / self.total if self.total else float("nan")


def mcnemar(pairs: PairedOutcomes) -> float:
    """Return the exact two-sided p value that both shares are equal.

    Only the discordant samples count; under equality each is a fair coin.

    References:
        McNemar, Psychometrika 1947; exact form in Fagerland, Lydersen and Laake, BMC Medical Research
        Methodology 2013, equation 2.

    Example:
        >>> mcnemar(PairedOutcomes(both=80, first=5, second=0, neither=15))
        0.0625
    """
    n, k = pairs.first + pairs.second, min(pairs.first, pairs.second)
    return min(1.0, 2 * float(bdtr(k, n, 0.5))) if n else 1.0


def holm(values: Sequence[float]) -> list[float]:
    """Return p values adjusted for their number: below 5 % by chance for any of them in at most 5 % of repetitions.

    References:
        Holm, A simple sequentially rejective multiple test procedure, Scandinavian Journal of Statistics 1979.

    Example:
        >>> holm([0.01, 0.5, 0.02])
        [0.03, 0.5, 0.04]
    """
    p = np.asarray(values, dtype=float)
    order, n = p.argsort(kind="stable"), len(p)
    steps = np.maximum.accumulate(np.minimum(1.0, p[order] * np.arange(n, 0, -1)))
    found = np.empty(n)
    found[order] = steps
    return [float(each) for each in found]


def tango(pairs: PairedOutcomes) -> Interval:
    """Return the score interval of the difference of two paired shares.

    It holds the differences Δ that a score test with the share of discordant samples fitted under Δ
    does not reject; it excludes 0 exactly when McNemar's asymptotic test rejects equality.

    Args:
        pairs: the paired outcomes; without samples the interval is [−1, 1].

    References:
        Tango, Equivalence test and confidence interval for the difference in proportions for the
        paired-sample design, Statistics in Medicine 1998, equations 18 and 26.

    Example:
        >>> interval = tango(PairedOutcomes(both=1, first=1, second=7, neither=12))
        >>> round(interval.low, 3), round(interval.high, 3)
        (-0.517, -0.026)
    """
    if pairs.total == 0:
        return Interval(-1.0, 1.0)
    z = float(ndtri((1 + CONFIDENCE) / 2))
    difference = pairs.difference
    low = _bisect(lambda Δ: _tango_score(pairs, Δ) - z, -1.0, difference)
    high = _bisect(lambda Δ: _tango_score(pairs, Δ) + z, difference, 1.0)
    return Interval(low, high)


def mean_interval(values: Sequence[float], subtracted: Sequence[float] = ()) -> Interval:
    """Return the interval of a mean, or of the difference of two means, by Student's and Welch's t.

    Args:
        values: one for each training; of a single one the interval has no ends.
        subtracted: likewise; empty for the mean of ``values`` itself.

    References:
        Welch, The generalization of "Student's" problem when several different population variances are involved,
        Biometrika 1947.

    Example:
        >>> interval = mean_interval([0.81, 0.91, 0.86])
        >>> round(interval.low, 3), round(interval.high, 3)
        (0.736, 0.984)
    """
    difference = fmean(values) - (fmean(subtracted) if subtracted else 0)
    if min(len(values), len(subtracted) or len(values)) < 2:
        return Interval(-inf, inf)
    parts = [(variance(each) / len(each), len(each) - 1) for each in (values, subtracted) if each]
    total = sum(part for part, _ in parts)
    if total == 0:
        return Interval(difference, difference)
    freedom = total**2 / sum(part**2 / degrees for part, degrees in parts)
    half = float(stdtrit(freedom, (1 + CONFIDENCE) / 2)) * sqrt(total)
    return Interval(difference - half, difference + half)


def rank_interval(survived: Sequence[NDArray[Any]]) -> list[tuple[int, int]]:
    """Return the best and the worst rank of each model that paired tests on the same samples allow.

    A model is better than another one if it survives more on significantly more samples: sign test, adjusted for all
    pairs by Holm's method. Of truth values the sign test is McNemar's exact test.

    Args:
        survived: of each model (n,), whether it is robust on a sample, or at how many budgets.

    Example:
        >>> good, bad = np.arange(100) < 90, np.arange(100) < 20
        >>> rank_interval([good, bad, ~bad])
        [(1, 2), (3, 3), (1, 2)]
    """
    pairs = list(combinations(range(len(survived)), 2))
    outcomes = [PairedOutcomes.of(a > b, b > a) for a, b in combinations(survived, 2)]
    better = [0] * len(survived)
    worse = [0] * len(survived)
    adjusted = holm([mcnemar(each) for each in outcomes])
    for (i, j), found, p in zip(pairs, outcomes, adjusted, strict=True):
        if p <= SIGNIFICANCE:
            winner, loser = (i, j) if found.difference > 0 else (j, i)
            better[loser] += 1
            worse[winner] += 1
    return [(1 + b, len(survived) - w) for b, w in zip(better, worse, strict=True)]


@dataclass(frozen=True)
class Median:
    """A median with its 95 % interval; None where there are too few values for one."""

    value: float
    interval: Interval | None


def median_of(values: Distances) -> Median | None:
    """Return the median with its order-statistic interval, which assumes no distribution.

    Args:
        values: any numbers; inf stands for a sample that never fell.

    Returns:
        The median, or None without values. Fewer than 6 values give no interval.

    References:
        David and Nagaraja, Order Statistics, 3rd edition 2003, section 7.1.

    Example:
        >>> median_of(range(1, 11))
        Median(value=5.5, interval=Interval(low=2, high=9))
    """
    x, n, middle = np.sort(np.asarray(values)), len(values), median_distance(values)
    if middle is None:
        return None
    r = _order_rank(n)
    return Median(middle, Interval(x[r - 1].item(), x[n - r].item()) if r else None)


def _tango_score(pairs: PairedOutcomes, Δ: float) -> float:
    """Tango's equation 18: the standardised distance of the difference from Δ."""
    n, b, c = pairs.total, pairs.first, pairs.second
    A, B, C = 2 * n, -b - c + (2 * n - b + c) * Δ, -c * Δ * (1 - Δ)
    q = (sqrt(max(B * B - 4 * A * C, 0.0)) - B) / (2 * A)
    variance = n * (2 * q + Δ * (1 - Δ))
    distance = b - c - n * Δ
    if variance <= 0:
        return 0.0 if distance == 0 else inf if distance > 0 else -inf
    return distance / sqrt(variance)


def _bisect(decreasing: Callable[[float], float], low: float, high: float) -> float:
    """Return where a decreasing function changes sign; 60 bisections give 2 in 10¹⁸ of the range."""
    if decreasing(low) <= 0:
        return low
    for _ in range(60):
        middle = (low + high) / 2
        low, high = (middle, high) if decreasing(middle) > 0 else (low, middle)
    return high


def _order_rank(n: int) -> int:
    """The largest r with P(Binomial(n, ½) < r) ≤ 2.5 %; 0 when there is none."""
    below = bdtr(np.arange(n // 2 + 1), n, 0.5)
    return int(np.searchsorted(below, (1 - CONFIDENCE) / 2, side="right"))
