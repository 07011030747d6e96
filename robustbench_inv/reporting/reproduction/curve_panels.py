"""The figure of a reproduction: robust accuracy against eps for every model, as published and adaptive."""

from collections.abc import Collection, Iterator, Mapping, Sequence
from dataclasses import dataclass
from itertools import groupby
from typing import Any

import numpy as np
import pandas as pd
from matplotlib.axes import Axes
from matplotlib.figure import Figure
from matplotlib.lines import Line2D

from robustbench_inv.catalogue.reproduction import Column, CurvePanel, Side
from robustbench_inv.catalogue.threats import load_threat
from robustbench_inv.reporting.canvas import MUTED, ReportFigure, grid, label_axes, render, styled
from robustbench_inv.reporting.curves import CERTIFIED_STYLE, draw_curve, rates_curve
from robustbench_inv.reporting.facts import rate_facts
from robustbench_inv.reporting.reproduction.outcomes import ReproductionOutcomes, rate_of
from robustbench_inv.reporting.statistics import wilson
from robustbench_inv.reporting.table_formats import (
    BLANK,
    Table,
    TableCell,
    format_number,
    norm_symbol,
    rate_cell,
    slug,
)
from robustbench_inv.results.summary import Rate

__all__ = ["AccuracyCurve", "accuracy_curves", "curves_frame", "curves_table", "draw_panels"]


PANEL_COLUMNS, PANEL_WIDTH, PANEL_HEIGHT = 3, 3.6, 2.6
"""Panels in a row, and the size of each in inches; a row fills the width of the page."""

SIDES: dict[Side, str] = {"published": "as published", "adaptive": "adaptive"}

BOTH_SIDES_CAPTION = " Solid: the attack as published. Dashed: the worst case over all attacks that were run on the same network."

CERTIFIED_CAPTION = (
    " Dotted: the share of samples that are proven robust, a lower bound of the robust accuracy."
)

ZERO_GRADIENT_CAPTION = (
    " No gradient: the share of attacked samples for which every gradient of the published attack was zero. There the "
    "attack failed because its loss is flat, not because the network is robust."
)

MIN_ZERO_GRADIENT_SHARE = 0.01
"""The figure reports the share of samples with zero gradients from this value on."""

STYLES: dict[Side, dict[str, Any]] = {
    "published": {"linestyle": "-", "marker": "o", "markersize": 2.6},
    "adaptive": {"linestyle": (0, (3.2, 1.6)), "marker": None},
}


@dataclass(frozen=True)
class AccuracyCurve:
    """One curve of the figure.

    Args:
        data: data set of the item.
        panel: panel in which it is drawn.
        column: its model.
        side: as published or adaptive.
        rates: robust accuracy at each eps, ascending from 0.
        zero_gradient: share of attacked samples for which every gradient was zero; no trials if no gradient was taken.
        certified: certified accuracy at each eps; no trials without certificates.
    """

    data: str
    panel: CurvePanel
    column: Column
    side: Side
    rates: Mapping[float, Rate]
    zero_gradient: Rate
    certified: Mapping[float, Rate]


def accuracy_curves(outcomes: ReproductionOutcomes) -> list[AccuracyCurve]:
    """Return every curve for which there are records, panel by panel."""
    item = outcomes.item
    places = [
        (data, panel, column, side)
        for data in outcomes.dataset_names
        for panel in item.panels
        for column in item.columns
        for side in SIDES
    ]
    curves = [
        AccuracyCurve(
            *place,
            _rates(outcomes, *place),
            _zero_gradient_rate(outcomes, *place),
            _certified_rates(outcomes, *place[:3]),
        )
        for place in places
    ]
    return [curve for curve in curves if all(rate.trials for rate in curve.rates.values())]


def draw_panels(
    outcomes: ReproductionOutcomes, curves: Sequence[AccuracyCurve], colours: Mapping[str, str]
) -> list[ReportFigure]:
    """Return one figure for each data set.

    Args:
        outcomes: of the item.
        curves: as ``accuracy_curves`` returns them.
        colours: by name of the column.
    """
    with styled():
        return [
            _panel_figure(outcomes, data, list(group), colours)
            for data, group in groupby(curves, key=lambda curve: curve.data)
        ]


def curves_frame(outcomes: ReproductionOutcomes, curves: Sequence[AccuracyCurve]) -> pd.DataFrame:
    """Return the points of every curve, one a row."""
    proven = any(map(_is_certified, curves))
    return pd.DataFrame(
        {
            "dataset": outcomes.dataset_names[curve.data],
            "panel": curve.panel.title,
            "column": curve.column.name,
            "side": curve.side,
            "eps": eps,
            "samples": rate.trials,
            **rate_facts({"accuracy": rate}, wilson),
            **(rate_facts({"certified": curve.certified[eps]}, wilson) if proven else {}),
            "zero_gradient": curve.zero_gradient.value,
        }
        for curve in curves
        for eps, rate in curve.rates.items()
    )


def curves_table(outcomes: ReproductionOutcomes, curves: Sequence[AccuracyCurve]) -> Table:
    """Return the eps at which each curve falls below one half."""
    caption = (
        "The smallest ε of the figure at which robust accuracy is below one half; > if it is above throughout. No "
        "gradient: share of attacked samples for which every gradient was zero. The CSV file has every point of the figure."
    )
    places = dict.fromkeys((curve.data, curve.panel, curve.column) for curve in curves)
    known = {(curve.data, curve.panel, curve.column, curve.side): curve for curve in curves}
    rows = tuple(
        (
            TableCell(outcomes.dataset_names[data], tone="name"),
            TableCell(panel.title, tone="name"),
            TableCell(column.name, tone="name"),
            *(_half_broken_cell(known.get((data, panel, column, side))) for side in SIDES),
            *(_zero_gradient_cell(known.get((data, panel, column, side))) for side in SIDES),
        )
        for data, panel, column in places
    )
    headings = [name.capitalize() for name in SIDES.values()]
    heading = (
        "Data set",
        "Panel",
        "Model",
        *headings,
        *(f"No gradient, {name}" for name in SIDES.values()),
    )
    frame = curves_frame(outcomes, curves)
    return Table(
        "curves", "Where robust accuracy falls below one half", caption, frame, heading, rows
    )


UNSWEPT_LEVELS = 40
"""Number of eps above 0 of a panel whose attack ran without a budget, up to the largest distance that it found."""


def _levels(outcomes: ReproductionOutcomes, panel: CurvePanel) -> tuple[float, ...]:
    """Return the eps of a panel's curves, ascending from 0."""
    item = outcomes.item
    trial = item.trial(panel.trial)
    if sweep := item.sweep(trial):
        return (0.0, *sweep)
    names = {
        str(address)
        for data in outcomes.dataset_names
        for column in item.attacked(trial)
        for address in item.addresses(trial, column, data)
    }
    known = [name for name in outcomes.outcomes if name in names]
    found = outcomes.outcomes[known].to_numpy()
    largest = found[np.isfinite(found)].max(initial=0) or 1.0
    return tuple(float(f"{eps:.3g}") for eps in np.linspace(0, largest, 1 + UNSWEPT_LEVELS))


def _rates(
    outcomes: ReproductionOutcomes, data: str, panel: CurvePanel, column: Column, side: Side
) -> dict[float, Rate]:
    return {
        eps: rate_of(outcomes.robust(panel, column, side, data, eps))
        for eps in _levels(outcomes, panel)
    }


def _certified_rates(
    outcomes: ReproductionOutcomes, data: str, panel: CurvePanel, column: Column
) -> dict[float, Rate]:
    return {
        eps: rate_of(outcomes.certified(panel, column, data, eps))
        for eps in _levels(outcomes, panel)
    }


def _is_certified(curve: AccuracyCurve) -> bool:
    return curve.side == "published" and curve.certified[0.0].trials > 0


def _zero_gradient_rate(
    outcomes: ReproductionOutcomes, data: str, panel: CurvePanel, column: Column, side: Side
) -> Rate:
    return rate_of(outcomes.zero_gradient(panel, column, side, data))


def _panel_figure(
    outcomes: ReproductionOutcomes,
    data: str,
    curves: Sequence[AccuracyCurve],
    colours: Mapping[str, str],
) -> ReportFigure:
    item, dataset = outcomes.item, outcomes.dataset_names[data]
    figure, axes = grid(len(item.panels), PANEL_COLUMNS, PANEL_WIDTH, PANEL_HEIGHT)
    for i, (ax, panel) in enumerate(zip(axes, item.panels, strict=True)):
        trial = item.trial(panel.trial)
        norm = load_threat(item.threats(trial, data)[0]).norm
        label_axes(ax, panel.title, f"ε in {norm_symbol(norm)}")
        ax.set_xlim(0, max(_levels(outcomes, panel)))
        ax.set_ylabel("accuracy in %" if i % PANEL_COLUMNS == 0 else "")
        drawn = [curve for curve in curves if curve.panel == panel]
        for curve in drawn:
            points = rates_curve(tuple(curve.rates), list(curve.rates.values()), wilson)
            draw_curve(ax, points, colours[curve.column.name], STYLES[curve.side])
            if _is_certified(curve):
                least = rates_curve(tuple(curve.certified), list(curve.certified.values()), wilson)
                draw_curve(ax, least, colours[curve.column.name], CERTIFIED_STYLE)
        _write_zero_gradient(ax, drawn, colours)
    sides, proven = {curve.side for curve in curves}, any(map(_is_certified, curves))
    _legend(figure, colours, sides, proven=proven)
    return ReportFigure(
        slug(f"panels-{dataset}"),
        f"Robust accuracy against ε: {dataset}",
        "Robust accuracy as the budget grows, with its 95 % interval."
        + (BOTH_SIDES_CAPTION if len(sides) > 1 else "")
        + (CERTIFIED_CAPTION if proven else "")
        + (ZERO_GRADIENT_CAPTION if any(map(_often_zero_gradient, curves)) else ""),
        " ".join(_describe_curves(curves)),
        render(figure),
    )


def _legend(
    figure: Figure, colours: Mapping[str, str], sides: Collection[Side], *, proven: bool
) -> None:
    models = [Line2D([], [], color=colour, label=name) for name, colour in colours.items()]
    kinds = [
        Line2D([], [], color=MUTED, label=label, **{**STYLES[side], "marker": None})
        for side, label in SIDES.items()
        if len(sides) > 1
    ]
    if proven:
        kinds.append(Line2D([], [], color=MUTED, label="proven robust", linestyle=":"))
    figure.legend(handles=[*models, *kinds], loc="outside lower center", ncols=8, handlelength=2.2)


def _describe_curves(curves: Sequence[AccuracyCurve]) -> Iterator[str]:
    for curve in curves:
        eps, rate = max(curve.rates.items())
        value = f"{100 * rate.value:.1f} % at {format_number(eps)}."
        yield f"{curve.panel.title}, {curve.column.name}, {SIDES[curve.side]}: {value}"


def _often_zero_gradient(curve: AccuracyCurve) -> bool:
    return (
        curve.side == "published"
        and curve.zero_gradient.trials > 0
        and curve.zero_gradient.value >= MIN_ZERO_GRADIENT_SHARE
    )


def _write_zero_gradient(
    ax: Axes, curves: Sequence[AccuracyCurve], colours: Mapping[str, str]
) -> None:
    """Write above a panel the share of samples with zero gradients, once if it is that of every model."""
    found = {
        colours[curve.column.name]: f"no gradient: {100 * curve.zero_gradient.value:.0f} %"
        for curve in filter(_often_zero_gradient, curves)
    }
    models = {curve.column.name for curve in curves}
    if len(found) == len(models) > 1 and len(set(found.values())) == 1:
        found = {MUTED: f"{next(iter(found.values()))} each"}
    for row, (colour, text) in enumerate(found.items()):
        style: dict[str, Any] = {"transform": ax.transAxes, "ha": "right", "fontsize": 7.5}
        ax.text(1.0, 1.03 + 0.07 * row, text, color=colour, **style)


def _zero_gradient_cell(curve: AccuracyCurve | None) -> TableCell:
    return (
        rate_cell(curve.zero_gradient, wilson(curve.zero_gradient))
        if curve and curve.zero_gradient.trials
        else BLANK
    )


def _half_broken_cell(curve: AccuracyCurve | None) -> TableCell:
    if curve is None:
        return BLANK
    below = [eps for eps, rate in curve.rates.items() if rate.value < 0.5]
    return TableCell(format_number(min(below)) if below else f"> {format_number(max(curve.rates))}")
