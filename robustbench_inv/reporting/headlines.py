"""The headline of a report: for each panel, what every model keeps when the strongest attack counts."""

from collections.abc import Sequence
from dataclasses import dataclass
from math import inf

from robustbench_inv.reporting.cells import (
    CellResult,
    Panel,
    Worst,
    norm_sign,
    panels,
    worst_of_all,
)
from robustbench_inv.reporting.exports import Shown, number, show_median, show_rate
from robustbench_inv.reporting.facts import IntervalOf
from robustbench_inv.reporting.statistics import Median, median_of
from robustbench_inv.results.summary import Rate

__all__ = ["Headline", "Standing", "write_headlines"]


@dataclass(frozen=True)
class Standing:
    """One model's line: what it could do, and what is left of it."""

    model: str
    clean: Shown
    left: Shown


@dataclass(frozen=True)
class Headline:
    """The shortest true answer that a panel gives.

    Args:
        panel: data set, norm and goal.
        question: what ``left`` means.
        standings: one for each model.
    """

    panel: Panel
    question: str
    standings: tuple[Standing, ...]


def write_headlines(cells: Sequence[CellResult], interval: IntervalOf) -> list[Headline]:
    """Return one headline for each panel.

    Sweeps are told at the smallest eps at which some model falls below half, without choice by hand;
    a model that is wrong on half of the clean inputs has no say in it.
    """
    return [
        _headline(panel, worst_of_all(group), interval) for panel, group in panels(cells).items()
    ]


def _headline(panel: Panel, found: Sequence[Worst], interval: IntervalOf) -> Headline:
    eps = _telling_eps(found)
    chosen = list({worst.model: worst for worst in reversed(found) if worst.eps == eps}.values())
    chosen.reverse()
    measurable = _measurable(chosen)
    standings = tuple(_standing(worst, measurable, interval) for worst in chosen)
    return Headline(panel, _question(panel, chosen), standings)


def _telling_eps(found: Sequence[Worst]) -> float:
    below = [worst.eps for worst in found if worst.rate.value < 0.5 <= worst.clean.value]
    return min(below) if below else max(worst.eps for worst in found)


def _question(panel: Panel, chosen: Sequence[Worst]) -> str:
    sign, eps = norm_sign(panel.norm), chosen[0].eps
    samples = " to ".join(f"{n:,}" for n in sorted({len(worst.ids) for worst in chosen}))
    attacks = len({cell.attack for worst in chosen for cell in worst.cells})
    by = f"the worst of {attacks} attacks" if attacks > 1 else chosen[0].cells[0].attack
    if panel.no_class:
        return f"rejected, % of {samples} inputs of no class that it knows, by {by}"
    if panel.keeps:
        return f"decision kept though the class changed, % of {samples} samples, by {by}"
    if eps == inf and not _measurable(chosen):
        return f"decision changed at any {sign} distance, % of {samples} samples, by {by}"
    if eps == inf:
        return f"median {sign} distance to a wrong decision, {samples} samples, by {by}"
    return f"accuracy in % at {sign} ≤ {number(eps)}, {samples} samples, {by}"


def _standing(worst: Worst, measurable: bool, interval: IntervalOf) -> Standing:
    clean, left = show_rate(worst.clean, interval(worst.clean)), worst.rate
    if worst.eps == inf and measurable:
        return Standing(worst.model, clean, show_median(_median(worst)))
    if worst.eps == inf and not worst.panel.no_class:
        left = Rate(left.trials - left.successes, left.trials)
    return Standing(worst.model, clean, show_rate(left, interval(left)))


def _measurable(chosen: Sequence[Worst]) -> bool:
    """Say whether half of every model's samples fell, so that medians can be compared."""
    medians = [_median(worst) for worst in chosen]
    panel = chosen[0].panel
    return not (panel.keeps or panel.no_class) and all(
        m is not None and m.value < inf for m in medians
    )


def _median(worst: Worst) -> Median | None:
    return median_of([float(d) for d in worst.broken_at if d > 0])
