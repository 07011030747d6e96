"""The tables of a report, built from cells: worst of all, each attack, distances, rejection, models compared, cost."""

from collections.abc import Callable, Iterable, Sequence
from itertools import combinations
from math import inf, isinf, nan
from typing import Any

import numpy as np
import pandas as pd

from robustbench_inv.reporting.agreement import agreement_tables
from robustbench_inv.reporting.breakers import breaker_tables
from robustbench_inv.reporting.cells import (
    CellResult,
    Panel,
    Worst,
    norm_sign,
    panels,
    worst_of_all,
)
from robustbench_inv.reporting.definitions import TableKind
from robustbench_inv.reporting.exports import (
    EMPTY,
    Shown,
    Table,
    number,
    show_median,
    show_rate,
    slug,
)
from robustbench_inv.reporting.facts import (
    FAILURES,
    STATUSES,
    IntervalOf,
    budget_of,
    distances_of,
    identity_facts,
    oracle_of,
    place_facts,
    quantile,
    rate_facts,
    summary_frame,
)
from robustbench_inv.reporting.invariance import invariance_tables
from robustbench_inv.reporting.metamers import metamer_tables
from robustbench_inv.reporting.rejection import rejection_tables
from robustbench_inv.reporting.statistics import Pairs, mcnemar, median_of, tango, wilson
from robustbench_inv.results.summary import Rate

__all__ = ["TABLES", "build_tables"]


def build_tables(
    kind: TableKind, cells: Sequence[CellResult], interval: IntervalOf = wilson
) -> list[Table]:
    """Return the tables of one kind; none where the cells hold nothing of it.

    Args:
        kind: which facts.
        cells: the selected cells.
        interval: of every share.
    """
    return [table for table in TABLES[kind](cells, interval) if table.rows]


def _worst(cells: Sequence[CellResult], interval: IntervalOf) -> Iterable[Table]:
    for panel, group in panels(filter(_of_a_class, cells)).items():
        found = [worst for worst in worst_of_all(group) if _combines(worst)]
        caption = (
            "Accuracy in % [95 % interval] that is left when the strongest attack on each single "
            "sample counts. Attacks are combined on the samples that all of them saw."
        )
        columns, rows = _worst_rows(found, interval)
        frame = pd.DataFrame([_worst_fact(worst, interval) for worst in found])
        yield _table("worst", panel, "Worst of all attacks", caption, (frame, columns, rows))


def _of_a_class(cell: CellResult) -> bool:
    """Can an answer to what is shown be right? Noise and inputs of other data stand in the tables of rejection."""
    return not cell.panel.no_class


def _combines(worst: Worst) -> bool:
    """Say whether there is more to tell than the distances of a single attack do."""
    return worst.eps < inf or len(worst.cells) > 1


def _worst_fact(worst: Worst, interval: IntervalOf) -> dict[str, Any]:
    name, rate = worst.strongest
    return {
        **place_facts(worst.model, worst.panel),
        "attacks": "+".join(cell.attack for cell in worst.cells),
        "samples": len(worst.ids),
        "eps": nan if isinf(worst.eps) else worst.eps,
        **rate_facts({"clean_accuracy": worst.clean}, interval),
        **rate_facts({"worst_accuracy": worst.rate}, interval),
        "strongest_attack": name,
        **rate_facts({"strongest_accuracy": rate}, interval),
    }


def _worst_rows(
    found: Sequence[Worst], interval: IntervalOf
) -> tuple[tuple[str, ...], list[tuple[Shown, ...]]]:
    levels = sorted({worst.eps for worst in found})
    groups: dict[tuple[str, tuple[int, ...]], list[Worst]] = {}
    for worst in found:
        groups.setdefault((worst.model, worst.ids), []).append(worst)
    rows = []
    for (model, ids), group in groups.items():
        attacks = dict.fromkeys(cell.attack for worst in group for cell in worst.cells)
        rates = {worst.eps: show_rate(worst.rate, interval(worst.rate)) for worst in group}
        clean = show_rate(group[0].clean, interval(group[0].clean))
        names = (Shown(model, tone="name"), Shown(", ".join(attacks), tone="note"))
        rows.append(
            (*names, Shown(f"{len(ids):,}"), clean, *(rates.get(eps, EMPTY) for eps in levels))
        )
    return ("Model", "Attacks", "Samples", "Clean", *map(_level, levels)), rows


def _accuracy(cells: Sequence[CellResult], interval: IntervalOf) -> Iterable[Table]:
    for panel, group in panels(cells).items():
        levels = sorted({eps for cell in group for eps in cell.epsilons})
        if not levels:
            continue  # without a sweep the distances say it all
        rows = [_accuracy_row(cell, levels, interval) for cell in group]
        median = f"Median {norm_sign(panel.norm)}"
        columns = ("Model", "Attack", "Samples", "Clean", *map(_level, levels), median)
        caption = (
            "Accuracy in % [95 % interval] under each attack alone; the median distance is over the "
            "samples that the attack broke."
        )
        frame = summary_frame(group, interval)
        yield _table("accuracy", panel, "Each attack", caption, (frame, columns, rows))


def _accuracy_row(
    cell: CellResult, levels: Sequence[float], interval: IntervalOf
) -> tuple[Shown, ...]:
    clean, median = cell.summary.clean_accuracy, cell.summary.median_distance
    return (
        Shown(cell.model, tone="name"),
        Shown(cell.attack, tone="name"),
        Shown(f"{len(cell.records):,}"),
        show_rate(clean, interval(clean)),
        *(_at(cell, eps, interval) for eps in levels),
        EMPTY if median is None else Shown(number(median)),
    )


def _at(cell: CellResult, eps: float, interval: IntervalOf) -> Shown:
    if not cell.judges(eps):
        return EMPTY
    rate = Rate(int(cell.held(eps).sum()), len(cell.records))
    return show_rate(rate, interval(rate))


def _distances(cells: Sequence[CellResult], interval: IntervalOf) -> Iterable[Table]:
    for panel, group in panels(filter(_seeks_nearest, cells)).items():
        caption = (
            f"{norm_sign(panel.norm)} distance of the nearest success that each attack found, over the "
            "samples that were right before it; a sample that never fell counts as ∞. The interval of "
            "the median is the order-statistic one, 95 %."
        )
        columns = (
            "Model",
            "Attack",
            "Attacked",
            "Fell %",
            "1st quartile",
            "Median",
            "3rd quartile",
        )
        rows = [_distance_row(cell, interval) for cell in group]
        frame = pd.DataFrame([_distance_fact(cell, interval) for cell in group])
        yield _table("distances", panel, "Distance to failure", caption, (frame, columns, rows))


def _seeks_nearest(cell: CellResult) -> bool:
    """Is a distance what the attack is about? What is given lies where it lies."""
    return cell.kind == "minimal" or not (cell.epsilons or cell.kind == "given")


def _distance_row(cell: CellResult, interval: IntervalOf) -> tuple[Shown, ...]:
    d = distances_of(cell)
    fell = Rate(sum(map(np.isfinite, d)), len(d))
    low, high = (Shown(number(quantile(d, q))) for q in (0.25, 0.75))
    return (
        Shown(cell.model, tone="name"),
        Shown(cell.attack, tone="name"),
        Shown(f"{len(d):,}"),
        show_rate(fell, interval(fell)),
        low,
        show_median(median_of(d)),
        high,
    )


def _distance_fact(cell: CellResult, interval: IntervalOf) -> dict[str, Any]:
    d, median = distances_of(cell), median_of(distances_of(cell))
    bounds = median.interval if median else None
    return {
        **identity_facts(cell),
        "attacked": len(d),
        **rate_facts({"fell": Rate(sum(map(np.isfinite, d)), len(d))}, interval),
        "quartile_1": quantile(d, 0.25),
        "median": median.value if median else nan,
        "median_low": bounds.low if bounds else nan,
        "median_high": bounds.high if bounds else nan,
        "quartile_3": quantile(d, 0.75),
    }


def _comparison(cells: Sequence[CellResult], interval: IntervalOf) -> Iterable[Table]:
    for panel, group in panels(filter(_of_a_class, cells)).items():
        by_place: dict[tuple[float, tuple[int, ...]], list[Worst]] = {}
        for worst in worst_of_all(group):
            by_place.setdefault((worst.eps, worst.ids), []).append(worst)
        pairs = [pair for each in by_place.values() for pair in combinations(each, 2)]
        found = [(a, b) for a, b in pairs if a.eps < inf or (a.held != b.held).any()]
        caption = (
            "Accuracy of the first minus accuracy of the second, in points [95 % Tango interval], under "
            "the worst of all attacks on the same samples; exact McNemar p, not adjusted for the number "
            "of comparisons."
        )
        columns = ("First", "Second", "Samples", "Budget", "First %", "Second %", "Difference", "p")
        rows = [_comparison_row(a, b, interval) for a, b in found]
        frame = pd.DataFrame([_comparison_fact(a, b, interval) for a, b in found])
        yield _table("comparison", panel, "Models compared", caption, (frame, columns, rows))


def _comparison_row(first: Worst, second: Worst, interval: IntervalOf) -> tuple[Shown, ...]:
    pairs = Pairs.of(first.held.tolist(), second.held.tolist())
    bounds, p = tango(pairs), mcnemar(pairs)
    detail = f"{100 * bounds.low:+.1f} to {100 * bounds.high:+.1f}"
    return (
        Shown(first.model, tone="name"),
        Shown(second.model, tone="name"),
        Shown(f"{pairs.total:,}"),
        Shown(_level(first.eps)),
        show_rate(first.rate, interval(first.rate)),
        show_rate(second.rate, interval(second.rate)),
        Shown(f"{100 * pairs.difference:+.1f}", detail),
        Shown("< 0.001" if p < 0.001 else f"{p:.3f}"),
    )


def _comparison_fact(first: Worst, second: Worst, interval: IntervalOf) -> dict[str, Any]:
    pairs = Pairs.of(first.held.tolist(), second.held.tolist())
    bounds = tango(pairs)
    return {
        **place_facts(first.model, first.panel),
        "second": second.model,
        "eps": nan if isinf(first.eps) else first.eps,
        "samples": pairs.total,
        **rate_facts({"accuracy": first.rate}, interval),
        **rate_facts({"second_accuracy": second.rate}, interval),
        "difference": pairs.difference,
        "difference_low": bounds.low,
        "difference_high": bounds.high,
        "p_mcnemar": mcnemar(pairs),
    }


def _cells(cells: Sequence[CellResult], interval: IntervalOf) -> Iterable[Table]:
    rows = [_cell_row(cell) for cell in cells]
    columns = (
        *("Model", "Attack", "Threat and data", "Samples", "Forward", "Backward"),
        *(status.replace("_", " ") for status in STATUSES),
        "oracle",
    )
    caption = (
        "Every cell: mean forward and backward passes for an attacked sample, and how many samples ended "
        "in each state. Samples without a valid proposal count as robust and are shown in colour."
    )
    yield Table(
        "cells", "Cost and state", caption, summary_frame(cells, interval), columns, tuple(rows)
    )


def _cell_row(cell: CellResult) -> tuple[Shown, ...]:
    counts = cell.summary.statuses
    states = [
        Shown(f"{counts.get(s, 0):,}", tone="fail" if s in FAILURES and counts.get(s) else "")
        for s in STATUSES
    ]
    done = Shown(f"{len(cell.records):,}", "" if cell.finished else f"of {cell.planned:,}")
    return (
        Shown(cell.model, tone="name"),
        Shown(cell.attack, tone="name"),
        Shown(f"{budget_of(cell)} on {cell.panel.data}", tone="note"),
        done,
        Shown(number(cell.summary.forward_passes)),
        Shown(number(cell.summary.backward_passes)),
        *states,
        Shown(oracle_of(cell) or "—"),
    )


TABLES: dict[TableKind, Callable[[Sequence[CellResult], IntervalOf], Iterable[Table]]] = {
    "worst": _worst,
    "accuracy": _accuracy,
    "breakers": breaker_tables,
    "distances": _distances,
    "invariance": invariance_tables,
    "agreement": agreement_tables,
    "metamers": metamer_tables,
    "rejection": rejection_tables,
    "comparison": _comparison,
    "cells": _cells,
}
"""How each kind of table is built."""


def _table(
    kind: str,
    panel: Panel,
    title: str,
    caption: str,
    content: tuple[pd.DataFrame, Sequence[str], Sequence[tuple[Shown, ...]]],
) -> Table:
    frame, columns, rows = content
    name = slug(f"{kind}-{panel.dataset}-{panel.norm}-{panel.goal}")
    return Table(name, f"{title}: {panel.title}", caption, frame, tuple(columns), tuple(rows))


def _level(eps: float) -> str:
    return "any distance" if isinf(eps) else f"≤ {number(eps)}"
