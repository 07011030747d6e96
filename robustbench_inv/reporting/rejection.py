"""The tables of models that reject: what is answered, what fools them, and what their scores tell apart."""

from collections.abc import Iterable, Mapping, Sequence
from math import nan
from typing import Any

import pandas as pd

from robustbench_inv.reporting.cells import CellResult, Panel, panels
from robustbench_inv.reporting.detection import (
    Area,
    aupr,
    auroc,
    detection_at,
    fpr_at,
    risk_coverage,
)
from robustbench_inv.reporting.exports import EMPTY, Shown, Table, show_rate, slug
from robustbench_inv.reporting.facts import IntervalOf, identity_facts, rate_facts
from robustbench_inv.results.record import Answer
from robustbench_inv.results.rejection import above_threshold, rejection_rates
from robustbench_inv.results.summary import Rate

__all__ = ["rejection_tables"]

ANSWERS = {
    "rejected_clean": "Rejected clean",
    "right_clean": "Right clean",
    "right": "Right",
    "right_of_answered": "Right of answered",
    "fooled": "Fooled",
    "detected": "Detected of wrong",
    "rejected": "Rejected of attacked",
}
NO_CLASS = ("rejected_clean", "right_clean", "rejected")
"""What can be said where what is shown is of no class: noise."""

SHARES = {"detected_at_1": 0.01, "detected_at_2": 0.02, "detected_at_5": 0.05}


def rejection_tables(cells: Sequence[CellResult], interval: IntervalOf) -> Iterable[Table]:
    """Yield two tables for each panel with models that reject: what they answer, and what their scores tell apart."""
    rejecting = [cell for cell in cells if cell.summary.acceptance is not None]
    for panel, group in panels(rejecting).items():
        yield _answers(panel, group, interval)
        scored = [cell for cell in group if _scores(cell)[0]]
        if scored:
            yield _separation(panel, scored, interval)


def _answers(panel: Panel, group: Sequence[CellResult], interval: IntervalOf) -> Table:
    caption = (
        "Shares in % [95 % interval]. Rejected clean: inputs refused before any attack. Right: answered and "
        "correct, a rejection counts as failure; before the attack (clean) and after it. Right of answered: correct "
        "among the answered. Fooled: wrong and not rejected, of all. Detected of wrong: rejected among the wrong "
        "decisions on attacked inputs, which says little where these are few. Rejected of attacked: whatever the decision."
    )
    names = NO_CLASS if panel.goal == "accept" else tuple(ANSWERS)
    rows, facts = [], []
    for cell in group:
        rates = {name: getattr(rejection_rates(cell.records), name) for name in names}
        rows.append((*_place(cell), *(show_rate(rate, interval(rate)) for rate in rates.values())))
        facts.append({**identity_facts(cell), **rate_facts(rates, interval)})
    columns = ("Model", "Attack", "Samples", *(ANSWERS[name] for name in names))
    return _table("rejection", "With rejection", panel, caption, (facts, columns, rows))


def _separation(panel: Panel, group: Sequence[CellResult], interval: IntervalOf) -> Table:
    caption = (
        "What the score, counted from the threshold of the class decided for, tells apart: clean inputs and those shown by the "
        "attack (of these, the wrong ones alone where they are of a class). Detected at 1, 2, 5 %: rejected at the "
        "threshold that rejects so many clean inputs. FPR@95: accepted while 95 % of clean inputs are. In %, with "
        "95 % intervals (DeLong's for AUROC). Risk: wrong answers among the surest 90 % of clean inputs; AURC: their mean "
        "over all shares."
    )
    rows, facts = [], []
    for cell in group:
        areas, rates, risk = _measured(cell)
        areas_shown = [_show(area) for area in areas.values()]
        rates_shown = [show_rate(rate, interval(rate)) for rate in rates.values()]
        rows.append((*_place(cell), *areas_shown, *rates_shown, Shown(f"{100 * risk:.2f}")))
        facts.append(
            {
                **identity_facts(cell),
                **_area_facts(areas),
                **rate_facts(rates, interval),
                "aurc": risk,
            }
        )
    columns = (
        *("Model", "Attack", "Samples", "AUROC", "AUPR"),
        *(f"Detected at {100 * share:g} %" for share in SHARES.values()),
        *("FPR@95", "Risk at 90 %", "AURC"),
    )
    return _table("detection", "What the score tells", panel, caption, (facts, columns, rows))


def _measured(cell: CellResult) -> tuple[dict[str, Area | None], dict[str, Rate], float]:
    clean, shown = _scores(cell)
    areas = {"auroc": auroc(clean, shown), "aupr": aupr(clean, shown)}
    rates = {name: detection_at(clean, shown, share) for name, share in SHARES.items()}
    rates["fpr_at_95"] = fpr_at(clean, shown)
    right = [r.before.decision == r.label for r in cell.records]
    curve = risk_coverage(clean, right)
    rates["risk_at_90"] = curve.at(0.9)
    return areas, rates, curve.area


def _scores(cell: CellResult) -> tuple[list[float], list[float]]:
    """Return how far clean inputs, and those that ought to be rejected, score above their thresholds."""
    about: Mapping[str, Any] = cell.info["model"]

    def above(answer: Answer) -> float:
        value = above_threshold(answer, about)
        return nan if value is None else value

    if any(r.before.score is None or r.after.score is None for r in cell.records):
        return [], []
    anything = cell.panel.goal == "accept"
    attacked = [r for r in cell.records if r.status != "already_wrong"]
    shown = [above(r.after) for r in attacked if anything or r.after.decision != r.label]
    return [above(r.before) for r in cell.records], shown


def _place(cell: CellResult) -> tuple[Shown, Shown, Shown]:
    return (
        Shown(cell.model, tone="name"),
        Shown(cell.attack, tone="name"),
        Shown(f"{len(cell.records):,}"),
    )


def _show(area: Area | None) -> Shown:
    if area is None:
        return EMPTY
    low, high = 100 * area.interval.low, 100 * area.interval.high
    return Shown(f"{100 * area.value:.1f}", f"{low:.1f}–{high:.1f}", area.value)


def _area_facts(areas: Mapping[str, Area | None]) -> dict[str, float]:
    facts: dict[str, float] = {}
    for name, area in areas.items():
        ends = (area.interval.low, area.interval.high) if area else (nan, nan)
        facts |= {
            name: area.value if area else nan,
            f"{name}_low": ends[0],
            f"{name}_high": ends[1],
        }
    return facts


def _table(
    kind: str,
    title: str,
    panel: Panel,
    caption: str,
    content: tuple[list[dict[str, Any]], Sequence[str], list[tuple[Shown, ...]]],
) -> Table:
    facts, columns, rows = content
    name = slug(f"{kind}-{panel.dataset}-{panel.norm}-{panel.goal}")
    return Table(
        name, f"{title}: {panel.title}", caption, pd.DataFrame(facts), tuple(columns), tuple(rows)
    )
