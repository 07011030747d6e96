"""Tables and risk-coverage figures of models with a reject option."""

from collections.abc import Callable, Iterable, Mapping, Sequence
from dataclasses import dataclass
from math import nan
from typing import Any

import numpy as np
import pandas as pd
from matplotlib.axes import Axes

from robustbench_inv.reporting.canvas import (
    DASHES,
    INK,
    MARKERS,
    ReportFigure,
    grid,
    render,
    shorten,
)
from robustbench_inv.reporting.facts import IntervalOf, budget_of, identity_facts, rate_facts
from robustbench_inv.reporting.rejection_scores import (
    AreaUnderCurve,
    SelectiveAccuracy,
    aupr,
    auroc,
    clean_scores,
    detection_at,
    fpr_at,
    has_scores,
    knows_thresholds,
    scores_to_reject,
    selective_adversarial,
    selective_clean,
)
from robustbench_inv.reporting.run_results import CellGroup, group_cells
from robustbench_inv.reporting.table_formats import (
    BLANK,
    Table,
    TableCell,
    dataset_title,
    format_number,
    rate_cell,
    slug,
)
from robustbench_inv.results.cell import FinishedCell
from robustbench_inv.results.summary import Rate

__all__ = ["draw_risk", "rejecting_cells", "rejection_tables"]


CELL_COLUMNS = ("Model", "Attack", "Samples")

RATE_HEADINGS = {
    "false_rejection": "False rejection",
    "clean_accuracy_with_rejection": "Clean accuracy",
    "accuracy_with_rejection": "Accuracy",
    "accuracy_on_accepted": "Accuracy on accepted",
    "undetected_errors": "Undetected errors",
    "rejected_errors": "Rejected errors",
    "rejected_adversarial": "Rejected attacked",
}
GOAL_TEXTS = {
    "accept": "accepted",
    "misclassify": "misclassified",
    "misclassify-accepted": "misclassified and accepted",
    "misclassify-same-class": "misclassified, same class",
}
"""Names of goals in tables; other goals keep their own."""

FALSE_REJECTION_RATES = {"detected_at_1": 0.01, "detected_at_2": 0.02, "detected_at_5": 0.05}


def rejection_tables(cells: Sequence[FinishedCell], interval: IntervalOf) -> Iterable[Table]:
    """Yield two tables for each data set with models that have a reject option: rates, and quality of the scores.

    Attacks, noise and inputs of other data are in one table: they are compared with the same clean inputs.
    """
    for group in rejecting_cells(cells).values():
        yield _rates_table(group, interval)
        if with_scores := [cell for cell in group if has_scores(cell)]:
            yield _scores_table(with_scores, interval)


def rejecting_cells(cells: Sequence[FinishedCell]) -> dict[str, list[FinishedCell]]:
    """Return the cells of models with a reject option, by data set: each model's together, in the order of groups."""
    models = list(dict.fromkeys(cell.model_label for cell in cells))
    found: dict[str, list[FinishedCell]] = {}
    for panel, group in group_cells(c for c in cells if c.can_reject).items():
        found.setdefault(panel.dataset, []).extend(group)
    return {
        name: sorted(group, key=lambda c: models.index(c.model_label))
        for name, group in found.items()
    }


def _rates_table(group: Sequence[FinishedCell], interval: IntervalOf) -> Table:
    caption = (
        "Rates in % [95 % interval]. False rejection: rejected clean inputs. Clean accuracy, accuracy: accepted and "
        "correct before and after the attack; a rejection counts as an error. Accuracy on accepted: correct among the "
        "accepted inputs. Undetected errors: misclassified and accepted, of all. Rejected errors: rejected among the "
        "misclassified attacked inputs; not reliable if these are few. Rejected attacked: whatever the prediction. "
        "Noise and inputs of other data belong to no class, so no prediction is correct; without a valid input they count as "
        "rejected."
    )
    rows, facts = [], []
    for cell in group:
        found = vars(cell.summary.rejection)
        rates: dict[str, Rate] = {name: found[name] for name in RATE_HEADINGS}
        shares = (rate_cell(rate, interval(rate)) for rate in rates.values())
        rows.append((*_cell_columns(cell), *shares))
        facts.append({**identity_facts(cell), **rate_facts(rates, interval)})
    columns = (*CELL_COLUMNS, *RATE_HEADINGS.values())
    return _rejection_table(
        "rejection", "With reject option", CellGroup.of(group[0]), caption, (facts, columns, rows)
    )


def _scores_table(group: Sequence[FinishedCell], interval: IntervalOf) -> Table:
    caption = (
        "How well the score, minus the threshold of the predicted class, separates clean inputs from the attack's inputs "
        "(only misclassified ones if they belong to a class). Detected at 1, 2, 5 %: rejected at that false-rejection "
        "rate. FPR@95: accepted while 95 % of clean inputs are. In %, with 95 % intervals (DeLong's for AUROC). Risk: "
        "errors among the 90 % of clean inputs with the highest scores; AURC: the mean risk over all coverages. "
        "An input without a valid output counts as accepted at any threshold. Blank for searches of accepted inputs: they "
        "stop just past the model's own threshold, so a stricter one rejects inputs that the same search would move "
        "farther. Run these attacks with another percentile=P of the model."
    )
    rows, facts = [], []
    for cell in group:
        areas, rates, risk = _score_metrics(cell)
        areas_shown = [_area_cell(area) for area in areas.values()]
        rates_shown = [rate_cell(rate, interval(rate)) for rate in rates.values()]
        rows.append(
            (*_cell_columns(cell), *areas_shown, *rates_shown, TableCell(format_number(100 * risk)))
        )
        about = {**identity_facts(cell), **_area_facts(areas)}
        facts.append({**about, **rate_facts(rates, interval), "aurc": risk})
    columns = (
        *(*CELL_COLUMNS, "AUROC", "AUPR"),
        *(f"Detected at {100 * share:g} %" for share in FALSE_REJECTION_RATES.values()),
        *("FPR@95", "Risk at 90 %", "AURC"),
    )
    return _rejection_table(
        "detection", "Quality of the score", CellGroup.of(group[0]), caption, (facts, columns, rows)
    )


def _score_metrics(
    cell: FinishedCell,
) -> tuple[dict[str, AreaUnderCurve | None], dict[str, Rate], float]:
    clean, to_reject = clean_scores(cell), scores_to_reject(cell)
    areas: dict[str, AreaUnderCurve | None] = {"auroc": None, "aupr": None}
    rates = dict.fromkeys((*FALSE_REJECTION_RATES, "fpr_at_95"), Rate(0, 0))
    if not knows_thresholds(cell):
        areas = {"auroc": auroc(clean, to_reject), "aupr": aupr(clean, to_reject)}
        for name, share in FALSE_REJECTION_RATES.items():
            rates[name] = detection_at(clean, to_reject, share)
        rates["fpr_at_95"] = fpr_at(clean, to_reject)
    curve = selective_clean(cell).curve
    rates["risk_at_90"] = curve.at(0.9)
    return areas, rates, curve.area


def _cell_columns(cell: FinishedCell) -> tuple[TableCell, ...]:
    goal = cell.goal
    wanted = GOAL_TEXTS.get(goal, goal)
    if not cell.threat.no_class:
        wanted = f"{wanted}, {budget_of(cell)}"
    return (
        TableCell(cell.model_label, tone="name"),
        TableCell(cell.attack_label, f"goal: {wanted}", tone="name"),
        TableCell(f"{len(cell.records):,}"),
    )


def _area_cell(area: AreaUnderCurve | None) -> TableCell:
    if area is None:
        return BLANK
    low, high = 100 * area.interval.low, 100 * area.interval.high
    return TableCell(f"{100 * area.value:.1f}", f"{low:.1f}–{high:.1f}", area.value)


def _area_facts(areas: Mapping[str, AreaUnderCurve | None]) -> dict[str, float]:
    facts: dict[str, float] = {}
    for name, area in areas.items():
        ends = (area.interval.low, area.interval.high) if area else (nan, nan)
        facts |= {
            name: area.value if area else nan,
            f"{name}_low": ends[0],
            f"{name}_high": ends[1],
        }
    return facts


def _rejection_table(
    kind: str,
    title: str,
    panel: CellGroup,
    caption: str,
    content: tuple[list[dict[str, Any]], Sequence[str], list[tuple[TableCell, ...]]],
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


RISK_COLUMNS, RISK_WIDTH, RISK_HEIGHT = 3, 3.6, 2.8
"""Panels side by side, and inches of each: together as wide as the page."""

RISK_POINTS = 240
"""Coverages at which a curve is drawn; more cannot be distinguished on paper."""

MIN_COVERAGE = 0.1
"""Coverage from which a curve is steady enough to decide how high the axes reach."""

RISK_CAPTION = (
    "Errors among accepted inputs, with their 95 % interval, against the share of accepted inputs. Inputs are ranked by the "
    "score minus the threshold of the predicted class. The dot is the model at its own threshold. The curve of a good score "
    "approaches 0 on the left. AURC: the mean over all coverages. Attacked: the attack's last inputs, failures included. A "
    "detector-aware attack has a dot alone: it stops just past that threshold, and would go farther for a stricter one."
)


@dataclass(frozen=True)
class RiskCurve:
    """One curve with its label, colour and line style; ``only_dot`` if only the model's own threshold counts."""

    selective: SelectiveAccuracy
    label: str
    colour: str
    style: int = 0
    only_dot: bool = False

    @property
    def area(self) -> str:
        """AURC and the area under it in per cent; empty without a curve."""
        found = format_number(100 * self.selective.curve.area)
        return "" if self.only_dot else f"AURC {found} %"


def draw_risk(
    cells: Sequence[FinishedCell], colour: Callable[[str], str], interval: IntervalOf
) -> Iterable[ReportFigure]:
    """Yield one figure for each data set: clean inputs of all models with a reject option, then each model attacked.

    Args:
        cells: of any models; those without scores and a reject option are skipped.
        colour: of a model.
        interval: of a share.

    References:
        Geifman and El-Yaniv, Selective classification for deep neural networks, NeurIPS 2017.
    """
    for dataset, group in rejecting_cells([c for c in cells if has_scores(c)]).items():
        panels = {"Clean inputs": _clean_curves(group, colour), **_attacked_curves(group, colour)}
        figure, axes = grid(len(panels), RISK_COLUMNS, RISK_WIDTH, RISK_HEIGHT)
        for ax, (title, lines) in zip(axes, panels.items(), strict=True):
            _draw_risk_panel(ax, title, lines, interval)
        for ax in axes[::RISK_COLUMNS]:
            ax.set_ylabel("errors among accepted, %")
        title = f"Risk and coverage: {dataset_title(group[0].dataset.name)}"
        descriptions = (
            f"{name}: {_describe_risk(line)}" for name, lines in panels.items() for line in lines
        )
        yield ReportFigure(
            slug(f"risk-{dataset}"), title, RISK_CAPTION, " ".join(descriptions), render(figure)
        )


def _clean_curves(group: Sequence[FinishedCell], colour: Callable[[str], str]) -> list[RiskCurve]:
    """Return the curve of each model, from the cell with most inputs."""
    widest: dict[str, FinishedCell] = {}
    for cell in group:
        if cell.model_label not in widest or len(cell.records) > len(
            widest[cell.model_label].records
        ):
            widest[cell.model_label] = cell
    return [
        RiskCurve(selective_clean(c), c.model_label, colour(name)) for name, c in widest.items()
    ]


def _attacked_curves(
    group: Sequence[FinishedCell], colour: Callable[[str], str]
) -> dict[str, list[RiskCurve]]:
    """Return the curves of each model under attacks whose goal is misclassification."""
    found: dict[str, list[RiskCurve]] = {}
    for cell in group:
        if cell.goal.startswith("misclassify"):
            lines = found.setdefault(f"{shorten(cell.model_label, 26)}, attacked", [])
            aware = knows_thresholds(cell)
            label = f"{cell.attack_label}{' (detector-aware)' if aware else ''}"
            selective = selective_adversarial(cell)
            lines.append(RiskCurve(selective, label, colour(cell.model_label), len(lines), aware))
    return found


def _draw_risk_panel(
    axes: Axes, title: str, lines: Sequence[RiskCurve], interval: IntervalOf
) -> None:
    tops = [_draw_risk_curve(axes, line, interval) for line in lines]
    axes.set_title(title)
    axes.set_xlabel("accepted, % of inputs")
    axes.set_xlim(0, 101)
    axes.set_ylim(0, min(101.0, 1.15 * max([*tops, 0.1])))
    axes.legend(handlelength=1.4, loc="best").set_in_layout(False)


def _draw_risk_curve(axes: Axes, line: RiskCurve, interval: IntervalOf) -> float:
    """Draw a curve, its band and the model's own threshold; return the height that the axes need."""
    curve, place = line.selective.curve, line.selective
    mark = MARKERS[line.style % len(MARKERS)]
    if line.only_dot:
        return _draw_dot(axes, line, mark, interval)
    n = len(curve.risk)
    counts = np.unique(np.linspace(1, n, min(n, RISK_POINTS)).round().astype(int))
    rates = [Rate(round(float(curve.risk[k - 1]) * k), int(k)) for k in counts]
    bounds = [interval(rate) for rate in rates]
    x, high = 100 * counts / n, [100 * b.high for b in bounds]
    axes.fill_between(x, [100 * b.low for b in bounds], high, color=line.colour, alpha=0.14, lw=0)
    axes.plot(
        x,
        [100 * rate.value for rate in rates],
        color=line.colour,
        linestyle=DASHES[line.style % len(DASHES)],
        label=f"{shorten(line.label, 28)}: {line.area}",
    )
    if place.risk.trials:
        at = 100 * place.coverage.value, 100 * place.risk.value
        axes.plot(*at, mark, color=line.colour, markeredgecolor=INK, markersize=5, zorder=3)
    settled = [100 * rate.value for rate in rates if rate.trials >= MIN_COVERAGE * n]
    return max([*settled, high[-1]])


def _draw_dot(axes: Axes, line: RiskCurve, mark: str, interval: IntervalOf) -> float:
    """Draw the model's own threshold alone, with the interval of its risk; return the height that the axes need."""
    place, bounds = line.selective, interval(line.selective.risk)
    accepted = bool(place.risk.trials)
    x, y = ([100 * place.coverage.value], [100 * place.risk.value]) if accepted else ([], [])
    axes.plot(
        *(x, y, mark),
        color=line.colour,
        markeredgecolor=INK,
        markersize=5,
        label=shorten(line.label, 28),
        zorder=3,
    )
    if not accepted:
        return 0.0
    axes.vlines(x, 100 * bounds.low, 100 * bounds.high, colors=line.colour)
    return 100 * bounds.high


def _describe_risk(line: RiskCurve) -> str:
    place = line.selective
    own = (
        "none accepted"
        if not place.risk.trials
        else f"{place.risk.value:.2%} of these misclassified"
    )
    name = ", ".join(filter(None, (line.label, line.area)))
    return f"{name}; {place.coverage.value:.1%} accepted, {own}."
