"""The rows of data frames: one mapping from column to number, text or None for each cell."""

from collections.abc import Callable, Collection, Iterable, Iterator, Mapping, Sequence
from dataclasses import replace
from functools import cache
from math import ceil, nan
from typing import Any

import numpy as np
import pandas as pd

from robustbench_inv.arguments import format_eps
from robustbench_inv.catalogue.locate import catalogue_roots
from robustbench_inv.reporting.run_results import CellGroup
from robustbench_inv.reporting.statistics import Interval, holm, median_of, wilson
from robustbench_inv.reporting.table_formats import norm_symbol
from robustbench_inv.results.cell import FinishedCell
from robustbench_inv.results.certificates import sandwiches
from robustbench_inv.results.envelope import Envelope, read_envelope
from robustbench_inv.results.record import STATUSES
from robustbench_inv.results.summary import Distances, Rate

__all__ = [
    "OPTIMALITY",
    "IntervalOf",
    "adjusted",
    "best_known",
    "budget_of",
    "distance_facts",
    "identity_facts",
    "judges_text",
    "place_facts",
    "quantile",
    "rate_facts",
    "result_texts",
    "summary_frame",
]

IntervalOf = Callable[[Rate], Interval]


def summary_frame(cells: Sequence[FinishedCell], interval: IntervalOf = wilson) -> pd.DataFrame:
    """Return one row for each cell and eps, with all its counts and rates."""
    rows = []
    for cell in cells:
        sweep = cell.epsilons or (nan,)
        proven = {each.eps: each.certified for each in sandwiches(cell)}
        for eps, rate in zip(sweep, cell.summary.robust_accuracy, strict=True):
            rates = {"robust_accuracy": rate, "certified_accuracy": proven.get(eps)}
            robust = rate_facts(rates, interval)
            rows.append({**identity_facts(cell), "eps": eps, **robust, **_cost(cell, interval)})
    return pd.DataFrame(rows)


def place_facts(model: str, group: CellGroup) -> dict[str, Any]:
    """Return the model, data set, norm and goal as columns."""
    return {"model": model, "dataset": group.dataset, "norm": group.norm, "goal": group.goal}


def identity_facts(cell: FinishedCell) -> dict[str, Any]:
    """Return the columns that identify a cell, and its number of finished samples."""
    return {
        **place_facts(cell.model_label, CellGroup.of(cell)),
        "attack": cell.attack_label,
        "threat": cell.threat.text,
        "access": cell.threat.access,
        "seed": cell.info.seed,
        "samples": len(cell.records),
        "planned": len(cell.requested),
    }


def rate_facts(rates: Mapping[str, Rate | None], interval: IntervalOf) -> dict[str, float]:
    """Return three columns for each rate: the rate, and its interval as ``…_low`` and ``…_high``."""
    facts = {}
    for name, rate in rates.items():
        bounds = interval(rate) if rate and rate.trials else Interval(nan, nan)
        value = rate.value if rate else nan
        facts.update({name: value, f"{name}_low": bounds.low, f"{name}_high": bounds.high})
    return facts


def adjusted(results: Iterable[Any]) -> list[Any]:
    """Return ``PairedResult`` with p values adjusted for their number by Holm's method, decided ones for themselves."""
    results, found = list(results), dict[int, Any]()
    for decided in (False, True):
        rows = [row for row, each in enumerate(results) if each.decided == decided]
        values = holm([results[row].p for row in rows])
        for row, p in zip(rows, values, strict=True):
            found[row] = replace(results[row], p_adjusted=p, comparisons=len(rows))
    return [found[row] for row in range(len(results))]


def budget_of(cell: FinishedCell) -> str:
    """Return a threat's budget as text; for a sweep its smallest and largest eps."""
    sign, eps = norm_symbol(cell.norm), cell.epsilons
    if not eps:
        return f"{sign}, any distance"
    ends = f"{format_eps(eps[0])} … {format_eps(eps[-1])}" if len(eps) > 1 else format_eps(eps[0])
    return f"{sign} ≤ {ends}"


JUDGES = {"human": "people", "exact": "the exact rule"}
"""Oracles that are no networks, in words."""


def judges_text(cells: Iterable[FinishedCell]) -> str:
    """Return the oracles of changed inputs in words; empty without an oracle.

    A panel leaves out the attacked model and models like it, so that several models may have panels of several sizes.
    """
    oracles = [cell.threat.oracle for cell in cells if cell.threat.oracle]
    counts = sorted({len(oracle.members) for oracle in oracles if oracle.members})
    networks = (
        [f"{' to '.join(map(str, {counts[0]: 0, counts[-1]: 0}))} other networks"] if counts else []
    )
    others = [JUDGES.get(o.source, o.source) for o in oracles if not o.members]
    found = " or ".join(dict.fromkeys([*networks, *others]))
    return "1 other network" if found == "1 other networks" else found


def result_texts(cell: FinishedCell, mark: str = "") -> Iterator[dict[str, str]]:
    """Yield the rows of a table for people: names, samples, clean accuracy, and the result at each eps with a mark."""
    for threat, quantity, value in _results(cell):
        yield {
            "model": cell.model_label,
            "attack": cell.attack_label,
            "threat": threat,
            "samples": str(len(cell.records)),
            "clean": f"{100 * cell.summary.clean_accuracy.value:.1f} %",
            quantity: value + mark,
        }


OPTIMALITY = (
    "Optimality: area between the curves of clean and robust accuracy, as a share of that of the smallest known "
    "distances, which are those of all attacks here and of the envelope of the model (AttackBench, equation 5)."
)


def best_known(cells: Sequence[FinishedCell], norms: Collection[str]) -> Envelope:
    """Return the smallest known distances: of these cells, and of the envelopes beside the models of all catalogues.

    Args:
        cells: the cells; without any, nothing is read.
        norms: of the distances that are taken from the cells.
    """
    known = Envelope()
    if not cells:
        return known
    for root in catalogue_roots():
        if (path := root / "models" / "envelope.json").exists():
            known.merge(read_envelope(path))

    @cache
    def images(key: str, samples: frozenset[int]) -> dict[int, str]:
        listed = known.images.get(key, {})
        return {sample: listed.get(sample, f"{key} {sample}") for sample in samples}

    known.add(cells, lambda cell: images(cell.info.dataset_key, cell.sample_ids), norms)
    return known


def distance_facts(cell: FinishedCell, interval: IntervalOf, optimality: float) -> dict[str, Any]:
    """Return the columns of the distances at which an attack broke the attacked samples."""
    d, median = cell.attacked_distances, median_of(cell.attacked_distances)
    bounds = median.interval if median else None
    return {
        **identity_facts(cell),
        "attacked": len(d),
        **rate_facts({"broken": cell.summary.attack_success_rate}, interval),
        "quartile_1": quantile(d, 0.25),
        "median": median.value if median else nan,
        "median_low": bounds.low if bounds else nan,
        "median_high": bounds.high if bounds else nan,
        "quartile_3": quantile(d, 0.75),
        "optimality": optimality,
    }


def _results(cell: FinishedCell) -> Iterator[tuple[str, str, str]]:
    """Yield budget, quantity and value of each result: accuracies, failures of invariance, or the median distance."""
    summary, threat = cell.summary, cell.threat.text
    if cell.threat.wants_same_prediction:
        yield threat, "failures", _percent(summary.attack_success_rate)
    elif cell.kind == "minimum-norm" and summary.median_distance is not None:
        yield threat, "median distance", f"{cell.norm} {summary.median_distance:.3g}"
    else:
        budgets = [f"{cell.norm} {format_eps(eps)}" for eps in cell.epsilons] or [threat]
        for budget, rate in zip(budgets, summary.robust_accuracy, strict=True):
            yield budget, "robust", _percent(rate)


def _percent(rate: Rate) -> str:
    return rate.percent if rate.trials else "none"


def quantile(values: Distances, q: float) -> float:
    """Return the smallest value that at least a share ``q`` of the values does not exceed."""
    x = np.sort(np.asarray(values, float))
    return float(x[max(0, ceil(q * len(x)) - 1)]) if len(x) else nan


def _cost(cell: FinishedCell, interval: IntervalOf) -> dict[str, Any]:
    s = cell.summary
    return {
        **rate_facts(
            {
                "clean_accuracy": s.clean_accuracy,
                "attack_success_rate": s.attack_success_rate,
            },
            interval,
        ),
        **(rate_facts(vars(s.rejection), interval) if s.rejection else {}),
        "median_distance": nan if s.median_distance is None else s.median_distance,
        "forward_passes": s.forward_passes,
        "backward_passes": s.backward_passes,
        **{status: s.statuses.get(status, 0) for status in STATUSES},
        "oracle": cell.oracle_source,
        "cell": cell.digest,
    }
