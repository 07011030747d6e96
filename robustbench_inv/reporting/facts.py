"""The figures of cells as flat facts: one mapping from column to number, text or None for each row of a frame."""

from collections.abc import Callable, Mapping, Sequence
from math import ceil, nan
from typing import Any

import pandas as pd

from robustbench_inv.reporting.run_results import CellGroup, ReportCell, norm_symbol
from robustbench_inv.reporting.statistics import Interval, wilson
from robustbench_inv.reporting.table_formats import format_number
from robustbench_inv.results.summary import Rate

__all__ = [
    "FAILURES",
    "STATUSES",
    "IntervalOf",
    "budget_of",
    "distances_of",
    "identity_facts",
    "oracle_of",
    "place_facts",
    "quantile",
    "rate_facts",
    "summary_frame",
]

IntervalOf = Callable[[Rate], Interval]

STATUSES = ("ok", "already_wrong", "no_start", "numerics", "crash", "budget")
"""Every status that a record can have."""

FAILURES = STATUSES[2:]
"""The statuses that say the attack has no valid proposal for a sample."""


def summary_frame(cells: Sequence[ReportCell], interval: IntervalOf = wilson) -> pd.DataFrame:
    """Return one row for each cell and eps, with every count and share of it."""
    rows = []
    for cell in cells:
        sweep = cell.epsilons or (nan,)
        for eps, rate in zip(sweep, cell.summary.robust_accuracy, strict=True):
            robust = rate_facts({"robust_accuracy": rate}, interval)
            rows.append({**identity_facts(cell), "eps": eps, **robust, **_cost(cell, interval)})
    return pd.DataFrame(rows)


def distances_of(cell: ReportCell) -> list[float]:
    """Return the distance at which each attacked sample fell, inf where it held."""
    attacked = [r.status != "already_wrong" for r in cell.records]
    return [float(d) for d in cell.failure_distance[attacked]]


def place_facts(model: str, panel: CellGroup) -> dict[str, Any]:
    """Return which model was measured, on which data, in which norm, for which goal."""
    return {"model": model, "dataset": panel.dataset, "norm": panel.norm, "goal": panel.goal}


def identity_facts(cell: ReportCell) -> dict[str, Any]:
    """Return what tells one cell from another, and how many of its samples are done."""
    return {
        **place_facts(cell.model, cell.panel),
        "attack": cell.attack,
        "threat": cell.threat,
        "access": cell.info["threat"].get("access"),
        "seed": cell.info["seed"],
        "samples": len(cell.records),
        "planned": cell.planned,
    }


def rate_facts(rates: Mapping[str, Rate | None], interval: IntervalOf) -> dict[str, float]:
    """Return of each share three columns: itself, and its interval as ``…_low`` and ``…_high``."""
    facts = {}
    for name, rate in rates.items():
        bounds = interval(rate) if rate and rate.trials else Interval(nan, nan)
        value = rate.value if rate else nan
        facts.update({name: value, f"{name}_low": bounds.low, f"{name}_high": bounds.high})
    return facts


def budget_of(cell: ReportCell) -> str:
    """Name a threat's budget in few words; a sweep by its ends."""
    sign, eps = norm_symbol(cell.panel.norm), cell.epsilons
    if not eps:
        return f"{sign}, any distance"
    ends = (
        f"{format_number(eps[0])} … {format_number(eps[-1])}"
        if len(eps) > 1
        else format_number(eps[0])
    )
    return f"{sign} ≤ {ends}"


def oracle_of(cell: ReportCell) -> str | None:
    """Return who said what class the shown inputs have; None if nobody did."""
    sources = {r.oracle_source for r in cell.records if r.oracle_source is not None}
    return "+".join(sorted(sources)) or None


def quantile(values: Sequence[float], q: float) -> float:
    """Return the smallest value that at least a share ``q`` of the values does not exceed."""
    x = sorted(values)
    return x[max(0, ceil(q * len(x)) - 1)] if x else nan


def _cost(cell: ReportCell, interval: IntervalOf) -> dict[str, Any]:
    s = cell.summary
    return {
        **rate_facts({"clean_accuracy": s.clean_accuracy}, interval),
        "median_distance": nan if s.median_distance is None else s.median_distance,
        **rate_facts({"acceptance": s.acceptance, "detection": s.detection}, interval),
        "forward_passes": s.forward_passes,
        "backward_passes": s.backward_passes,
        **{status: s.statuses.get(status, 0) for status in STATUSES},
        "oracle": oracle_of(cell),
        "cell": cell.folder.digest,
    }
