"""The tables of models that reject: what is answered, what fools them, and what their scores tell apart."""

from collections.abc import Iterable, Mapping, Sequence
from math import nan
from typing import Any

import pandas as pd

from robustbench_inv.reporting.cells import CellResult, Panel, panels
from robustbench_inv.reporting.detection import Area, aupr, auroc, detection_at, fpr_at
from robustbench_inv.reporting.exports import EMPTY, Shown, Table, number, show_rate, slug
from robustbench_inv.reporting.facts import IntervalOf, budget_of, identity_facts, rate_facts
from robustbench_inv.reporting.scores import answered_clean, clean_scores, scored, wrong_scores
from robustbench_inv.results.rejection import rejection_rates
from robustbench_inv.results.summary import Rate

__all__ = ["rejecting_by_data", "rejection_tables"]

PLACE = ("Model", "Shown instead", "Samples")

ANSWERS = {
    "rejected_clean": "Rejected clean",
    "right_clean": "Right clean",
    "right": "Right",
    "right_of_answered": "Right of answered",
    "fooled": "Fooled",
    "detected": "Detected of wrong",
    "rejected": "Rejected of shown",
}
NO_CLASS = ("rejected_clean", "right_clean", "rejected")
"""What can be said where what is shown is of no class that the model knows: noise, and inputs of other data."""

WANTED = {
    "accept": "accepted",
    "misclassify": "wrong",
    "misclassify-accepted": "wrong and accepted",
    "misclassify-same-class": "wrong, same class",
}
"""How a reader is told what the attacker wants; other goals by their names."""

SHARES = {"detected_at_1": 0.01, "detected_at_2": 0.02, "detected_at_5": 0.05}


def rejection_tables(cells: Sequence[CellResult], interval: IntervalOf) -> Iterable[Table]:
    """Yield two tables for each data set with models that reject: what they answer, and what their scores tell apart.

    Attacks, noise and inputs of other data stand in one table: they are held against the same clean inputs.
    """
    for group in rejecting_by_data(cells).values():
        yield _answers(group, interval)
        if with_scores := [cell for cell in group if scored(cell)]:
            yield _separation(with_scores, interval)


def rejecting_by_data(cells: Sequence[CellResult]) -> dict[str, list[CellResult]]:
    """Return the cells whose models reject, by data set: each model's together, in the order of the panels."""
    models = list(dict.fromkeys(cell.model for cell in cells))
    found: dict[str, list[CellResult]] = {}
    for panel, group in panels(c for c in cells if c.summary.acceptance is not None).items():
        found.setdefault(panel.dataset, []).extend(group)
    return {
        name: sorted(group, key=lambda c: models.index(c.model)) for name, group in found.items()
    }


def _answers(group: Sequence[CellResult], interval: IntervalOf) -> Table:
    caption = (
        "Shares in % [95 % interval]. Rejected clean: inputs refused before any attack. Right: answered and "
        "correct, a rejection counts as failure; before the attack (clean) and after it. Right of answered: correct "
        "among the answered. Fooled: wrong and not rejected, of all. Detected of wrong: rejected among the wrong "
        "decisions on attacked inputs, which says little where these are few. Rejected of shown: whatever the decision. "
        "Noise and inputs of other data are of no class, so that no answer to them is right."
    )
    rows, facts = [], []
    for cell in group:
        names = NO_CLASS if cell.panel.no_class else tuple(ANSWERS)
        rates = {name: getattr(rejection_rates(cell.records), name) for name in names}
        shown = {name: show_rate(rate, interval(rate)) for name, rate in rates.items()}
        rows.append((*_place(cell), *(shown.get(name, EMPTY) for name in ANSWERS)))
        each = {name: rates.get(name) for name in ANSWERS}
        facts.append({**identity_facts(cell), **rate_facts(each, interval)})
    columns = (*PLACE, *ANSWERS.values())
    return _table("rejection", "With rejection", group[0].panel, caption, (facts, columns, rows))


def _separation(group: Sequence[CellResult], interval: IntervalOf) -> Table:
    caption = (
        "What the score, counted from the threshold of the class decided for, tells apart: clean inputs and those that are "
        "shown instead (of these, the wrong ones alone where they are of a class). Detected at 1, 2, 5 %: rejected at the "
        "threshold that rejects so many clean inputs. FPR@95: accepted while 95 % of clean inputs are. In %, with "
        "95 % intervals (DeLong's for AUROC). Risk: wrong answers among the surest 90 % of clean inputs; AURC: their mean "
        "over all shares."
    )
    rows, facts = [], []
    for cell in group:
        areas, rates, risk = _measured(cell)
        areas_shown = [_show(area) for area in areas.values()]
        rates_shown = [show_rate(rate, interval(rate)) for rate in rates.values()]
        rows.append((*_place(cell), *areas_shown, *rates_shown, Shown(number(100 * risk))))
        about = {**identity_facts(cell), **_area_facts(areas)}
        facts.append({**about, **rate_facts(rates, interval), "aurc": risk})
    columns = (
        *(*PLACE, "AUROC", "AUPR"),
        *(f"Detected at {100 * share:g} %" for share in SHARES.values()),
        *("FPR@95", "Risk at 90 %", "AURC"),
    )
    return _table(
        "detection", "What the score tells", group[0].panel, caption, (facts, columns, rows)
    )


def _measured(cell: CellResult) -> tuple[dict[str, Area | None], dict[str, Rate], float]:
    clean, shown = clean_scores(cell), wrong_scores(cell)
    areas = {"auroc": auroc(clean, shown), "aupr": aupr(clean, shown)}
    rates = {name: detection_at(clean, shown, share) for name, share in SHARES.items()}
    rates["fpr_at_95"] = fpr_at(clean, shown)
    curve = answered_clean(cell).curve
    rates["risk_at_90"] = curve.at(0.9)
    return areas, rates, curve.area


def _place(cell: CellResult) -> tuple[Shown, ...]:
    goal = cell.panel.goal
    wanted = WANTED.get(goal, goal)
    if not cell.panel.no_class:
        wanted = f"{wanted}, {budget_of(cell)}"
    return (
        Shown(cell.model, tone="name"),
        Shown(cell.attack, f"wanted: {wanted}", tone="name"),
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
    return Table(
        slug(f"{kind}-{panel.dataset}"),
        f"{title}: {panel.data}",
        caption,
        pd.DataFrame(facts),
        tuple(columns),
        tuple(rows),
    )
