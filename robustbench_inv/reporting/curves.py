"""Curves of accuracy and of distances with their intervals, and the band between certified and attacked accuracy."""

from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from math import inf
from typing import Any

import numpy as np
from matplotlib.axes import Axes
from numpy.typing import NDArray

from robustbench_inv.reporting.facts import IntervalOf
from robustbench_inv.reporting.run_results import WorstCase
from robustbench_inv.results.cell import FinishedCell
from robustbench_inv.results.summary import Distances, Rate, break_points, distance_curve

__all__ = [
    "CERTIFIED_STYLE",
    "CERTIFIED_TEXT",
    "Curve",
    "broken_curve",
    "cell_curve",
    "certified_curve",
    "draw_certified",
    "draw_curve",
    "rates_curve",
    "robust_curve",
    "worst_curve",
]

CERTIFIED_TEXT = " The dotted line is the certified accuracy: the robust accuracy lies in the hatched band above it."

CERTIFIED_STYLE: Mapping[str, Any] = {
    "linestyle": ":",
    "marker": ".",
    "drawstyle": "steps-pre",  # what is proven at an eps holds at smaller ones, not more
}
"""How a certified accuracy is drawn that is known at some eps."""


@dataclass(frozen=True)
class Curve:
    """Shares in per cent over eps or distance, with their intervals.

    Args:
        x: ascending, from 0.
        y, low, high: shares, and the ends of their intervals.
        stepped: known at every x (from distances), not only at the points of a sweep.
    """

    x: tuple[float, ...]
    y: tuple[float, ...]
    low: tuple[float, ...]
    high: tuple[float, ...]
    stepped: bool


def cell_curve(cell: FinishedCell, interval: IntervalOf) -> Curve:
    """Return the accuracy of a cell along its sweep, or at every distance if it minimised distances."""
    if cell.kind != "fixed-budget":
        return robust_curve(cell.failure_distance, interval)
    rates = [cell.robust_rate(0.0), *cell.summary.robust_accuracy]
    return rates_curve((0.0, *cell.epsilons), rates, interval)


def worst_curve(found: Sequence[WorstCase], interval: IntervalOf) -> Curve:
    """Return the worst case of one model over its levels of eps; on the same samples at each level."""
    if found[0].eps == inf:
        return robust_curve(found[0].broken_at, interval)
    levels = (0.0, *(worst.eps for worst in found))
    return rates_curve(levels, [found[0].at(0.0).rate, *(w.rate for w in found)], interval)


def robust_curve(broken_at: NDArray[np.float64], interval: IntervalOf) -> Curve:
    """Return the share that holds at each distance.

    Args:
        broken_at: (n,) distances at which the samples are broken; inf for robust ones.
        interval: of a share.
    """
    x, found, n = break_points(broken_at), np.sort(broken_at), len(broken_at)
    rates = [Rate(n - int(np.searchsorted(found, at, side="right")), n) for at in x]
    return rates_curve(x, rates, interval, True)


def broken_curve(distances: Distances, interval: IntervalOf) -> Curve:
    """Return the share that is broken within each distance: the empirical distribution function."""
    found = distance_curve(distances)
    return rates_curve(found.distances, found.rates, interval, True)


def rates_curve(
    x: tuple[float, ...], rates: Sequence[Rate], interval: IntervalOf, stepped: bool = False
) -> Curve:
    """Return shares over x, known at these alone unless ``stepped``."""
    bounds = [interval(rate) for rate in rates]
    y = tuple(100 * rate.value for rate in rates)
    low, high = tuple(100 * b.low for b in bounds), tuple(100 * b.high for b in bounds)
    return Curve(x, y, low, high, stepped)


def draw_curve(axes: Axes, curve: Curve, colour: str, style: Mapping[str, Any]) -> None:
    """Draw a line on its band, up to the axes' end; a stepped one is known everywhere and needs no markers."""
    band: dict[str, Any] = {"color": colour, "alpha": 0.14, "linewidth": 0}
    if not curve.stepped:
        axes.plot(curve.x, curve.y, color=colour, **style)
        step: Any = {"steps-pre": "pre"}.get(style.get("drawstyle", ""))
        axes.fill_between(curve.x, curve.low, curve.high, step=step, **band)
        return
    x = np.array([*curve.x, max(axes.get_xlim()[1], curve.x[-1])])
    y, low, high = (np.array([*v, v[-1]]) for v in (curve.y, curve.low, curve.high))
    axes.step(x, y, where="post", color=colour, **{**style, "marker": None})
    axes.fill_between(x, low, high, step="post", **band)


def certified_curve(found: Sequence[WorstCase], interval: IntervalOf) -> Curve | None:
    """Return the certified accuracy of one model over its levels of eps; None if it has no certificates."""
    known = [(worst.eps, worst.sandwich) for worst in found]
    rates = [each.certified for _, each in known if each is not None]
    if not rates or len(rates) < len(known):
        return None
    levels = (0.0, *(eps for eps, _ in known))
    return rates_curve(levels, [found[0].at(0.0).rate, *rates], interval)


def draw_certified(
    axes: Axes, found: Sequence[WorstCase], interval: IntervalOf, colour: str
) -> None:
    """Draw the certified accuracy as a dotted line, and hatch the band up to the accuracy under attack."""
    curve = certified_curve(found, interval)
    if curve is None:
        return
    ends = [(i, i + 1) for i in range(len(curve.x) - 1)]
    x, above = (
        [v[i] for pair in ends for i in pair] for v in (curve.x, worst_curve(found, interval).y)
    )
    axes.fill_between(
        x,
        [curve.y[i] for _, i in ends for _ in range(2)],
        above,
        facecolor="none",
        edgecolor=colour,
        hatch="////",
        linewidth=0,
        alpha=0.35,
    )
    draw_curve(axes, curve, colour, CERTIFIED_STYLE)
