"""The tables of a report: worst case, each attack, ensembles, distances, paired comparison, cost."""

from collections.abc import Callable, Iterable, Sequence
from math import inf, isinf, isnan, nan
from typing import Any

import pandas as pd

from robustbench_inv.arguments import format_eps
from robustbench_inv.reporting.definitions import TableKind
from robustbench_inv.reporting.facts import (
    OPTIMALITY,
    IntervalOf,
    adjusted,
    best_known,
    budget_of,
    distance_facts,
    identity_facts,
    place_facts,
    quantile,
    rate_facts,
    summary_frame,
)
from robustbench_inv.reporting.invariance_tables import (
    fixed_input_tables,
    invariance_tables,
    metamer_tables,
)
from robustbench_inv.reporting.model_comparison import (
    PairedResult,
    pairs_of_models,
    worst_case_result,
)
from robustbench_inv.reporting.rejection_report import rejection_tables
from robustbench_inv.reporting.run_results import (
    CellGroup,
    WorstCase,
    eps_levels,
    group_cells,
    worst_cases,
)
from robustbench_inv.reporting.statistics import median_of, wilson
from robustbench_inv.reporting.table_formats import (
    BLANK,
    Table,
    TableCell,
    Tone,
    dataset_title,
    format_number,
    median_cell,
    norm_symbol,
    rate_cell,
    slug,
)
from robustbench_inv.reporting.two_failures import two_failures_tables
from robustbench_inv.results.cell import FinishedCell
from robustbench_inv.results.rates import EnsembleBreakdown, ensemble_breakdown
from robustbench_inv.results.record import STATUSES

__all__ = ["TABLES", "build_tables", "comparison_table", "ensemble_tables"]


ENSEMBLE_CAPTION = (
    "Numbers of samples. Attacks run from left to right on the surviving samples; each sample is credited to the attack "
    "that broke it, at the smallest eps. Robust: broken by none of them at the largest eps."
)

ENSEMBLE_COLUMNS = ("Model", "Attack", "Budget", "Samples", "Misclassified clean")


def ensemble_tables(cells: Sequence[FinishedCell], _interval: IntervalOf) -> Iterable[Table]:
    """Yield a table for each group that has ensemble attacks.

    Args:
        cells: of any kind; cells of other attacks are skipped.
    """
    breakdown = {c.digest: ensemble_breakdown(c) for c in cells}
    for panel, group in group_cells(c for c in cells if breakdown[c.digest]).items():
        found = [(cell, each) for cell in group if (each := breakdown[cell.digest])]
        members = tuple(dict.fromkeys(name for _, each in found for name in each.broken_by))
        during_search = (
            ("During the search",) if any(each.broken_during_search for _, each in found) else ()
        )
        yield Table(
            slug(f"broken-by-{panel.dataset}-{panel.norm}-{panel.goal}"),
            f"Broken by: {panel.title}",
            ENSEMBLE_CAPTION,
            pd.DataFrame([fact for cell, each in found for fact in _ensemble_facts(cell, each)]),
            (*ENSEMBLE_COLUMNS, *members, *during_search, "Robust"),
            tuple(_ensemble_row(cell, each, members, bool(during_search)) for cell, each in found),
        )


def _ensemble_row(
    cell: FinishedCell, breakdown: EnsembleBreakdown, members: Sequence[str], during_search: bool
) -> tuple[TableCell, ...]:
    return (
        TableCell(cell.model_label, tone="name"),
        TableCell(cell.attack_label, tone="name"),
        TableCell(budget_of(cell)),
        TableCell(f"{len(cell.records):,}"),
        TableCell(f"{breakdown.misclassified_clean:,}"),
        *(_count_cell(breakdown.broken_by.get(name)) for name in members),
        *((_count_cell(breakdown.broken_during_search),) if during_search else ()),
        TableCell(f"{breakdown.robust:,}"),
    )


def _count_cell(count: int | None) -> TableCell:
    return BLANK if count is None else TableCell(f"{count:,}")


def _ensemble_facts(cell: FinishedCell, breakdown: EnsembleBreakdown) -> Iterable[dict[str, Any]]:
    """Yield a row for each member, and one for each other outcome of a sample."""
    ends = {
        "during the search": breakdown.broken_during_search,
        "misclassified clean": breakdown.misclassified_clean,
        "robust": breakdown.robust,
    }
    for name, count in {**breakdown.broken_by, **ends}.items():
        yield {**identity_facts(cell), "ensemble_member": name, "count": count}


def build_tables(
    kind: TableKind, cells: Sequence[FinishedCell], interval: IntervalOf = wilson
) -> list[Table]:
    """Return the tables of one kind; none if no cell fits.

    Args:
        kind: the kind of table.
        cells: the selected cells.
        interval: of every share.
    """
    return [table for table in TABLES[kind](cells, interval) if table.rows]


NOT_ROBUST = "Samples that are misclassified without an attack are not robust."


def _worst_case(cells: Sequence[FinishedCell], interval: IntervalOf) -> Iterable[Table]:
    for panel, group in group_cells(filter(_has_class, cells)).items():
        found = [worst for worst in worst_cases(group, cells) if _is_informative(worst)]
        measured = (
            "Share of samples in % [95 % interval] without an invariance failure in any attack."
            if panel.keeps
            else "Worst-case robust accuracy in % [95 % interval]: a sample counts as robust only if it survives "
            "every attack."
        )
        caption = (
            f"{measured} {NOT_ROBUST} Attacks are combined on the samples that all of them have in common; an "
            "example within one budget counts for every larger one."
        )
        columns, rows = _worst_case_rows(found, interval)
        frame = pd.DataFrame([_worst_case_fact(worst, interval) for worst in found])
        yield _table("worst", panel, "Worst case over attacks", caption, (frame, columns, rows))


def _has_class(cell: FinishedCell) -> bool:
    """Do the inputs belong to a class? Noise and inputs of other data are in the tables of rejection."""
    return not cell.threat.no_class


def _is_informative(worst: WorstCase) -> bool:
    """Does the row add anything to the distances of a single attack?"""
    return worst.eps < inf or len(worst.cells) > 1


def _worst_case_fact(worst: WorstCase, interval: IntervalOf) -> dict[str, Any]:
    name, rate = worst.strongest
    return {
        **place_facts(worst.model, worst.group),
        "attacks": "+".join(worst.attacks),
        "samples": len(worst.ids),
        "eps": nan if isinf(worst.eps) else worst.eps,
        **rate_facts({"clean_accuracy": worst.clean}, interval),
        **rate_facts({"worst_case_accuracy": worst.rate}, interval),
        "strongest_attack": name,
        **rate_facts({"strongest_accuracy": rate}, interval),
    }


def _worst_case_rows(
    found: Sequence[WorstCase], interval: IntervalOf
) -> tuple[tuple[str, ...], list[tuple[TableCell, ...]]]:
    levels = sorted({worst.eps for worst in found})
    groups: dict[tuple[str, tuple[int, ...]], list[WorstCase]] = {}
    for worst in found:
        groups.setdefault((worst.model, worst.ids), []).append(worst)
    rows = []
    for (model, ids), group in groups.items():
        attacks = dict.fromkeys(cell.attack_label for worst in group for cell in worst.cells)
        rates = {worst.eps: rate_cell(worst.rate, interval(worst.rate)) for worst in group}
        clean = rate_cell(group[0].clean, interval(group[0].clean))
        names = (TableCell(model, tone="name"), TableCell(", ".join(attacks), tone="note"))
        rows.append(
            (*names, TableCell(f"{len(ids):,}"), clean, *(rates.get(eps, BLANK) for eps in levels))
        )
    return ("Model", "Attacks", "Samples", "Clean", *map(_eps_text, levels)), rows


def _accuracy(cells: Sequence[FinishedCell], interval: IntervalOf) -> Iterable[Table]:
    for panel, group in group_cells(cells).items():
        levels = eps_levels(group)
        if levels == [inf]:
            continue  # without a sweep the table of distances is enough
        rows = [_accuracy_row(cell, levels, interval) for cell in group]
        median = f"Median {norm_symbol(panel.norm)}"
        columns = ("Model", "Attack", "Samples", "Clean", *map(_eps_text, levels), median)
        robust = "Share without an invariance failure" if panel.keeps else "Robust accuracy"
        caption = (
            f"{robust} in % [95 % interval] under each single attack. {NOT_ROBUST} Median: distance over the "
            "attacked samples, of attacks that minimise it; a robust sample counts as ∞."
        )
        frame = summary_frame(group, interval)
        yield _table("accuracy", panel, "Each attack", caption, (frame, columns, rows))


def _accuracy_row(
    cell: FinishedCell, levels: Sequence[float], interval: IntervalOf
) -> tuple[TableCell, ...]:
    clean, median = cell.summary.clean_accuracy, cell.summary.median_distance
    return (
        TableCell(cell.model_label, tone="name"),
        TableCell(cell.attack_label, tone="name"),
        TableCell(f"{len(cell.records):,}"),
        rate_cell(clean, interval(clean)),
        *(_rate_at(cell, eps, interval) for eps in levels),
        BLANK if median is None else TableCell(format_number(median)),
    )


def _rate_at(cell: FinishedCell, eps: float, interval: IntervalOf) -> TableCell:
    if not cell.covers(eps):
        return BLANK
    rate = cell.robust_rate(eps)
    return rate_cell(rate, interval(rate))


QUARTILES = ("1st quartile", "Median", "3rd quartile")


def _distances(cells: Sequence[FinishedCell], interval: IntervalOf) -> Iterable[Table]:
    shown = [cell for cell in cells if cell.minimizes_distance]
    models, norms = {cell.model.key for cell in shown}, {cell.norm for cell in shown}
    known = best_known([cell for cell in cells if cell.model.key in models], norms)
    for panel, group in group_cells(shown).items():
        caption = (
            f"{norm_symbol(panel.norm)} distance of the closest adversarial example of each attack, over the "
            "attacked samples; a robust sample counts as ∞. The interval of the median is that of "
            f"order statistics, 95 %. {OPTIMALITY}"
        )
        columns = ("Model", "Attack", "Attacked", "Broken %", *QUARTILES, "Optimality")
        rows = [_distance_row(cell, interval, known.optimality(cell)) for cell in group]
        frame = pd.DataFrame([distance_facts(c, interval, known.optimality(c)) for c in group])
        yield _table("distances", panel, "Distance to failure", caption, (frame, columns, rows))


def _distance_row(
    cell: FinishedCell, interval: IntervalOf, optimality: float
) -> tuple[TableCell, ...]:
    d, broken = cell.attacked_distances, cell.summary.attack_success_rate
    low, high = (TableCell(format_number(quantile(d, q))) for q in (0.25, 0.75))
    return (
        TableCell(cell.model_label, tone="name"),
        TableCell(cell.attack_label, tone="name"),
        TableCell(f"{len(d):,}"),
        rate_cell(broken, interval(broken)),
        low,
        median_cell(median_of(d)),
        high,
        BLANK if isnan(optimality) else TableCell(f"{optimality:.3f}"),
    )


def _comparison(cells: Sequence[FinishedCell], interval: IntervalOf) -> Iterable[Table]:
    for panel, group in group_cells(filter(_has_class, cells)).items():
        found = adjusted(worst_case_result(a, b) for a, b in pairs_of_models(group))
        name, title = _names("comparison", panel, "Models compared")
        yield comparison_table(name, title, found, interval)


PAIRED_CAPTION = (
    "The second share minus the first, in points [95 % Tango interval], on the same samples; exact McNemar p, adjusted "
    "by Holm's method for all rows. Different attacks: the difference may be that of the attacks."
)
PAIRED_COLUMNS = (
    "First",
    "Second",
    "Quantity",
    "Samples",
    "First %",
    "Second %",
    "Difference",
    "p",
)


def comparison_table(
    name: str, title: str, results: Sequence[PairedResult], interval: IntervalOf = wilson
) -> Table:
    """Return the table of some results, whose p values are adjusted."""
    frame = pd.DataFrame([each.facts(interval) for each in results])
    rows = tuple(_paired_row(each, interval) for each in results)
    return Table(name, title, PAIRED_CAPTION, frame, PAIRED_COLUMNS, rows)


def _paired_row(result: PairedResult, interval: IntervalOf) -> tuple[TableCell, ...]:
    bounds, p = result.interval, result.p_adjusted
    detail = f"{100 * bounds.low:+.1f} to {100 * bounds.high:+.1f}"
    tone: Tone = ""
    if result.differs:
        tone = "pass" if result.difference > 0 else "fail"
    attacks = "" if result.same_attacks else "different attacks"
    return (
        TableCell(result.models[0], tone="name"),
        TableCell(result.models[1], tone="name"),
        TableCell(f"{result.name}, {result.place}", attacks, tone="note"),
        TableCell(f"{len(result.ids):,}"),
        *(rate_cell(rate, interval(rate)) for rate in result.rates),
        TableCell(f"{100 * result.difference:+.1f}", detail, tone=tone),
        TableCell("< 0.001" if p < 0.001 else f"{p:.3f}"),
    )


def _cells(cells: Sequence[FinishedCell], interval: IntervalOf) -> Iterable[Table]:
    rows = [_cell_row(cell) for cell in cells]
    columns = (
        *("Model", "Attack", "Threat and data", "Samples", "Forward", "Backward"),
        *(status.replace("_", " ") for status in STATUSES),
        "oracle",
    )
    caption = (
        "Every cell: mean forward and backward passes for an attacked sample, and how many samples ended "
        "in each state. Samples without a valid proposal count as robust, those of a failed model as misclassified; both are shown in colour."
    )
    yield Table(
        "cells", "Cost and state", caption, summary_frame(cells, interval), columns, tuple(rows)
    )


def _cell_row(cell: FinishedCell) -> tuple[TableCell, ...]:
    counts = cell.summary.statuses
    states = [
        TableCell(
            f"{counts.get(s, 0):,}", tone="fail" if s in STATUSES[2:] and counts.get(s) else ""
        )
        for s in STATUSES
    ]
    done = TableCell(
        f"{len(cell.records):,}", "" if cell.finished else f"of {len(cell.requested):,}"
    )
    return (
        TableCell(cell.model_label, tone="name"),
        TableCell(cell.attack_label, tone="name"),
        TableCell(f"{budget_of(cell)} on {dataset_title(cell.dataset.name)}", tone="note"),
        done,
        TableCell(format_number(cell.summary.forward_passes)),
        TableCell(format_number(cell.summary.backward_passes)),
        *states,
        TableCell(cell.oracle_source or "—"),
    )


TABLES: dict[TableKind, Callable[[Sequence[FinishedCell], IntervalOf], Iterable[Table]]] = {
    "worst": _worst_case,
    "accuracy": _accuracy,
    "breakers": ensemble_tables,
    "distances": _distances,
    "invariance": invariance_tables,
    "agreement": fixed_input_tables,
    "metamers": metamer_tables,
    "rejection": rejection_tables,
    "comparison": _comparison,
    "two-failures": two_failures_tables,
    "cells": _cells,
}
"""How each kind of table is built."""


def _table(
    kind: str,
    panel: CellGroup,
    title: str,
    caption: str,
    content: tuple[pd.DataFrame, Sequence[str], Sequence[tuple[TableCell, ...]]],
) -> Table:
    frame, columns, rows = content
    return Table(*_names(kind, panel, title), caption, frame, tuple(columns), tuple(rows))


def _names(kind: str, panel: CellGroup, title: str) -> tuple[str, str]:
    """Return a table's name and title."""
    name = slug(f"{kind}-{panel.dataset}-{panel.norm}-{panel.goal}")
    return name, f"{title}: {panel.title}"


def _eps_text(eps: float) -> str:
    return "any distance" if isinf(eps) else f"≤ {format_eps(eps)}"
