"""Curves: the share of samples that hold, or have fallen, as a function of eps or distance, with its interval."""

from collections.abc import Sequence
from dataclasses import dataclass
from math import inf, isfinite

import numpy as np
from numpy.typing import NDArray

from robustbench_inv.reporting.cells import CellResult, Worst
from robustbench_inv.reporting.facts import IntervalOf
from robustbench_inv.results.summary import Rate

__all__ = ["Curve", "cell_curve", "fallen_curve", "held_curve", "rates_curve", "worst_curve"]

POINTS = 240
"""More steps than this in one curve cannot be told apart on paper."""


@dataclass(frozen=True)
class Curve:
    """Shares in per cent over eps or distance, with their intervals.

    Args:
        x: ascending, from 0.
        y: shares.
        low: lower ends.
        high: upper ends.
        stepped: known at every x (from distances), not only at the points of a sweep.
    """

    x: tuple[float, ...]
    y: tuple[float, ...]
    low: tuple[float, ...]
    high: tuple[float, ...]
    stepped: bool


def cell_curve(cell: CellResult, interval: IntervalOf) -> Curve:
    """Return the accuracy of a cell along its sweep, or at every distance if it minimised distances."""
    if cell.kind != "budget":
        return held_curve(cell.fell_at, interval)
    rates = [Rate(int(cell.held(eps).sum()), len(cell.records)) for eps in cell.epsilons]
    return rates_curve((0.0, *cell.epsilons), [cell.summary.clean_accuracy, *rates], interval)


def worst_curve(found: Sequence[Worst], interval: IntervalOf) -> Curve:
    """Return the worst case of one model over its levels of eps; on the same samples at each level."""
    if found[0].eps == inf:
        return held_curve(found[0].broken_at, interval)
    levels = (0.0, *(worst.eps for worst in found))
    return rates_curve(levels, [found[0].clean, *(worst.rate for worst in found)], interval)


def held_curve(broken_at: NDArray[np.float64], interval: IntervalOf) -> Curve:
    """Return the share that holds at each distance.

    Args:
        broken_at: (n,) distances at which the samples fell, inf where they held.
        interval: of a share.
    """
    x = _steps(broken_at)
    rates = [Rate(int((broken_at > at).sum()), len(broken_at)) for at in x]
    return rates_curve(x, rates, interval, True)


def fallen_curve(distances: Sequence[float], interval: IntervalOf) -> Curve:
    """Return the share that has fallen within each distance: the empirical distribution function."""
    values = np.array(distances)
    x = _steps(values)
    rates = [Rate(int((values <= at).sum()), len(values)) for at in x]
    return rates_curve(x, rates, interval, True)


def rates_curve(
    x: tuple[float, ...], rates: Sequence[Rate], interval: IntervalOf, stepped: bool = False
) -> Curve:
    """Return shares over x, known at these alone unless ``stepped``."""
    bounds = [interval(rate) for rate in rates]
    y = tuple(100 * rate.value for rate in rates)
    low, high = tuple(100 * b.low for b in bounds), tuple(100 * b.high for b in bounds)
    return Curve(x, y, low, high, stepped)


def _steps(values: NDArray[np.float64]) -> tuple[float, ...]:
    """0 and the distances at which something falls, thinned evenly where there are too many."""
    x = [0.0, *sorted({float(v) for v in values if isfinite(v) and v > 0})]
    keep = np.unique(np.linspace(0, len(x) - 1, min(len(x), POINTS)).round().astype(int))
    return tuple(x[i] for i in keep)
