"""The figure of a reproduction: accuracy against eps for every model, as published and adaptive."""

from collections.abc import Collection, Iterator, Mapping, Sequence
from dataclasses import dataclass
from itertools import groupby
from typing import Any

import pandas as pd
from matplotlib.axes import Axes
from matplotlib.figure import Figure
from matplotlib.lines import Line2D

from robustbench_inv.catalogue.reproduction import Column, CurvePanel, Side
from robustbench_inv.reporting.canvas import MUTED, ReportFigure, grid, label_axes, render, styled
from robustbench_inv.reporting.facts import rate_facts
from robustbench_inv.reporting.figures import draw_curve, rates_curve
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
"""Panels side by side, and inches of each: together as wide as the page."""

SIDES: dict[Side, str] = {"published": "as published", "adaptive": "adaptive"}

BOTH_SIDES_CAPTION = (
    " Solid: the attack as published. Dashed: the strongest, for each sample, of everything that was run on the "
    "same network."
)

ZERO_GRADIENT_CAPTION = (
    " No gradient: the share of attacked samples of which every gradient was zero that the attack as published took, "
    "so that what is left there is left by the loss, not by the network."
)

MIN_ZERO_GRADIENT_SHARE = 0.01
"""Share without a gradient from which on the figure tells it."""

STYLES: dict[Side, dict[str, Any]] = {
    "published": {"linestyle": "-", "marker": "o", "markersize": 2.6},
    "adaptive": {"linestyle": (0, (3.2, 1.6)), "marker": None},
}


@dataclass(frozen=True)
class AccuracyCurve:
    """One line of the figure.

    Args:
        data: the item's data set.
        panel: where it is drawn.
        column: of which model.
        side: as published or adaptive.
        rates: what is left at each eps, ascending from 0.
        zero_gradient: for which share of the attacked samples every gradient was zero; no trials where none was taken.
    """

    data: str
    panel: CurvePanel
    column: Column
    side: Side
    rates: Mapping[float, Rate]
    zero_gradient: Rate


def accuracy_curves(evidence: ReproductionOutcomes) -> list[AccuracyCurve]:
    """Return every line for which there are records, panel by panel."""
    item = evidence.item
    places = [
        (data, panel, column, side)
        for data in evidence.places
        for panel in item.panels
        for column in item.columns
        for side in SIDES
    ]
    lines = [
        AccuracyCurve(*place, _rates(evidence, *place), _zero_gradient_rate(evidence, *place))
        for place in places
    ]
    return [line for line in lines if all(rate.trials for rate in line.rates.values())]


def draw_panels(
    evidence: ReproductionOutcomes, lines: Sequence[AccuracyCurve], colours: Mapping[str, str]
) -> list[ReportFigure]:
    """Return one picture for each data set.

    Args:
        evidence: what was measured.
        lines: as ``accuracy_curves`` returns them.
        colours: of the columns, by name.
    """
    with styled():
        return [
            _panel_figure(evidence, data, list(group), colours)
            for data, group in groupby(lines, key=lambda line: line.data)
        ]


def curves_frame(evidence: ReproductionOutcomes, lines: Sequence[AccuracyCurve]) -> pd.DataFrame:
    """Return the points of every line, one a row."""
    return pd.DataFrame(
        {
            "dataset": evidence.places[line.data],
            "panel": line.panel.title,
            "column": line.column.name,
            "numbers": line.side,
            "eps": eps,
            "samples": rate.trials,
            **rate_facts({"accuracy": rate}, wilson),
            "no_gradient": line.zero_gradient.value,
        }
        for line in lines
        for eps, rate in line.rates.items()
    )


def curves_table(evidence: ReproductionOutcomes, lines: Sequence[AccuracyCurve]) -> Table:
    """Return where each line falls below one half."""
    caption = (
        "The smallest ε of the figure at which less than half is left; > where half holds throughout. No gradient: "
        "attacked samples of which every gradient was zero that the attack took. The CSV has every point of the figure."
    )
    places = dict.fromkeys((line.data, line.panel, line.column) for line in lines)
    known = {(line.data, line.panel, line.column, line.side): line for line in lines}
    rows = tuple(
        (
            TableCell(evidence.places[data], tone="name"),
            TableCell(panel.title, tone="name"),
            TableCell(column.name, tone="name"),
            *(_half_broken_cell(known.get((data, panel, column, side))) for side in SIDES),
            *(_zero_gradient_cell(known.get((data, panel, column, side))) for side in SIDES),
        )
        for data, panel, column in places
    )
    told = [name.capitalize() for name in SIDES.values()]
    heading = (
        "Data",
        "CurvePanel",
        "Model",
        *told,
        *(f"No gradient, {name}" for name in SIDES.values()),
    )
    frame = curves_frame(evidence, lines)
    return Table("curves", "Where half has fallen", caption, frame, heading, rows)


def _rates(
    evidence: ReproductionOutcomes, data: str, panel: CurvePanel, column: Column, side: Side
) -> dict[float, Rate]:
    levels = (0.0, *evidence.item.sweep(evidence.item.trial(panel.trial)))
    return {eps: rate_of(evidence.held(side, panel, column, data, eps)) for eps in levels}


def _zero_gradient_rate(
    evidence: ReproductionOutcomes, data: str, panel: CurvePanel, column: Column, side: Side
) -> Rate:
    return rate_of(evidence.zero_gradient(side, panel, column, data))


def _panel_figure(
    evidence: ReproductionOutcomes,
    data: str,
    lines: Sequence[AccuracyCurve],
    colours: Mapping[str, str],
) -> ReportFigure:
    item, place = evidence.item, evidence.places[data]
    figure, axes = grid(len(item.panels), PANEL_COLUMNS, PANEL_WIDTH, PANEL_HEIGHT)
    for i, (ax, panel) in enumerate(zip(axes, item.panels, strict=True)):
        trial = item.trial(panel.trial)
        label_axes(ax, panel.title, f"ε in {_norm_of_threat(item.threats(trial, data)[0])}")
        ax.set_xlim(0, max(item.sweep(trial)))
        ax.set_ylabel("accuracy in %" if i % PANEL_COLUMNS == 0 else "")
        for line in (line for line in lines if line.panel == panel):
            curve = rates_curve(tuple(line.rates), list(line.rates.values()), wilson)
            draw_curve(ax, curve, colours[line.column.name], STYLES[line.side])
        _write_zero_gradient(ax, [line for line in lines if line.panel == panel], colours)
    sides = {line.side for line in lines}
    _legend(figure, colours, sides)
    return ReportFigure(
        slug(f"panels-{place}"),
        f"Accuracy against ε: {place}",
        "Accuracy that is left as the budget grows, with its 95 % interval."
        + (BOTH_SIDES_CAPTION if len(sides) > 1 else "")
        + (ZERO_GRADIENT_CAPTION if any(map(_often_zero_gradient, lines)) else ""),
        " ".join(_describe_curves(lines)),
        render(figure),
    )


def _norm_of_threat(threat: str) -> str:
    return norm_symbol(threat.partition("=")[0])


def _legend(figure: Figure, colours: Mapping[str, str], sides: Collection[Side]) -> None:
    models = [Line2D([], [], color=colour, label=name) for name, colour in colours.items()]
    kinds = [
        Line2D([], [], color=MUTED, label=label, **{**STYLES[side], "marker": None})
        for side, label in SIDES.items()
        if len(sides) > 1
    ]
    figure.legend(handles=[*models, *kinds], loc="outside lower center", ncols=8, handlelength=2.2)


def _describe_curves(lines: Sequence[AccuracyCurve]) -> Iterator[str]:
    for line in lines:
        eps, rate = max(line.rates.items())
        told = f"{100 * rate.value:.1f} % left at {format_number(eps)}."
        yield f"{line.panel.title}, {line.column.name}, {SIDES[line.side]}: {told}"


def _often_zero_gradient(line: AccuracyCurve) -> bool:
    return (
        line.side == "published"
        and line.zero_gradient.trials > 0
        and line.zero_gradient.value >= MIN_ZERO_GRADIENT_SHARE
    )


def _write_zero_gradient(
    ax: Axes, lines: Sequence[AccuracyCurve], colours: Mapping[str, str]
) -> None:
    """Write above a panel for which models gradients were zero, and for how many samples."""
    for row, line in enumerate(filter(_often_zero_gradient, lines)):
        told = f"no gradient: {100 * line.zero_gradient.value:.0f} %"
        place: dict[str, Any] = {"transform": ax.transAxes, "ha": "right", "fontsize": 7.5}
        ax.text(1.0, 1.03 + 0.07 * row, told, color=colours[line.column.name], **place)


def _zero_gradient_cell(line: AccuracyCurve | None) -> TableCell:
    return (
        rate_cell(line.zero_gradient, wilson(line.zero_gradient))
        if line and line.zero_gradient.trials
        else BLANK
    )


def _half_broken_cell(line: AccuracyCurve | None) -> TableCell:
    if line is None:
        return BLANK
    below = [eps for eps, rate in line.rates.items() if rate.value < 0.5]
    return TableCell(format_number(min(below)) if below else f"> {format_number(max(line.rates))}")
