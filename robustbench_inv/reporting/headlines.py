"""The main result of each group of cells, for the first screen of a report."""

from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass, field
from math import inf
from typing import Any

import numpy as np
from numpy.typing import NDArray

from robustbench_inv.arguments import format_eps
from robustbench_inv.reporting.facts import IntervalOf, judges_text
from robustbench_inv.reporting.rejection_report import GOAL_TEXTS
from robustbench_inv.reporting.run_results import (
    CellGroup,
    WorstCase,
    group_cells,
    most_attacked,
    worst_cases,
)
from robustbench_inv.reporting.statistics import median_of
from robustbench_inv.reporting.table_formats import (
    BLANK,
    TableCell,
    median_cell,
    norm_symbol,
    rate_cell,
)
from robustbench_inv.results.cell import FinishedCell

__all__ = ["Headline", "HeadlineRow", "build_headlines", "count_survived", "decisive_eps"]


@dataclass(frozen=True)
class HeadlineRow:
    """One model's line: clean accuracy, result, and the strongest attack in words."""

    model: str
    clean: TableCell
    result: TableCell
    attack: str = ""


@dataclass(frozen=True)
class Headline:
    """The main result of a group of cells.

    Args:
        group: data set, norm, goal and oracle.
        caption: what ``result`` means, of how many samples and by which attacks.
        measure: what ``result`` means.
        rows: one for each model.
        judges: the oracles of changed inputs, in words; empty without an oracle.
        cases: the worst case behind the result, by model.
        survived: by model (n,), a number for each sample of its case, larger for a better model: at how many of the eps
            that all models have it is robust, the distance at which it is broken, or 1 if a change of class is noticed.
    """

    group: CellGroup
    caption: str
    measure: str
    rows: tuple[HeadlineRow, ...]
    judges: str = ""
    cases: Mapping[str, WorstCase] = field(default_factory=dict, repr=False)
    survived: Mapping[str, NDArray[Any]] = field(default_factory=dict, repr=False)


def build_headlines(cells: Sequence[FinishedCell], interval: IntervalOf) -> list[Headline]:
    """Return one headline for each group of cells, with a row for each model.

    For a sweep the result is that at the smallest eps where the accuracy of some model is below one half.
    Models that misclassify half of the clean inputs do not count for this choice. Of invariance attacks it is that at
    the largest eps.
    """
    groups = ((panel, worst_cases(group, cells)) for panel, group in group_cells(cells).items())
    return [_headline(panel, found, interval) for panel, found in groups if found]


def _headline(panel: CellGroup, found: Sequence[WorstCase], interval: IntervalOf) -> Headline:
    eps = decisive_eps(panel, found)
    by_model: dict[str, list[WorstCase]] = {}
    for worst in found:
        by_model.setdefault(worst.model, []).append(worst)
    at_eps = {model: [w for w in mine if w.eps == eps] for model, mine in by_model.items()}
    chosen = {model: most_attacked(here)[0] for model, here in at_eps.items() if here}
    measure = _measure(panel, list(chosen.values()))
    rows = []
    for model, mine in by_model.items():
        worst = chosen.get(model) or most_attacked(mine)[0]
        result = measure.show(worst, interval) if model in chosen else BLANK
        attack = _strongest(worst) + _certified(worst, interval) if model in chosen else ""
        clean = rate_cell(worst.clean, interval(worst.clean))
        rows.append(HeadlineRow(model, clean, result, attack))
    caption = _headline_caption(measure, list(chosen.values()))
    text = measure.text.removesuffix(" of").removesuffix(", over")
    judges = judges_text(cell for worst in found for cell in worst.cells) if panel.oracle else ""
    sweeps = {m: [w for w in by_model[m] if w.ids == case.ids] for m, case in chosen.items()}
    common = set.intersection(*({w.eps for w in sweep} for sweep in sweeps.values()))
    survived = {
        model: _survived(chosen[model], [w for w in sweep if w.eps in common])
        for model, sweep in sweeps.items()
    }
    return Headline(panel, caption, text, tuple(rows), judges, chosen, survived)


def _strongest(worst: WorstCase) -> str:
    if not worst.success_rate.successes:
        return "no attack succeeded"
    name = worst.strongest[0]
    return f"strongest: {name}" if len(worst.attacks) > 1 else f"by {name}"


def _certified(worst: WorstCase, interval: IntervalOf) -> str:
    """Return the certified accuracy with its interval, and how many samples are open; empty without certificates."""
    found = worst.sandwich
    if found is None:
        return ""
    more = (
        f", {found.by_verifier} more broken by {', '.join(found.methods)}"
        if found.by_verifier
        else ""
    )
    lower = rate_cell(found.certified, interval(found.certified)).plain
    return f"; certified {lower}, {found.open} open{more}"


def _survived(case: WorstCase, sweep: Sequence[WorstCase]) -> NDArray[Any]:
    """Return a number for each sample by which models are compared, (n,)."""
    if case.group.keeps:
        return case.robust & case.attacked
    return case.broken_at if case.eps == inf else count_survived(sweep)


def count_survived(cases: Sequence[WorstCase]) -> NDArray[np.int64]:
    """Return at how many eps each sample is robust, (n,).

    Args:
        cases: of one model on the same samples, one for each eps.
    """
    found: NDArray[np.int64] = np.array([case.robust for case in cases]).sum(axis=0)
    return found


def decisive_eps(panel: CellGroup, found: Sequence[WorstCase]) -> float:
    """Return the eps of a sweep at which models are compared: the smallest that takes a model below one half.

    Args:
        panel: the group of the cells; of invariance attacks it is the largest eps.
        found: the worst cases of all models of the group.
    """
    below = [worst.eps for worst in found if worst.rate.value < 0.5 <= worst.clean.value]
    return min(below) if below and not panel.keeps else max(worst.eps for worst in found)


@dataclass(frozen=True)
class _Measure:
    """The quantity of a headline: what it is, the inputs that it is a share of, and how it is shown."""

    text: str
    inputs: str
    show: Callable[[WorstCase, IntervalOf], TableCell]


ATTACKED, OOD_INPUTS = "attacked samples", "out-of-distribution inputs"
"""Inputs of a share that leaves out samples which are misclassified without an attack."""


def _measure(panel: CellGroup, chosen: Sequence[WorstCase]) -> _Measure:
    sign, eps = norm_symbol(panel.norm), chosen[0].eps
    within = "" if eps == inf else f" at {sign} ≤ {format_eps(eps)}"
    reached = GOAL_TEXTS.get(panel.goal, f"goal {panel.goal} reached")
    if panel.no_class:
        return _Measure("rejected, % of", OOD_INPUTS, _show_withstood)
    if panel.keeps:
        text = f"prediction unchanged although the class changed{within}, % of"
        return _Measure(text, ATTACKED, _show_success)
    if panel.fixed:
        return _Measure("correct predictions on fixed inputs, % of", "samples", _show_rate)
    if eps < inf:
        return _Measure(f"robust accuracy{within}, % of", "samples", _show_rate)
    if all(_has_median(worst) for worst in chosen):
        text = f"median {sign} distance to an input that is {reached}, over"
        return _Measure(text, ATTACKED, _show_median)
    return _Measure(f"{reached} at any {sign} distance, % of", ATTACKED, _show_success)


def _headline_caption(measure: _Measure, chosen: Sequence[WorstCase]) -> str:
    attacked = measure.inputs in (ATTACKED, OOD_INPUTS)
    counts = {w.success_rate.trials if attacked else w.rate.trials for w in chosen}
    count = " to ".join(f"{n:,}" for n in sorted({min(counts), max(counts)}))
    attacks = list(dict.fromkeys(name for worst in chosen for name in worst.attacks))
    by = f"worst case over {len(attacks)} attacks" if len(attacks) > 1 else attacks[0]
    inputs = measure.inputs.removesuffix("s") if count == "1" else measure.inputs
    return f"{measure.text} {count} {inputs}, by {by}"


def _show_rate(worst: WorstCase, interval: IntervalOf) -> TableCell:
    return rate_cell(worst.rate, interval(worst.rate))


def _show_withstood(worst: WorstCase, interval: IntervalOf) -> TableCell:
    return rate_cell(worst.withstood_rate, interval(worst.withstood_rate))


def _show_success(worst: WorstCase, interval: IntervalOf) -> TableCell:
    return rate_cell(worst.success_rate, interval(worst.success_rate))


def _show_median(worst: WorstCase, _: IntervalOf) -> TableCell:
    return median_cell(median_of(worst.distances))


def _has_median(worst: WorstCase) -> bool:
    """Is half of the attacked samples broken, so that medians can be compared?"""
    median = median_of(worst.distances)
    return median is not None and median.value < inf
