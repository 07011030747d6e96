"""The figure of a reproduction: accuracy against eps for every model, as published and adaptive."""

from collections.abc import Collection, Iterator, Mapping, Sequence
from dataclasses import dataclass
from itertools import groupby
from typing import Any

import pandas as pd
from matplotlib.axes import Axes
from matplotlib.figure import Figure
from matplotlib.lines import Line2D

from robustbench_inv.catalogue.reproduction import Column, Panel, Side
from robustbench_inv.reporting.canvas import MUTED, Picture, grid, label_axes, render, styled
from robustbench_inv.reporting.cells import norm_sign
from robustbench_inv.reporting.curves import rates_curve
from robustbench_inv.reporting.exports import EMPTY, Shown, Table, number, show_rate, slug
from robustbench_inv.reporting.facts import rate_facts
from robustbench_inv.reporting.figures import draw_curve
from robustbench_inv.reporting.reproduction.evidence import Evidence, rate_of
from robustbench_inv.reporting.statistics import wilson
from robustbench_inv.results.summary import Rate

__all__ = ["Line", "curves_frame", "curves_table", "draw_panels", "trace_lines"]

ABREAST, WIDTH, HEIGHT = 3, 3.6, 2.6
"""Panels side by side, and inches of each: together as wide as the page."""

SIDES: dict[Side, str] = {"published": "as published", "adaptive": "adaptive"}

BOTH = (
    " Solid: the attack as published. Dashed: the strongest, for each sample, of everything that was run on the "
    "same network."
)

BLIND = (
    " No gradient: the share of attacked samples of which every gradient was zero that the attack as published took, "
    "so that what is left there is left by the loss, not by the network."
)

OFTEN = 0.01
"""Share without a gradient from which on the figure tells it."""

STYLES: dict[Side, dict[str, Any]] = {
    "published": {"linestyle": "-", "marker": "o", "markersize": 2.6},
    "adaptive": {"linestyle": (0, (3.2, 1.6)), "marker": None},
}


@dataclass(frozen=True)
class Line:
    """One line of the figure.

    Args:
        data: the item's data set.
        panel: where it is drawn.
        column: of which model.
        side: as published or adaptive.
        rates: what is left at each eps, ascending from 0.
        blind: for which share of the attacked samples every gradient was zero; no trials where none was taken.
    """

    data: str
    panel: Panel
    column: Column
    side: Side
    rates: Mapping[float, Rate]
    blind: Rate


def trace_lines(evidence: Evidence) -> list[Line]:
    """Return every line for which there are records, panel by panel."""
    item = evidence.item
    places = [
        (data, panel, column, side)
        for data in evidence.places
        for panel in item.panels
        for column in item.columns
        for side in SIDES
    ]
    lines = [Line(*place, _rates(evidence, *place), _blind(evidence, *place)) for place in places]
    return [line for line in lines if all(rate.trials for rate in line.rates.values())]


def draw_panels(
    evidence: Evidence, lines: Sequence[Line], colours: Mapping[str, str]
) -> list[Picture]:
    """Return one picture for each data set.

    Args:
        evidence: what was measured.
        lines: as ``trace_lines`` returns them.
        colours: of the columns, by name.
    """
    with styled():
        return [
            _picture(evidence, data, list(group), colours)
            for data, group in groupby(lines, key=lambda line: line.data)
        ]


def curves_frame(evidence: Evidence, lines: Sequence[Line]) -> pd.DataFrame:
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
            "no_gradient": line.blind.value,
        }
        for line in lines
        for eps, rate in line.rates.items()
    )


def curves_table(evidence: Evidence, lines: Sequence[Line]) -> Table:
    """Return where each line falls below one half."""
    caption = (
        "The smallest ε of the figure at which less than half is left; > where half holds throughout. No gradient: "
        "attacked samples of which every gradient was zero that the attack took. The CSV has every point of the figure."
    )
    places = dict.fromkeys((line.data, line.panel, line.column) for line in lines)
    known = {(line.data, line.panel, line.column, line.side): line for line in lines}
    rows = tuple(
        (
            Shown(evidence.places[data], tone="name"),
            Shown(panel.title, tone="name"),
            Shown(column.name, tone="name"),
            *(_half(known.get((data, panel, column, side))) for side in SIDES),
            *(_no_gradient(known.get((data, panel, column, side))) for side in SIDES),
        )
        for data, panel, column in places
    )
    told = [name.capitalize() for name in SIDES.values()]
    heading = (
        "Data",
        "Panel",
        "Model",
        *told,
        *(f"No gradient, {name}" for name in SIDES.values()),
    )
    frame = curves_frame(evidence, lines)
    return Table("curves", "Where half has fallen", caption, frame, heading, rows)


def _rates(
    evidence: Evidence, data: str, panel: Panel, column: Column, side: Side
) -> dict[float, Rate]:
    levels = (0.0, *evidence.item.sweep(evidence.item.trial(panel.trial)))
    return {eps: rate_of(evidence.held(side, panel, column, data, eps)) for eps in levels}


def _blind(evidence: Evidence, data: str, panel: Panel, column: Column, side: Side) -> Rate:
    return rate_of(evidence.blind(side, panel, column, data))


def _picture(
    evidence: Evidence, data: str, lines: Sequence[Line], colours: Mapping[str, str]
) -> Picture:
    item, place = evidence.item, evidence.places[data]
    figure, axes = grid(len(item.panels), ABREAST, WIDTH, HEIGHT)
    for i, (ax, panel) in enumerate(zip(axes, item.panels, strict=True)):
        trial = item.trial(panel.trial)
        label_axes(ax, panel.title, f"ε in {_norm(item.threats(trial, data)[0])}")
        ax.set_xlim(0, max(item.sweep(trial)))
        ax.set_ylabel("accuracy in %" if i % ABREAST == 0 else "")
        for line in (line for line in lines if line.panel == panel):
            curve = rates_curve(tuple(line.rates), list(line.rates.values()), wilson)
            draw_curve(ax, curve, colours[line.column.name], STYLES[line.side])
        _tell_blind(ax, [line for line in lines if line.panel == panel], colours)
    sides = {line.side for line in lines}
    _legend(figure, colours, sides)
    return Picture(
        slug(f"panels-{place}"),
        f"Accuracy against ε: {place}",
        "Accuracy that is left as the budget grows, with its 95 % interval."
        + (BOTH if len(sides) > 1 else "")
        + (BLIND if any(map(_often_blind, lines)) else ""),
        " ".join(_described(lines)),
        render(figure),
    )


def _norm(threat: str) -> str:
    return norm_sign(threat.partition("=")[0])


def _legend(figure: Figure, colours: Mapping[str, str], sides: Collection[Side]) -> None:
    models = [Line2D([], [], color=colour, label=name) for name, colour in colours.items()]
    kinds = [
        Line2D([], [], color=MUTED, label=label, **{**STYLES[side], "marker": None})
        for side, label in SIDES.items()
        if len(sides) > 1
    ]
    figure.legend(handles=[*models, *kinds], loc="outside lower center", ncols=8, handlelength=2.2)


def _described(lines: Sequence[Line]) -> Iterator[str]:
    for line in lines:
        eps, rate = max(line.rates.items())
        told = f"{100 * rate.value:.1f} % left at {number(eps)}."
        yield f"{line.panel.title}, {line.column.name}, {SIDES[line.side]}: {told}"


def _often_blind(line: Line) -> bool:
    return line.side == "published" and line.blind.trials > 0 and line.blind.value >= OFTEN


def _tell_blind(ax: Axes, lines: Sequence[Line], colours: Mapping[str, str]) -> None:
    """Write above a panel for which models gradients were zero, and for how many samples."""
    for row, line in enumerate(filter(_often_blind, lines)):
        told = f"no gradient: {100 * line.blind.value:.0f} %"
        place: dict[str, Any] = {"transform": ax.transAxes, "ha": "right", "fontsize": 7.5}
        ax.text(1.0, 1.03 + 0.07 * row, told, color=colours[line.column.name], **place)


def _no_gradient(line: Line | None) -> Shown:
    return show_rate(line.blind, wilson(line.blind)) if line and line.blind.trials else EMPTY


def _half(line: Line | None) -> Shown:
    if line is None:
        return EMPTY
    below = [eps for eps, rate in line.rates.items() if rate.value < 0.5]
    return Shown(number(min(below)) if below else f"> {number(max(line.rates))}")
