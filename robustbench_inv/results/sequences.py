"""Tests and intervals that stay valid however often a run is looked at before its end."""

from collections.abc import Callable, Iterable, Iterator, Sequence
from math import exp, inf, log
from typing import Any

import numpy as np

from robustbench_inv.arguments import format_eps
from robustbench_inv.results.cell import FinishedCell
from robustbench_inv.results.rate import Decision, Rate

__all__ = [
    "LEVEL",
    "confidence_sequence",
    "difference_sequence",
    "early_texts",
    "evidence",
    "log_evidence",
    "looked_texts",
]

LEVEL = 0.05
"""Largest probability that a decision is false, or that a confidence sequence ever misses the truth."""

PRIOR = 0.5
"""Both parameters of the beta mixture (Jeffreys).

Median samples to a decision at 20, 10 and 5 points of difference, with one point of samples in the other direction:
40, 80 and 212; with the uniform mixture 50, 90 and 212.
"""


def log_evidence(first: Any, second: Any) -> Any:  # noqa: ANN401 - numbers or arrays
    """Return the logarithm of ``evidence``, also of arrays of counts."""
    from scipy.special import betaln  # takes a tenth of a second, here and below

    mixture = betaln(PRIOR + first, PRIOR + second) - betaln(PRIOR, PRIOR)
    return (first + second) * log(2) + mixture


def evidence(first: int, second: int) -> float:
    """Return the e-value against equal shares, of the samples on which only one of two models is better.

    Under equality each discordant sample is a fair coin, and the beta-binomial mixture over its fairness
    M = 2ⁿ B(½ + k, ½ + n − k) / B(½, ½) is a martingale: it ever reaches 1 / LEVEL with probability LEVEL at most,
    so the test may be made after every sample. Drawn without replacement from a data set with equally many samples of both
    kinds, M is a supermartingale, and the same holds.

    Args:
        first: samples of the first model alone.
        second: samples of the second model alone.

    References:
        Ville, Étude critique de la notion de collectif, 1939; Robbins, Statistical methods related to the law of the
        iterated logarithm, Annals of Mathematical Statistics 1970, equation 11.

    Example:
        >>> evidence(0, 6) < 1 / LEVEL < evidence(0, 7)
        True
    """
    return float(exp(min(log_evidence(first, second), 700.0)))


def confidence_sequence(
    rate: Rate, population: int | None = None, level: float = LEVEL
) -> tuple[float, float]:
    """Return an interval of a share that covers it after every sample at once, with probability 1 − level.

    Without a population it is the share p that samples have in all, {p : M(k, n) / (pᵏ (1 − p)ⁿ⁻ᵏ) < 1 / level} with the
    beta-binomial mixture M. With one it is the share of a data set of this size from which the samples were drawn in random
    order without replacement: {m / N : prior(m) / posterior(m) < 1 / level} of the beta-binomial prior, which ends at the
    share itself when all are drawn.

    Args:
        rate: k successes of n trials.
        population: size N of the data set; None for the share that it was itself drawn from.
        level: probability that the share is ever outside.

    References:
        Robbins 1970, equation 11; Waudby-Smith and Ramdas, Confidence sequences for sampling without replacement,
        NeurIPS 2020, theorem 2.1 (prior-posterior ratio) with the beta-binomial prior of section 2.1.

    Example:
        >>> [round(end, 3) for end in confidence_sequence(Rate(30, 100))]
        [0.166, 0.463]
        >>> confidence_sequence(Rate(30, 100), population=100)
        (0.3, 0.3)
    """
    k, n = rate.successes, rate.trials
    if not n:
        return 0.0, 1.0
    if population is not None:
        return _finite_sequence(k, n, population, level)
    from scipy.special import betaln, xlog1py, xlogy

    bound = betaln(PRIOR + k, PRIOR + n - k) - betaln(PRIOR, PRIOR) + log(level)
    low = _bisect(lambda p: xlogy(k, p) + xlog1py(n - k, -p) > bound, 0.0, k / n) if k else 0.0
    high = _bisect(lambda p: xlogy(k, p) + xlog1py(n - k, -p) <= bound, k / n, 1.0)
    return low, high if k < n else 1.0


def looked_texts(cells: Iterable[FinishedCell]) -> Iterator[str]:
    """Yield a line about each cell that was looked at before its end, with confidence sequences of its robust accuracies."""
    for cell in cells:
        if not cell.looks:
            continue
        found = []
        for eps, rate in zip(cell.epsilons or (inf,), cell.summary.robust_accuracy, strict=True):
            low, high = confidence_sequence(rate)
            where = "" if eps == inf else f" at {cell.norm} {format_eps(eps)}"
            found.append(f"robust accuracy{where} [{100 * low:.1f}, {100 * high:.1f}] %")
        counts = f"after {_listed(cell.looks)} of {len(cell.records):,} samples"
        yield (
            f"{cell.attack_label} on {cell.model_label} was looked at {counts}, so its other intervals are too narrow. "
            f"95 % confidence sequence: {', '.join(found)}"
        )


def early_texts(decisions: Iterable[Decision], cells: Iterable[FinishedCell]) -> list[str]:
    """Return what was decided before the last sample, and what looking at the cells means for their intervals."""
    return [*(decision.sentence for decision in decisions), *looked_texts(cells)]


def difference_sequence(
    first: int, second: int, trials: int, population: int, level: float = LEVEL
) -> tuple[float, float]:
    """Return an interval of the difference of two shares of a data set, valid after every sample at once.

    Each share has the sequence of a finite population with half of the level.

    Args:
        first: samples of the first kind, those on which only one model is better.
        second: samples of the second kind, of the other model.
        trials: samples drawn in random order without replacement.
        population: size of the data set.
        level: probability that the difference of the shares, first minus second, is ever outside.

    Example:
        >>> difference_sequence(30, 10, 100, population=100)
        (0.2, 0.2)
    """
    low, high = confidence_sequence(Rate(first, trials), population, level / 2)
    least, most = confidence_sequence(Rate(second, trials), population, level / 2)
    return round(low - most, 12), round(high - least, 12)


def _finite_sequence(k: int, n: int, population: int, level: float) -> tuple[float, float]:
    m = np.arange(
        k, population - (n - k) + 1
    )  # samples with the property that the data set may have
    prior = _log_beta_binomial(m, population, PRIOR, PRIOR)
    posterior = _log_beta_binomial(m - k, population - n, PRIOR + k, PRIOR + n - k)
    kept = m[prior - posterior < -log(level)]
    return float(kept[0] / population), float(kept[-1] / population)


def _log_beta_binomial(k: np.ndarray, n: int, a: float, b: float) -> np.ndarray:
    from scipy.special import betaln, gammaln

    chosen = gammaln(n + 1) - gammaln(k + 1) - gammaln(n - k + 1)
    return chosen + betaln(k + a, n - k + b) - betaln(a, b)  # type: ignore[no-any-return]


def _bisect(reached: Callable[[float], bool], low: float, high: float) -> float:
    """Return where a condition becomes true; 60 bisections give 2 in 10¹⁸ of the range."""
    for _ in range(60):
        middle = (low + high) / 2
        low, high = (low, middle) if reached(middle) else (middle, high)
    return high


def _listed(counts: Sequence[int], most: int = 4) -> str:
    """Return numbers as words, the last instead of many."""
    listed = [f"{n:,}" for n in counts]
    shown = listed if len(listed) <= most else [*listed[: most - 1], "…", listed[-1]]
    return ", ".join(shown)
